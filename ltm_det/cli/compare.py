"""Compare mergers: a matrix of backbones, mergers, settings and seeds, from one YAML spec.

Trains, fine-tunes or converts every cell of the matrix that OUT has no row for yet, evaluates it,
counts its backbone, and adds its row; so an interrupted matrix goes on where it stopped. Each run
is a process with one thread. The grammar of the spec stands in ltm_det/studies/comparison.py.
Beside OUT.csv go OUT.md, its tables, OUT.png and OUT_convert.png, AP against cost, and
OUT_intervals.csv: differences of trained detectors, with the 95 % of a bootstrap over seeds and
pictures.

A dense detector that others start from keeps its checkpoint in its folder of the work directory,
BACKBONE-train-dense-1-seedN; one put there from elsewhere, with its logs, is not trained again.
"""

import argparse
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

import torch

from ltm_det.basics.files import whole, write_text
from ltm_det.cli.common import OutputFile, command, new_parser, output_folder
from ltm_det.engine.preflight import PreflightError, check_data
from ltm_det.measure.flops import build_backbone
from ltm_det.measure.machine import machine
from ltm_det.measure.timing import ratios, time_models
from ltm_det.studies import pareto
from ltm_det.studies.comparison import (
    TRAININGS,
    Backbone,
    Cell,
    SpecError,
    folder_of,
    load_spec,
    plan,
)
from ltm_det.studies.comparison_configs import (
    backbone_gmacs,
    conversion_options,
    model_config,
    training_config,
)
from ltm_det.studies.comparison_intervals import write_intervals
from ltm_det.studies.comparison_tables import (
    COLUMNS,
    NOT_MEASURED,
    key_of,
    markdown,
    summaries,
)
from ltm_det.studies.runs import (
    ROOT,
    as_typed,
    commit,
    from_root,
    last_checkpoint,
    last_metrics,
    read_rows,
    run_tool,
    time_left,
    trained,
    write_rows,
)

EXAMPLE = "tools/compare_demo.yaml --jobs 2"

CONVERSIONS = ("convert", "calibrate")
READING = threading.Lock()  # mmengine reads one config at a time


def train(cell: Cell, backbone: Backbone, work_dir: Path) -> dict[str, object]:
    """Trains a cell, unless its folder has just this training; returns its AP, time and command."""
    folder = folder_of(cell.key, work_dir)
    start = None if cell.start is None else start_of(cell, work_dir)
    first = []
    if "images" in cell.options:
        first, start = conversion(cell, backbone, work_dir, folder / "calibrated.pth")
    config = folder / "compare.py"
    second = ["train", from_root(config), "--work-dir", from_root(folder)]
    minutes = NOT_MEASURED
    with READING:
        cfg = training_config(backbone, cell, start, folder)
        there = trained(folder, cfg)
        if not there:
            with whole(config) as part:
                cfg.dump(part)
    if not there:
        minutes = run_tool(first, folder / "convert.txt") if first else 0
        minutes = round(minutes + run_tool(second, folder / "log.txt"), 2)
    command = " && ".join(as_typed(words) for words in (first, second) if words)
    return dict(minutes=minutes, command=command, **last_metrics(folder))


def convert(cell: Cell, backbone: Backbone, work_dir: Path) -> dict[str, object]:
    """Converts and evaluates a cell; returns its AP, time and command."""
    folder = folder_of(cell.key, work_dir)
    first, out = conversion(cell, backbone, work_dir, folder / "converted.pth")
    second = ["test", str(Path(out).with_suffix(".py")), out]
    second += ["--work-dir", from_root(folder / "test")]
    minutes = run_tool(first, folder / "convert.txt") + run_tool(second, folder / "test.txt")
    command = f"{as_typed(first)} && {as_typed(second)}"
    return dict(minutes=round(minutes, 2), command=command, **last_metrics(folder / "test"))


def conversion(cell: Cell, backbone: Backbone, work_dir: Path, out: Path) -> tuple[list[str], str]:
    """The command that converts a cell's dense detector, and what it writes."""
    words = ["convert", backbone.config, start_of(cell, work_dir)]
    words += conversion_options(cell)
    words += ["--out", from_root(out), "--overwrite", "--shape", *map(str, backbone.shape)]
    return words, from_root(out)


