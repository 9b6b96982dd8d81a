"""Detectors of many kinds, from mmdet's own configs, through all steps to the folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config

from ltm_det.backbones import LTMSwin, LTMViT
from ltm_det.compression.given import loaded
from tests.test_compression import small
from tests.test_compression.kinds import KINDS, config_of


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_steps(
    kind: str, compress: Callable, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    data, out = small.data(tmp_path / "data"), tmp_path / "out"
    cfg, whole = config_of(kind, data, tmp_path)
    config, checkpoint = small.save(cfg, tmp_path / "dense")
    words = ["--data", data, "--out", out, "--images", 2]
    if whole:
        words += ["--budget", "gmacs=0.97"]
    else:  # of which the backbone is a small part
        words += ["--budget", "max-ap-loss=90", "--cost", "gmacs", "--trials", 2, "--unit", "block"]
    words += [
        "--calibrate",
        2,
        "--calibration-steps",
        2,
        "--finetune",
        2,
        "--batch",
        1,
        "--pictures",
        2,
        "--ratios",
        0.33,
    ]
    if kind == "dino":  # whose last map has one cell on such pictures, nothing to be fitted
        words += ["--calibrate", 0]
    assert compress(config, checkpoint, *words) == 0, capfd.readouterr().err
    report = json.loads((out / "report.json").read_text())
    assert report["met"] and report["gmacs"]["compressed"] < report["gmacs"]["dense"]
    assert report["export"]["same"] and report["export"]["part"] == (
        "detector" if whole else "backbone"
    )
    assert any("backbone alone" in note for note in report["notes"]) != whole
    assert report["finetuning"]["iterations"] == 2
    model = loaded(Config.fromfile(out / "config.py"), str(out / "model.pth"))
    assert isinstance(model.backbone, LTMViT if kind == "vit" else LTMSwin)
    assert bool(model.backbone.mergers_by_point()) == bool(report["merging"])
    page = (out / "report.html").read_text()
    assert "://" not in page and page.count("data:image/jpeg") == 2
    if not whole:
        assert "backbone alone" in page
