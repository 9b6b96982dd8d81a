"""tools/export.py on a tiny detector, and its file in the tiny detector's place under test.py."""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import cv2
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.logging import MMLogger

from ltm_det import deploy
from tests.test_tools.detectors import SWIN, saved_detector

EXPORTED = """
_base_ = '{base}'
model = dict(backbone=dict(_delete_=True, type='ExportedBackbone', file='{file}'))
"""
LEAST = 0.05  # score of what the tiny detector finds


@pytest.fixture(autouse=True)
def own_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine's loggers keep their files open: not for the tests after these."""
    monkeypatch.setattr(MMLogger, "_instance_dict", OrderedDict())


@pytest.fixture(scope="module")
def swin(tiny_config: Path) -> tuple[Path, Path]:
    return saved_detector(tiny_config, "export_swin", SWIN)


@pytest.mark.slow
def test_ap_with_the_file_is_that_of_the_backbone(
    main: Callable, swin: tuple, tmp_path: Path, capsys
) -> None:
    """For what is found is the same. (With random weights, AP itself is 0 either way.)"""
    config, checkpoint = swin
    file = tmp_path / "new" / "swin.xml"
    options = ["--out", file, "--shape", 64, 64, "--check"]
    assert main("export.py", config, checkpoint, *options) == 0
    printed = capsys.readouterr().out
    assert "64 x 64: largest difference" in printed and "random" not in printed

    twin = tmp_path / "exported.py"
    twin.write_text(EXPORTED.format(base=config, file=file))
    found = []
    for name, cfg in dict(own=config, exported=twin).items():
        out = tmp_path / f"{name}.pkl"
        assert main("test.py", cfg, checkpoint, "--work-dir", tmp_path / name, "--out", out) == 0
        found.append([image["pred_instances"] for image in pickle.loads(out.read_bytes())])
    for own, exported in zip(*found, strict=True):
        assert_found(own, exported)
        assert_found(exported, own)


SPLITS = ("train", "val", "test")


def assert_found(own: dict, other: dict) -> None:
    """What lies clearly above the least score is in the other; of the rest, rounding decides."""
    clear = own["scores"] > LEAST + 1e-3
    apart = (own["bboxes"][:, None] - other["bboxes"]).abs().amax(-1)
    apart += 1e6 * (own["labels"][:, None] != other["labels"])
    assert clear.any() and (apart.amin(1)[clear] < 0.05).all()  # pixels
    partners = other["scores"][apart.argmin(1)]
    torch.testing.assert_close(own["scores"][clear], partners[clear], atol=1e-3, rtol=0)


