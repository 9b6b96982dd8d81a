"""Large pictures by a checkpoint and by its exported file, tile by tile."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from ltm_det.cli.export import main as export
from ltm_det.cli.predict import main as predict
from ltm_det.prediction import Detector, Tiles
from tests.test_tools.detectors import SWIN, saved_detector

pytest.importorskip("sahi", reason="SAHI lays the tiles: pip install 'ltm_det[tiles]'")


@pytest.fixture(scope="module")
def detector(tiny_config: Path) -> tuple[Path, Path]:
    return saved_detector(tiny_config, "tiles", SWIN)


def test_a_detector_takes_tiles_of_its_own_size(detector: tuple[Path, Path]) -> None:
    """Its pictures are of 64 x 64; a tile found alone is found the same in the larger picture."""
    model = Detector(*detector, score=0.0)
    assert model.size == (64, 64)
    picture = np.random.default_rng(0).integers(0, 255, (64, 100, 3), dtype=np.uint8)
    found = model(picture, tiles=Tiles(whole=False, overlap=0.0))
    assert found.size == (64, 100) and found.bitmaps().shape == (len(found), 64, 100)
    left, right = model(picture[:, :64].copy()), model(picture[:, 36:].copy())
    best = max(left.scores.max(), right.scores.max())
    assert found.scores[0] == pytest.approx(best, abs=1e-4)
    assert found.boxes[:, 2].max() > 64 and len(found) <= len(left) + len(right)
    small = picture[:40, :60].copy()
    np.testing.assert_array_equal(model(small, tiles=True).boxes, model(small).boxes)


def test_the_command_writes_the_full_pictures_coordinates(
    detector: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (90, 150, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "large.png"), picture)
    words = [*map(str, detector), "--images", str(tmp_path / "large.png"), "--score-thr", "0"]
    words += ["--out", str(tmp_path / "out"), "--save", "coco", "--tiles", "--batch", "4"]
    assert predict([*words, "--tile-size", "48", "64", "--tile-overlap", "0.25"]) == 0
    written = json.loads((tmp_path / "out/detections.json").read_text())
    assert written["annotations"] and "objects on 1 pictures" in capsys.readouterr().out
    assert all(row["segmentation"]["size"] == [90, 150] for row in written["annotations"])
    assert max(row["bbox"][0] + row["bbox"][2] for row in written["annotations"]) > 64


@pytest.mark.slow
def test_an_exported_file_takes_tiles(detector: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "whole.onnx"
    words = [*map(str, detector), "--part", "detector", "--shape", "64", "96", "--out", str(file)]
    assert export(words) == 0
    model = Detector(file, score=0.0, threads=1)
    assert model.size == (64, 96)
    picture = np.random.default_rng(0).integers(0, 255, (64, 150, 3), dtype=np.uint8)
    found = model(picture, tiles=Tiles(whole=False))
    alone = model(picture[:, :96].copy()), model(picture[:, 54:].copy())
    assert found.size == (64, 150)
    assert found.scores[0] == pytest.approx(max(one.scores[0] for one in alone), abs=1e-5)
