"""Objects in the forms of other programs."""

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from ltm_det.deploy import Detections

SIZE = (40, 60)


def bitmap(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


@pytest.fixture
def found() -> Detections:
    boxes = np.array([[10, 5, 30, 25], [0, 0, 60, 40], [1, 2, 3, 4]], np.float32)
    masks = [bitmap(10, 5, 30, 25), bitmap(0, 0, 0, 0), bitmap(1, 2, 3, 4)]
    return Detections(
        boxes,
        np.array([0.9, 0.6, 0.2], np.float32),
        np.array([1, 0, 1]),
        ["slab", "box", "slab"],
        [coco.encode(np.asfortranarray(mask)) for mask in masks],
        SIZE,
    )


def without_masks(found: Detections) -> Detections:
    return Detections(found.boxes, found.scores, found.labels, None, None, SIZE)


def test_above(found: Detections) -> None:
    better = found.above(0.6)
    assert len(better) == len(better.masks) == 2 and better.names == ["slab", "box"]
    assert len(found.above(1.0)) == 0 and found.above(1.0).bitmaps().shape == (0, *SIZE)
    assert without_masks(found).above(0.5).names is None


def test_coco_reads_what_is_written(found: Detections) -> None:
    rows = found.to_coco(7, first_id=3)
    assert [row["id"] for row in rows] == [3, 4, 5] and {row["image_id"] for row in rows} == {7}
    assert rows[0]["bbox"] == [10, 5, 20, 20] and rows[0]["area"] == 400
    assert [row["category_id"] for row in rows] == [2, 1, 2]
    again = coco.decode([row["segmentation"] for row in rows]).transpose(2, 0, 1).astype(bool)
    assert np.array_equal(again, found.bitmaps())
    boxes = without_masks(found).to_coco(1)
    assert "segmentation" not in boxes[0] and boxes[1]["area"] == 2400


def test_yolo_polygons_are_the_masks(found: Detections) -> None:
    lines = found.to_yolo().splitlines()
    assert len(lines) == 2  # an empty mask has no outline
    label, *numbers = lines[0].split()
    outline = np.array(numbers, float).reshape(-1, 2) * [SIZE[1], SIZE[0]]
    again = np.zeros(SIZE, np.uint8)
    cv2.fillPoly(again, [outline.round().astype(np.int32)], 1)
    assert label == "1" and np.array_equal(again.astype(bool), found.bitmaps()[0])


def test_yolo_boxes(found: Detections) -> None:
    lines = without_masks(found).to_yolo().splitlines()
    assert lines[0] == "1 0.333333 0.375000 0.333333 0.500000"
    assert lines[1] == "0 0.500000 0.500000 1.000000 1.000000"


def test_drawing_changes_the_object_alone(found: Detections) -> None:
    image = np.zeros((*SIZE, 3), np.uint8)
    drawn = found.above(0.9).drawn(image)
    assert not image.any()
    inside = found.bitmaps()[0]
    assert drawn[inside].any(-1).mean() > 0.8  # letters are black
    assert not drawn[30:, :].any()  # below the box, and words stand above it


def test_supervision(found: Detections, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {}
    stand_in = SimpleNamespace(Detections=lambda **options: taken.update(options))
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    found.to_supervision()
    assert taken["xyxy"].shape == (3, 4) and taken["mask"].shape == (3, *SIZE)
    assert taken["data"]["class_name"].tolist() == found.names
    without_masks(found).to_supervision()
    assert taken["mask"] is None and taken["data"] == {}
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        found.to_supervision()