def test_a_whole_detector_with_random_weights(
    main: Callable, swin: tuple, tmp_path: Path, capsys
) -> None:
    picture = next(swin[0].parent.glob("**/*.png"))
    options = ["--out", tmp_path / "whole.onnx", "--shape", 64, 64, "--part", "detector"]
    assert main("export.py", swin[0], *options, "--check", "--image", picture) == 0
    printed = capsys.readouterr().out
    assert "the weights are random" in printed and "64 x 64: " in printed

    assert main("export.py", *swin, *options, "--check", "--image", picture) == 0
    printed = capsys.readouterr().out
    assert "largest difference: boxes" in printed and "masks" in printed
    assert main("test.py", swin[0], tmp_path / "whole.onnx", "--work-dir", tmp_path) == 0
    assert "segm_mAP" in capsys.readouterr().out
    sheet = ["--out", tmp_path / "found.png", "--score-thr", LEAST]
    draw = ("analysis/draw_predictions.py", swin[0], tmp_path / "whole.onnx", *sheet)
    assert main(*draw) == 0 and cv2.imread(str(tmp_path / "found.png")) is not None
    assert main(*draw, "--cfg-options", "model.test_cfg.rcnn.score_thr=0.9") == 2
    assert "export it with these" in capsys.readouterr().err
    for classes, told in (("[slab,box]", "in another order"), ("[box]", "finds 2 classes")):
        given = [f"{name}_dataloader.dataset.metainfo.classes={classes}" for name in SPLITS]
        words = ["--work-dir", tmp_path, "--cfg-options", *given]
        assert main("test.py", swin[0], tmp_path / "whole.onnx", *words) == 2
        assert told in capsys.readouterr().err
        assert main(*draw, "--cfg-options", *given) == 2
        assert told in capsys.readouterr().err
    assert main("export.py", *swin, *options, "--check", "--image", "no.png") == 2
    assert "no picture can be read from no.png" in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_detectors_file_is_tested_like_a_checkpoint(
    main: Callable, swin: tuple, tmp_path: Path, capsys
) -> None:
    """In float32 it finds what the detector finds, on images of its size, since what is padded has
    other maps; int8 runs; a backbone's file is refused."""
    config, checkpoint = swin
    shape, whole = ["--shape", 64, 64], ["--part", "detector"]
    files = {name: tmp_path / f"{name}.xml" for name in ("float32", "int8")}
    assert main("export.py", *swin, "--out", files["float32"], *shape, *whole) == 0
    pictures = next(config.parent.glob("**/*.png")).parent
    ranges = ["--dtype", "int8", "--calibration", pictures, "--calibration-size", 2]
    assert main("export.py", *swin, "--out", files["int8"], *shape, *whole, *ranges) == 0
    assert deploy.load(files["float32"]).about["classes"] == ["box", "slab"]
    found, whole_size = {}, "test_dataloader.dataset.pipeline.1.keep_ratio=False"
    for name, weights in dict(own=checkpoint, **files).items():
        out = tmp_path / f"{name}.pkl"
        words = ["--work-dir", tmp_path / name, "--out", out, "--cfg-options", whole_size]
        assert main("test.py", config, weights, *words) == 0
        found[name] = [image["pred_instances"] for image in pickle.loads(out.read_bytes())]
    for own, exported in zip(found["own"], found["float32"], strict=True):
        assert_found(own, exported)
        assert_found(exported, own)
    assert sum(len(image["scores"]) for image in found["int8"]) > 0
    assert main("test.py", config, files["float32"], "--work-dir", tmp_path / "rle") == 0

    assert main("export.py", *swin, "--out", tmp_path / "backbone.onnx", *shape) == 0
    capsys.readouterr()
    assert main("test.py", config, tmp_path / "backbone.onnx", "--work-dir", tmp_path) == 2
    assert "holds no detector: write one with" in capsys.readouterr().err
    painted = ["--work-dir", tmp_path / "p", "--show-dir", "painted"]
    assert main("test.py", config, files["float32"], *painted) == 0
    assert len(list(tmp_path.glob("p/*/painted/*.png"))) == 4
    capsys.readouterr()
    for options, message in (
        (["--cfg-options", "model.test_cfg.rcnn.score_thr=0.9"], "export it with these"),
        (["--launcher", "pytorch"], "is tested in one process"),
    ):
        assert main("test.py", config, files["float32"], "--work-dir", tmp_path, *options) == 2
        assert message in capsys.readouterr().err
    lean = ["--cfg-options", "model.lean.masks=3"]
    assert main("test.py", config, checkpoint, "--work-dir", tmp_path, *lean) == 2
    assert "change model.type" in capsys.readouterr().err
    assert main("test.py", config, tmp_path / "none.onnx", "--work-dir", tmp_path) == 2
    assert "no checkpoint at" in capsys.readouterr().err


def test_calibration_needs_pictures(main: Callable, swin: tuple, tmp_path: Path, capsys) -> None:
    options = ["--out", tmp_path / "a.xml", "--shape", 64, 64, "--part", "detector"]
    options += ["--dtype", "int8", "--calibration", tmp_path]
    assert main("export.py", *swin, *options) == 2
    assert "no pictures" in capsys.readouterr().err
    (tmp_path / "a.png").write_text("no picture")
    assert main("export.py", *swin, *options) == 2
    assert "no picture can be read from" in capsys.readouterr().err


def test_a_file_that_differs_fails_the_check(
    main: Callable, swin: tuple, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(deploy, "written", lambda file, images: nullcontext(file))
    monkeypatch.setattr(deploy, "save", lambda *args: None)
    monkeypatch.setattr(deploy, "load", lambda file: lambda x: [torch.ones(1, 16, 16, 16)] * 2)
    # whichever place NaN has among the maps
    monkeypatch.setattr(deploy, "relative_errors", lambda ones, others: [0.0, float("nan")])
    monkeypatch.setattr(MODELS.get("LTMSwin"), "forward", lambda self, x: [torch.zeros(1)] * 2)
    assert main("export.py", *swin, "--out", tmp_path / "a.onnx", "--check") == 1
    assert "does not give what the model gives" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--out", "a.pt"],
        ["--out", "a.onnx", "--dtype", "bfloat16"],
        ["--out", "a.xml", "--shape"],
        ["--out", "a.xml", "--dtype", "int8", "--calibration", "."],
        ["--dtype", "int8", "--out", "a.xml", "--part", "detector"],
        ["--calibration-size", "0", "--out", "a.xml"],
        ["--out", "a.xml", "--part", "detector", "--dtype", "bfloat16", "--check"],
        ["--out", "a.onnx", "--image", "a.png"],
    ],
)
def test_bad_options_are_refused(main: Callable, options: list, capsys) -> None:
    options = [*options, 0, 64] if options[-1] == "--shape" else options
    with pytest.raises(SystemExit) as end:
        main("export.py", "no.py", *options)
    assert end.value.code == 2
    refused = "error: (--(out|dtype|shape|part|image|calibration-size) |what bfloat16 changes)"
    assert re.search(refused, capsys.readouterr().err)


def test_what_is_missing_is_named(main: Callable, swin: tuple, tmp_path: Path, capsys) -> None:
    assert main("export.py", swin[0], "no.pth", "--out", tmp_path / "a.onnx") == 2
    assert "no checkpoint at no.pth" in capsys.readouterr().err
