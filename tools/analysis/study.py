"""Paired study on the demo data: the same schedule, data and seeds for dense and merged backbones.

Trains every (variant, seed) that OUT has no row for yet, through ltm-det train, and adds a row
with its AP; so an interrupted study goes on where it stopped. Each run uses one thread. Beside
OUT.csv, OUT.md gets the mean and the range over seeds, with the backbone's GMACs. With --bottleneck
also the information bottleneck of every run is measured by ltm-det ib, before and
after training, and goes to OUT_bottleneck.csv; the run's checkpoint must be in the work directory.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import mean

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import ltm_det  # noqa: E402, F401  first: it makes mmdet's models importable

# isort: split
from ltm_det.basics.files import write_text  # noqa: E402
from ltm_det.engine.preflight import load_config  # noqa: E402
from ltm_det.measure.flops import compare  # noqa: E402
from ltm_det.studies.runs import (  # noqa: E402
    METRICS,
    ONE_THREAD,
    as_typed,
    commit,
    last_metrics,
    read_rows,
    run_tool,
    write_rows,
)

SHAPE = (112, 112)  # of the demo's images
DENSE = "configs/demo_swin_maskrcnn.py"
MERGED = "configs/demo_ltm_swin_maskrcnn.py"
VIT = "configs/demo_vit_maskrcnn.py"
LTM_VIT = "configs/demo_ltm_vit_maskrcnn.py"
POOL = "configs/demo_pool_swin_maskrcnn.py"
POOL_VIT = "configs/demo_pool_vit_maskrcnn.py"
BOTTLENECK = "configs/demo_ltm_swin_ib_maskrcnn.py"
# LTM as the paper has it, which most variants are of: the mask's learned step alone.
PAPER = "".join(
    f"model.backbone.merger.{option} "
    for option in ("affinity=0", "detail=0", "proportional=False")
)
# Name of a variant: its config and what is changed in it, in --cfg-options grammar.
VARIANTS = {
    "dense": (DENSE, ""),
    "pool": (POOL, ""),
    "ltm": (MERGED, ""),
    "ltm_stage_soft": (MERGED, PAPER + "model.backbone.merger.mask=soft"),
    "ltm_stage_hard": (MERGED, PAPER + "model.backbone.merger.mask=hard"),
    "ltm_stage_hard_soft": (MERGED, PAPER + "model.backbone.merger.mask=hard_soft"),
    "ltm_block_soft": (MERGED, PAPER + "model.backbone.merger.scope=block"),
    "ltm_ib_0.1": (BOTTLENECK, PAPER + "custom_hooks.0.weight=0.1"),
    "ltm_ib_1": (BOTTLENECK, PAPER + "custom_hooks.0.weight=1.0"),
    "ltm_ib_1_deep": (
        BOTTLENECK,
        PAPER + "custom_hooks.0.weight=1.0 custom_hooks.0.points=[stages.2.blocks.2]",
    ),
    "ltm_gradient": (
        BOTTLENECK,
        PAPER + "custom_hooks.0.weight=0 model.backbone.merger.update=gradient",
    ),
    "vit_dense": (VIT, ""),
    "vit_pool": (POOL_VIT, ""),
    "vit_ltm": (LTM_VIT, ""),
    "vit_ltm_soft": (LTM_VIT, PAPER + "model.backbone.merger.mask=soft"),
}
# For a variant without mask modules: the config that says where its bottleneck is to be measured,
# and what is to be built there in the place of LTM.
TWINS = {
    DENSE: (MERGED, "dense"),
    VIT: (LTM_VIT, "dense"),
    POOL: (MERGED, "pool"),
    POOL_VIT: (LTM_VIT, "pool"),
}
COLUMNS = ("variant", "seed", *METRICS, "minutes", "jobs", "commit", "command")
BETAS = ("10", "inf")
IMAGES = {"val": 250, "train": 1000}  # of the demo data's 250 and 2000
IB_VALUES = ("ib", "information_x", "information_y", "bound", "input_term", "softness", "samples")
IB_COLUMNS = ("variant", "seed", "split", "beta", "trained", "point", *IB_VALUES)
IB_COLUMNS += ("commit", "command")


def train(variant: str, seed: int, work_dir: Path, extra: str) -> dict[str, object]:
    """Trains and evaluates one run, in a folder below ``work_dir``; returns its row."""
    config, changes = VARIANTS[variant]
    work_dir = work_dir / f"{variant}_seed{seed}"
    command = ["train", config, "--work-dir", str(work_dir), "--cfg-options"]
    command += [f"randomness.seed={seed}", *changes.split(), *extra.split()]
    work_dir = ROOT / work_dir
    minutes = run_tool(command, work_dir / "log.txt")
    row = dict(variant=variant, seed=seed, minutes=minutes, command=as_typed(command))
    return row | last_metrics(work_dir)


def measure_bottleneck(
    variant: str, seed: int, work_dir: Path, extra: str
) -> list[dict[str, object]]:
    """The information bottleneck of one trained run, a row for each split, beta and merge point."""
    config, changes = VARIANTS[variant]
    config, kind = TWINS.get(config, (config, "merged"))
    work_dir = work_dir / f"{variant}_seed{seed}"
    checkpoint = (ROOT / work_dir / "last_checkpoint").read_text()
    checkpoint = str(work_dir / Path(checkpoint).name)
    rows = []
    for split, images in IMAGES.items():
        numbers = work_dir / f"bottleneck_{split}.json"
        command = ["ib", config, checkpoint, "--rows", kind]
        command += [
            "--untrained",
            "--split",
            split,
            "--images",
            str(images),
            "--beta",
            *BETAS,
            "--json",
            str(numbers),
        ]
        command += ["--cfg-options", f"randomness.seed={seed}", *changes.split(), *extra.split()]
        env = dict(os.environ, **ONE_THREAD)
        run = [sys.executable, "-m", "ltm_det.cli", *command]
        done = subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{as_typed(command)} failed: {done.stderr}")
        report = json.loads((ROOT / numbers).read_text())
        for beta, states in report["beta"].items():
            for state, points in states.items():
                fixed = dict(variant=variant, seed=seed, split=split, beta=beta)
                fixed |= dict(trained=state == kind, command=as_typed(command))
                for point, summary in points.items():
                    values = {name: round(summary[name], 5) for name in IB_VALUES}
                    rows.append(fixed | dict(point=point) | values)
    return rows


def summary(rows: list[dict[str, object]]) -> str:
    """A table in Markdown: mean AP of each variant with its least and largest, GMACs, ratio."""
    lines = ["| variant | seeds | box AP | mask AP | backbone GMACs | of dense |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, (path, changes) in VARIANTS.items():
        runs = [row for row in rows if row["variant"] == name]
        if not runs:
            continue
        pairs = (change.split("=", maxsplit=1) for change in changes.split())
        options = {key: yaml.safe_load(value) for key, value in pairs}  # numbers as such
        counts = compare(load_config(str(ROOT / path), options), SHAPE)
        gmacs = [side.macs["backbone"] / 1e9 for side in counts.values()]
        cells = [name, str(len(runs))]
        for metric in ("bbox_mAP", "segm_mAP"):
            ap = [100 * float(row[metric]) for row in runs]
            spread = f" ({min(ap):.1f} to {max(ap):.1f})" if len(ap) > 1 else ""
            cells.append(f"{sum(ap) / len(ap):.1f}{spread}")
        cells += [f"{gmacs[-1]:.3f}", f"{gmacs[-1] / gmacs[0]:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def bottleneck_summary(rows: list[dict[str, object]]) -> str:
    """Tables in Markdown, one for each split and beta: means over seeds, at every merge point."""
    lines = []
    for split, beta in itertools.product(IMAGES, BETAS):
        picked = [row for row in rows if (row["split"], row["beta"]) == (split, beta)]
        points = list(dict.fromkeys(row["point"] for row in picked))
        clusters = "hard clusters" if beta == "inf" else f"beta {beta}"
        lines.append(
            f"Samples of {split}, {clusters}: IB before -> after training (least to most of the "
            "seeds), and its two parts I(X~;X) - I(X~;Y), in nats.\n"
        )
        lines += [f"| variant | seeds | {' | '.join(points)} |", "|---|---|" + "---|" * len(points)]
        for name in dict.fromkeys(row["variant"] for row in picked):
            runs = [row for row in picked if row["variant"] == name]
            cells = [name, str(len({int(row["seed"]) for row in runs}))]
            for point in points:
                after, before = [
                    [row for row in runs if row["point"] == point and str(row["trained"]) == state]
                    for state in ("True", "False")
                ]
                if not after:
                    cells.append("")
                    continue
                old, ib, x, y = [
                    [float(row[key]) for row in states]
                    for states, key in (
                        (before, "ib"),
                        (after, "ib"),
                        (after, "information_x"),
                        (after, "information_y"),
                    )
                ]
                cells.append(
                    f"{mean(old):.2f} -> **{mean(ib):.2f}** ({min(ib):.2f} to {max(ib):.2f}), "
                    f"{mean(x):.2f} - {mean(y):.2f}"
                )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def in_order(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows in the order of variants and seeds."""
    return sorted(rows, key=lambda row: (list(VARIANTS).index(row["variant"]), int(row["seed"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "results/demo_study.csv")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/study"))
    parser.add_argument("--bottleneck", action="store_true", help="measure IB as well")
    parser.add_argument("--extra", default="", help="more --cfg-options for every run, quoted")
    args = parser.parse_args()

    rows = read_rows(args.out)
    done = {(row["variant"], int(row["seed"])) for row in rows}
    todo = [(v, s) for s in args.seeds for v in args.variants if (v, s) not in done]
    print(f"{len(done)} runs are in {args.out}, {len(todo)} to do")
    settings = dict(jobs=args.jobs, commit=commit())  # before OUT itself differs from the commit
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(train, v, s, args.work_dir, args.extra) for v, s in todo]
        for run in as_completed(runs):
            rows.append(run.result() | settings)
            rows = in_order(rows)
            write_rows(args.out, COLUMNS, rows)
            write_text(args.out.with_suffix(".md"), summary(rows))
            print({name: run.result()[name] for name in ("variant", "seed", *METRICS, "minutes")})
        if not args.bottleneck:
            return
        out = args.out.with_name(f"{args.out.stem}_bottleneck.csv")
        rows = read_rows(out)
        done = {(row["variant"], int(row["seed"])) for row in rows}
        todo = [(v, s) for s in args.seeds for v in args.variants if (v, s) not in done]
        print(f"the bottleneck of {len(done)} runs is in {out}, {len(todo)} to do")
        runs = [pool.submit(measure_bottleneck, v, s, args.work_dir, args.extra) for v, s in todo]
        for run in as_completed(runs):
            rows += [row | dict(commit=settings["commit"]) for row in run.result()]
            rows = in_order(rows)
            write_rows(out, IB_COLUMNS, rows)
            write_text(out.with_suffix(".md"), bottleneck_summary(rows))


if __name__ == "__main__":
    main()
