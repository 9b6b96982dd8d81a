"""The paired study, cut to two steps on a handful of images."""

import concurrent.futures
import csv
import json
import runpy
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import DictAction
from mmengine.logging import MMLogger

from ltm_det.datasets.demo import make_demo_data
from ltm_det.engine.preflight import load_config
from ltm_det.measure.flops import build_backbone
from ltm_det.studies.bottleneck import load_detector, measure, variant

ROOT = Path(__file__).parents[2]
TOOL = "analysis/study.py"
STUDY = runpy.run_path(str(ROOT / "tools" / TOOL), run_name="tool")


def changes_of(folder: Path) -> str:
    """The --extra with which a run is short, on the data in a folder."""
    data = folder / "data"
    loaders = ("train_dataloader", "val_dataloader", "test_dataloader")
    changes = [f"{loader}.dataset.data_root={data}/" for loader in loaders]
    changes += [f"{loader}.num_workers=0" for loader in loaders]
    changes += [f"{loader}.persistent_workers=False" for loader in loaders]
    changes += [f"{loader}.dataset.serialize_data=False" for loader in loaders]
    changes += [f"{e}_evaluator.ann_file={data}/annotations/val.json" for e in ("val", "test")]
    return " ".join([*changes, "train_cfg.max_iters=2", "train_cfg.val_interval=2"])


