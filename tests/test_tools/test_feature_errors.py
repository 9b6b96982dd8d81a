"""tools/analysis/feature_errors.py: how far mergers move a map."""

import json
import runpy
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config

from ltm_det.basics.errors import InputError
from ltm_det.studies.features import compared, distance, pictures

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/demo_ltm_vit_maskrcnn.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/1.png", "a/2.PNG", "b.jpg"):
        noise = np.random.default_rng(len(name)).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        mmcv.imwrite(noise, str(tmp_path / "pictures" / name))
    (tmp_path / "pictures/readme.txt").write_text("no picture")
    return tmp_path / "pictures"


def test_pictures_are_normalised_as_the_detector_does(folder: Path) -> None:
    normal = dict(mean=[1.0, 2.0, 3.0], std=[2.0, 2.0, 4.0], bgr_to_rgb=True)
    found = pictures(folder, 3, 50, normal)
    assert found.shape == (3, 3, 50, 50) and found.dtype == torch.float32
    first = mmcv.imresize(mmcv.imread(folder / "a/1.png"), (50, 50), interpolation="area")
    expected = (torch.from_numpy(first[..., ::-1].copy()).permute(2, 0, 1).float()[0] - 1) / 2
    assert torch.equal(found[0, 0], expected)
    with pytest.raises(InputError, match="has 3 pictures, 4 are wanted"):
        pictures(folder, 4, 50, normal)


def test_distance() -> None:
    dense = torch.randn(2, 3, 4, 4)
    found = distance(1.5 * dense, dense)
    assert found["error"] == pytest.approx(0.5) and found["cosine"] == pytest.approx(1)


def test_calibration_brings_learned_mergers_closer() -> None:
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.init_cfg = None
    images = torch.randn(8, 3, 64, 64)
    mergers = [dict(type="LTM", seeds="farthest"), dict(type="Pool")]
    learned, pool = compared(cfg, mergers, [1], [0.5], images, images, steps=20)
    assert {*learned} - {*pool} == {"calibrated_error", "calibrated_cosine"}
    assert 0 < learned["calibrated_error"] < 0.99 * learned["error"] < 1
    assert 0 < pool["error"] < 1 and 0 < pool["cosine"] <= 1


def test_the_tool(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "features.json"
    words = [CONFIG, "--pictures", folder, "--count", 2, "--side", 64, "--json", out]
    words += ["--mergers", 'LTM:seeds="farthest",rounds=1', "ToMe", "--merge-at", 1]
    words += ["--ratios", 0.5, 0.25]
    tool = ROOT / "tools/analysis/feature_errors.py"
    monkeypatch.setattr(sys, "argv", [str(tool), *map(str, words)])
    runpy.run_path(str(tool), run_name="__main__")
    rows = json.loads(out.read_text())["rows"]
    assert [(row["ratio"], row["merger"]["type"]) for row in rows] == [
        *((0.5, "LTM"), (0.5, "ToMe"), (0.25, "LTM"), (0.25, "ToMe"))
    ]
    assert rows[0]["merger"] == dict(type="LTM", seeds="farthest", rounds=1)
