"""A comparison with tools that only pretend, and once with the real ones."""

import csv
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from ltm_det.cli import compare as compare_command
from ltm_det.measure.machine import machine
from ltm_det.studies import pareto, runs

ROOT = Path(__file__).resolve().parents[2]
TRAIN = dict(mode="train", backbones=["swin"], mergers=["dense"], seeds=[0, 1])
HALF = {"half": {"swin": {"compression_ratio": 0.5, "dense_blocks": 0}}}
FINETUNE = dict(mode="finetune", backbones=["swin"], mergers=["dense", "LTM"], seeds=[0, 1])
FINETUNE |= dict(iterations=2, settings=HALF)
CONVERT = dict(mode="convert", backbones=["swin"], mergers=["Pool"], seeds=[0], settings=HALF)


class Tools:
    """Stand in for the tools: they leave the files of a run, with an AP by the tools' number."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.broken: set[str] = set()  # parts of folders' names

    def __call__(self, command: list[str], log: Path) -> float:
        self.commands.append(command)
        if any(name in str(log) for name in self.broken):
            raise RuntimeError(f"{command[0]} failed: see {log}")
        if command[0] == "convert":
            return 1.0
        folder = Path(command[command.index("--work-dir") + 1])
        number = f"{time.time_ns()}"
        values = {f"coco/{name}": len(self.commands) / 100 for name in runs.METRICS}
        (folder / number / "vis_data").mkdir(parents=True)
        if command[0] == "test":
            (folder / number / f"{number}.json").write_text(json.dumps(values))
            return 2.0
        cfg = Config.fromfile(command[1])
        assert cfg.get("load_from") is None or Path(cfg.load_from).exists()
        cfg.dump(folder / number / "vis_data" / "config.py")
        (folder / number / "vis_data" / "scalars.json").write_text(json.dumps(values))
        (folder / "last_checkpoint").write_text("/of/another/machine/last.pth")
        (folder / "last.pth").write_text(number)
        return 4.0

    def folders(self) -> list[str]:
        """Those that commands worked in, since the last time that one asked."""
        words = [Path(c[c.index("--work-dir") + 1]) for c in self.commands if "--work-dir" in c]
        self.commands.clear()
        return [path.parent.name if path.name == "test" else path.name for path in words]


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    tools = Tools()
    monkeypatch.setattr(compare_command, "run_tool", tools)
    monkeypatch.setattr(compare_command, "commit", lambda: "abc")
    monkeypatch.setattr(pareto, "draw", lambda *_: False)  # it is slow, and has its own tests
    return tools


@pytest.fixture
def compare(main: Callable, tmp_path: Path, tiny_config: Path) -> Callable[..., int]:
    """Runs the tool on a spec of these runs."""

    def run(*entries: dict, options: tuple[object, ...] = ()) -> int:
        spec = dict(backbones=dict(swin=dict(config=str(tiny_config), shape=[64, 64])))
        spec |= dict(mergers={name: {"type": name} for name in ("LTM", "Pool")}, runs=[*entries])
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(spec))
        out = tmp_path / "out" / "table.csv"
        work = tmp_path / "work"
        return main("compare.py", path, "--out", out, "--work-dir", work, *options)

    return run


def table(tmp_path: Path) -> list[dict[str, str]]:
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def names(rows: list[dict[str, str]]) -> list[str]:
    return ["-".join(row[k] for k in ("mode", "merger", "setting", "seed")) for row in rows]


def test_dense_runs_come_first_and_a_second_call_has_nothing_to_do(
    compare: Callable, tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert compare(CONVERT, FINETUNE, TRAIN) == 0
    printed = capsys.readouterr().out
    assert "7 cells, 0 are in" in printed and "7 runs to do" in printed
    first = "[1/7] swin-train-dense-1-seed0: box AP 1.0, mask AP 1.0, 4.0 min; 6 left, about 24 min"
    assert first in printed
    converted = [c for c in tools.commands if c[0] == "convert"]
    folders = tools.folders()
    assert folders[:2] == ["swin-train-dense-1-seed0", "swin-train-dense-1-seed1"]
    rows = table(tmp_path)
    assert names(rows) == [  # in the spec's order, whatever was first to run
        "convert-Pool-half-0",
        *(f"finetune-dense-1-{seed}" for seed in (0, 1)),
        *(f"finetune-LTM-half-{seed}" for seed in (0, 1)),
        *(f"train-dense-1-{seed}" for seed in (0, 1)),
    ]
    assert sorted(folders) == sorted("swin-" + n[:-1] + "seed" + n[-1] for n in names(rows))
    assert not any(value == "" for row in rows for value in row.values())
    assert {row["of_dense"] for row in rows if row["merger"] == "dense"} == {"1.0"}
    assert all(float(row["of_dense"]) < 1 for row in rows if row["merger"] != "dense")
    by_name = dict(zip(names(rows), rows))
    assert by_name["train-dense-1-0"]["bbox_mAP"] == "0.01"
    work = tmp_path / "work"
    for name, row in by_name.items():
        if name.startswith("finetune"):
            cfg = Config.fromfile(work / f"swin-{name[:-1]}seed{name[-1]}" / "compare.py")
            assert cfg.load_from == f"{work}/swin-train-dense-1-seed{row['seed']}/last.pth"
            assert cfg.randomness.seed == int(row["seed"]) and cfg.train_cfg.max_iters == 2
            assert "--cfg-options" not in row["command"]
    assert by_name["convert-Pool-half-0"]["minutes"] == "3.0"
    assert str(work / "swin-train-dense-1-seed0/last.pth") in converted[0]
    assert converted[0][3:7] == ["--merger", "Pool", "--compression-ratio", "0.5"]
    assert "| swin | LTM | half | 2 |" in (tmp_path / "out" / "table.md").read_text()

    text = (tmp_path / "out" / "table.csv").read_text()
    assert compare(CONVERT, FINETUNE, TRAIN) == 0
    assert not tools.commands and (tmp_path / "out" / "table.csv").read_text() == text
    assert "7 are in" in capsys.readouterr().out


def test_what_fails_is_told_and_the_rest_goes_on(
    compare: Callable, tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tools.broken = {"finetune-LTM-half-seed0", "train-dense-1-seed1"}
    assert compare(TRAIN, FINETUNE) == 1
    printed = capsys.readouterr().out
    log = tmp_path / "work" / "swin-finetune-LTM-half-seed0" / "log.txt"
    assert f"swin-finetune-LTM-half-seed0 FAILED: train failed: see {log}" in printed
    assert "swin-finetune-dense-1-seed1 FAILED: its dense detector failed" in printed
    assert "2 rows in" in printed and "4 runs FAILED" in printed
    assert names(table(tmp_path)) == ["train-dense-1-0", "finetune-dense-1-0"]
    tools.folders()

    tools.broken = set()
    assert compare(TRAIN, FINETUNE) == 0
    assert len(table(tmp_path)) == 6
    done = tools.folders()
    assert done[0] == "swin-train-dense-1-seed1" and len(done) == 4
    assert "swin-train-dense-1-seed0" not in done and "swin-finetune-dense-1-seed0" not in done


def test_a_checkpoint_that_is_gone_is_made_again_without_a_second_row(
    compare: Callable, tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert compare(TRAIN) == 0
    first = table(tmp_path)
    tools.folders()
    for seed in (0, 1):
        (tmp_path / "work" / f"swin-train-dense-1-seed{seed}" / "last.pth").unlink()
    assert compare(TRAIN) == 0 and not tools.commands  # nobody needs it
    assert compare(TRAIN, CONVERT) == 0
    assert tools.folders() == ["swin-train-dense-1-seed0", "swin-convert-Pool-half-seed0"]
    assert table(tmp_path)[:2] == first
    assert "its checkpoint is there again" in capsys.readouterr().out


def test_a_dense_detector_from_elsewhere_is_taken_as_it_is(
    compare: Callable, tools: Tools, tmp_path: Path
) -> None:
    """With its logs it also stands for its cell, unless it was trained otherwise."""
    assert compare(TRAIN) == 0
    (first, _), _ = table(tmp_path), tools.folders()
    (tmp_path / "out" / "table.csv").unlink()
    assert compare(CONVERT) == 0
    assert tools.folders() == ["swin-convert-Pool-half-seed0"]
    assert compare(dict(TRAIN, seeds=[0]), CONVERT) == 0 and not tools.commands
    again, _ = table(tmp_path)
    assert (first["minutes"], first["jobs"], first["commit"]) == ("4.0", "1", "abc")
    unknown = dict(minutes="not measured", jobs="not known", commit="not known")
    assert again == first | unknown
    (tmp_path / "out" / "table.csv").unlink()
    assert compare(dict(TRAIN, seeds=[0], iterations=3)) == 0
    assert tools.folders() == ["swin-train-dense-1-seed0"]


def test_rows_of_other_matrices_stay_and_changed_options_are_refused(
    compare: Callable, tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert compare(TRAIN, CONVERT) == 0
    more = dict(CONVERT, settings={"low": {"swin": {"compression_ratio": 0.3}}})
    assert compare(more) == 0
    assert names(table(tmp_path)) == [
        "convert-Pool-low-0",
        "train-dense-1-0",
        "train-dense-1-1",
        "convert-Pool-half-0",
    ]
    tools.folders()
    other = dict(CONVERT, settings={"half": {"swin": {"compression_ratio": 0.6}}})
    assert compare(other) == 2 and not tools.commands
    assert "swin-convert-Pool-half-seed0 was made with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "run, message",
    [
        (CONVERT, "swin-convert-Pool-half-seed0 starts from a dense detector that is not there"),
        (dict(TRAIN, mode="fit"), "unknown mode 'fit'"),
        (
            dict(CONVERT, mode="train", settings={"x": {"swin": dict(compression_ratio=0.5, a=3)}}),
            "'a': 3",
        ),
        (
            dict(TRAIN, mergers=["LTM"], settings={"x": {"swin": {"compression_ratio": 7}}}),
            "compression_ratio.*7",
        ),
    ],
)
def test_a_spec_that_cannot_be_is_refused_before_anything_runs(
    compare: Callable, tools: Tools, capsys: pytest.CaptureFixture, run: dict, message: str
) -> None:
    assert compare(dict(run)) == 2
    assert not tools.commands
    error = capsys.readouterr().err
    assert error.startswith("compare.py: ") and re.search(message, error)


def test_times_are_measured_at_the_end_and_again(
    compare: Callable, tools: Tools, tmp_path: Path
) -> None:
    run = dict(TRAIN, mergers=["dense", "Pool", "LTM"], settings=HALF)
    assert compare(run, options=["--time", "--rounds", 4, "--jobs", 2]) == 0
    rows = table(tmp_path)
    assert {row["time_ratio"] for row in rows if row["merger"] == "dense"} == {"1.0"}
    for merger in ("Pool", "LTM"):
        (ratio,) = {row["time_ratio"] for row in rows if row["merger"] == merger}
        assert float(ratio) > 0
    assert all("swin at 64 x 64, median of 4 rounds" in row["timing"] for row in rows)
    assert all(f"{machine('cpu')['cpu']}, 1 thread, torch" in row["timing"] for row in rows)
    assert all(row["timing"].endswith(", commit abc") for row in rows)
    assert compare(run, options=["--time", "--rounds", 3]) == 0
    assert all("median of 3 rounds" in row["timing"] for row in table(tmp_path))
    text = (tmp_path / "out" / "table.md").read_text()
    assert "- Time: swin at 64 x 64, median of 3 rounds" in text


@pytest.mark.slow
def test_a_comparison_with_the_real_tools(compare: Callable, tmp_path: Path) -> None:
    spec = [
        dict(TRAIN, seeds=[0], iterations=3),
        dict(FINETUNE, seeds=[0]),
        CONVERT,
        dict(CONVERT, mode="calibrate", mergers=["LTM"], images=4),
    ]
    assert compare(*spec, options=["--jobs", 2, "--draws", 5]) == 0
    rows = table(tmp_path)
    assert names(rows) == [
        "train-dense-1-0",
        "finetune-dense-1-0",
        "finetune-LTM-half-0",
        "convert-Pool-half-0",
        "calibrate-LTM-half-0",
    ]
    assert all(-1 <= float(row["segm_mAP"]) <= 1 for row in rows)
    for ending in (".md", ".png", "_convert.png"):
        assert (tmp_path / "out" / f"table{ending}").stat().st_size > 100
    with open(tmp_path / "out" / "table_intervals.csv", newline="") as file:
        apart = list(csv.DictReader(file))
    ap = {name: [float(row[name]) for row in rows[1:3]] for name in ("bbox_mAP", "segm_mAP")}
    assert [row["metric"] for row in apart] == list(ap)
    for row in apart:
        assert (row["first"], row["second"], row["seeds"]) == ("LTM", "dense", "1")
        dense, merged = ap[row["metric"]]
        assert abs(float(row["difference"]) - 100 * (merged - dense)) < 0.11  # AP has 3 digits
    text = (tmp_path / "out" / "table.csv").read_text()
    assert compare(*spec) == 0 and (tmp_path / "out" / "table.csv").read_text() == text
    # The same matrix, from what is left in the folders:
    (tmp_path / "out" / "table.csv").unlink()
    assert compare(*spec[:2]) == 0
    assert [row["minutes"] for row in table(tmp_path)] == ["not measured"] * 3
    metrics = [[row[name] for name in runs.METRICS] for row in table(tmp_path)]
    assert metrics == [[row[name] for name in runs.METRICS] for row in rows[:3]]