def rows_in(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def study(folder: Path, *options: str) -> str:
    command = [sys.executable, "tools/analysis/study.py", "--out", str(folder / "study.csv")]
    command += ["--work-dir", str(folder / "work"), "--extra", changes_of(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_study_writes_every_run_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    make_demo_data(tmp_path / "data", train=16, val=12, size=112, seed=0)
    assert "0 runs" in study(tmp_path, "--variants", "pool", "--bottleneck")
    (row,) = rows_in(tmp_path / "study.csv")
    assert row["variant"] == "pool" and "demo_pool_swin" in row["command"] and row["commit"]
    assert -1 <= float(row["segm_mAP"]) <= 1
    bottleneck = rows_in(tmp_path / "study_bottleneck.csv")
    assert {row["split"] for row in bottleneck} == {"val", "train"}
    assert all(32 <= int(row["samples"]) <= 48 for row in bottleneck)
    assert all(f"{tmp_path}/work/pool_seed0/iter_2.pth" in row["command"] for row in bottleneck)

    first = (tmp_path / "study.csv").read_text()
    printed = study(tmp_path, "--variants", "dense", "pool")
    assert "1 runs" in printed and "1 to do" in printed
    rows = rows_in(tmp_path / "study.csv")
    assert [r["variant"] for r in rows] == ["dense", "pool"]
    assert first.splitlines()[1] in (tmp_path / "study.csv").read_text().splitlines()
    table = (tmp_path / "study.md").read_text()
    assert "| dense | 1 |" in table and "| pool | 1 |" in table and "| 0.81 |" in table


@pytest.mark.parametrize("name", STUDY["VARIANTS"])
def test_the_bottleneck_is_measured_where_the_run_or_its_twin_merges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its checkpoint fits the backbone that is measured, at the points of a merged one."""
    asked = []
    numbers = {column: 0.5 for column in STUDY["IB_VALUES"]}

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        asked.append(command)
        kind = command[command.index("--rows") + 1]
        states = {f"{kind}, untrained": {"p": numbers}, kind: {"p": numbers}}
        result = dict(beta={beta: states for beta in ("10", "inf")})
        Path(command[command.index("--json") + 1]).write_text(json.dumps(result))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    (tmp_path / f"{name}_seed3").mkdir()
    (tmp_path / f"{name}_seed3" / "last_checkpoint").write_text("/moved/since/iter_9.pth")
    rows = STUDY["measure_bottleneck"](name, 3, tmp_path, "")
    assert [row["trained"] for row in rows] == [False, True] * 4
    assert [(row["split"], row["beta"]) for row in rows[::2]] == [
        (split, beta) for split in ("val", "train") for beta in ("10", "inf")
    ]

    checkpoint = str(tmp_path / f"{name}_seed3/iter_9.pth")
    for split, command in zip(("val", "train"), asked, strict=True):
        assert command[command.index("--split") + 1] == split
        assert command[1:4] == ["-m", "ltm_det.cli", "ib"] and command[5] == checkpoint
        assert command[:8] == asked[0][:8]
        changes = command[command.index("--cfg-options") + 1 :]
        assert changes == asked[0][-len(changes) :]

    cfg = load_config(str(ROOT / command[4]), options_of(changes))
    kind = command[command.index("--rows") + 1]
    assert kind == ("dense" if "dense" in name else "pool" if "pool" in name else "merged")
    measured = variant(cfg, kind)
    assert measured.randomness.seed == 3
    config, changes = STUDY["VARIANTS"][name]
    trained = load_config(str(ROOT / config), options_of(changes.split()))
    merger = trained.model.backbone.get("merger")
    assert measured.model.backbone.merger == merger
    backbone, expected = build_backbone(measured), build_backbone(trained).state_dict()
    state = backbone.state_dict()
    assert state.keys() == {key for key in expected if "position_index" not in key}
    assert all(state[key].shape == expected[key].shape for key in state)
    assert backbone.mergers_by_point() or merger is None


def options_of(words: list[str]) -> dict[str, object]:
    """--cfg-options as the tools read them."""
    pairs = (word.split("=", maxsplit=1) for word in words)
    return {key: DictAction._parse_iterable(value) for key, value in pairs}


class AtOnce:
    """An executor that does everything itself, when told to."""

    def __init__(self, jobs: int) -> None:
        assert jobs == 1

    def __enter__(self) -> "AtOnce":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable, *args: object) -> concurrent.futures.Future:
        future = concurrent.futures.Future()
        future.set_result(function(*args))
        return future


@pytest.mark.slow
def test_the_bottleneck_of_every_run_is_written_once(
    main: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """With tools in this process, and a training that leaves weights as it found them."""
    monkeypatch.setattr(MMLogger, "_instance_dict", OrderedDict())  # the tools' is kept quiet
    monkeypatch.chdir(ROOT)
    make_demo_data(tmp_path / "data", train=16, val=12, size=112, seed=0)
    run_outside, started = subprocess.run, []

    def train(config: str, *options: str) -> None:
        folder = Path(options[options.index("--work-dir") + 1])
        cfg = load_config(config, options_of(options[options.index("--cfg-options") + 1 :]))
        if cfg.model.backbone.get("merger") is None:
            cfg, kind = load_config(STUDY["MERGED"]), "dense"
        else:
            kind = "merged"
        model = load_detector(cfg, kind, None, "cpu")
        with torch.no_grad():
            for parameter in model.backbone.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        torch.save(dict(state_dict=model.state_dict()), folder / "iter_2.pth")
        (folder / "last_checkpoint").write_text(str(folder / "iter_2.pth"))
        (folder / "now" / "vis_data").mkdir(parents=True)
        metrics = {f"coco/{metric}": 0.25 for metric in STUDY["METRICS"]}
        (folder / "now" / "vis_data" / "scalars.json").write_text(json.dumps(metrics))

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess:
        if command[0] != sys.executable:
            return run_outside(command, **options)
        assert command[1:3] == ["-m", "ltm_det.cli"]
        tool, *words = command[3:]
        started.append((tool, words))
        code = train(*words) if tool == "train" else main("analysis/ib_report.py", *words)
        return subprocess.CompletedProcess(command, code or 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", AtOnce)
    out = tmp_path / "study_bottleneck.csv"

    def study(*variants: str) -> str:
        options = ["--out", tmp_path / "study.csv", "--work-dir", tmp_path / "work"]
        options += ["--bottleneck", "--extra", changes_of(tmp_path), "--variants", *variants]
        main(TOOL, *options)
        return capsys.readouterr().out

    assert "the bottleneck of 0 runs is in" in study("pool")
    assert [tool for tool, _ in started] == ["train"] + ["ib"] * 2
    first = out.read_text()
    assert "the bottleneck of 1 runs is in" in study("ltm_stage_soft", "pool", "dense")
    assert len(started) == 3 * 3
    text = out.read_text()
    assert text.splitlines()[0].split(",") == list(STUDY["IB_COLUMNS"])
    assert set(first.splitlines()) < set(text.splitlines())
    assert "3 runs" in study("dense", "pool", "ltm_stage_soft") and len(started) == 3 * 3
    assert out.read_text() == text

    rows = rows_in(out)
    points = ["stages.0.blocks.1", "stages.1.blocks.1", "stages.2.blocks.2"]
    assert [tuple(row[column] for column in STUDY["IB_COLUMNS"][:6]) for row in rows] == [
        (name, "0", split, beta, trained, point)
        for name in ("dense", "pool", "ltm_stage_soft")
        for split in ("val", "train")
        for beta in ("10", "inf")
        for trained in ("False", "True")
        for point in points
    ]
    assert all(row["commit"] for row in rows)
    for name, kind in dict(dense="dense", pool="pool", ltm_stage_soft="merged").items():
        changes = STUDY["VARIANTS"][name][1] if kind == "merged" else ""
        options = options_of([*changes_of(tmp_path).split(), *changes.split()])
        cfg = load_config(STUDY["MERGED"], options)
        checkpoint = str(tmp_path / f"work/{name}_seed0/iter_2.pth")
        (expected,) = measure(cfg, kind, checkpoint)
        (untrained,) = measure(cfg, kind, None)
        found = [row for row in rows if (row["variant"], row["split"]) == (name, "val")]
        for row in found[:6]:  # beta 10, untrained and then trained
            values = (expected if row["trained"] == "True" else untrained)[row["point"]]
            assert {c: float(row[c]) for c in STUDY["IB_VALUES"]} == pytest.approx(
                {c: values[c] for c in STUDY["IB_VALUES"]}, abs=1e-5
            )
        assert found[0]["ib"] != found[3]["ib"]
    table = out.with_suffix(".md").read_text()
    assert [line.count("|") for line in table.splitlines() if "| 1 |" in line] == [6] * 3 * 4


def test_the_bottlenecks_summary_has_means_over_seeds() -> None:
    """From rows as they are measured, and as they are read again."""

    def row(variant: str, seed: int, trained: bool, point: str, x: float, y: float) -> dict:
        fixed = dict(variant=variant, seed=seed, split="val", beta="inf", trained=trained)
        return fixed | dict(point=point, ib=x - y, information_x=x, information_y=y)

    rows = [row("pool", 0, False, "a", 3.0, 1.0), row("pool", 0, True, "a", 2.0, 1.5)]
    again = [row("pool", 1, False, "a", 4.0, 1.0), row("pool", 1, True, "a", 1.0, 1.25)]
    rows += [{key: str(value) for key, value in more.items()} for more in again]
    rows += [row("vit_pool", 0, trained, "b", 1.0, 0.5) for trained in (False, True)]
    tables = STUDY["bottleneck_summary"](rows).split("Samples of ")
    (table,) = [table for table in tables if table.startswith("val, hard clusters")]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert lines[0] == "| variant | seeds | a | b |"
    assert lines[2].startswith("| pool | 2 | 2.50 -> **0.12** (-0.25 to 0.50), 1.50 - 1.38 |")
    assert lines[3].startswith("| vit_pool | 1 |")
    assert lines[3].endswith("| 0.50 -> **0.50** (0.50 to 0.50), 1.00 - 0.50 |")
    assert {line.count("|") for line in lines} == {5}


def test_a_failed_report_ends_the_study_with_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dense_seed0").mkdir()
    (tmp_path / "dense_seed0" / "last_checkpoint").write_text("iter_2.pth")
    failed = subprocess.CompletedProcess([], 2, "", "ib_report.py: too few samples")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="dense_seed0/iter_2.pth.*failed: .*too few samples"):
        STUDY["measure_bottleneck"]("dense", 0, tmp_path, "")
