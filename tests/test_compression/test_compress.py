"""ltm-det compress: from a detector and pictures to a folder, what is done again, what is said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from ltm_det.compression.given import loaded
from ltm_det.detectors import FastMaskRCNN
from tests.test_compression import small
from tests.test_datasets.test_own import CLASSES, yolo_folder

QUICK = [
    "--export",
    "none",
    "--images",
    2,
    "--calibrate",
    2,
    "--calibration-steps",
    2,
    "--pictures",
    2,
    "--ratios",
    0.33,
]


@pytest.fixture
def given(tmp_path: Path) -> tuple[Path, list[str]]:
    """The folder, and the first words of a command."""
    data = small.data(tmp_path / "data")
    words = [*small.save(small.mask_rcnn(), tmp_path / "dense"), "--data", str(data)]
    return tmp_path, words


def test_from_a_detector_to_a_report(
    given: tuple[Path, list[str]], compress: Callable, capfd: pytest.CaptureFixture
) -> None:
    folder, words = given
    out = folder / "out"
    words += ["--budget", "gmacs=0.95", "--out", str(out), *map(str, QUICK)]
    assert compress(*words) == 0, capfd.readouterr().err
    said = capfd.readouterr().out
    assert "[search: measure stage]" in said and "reached 0." in said
    cfg = Config.fromfile(out / "config.py")
    assert cfg.test_dataloader.dataset.metainfo.classes == tuple(CLASSES)
    assert type(loaded(cfg, str(out / "model.pth"))) is FastMaskRCNN
    report = json.loads((out / "report.json").read_text())
    macs = report["gmacs"]
    assert report["reached"] == macs["compressed"] / macs["dense"] <= 0.95 and report["met"]
    assert set(report["ap"]["dense"]["bbox"]["classes"]) == {*CLASSES}
    assert report["ap"]["dense"]["pictures"] == 3 and report["export"] is None
    assert report["cost"]["times"]["machine"]["cpu"]
    assert list(report["cost"]["times"]["models"]) == ["mmdet's", "dense", "compressed"]
    page = (out / "report.html").read_text()
    assert "://" not in page  # nothing is loaded from elsewhere
    assert page.count("data:image/jpeg;base64,") == 2 and "gmacs=0.95" in page


@pytest.mark.slow
def test_a_budget_of_time_counts_the_file(
    given: tuple[Path, list[str]], compress: Callable, capfd: pytest.CaptureFixture
) -> None:
    folder, words = given
    out = folder / "out"
    quick = [*map(str, QUICK)]
    quick[quick.index("none")] = "onnx"
    words += ["--budget", "latency=0.97", "--out", str(out), *quick]
    assert compress(*words) == 0, capfd.readouterr().err
    said = capfd.readouterr().out
    assert "dense file: " in said and "of mmdet's time, asked for 0.97" in said
    report = json.loads((out / "report.json").read_text())
    times = report["cost"]["times"]["models"]
    assert [*times] == ["mmdet's", "dense", "compressed", "dense file", "detector.onnx"]
    assert report["cost"]["counted"] == "detector.onnx"
    assert report["reached"] == times["detector.onnx"]["ratio"]
    assert (out / "work/dense.onnx").exists()
    assert "that of detector.onnx" in (out / "report.html").read_text()


@pytest.mark.slow
def test_what_is_done_again(
    given: tuple[Path, list[str]], compress: Callable, capfd: pytest.CaptureFixture
) -> None:
    folder, words = given
    out = folder / "out"
    words += ["--budget", "gmacs=0.95", "--out", str(out), *map(str, QUICK)]
    assert compress(*words) == 0, capfd.readouterr().err
    capfd.readouterr()
    before = json.loads((out / "state.json").read_text())["steps"]
    assert compress(*words) == 0
    said = capfd.readouterr().out
    assert said.count("done before") == len(before) and "again, since" not in said
    words[words.index("--calibrate") + 1] = "0"
    assert compress(*words) == 0
    said = capfd.readouterr().out
    assert "[search] done before" in said
    assert "[convert and calibrate] again, since other: calibration" in said
    # a detector that is another one
    state = torch.load(folder / "dense/dense.pth", weights_only=True)
    state["state_dict"]["rpn_head.rpn_cls.bias"] += 1
    torch.save(state, folder / "dense/dense.pth")
    assert compress(*words) == 2
    assert "holds the compression of another checkpoint" in capfd.readouterr().err


def test_dry_run_writes_nothing(
    given: tuple[Path, list[str]], compress: Callable, capfd: pytest.CaptureFixture
) -> None:
    folder, words = given
    out = folder / "out"
    before = sorted(folder.rglob("*"))
    options = ["--budget", "latency=0.5", "--finetune", "--out", out, "--dry-run"]
    assert compress(*words, *options) == 0, capfd.readouterr().err
    said = capfd.readouterr().out
    for name in ("dense AP", "search: measure stage", "fine-tune", "AP of the file", "report"):
        assert f"\n  {name} " in said
    assert "500 iterations of 1 pictures, with the dense twin" in said and "In all about" in said
    assert sorted(folder.rglob("*")) == before


def test_other_classes_are_told(
    given: tuple[Path, list[str]], compress: Callable, capfd: pytest.CaptureFixture
) -> None:
    folder, words = given
    for file in (folder / "data/annotations").glob("instances*"):
        text = file.read_text()
        file.write_text(text.replace('"owl"', '"fox"'))
    assert compress(*words, "--budget", "gmacs=0.9", "--out", folder / "out") == 2
    error = capfd.readouterr().err
    assert "knows 3 classes (cat, dog, owl, ...), and not fox of the data" in error
    assert "ltm-det train CONFIG --data DIR --weights" in error


def test_some_of_the_detectors_classes_are_enough(tmp_path: Path) -> None:
    from ltm_det.compression.given import with_categories
    from ltm_det.datasets.own import own_data

    yolo_folder(tmp_path / "data")
    more = with_categories(own_data(tmp_path / "data"), [*CLASSES, "emu"])
    assert more.classes == (*CLASSES, "emu") and more.val is not None
    train, _ = more.write(tmp_path)
    assert [row["name"] for row in json.loads(train.read_text())["categories"]][-1] == "emu"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--budget", "speed=2"], "give latency=0.5"),
        (["--budget", "gmacs=0.5", "--cost", "latency"], "--cost is of --budget max-ap-loss"),
        (["--budget", "gmacs=0.5", "--finetune", "-3"], "--finetune must be 0 or at least 2"),
        (["--budget", "gmacs=0.5", "--trials", "0"], "--trials must be at least 1"),
        (["--budget", "gmacs=0.5", "--merger-options", "merge_at=3"], "chosen by other options"),
    ],
)
def test_bad_options(
    more: list[str], words: str, compress: Callable, capfd: pytest.CaptureFixture
) -> None:
    config = str(small.ROOT / "configs/demo_swin_maskrcnn.py")
    with pytest.raises(SystemExit) as stop:
        compress(config, "dense.pth", "--data", "data", *more)
    assert stop.value.code == 2 and words in capfd.readouterr().err


def test_a_detector_that_merges_already(
    given: tuple[Path, list[str]], compress: Callable, capfd: pytest.CaptureFixture
) -> None:
    folder, words = given
    options = ["--cfg-options", "model.backbone.type=LTMSwin", "model.backbone.merger.type=LTM"]
    options += ["--out", str(folder / "out")]
    assert compress(*words, "--budget", "gmacs=0.9", *options) == 2
    assert "merges already" in capfd.readouterr().err


def test_what_is_there_stays(
    given: tuple[Path, list[str]], compress: Callable, capfd: pytest.CaptureFixture
) -> None:
    folder, words = given
    shutil.copytree(folder / "data", folder / "out")
    assert compress(*words, "--budget", "gmacs=0.9", "--out", folder / "out") == 2
    assert "name another --out" in capfd.readouterr().err.lower()