def start_of(cell: Cell, work_dir: Path) -> str:
    """The dense checkpoint that a cell starts from, as seen from the repository's root."""
    folder = folder_of(cell.start, work_dir)
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        raise FileNotFoundError(f"the dense detector left no checkpoint in {folder}")
    return from_root(checkpoint)


def run_all(
    todo: Sequence[Cell],
    backbones: Mapping[str, Backbone],
    work_dir: Path,
    jobs: int,
    finish: Callable[[Cell, Mapping[str, object]], str],
) -> int:
    """Runs cells, some at a time, and hands on what came out of each; returns how many failed."""
    started: dict[tuple, Future] = {}

    def run(cell: Cell) -> dict[str, object]:
        if cell.start in started:  # it was submitted before, so it runs or is over
            try:
                started[cell.start].result()
            except Exception as error:
                raise RuntimeError("its dense detector failed") from error
        make = train if cell.mode in TRAININGS else convert
        return make(cell, backbones[cell.backbone], work_dir)

    failed, minutes = 0, {cell.mode: [] for cell in todo}
    pool = ThreadPoolExecutor(jobs)
    try:
        for cell in todo:
            started[cell.key] = pool.submit(run, cell)
        cells = {future: cell for future, cell in zip(started.values(), todo, strict=True)}
        for number, future in enumerate(as_completed(cells), 1):
            cell = cells.pop(future)
            try:
                result = future.result()
            except Exception as error:  # whatever it is, the other cells go on
                failed += 1
                print(f"[{number}/{len(todo)}] {cell.name} FAILED: {error}", flush=True)
                continue
            if result["minutes"] != NOT_MEASURED:
                minutes[cell.mode].append(result["minutes"])
            text = finish(cell, result)
            left = time_left(minutes, [c.mode for c in cells.values()], jobs)
            print(f"[{number}/{len(todo)}] {cell.name}: {text}; {left}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return failed


def measure_times(
    cells: Sequence[Cell], backbones: Mapping[str, Backbone], rounds: int, threads: int, at: str
) -> dict[tuple[str, str], dict[str, object]]:
    """Each distinct backbone's time against the dense one's, at a commit: columns of a row, by
    model."""
    found = {}
    for name, backbone in backbones.items():
        mergers = {model_key(c): c.options.get("merger") for c in cells if c.backbone == name}
        if not mergers:
            continue
        mergers[name, "null"] = None
        models = {k: build_backbone(model_config(backbone, m)) for k, m in mergers.items()}
        print(f"timing {len(models)} backbones of {name}, {rounds} rounds", flush=True)
        times = time_models(models, backbone.time_shape, rounds, threads)
        size = " x ".join(map(str, backbone.time_shape))
        how = f"{name} at {size}, median of {rounds} rounds, batch 1, float32, "
        how += f"{machine('cpu')['cpu']}, {threads} thread{'s' * (threads > 1)}, "
        how += f"torch {torch.__version__}, commit {at}"
        for key, ratio in ratios(times, base=(name, "null")).items():
            quartiles = f"{ratio.lower:.3f} to {ratio.upper:.3f}"
            time_ratio = round(ratio.median, 4)
            found[key] = dict(time_ratio=time_ratio, time_quartiles=quartiles, timing=how)
    return found


def model_key(cell: Cell) -> tuple[str, str]:
    return cell.backbone, json.dumps(cell.options.get("merger"))


def check(todo: Sequence[Cell], backbones: Mapping[str, Backbone]) -> dict[tuple, float]:
    """GMACs of the backbones of cells, and of the dense ones, by model.

    Raises:
        ValueError, PreflightError: A cell cannot be built, trained or converted as it is asked for.
    """
    models = {(name, "null"): None for name in backbones}
    models |= {model_key(cell): cell.options.get("merger") for cell in todo}
    gmacs = {key: backbone_gmacs(backbones[key[0]], merger) for key, merger in models.items()}
    for cell in {(c.mode, *model_key(c), json.dumps(c.options)): c for c in todo}.values():
        if cell.mode in TRAININGS:
            training_config(backbones[cell.backbone], cell)
        if cell.mode not in TRAININGS or "images" in cell.options:
            conversion_options(cell)
    return gmacs


def compare(args: argparse.Namespace) -> int:
    args.work_dir = args.work_dir.absolute()  # the tools run in another folder
    backbones, cells = load_spec(args.spec)
    rows = {key_of(row): row for row in read_rows(args.out)}
    todo = plan(cells, rows, args.work_dir)
    there = sum(cell.key in rows for cell in cells)
    print(f"{len(cells)} cells, {there} are in {args.out}, {len(todo)} runs to do", flush=True)
    for name in {cell.backbone for cell in todo}:
        check_data(model_config(backbones[name], None), "train", "val", "test")
    gmacs = check(todo, backbones)
    settings = dict(jobs=args.jobs, commit=commit())  # before OUT itself differs from the commit
    order = {cell.key: number for number, cell in enumerate(cells)}

    def write() -> None:
        table = sorted(rows.values(), key=lambda row: order.get(key_of(row), len(order)))
        write_rows(args.out, COLUMNS, table)
        write_text(args.out.with_suffix(".md"), markdown(table))

    def finish(cell: Cell, result: Mapping[str, object]) -> str:
        """Adds a row, unless only the checkpoint was gone; returns a word on it."""
        if cell.key in rows:
            return "its checkpoint is there again"
        macs, dense = gmacs[model_key(cell)], gmacs[cell.backbone, "null"]
        row = dict(zip(COLUMNS, cell.key), backbone_gmacs=round(macs, 5))
        row |= dict(of_dense=round(macs / dense, 4), options=json.dumps(cell.options))
        row |= dict.fromkeys(("time_ratio", "time_quartiles", "timing"), NOT_MEASURED)
        box, mask = (100 * result[metric] for metric in ("bbox_mAP", "segm_mAP"))
        origin, took = settings, f"{result['minutes']} min"
        if result["minutes"] == NOT_MEASURED:
            origin, took = dict.fromkeys(settings, "not known"), "found in its folder"
        rows[cell.key] = row | origin | result
        write()
        return f"box AP {box:.1f}, mask AP {mask:.1f}, {took}"

    failed = run_all(todo, backbones, args.work_dir, args.jobs, finish)
    if args.time:
        measured = [cell for cell in cells if cell.key in rows]
        times = measure_times(measured, backbones, args.rounds, args.threads, settings["commit"])
        for cell in measured:
            rows[cell.key] |= times[model_key(cell)]
        write()
    found = summaries(rows.values())
    for ending, panels in (("", [("train",), ("finetune",)]), ("_convert", [CONVERSIONS])):
        path = args.out.with_name(f"{args.out.stem}{ending}.png")
        if pareto.draw(found, panels, path):
            print(f"drawn: {path}")
    if args.draws:
        table = args.out.with_name(f"{args.out.stem}_intervals.csv")
        done = [cell for cell in cells if cell.key in rows]
        write_intervals(table, done, backbones, args.work_dir, args.draws)
    print(f"{len(rows)} rows in {args.out}" + f"; {failed} runs FAILED" * bool(failed))
    return int(failed > 0)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is compared")
    runs = parser.add_argument_group("the runs")
    times = parser.add_argument_group("times")
    out = parser.add_argument_group("what is written")
    of.add_argument("spec", type=Path, help="YAML file, such as tools/compare_demo.yaml")
    table = OutputFile(".csv", beside=[".md", ".png"])
    out.add_argument("--out", type=table, default=str(ROOT / "results/compare.csv"))
    work_dir = str(ROOT / "work_dirs/compare")
    runs.add_argument("--work-dir", type=output_folder, default=work_dir)
    runs.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each")
    times.add_argument("--time", action="store_true", help="measure times at the end, again if so")
    times.add_argument("--rounds", type=int, default=30, help="of --time (default: 30)")
    times.add_argument("--threads", type=int, default=1, help="of --time (default: 1)")
    out.add_argument(
        "--draws", type=int, default=1000, help="of the intervals (default: 1000; 0: none)"
    )
    args = parser.parse_args(words)
    if args.draws < 0:
        parser.error("--draws must be at least 0")
    if min(args.jobs, args.rounds, args.threads) < 1:
        parser.error("--jobs, --rounds and --threads must be at least 1")
    return args


main = command(parse, compare, PreflightError, SpecError)
