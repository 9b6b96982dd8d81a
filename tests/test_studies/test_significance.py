"""Intervals of AP differences: AP is COCO's, and intervals hold what they should."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ltm_det.studies.significance import average_precision, difference, matches

PICTURES, CLASSES = 12, 3


def quiet(function: Any, *args: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args)


def annotated(random: np.random.Generator) -> COCO:
    """Boxes of two classes; the third has none, and some are crowds."""
    boxes = []
    for picture in range(PICTURES):
        for _ in range(random.integers(0, 6)):
            x, y, w, h = random.integers([0, 0, 8, 8], [60, 60, 40, 40]).tolist()
            own = dict(bbox=[x, y, w, h], area=w * h, iscrowd=int(random.random() < 0.1))
            kind = int(random.integers(1, CLASSES))
            boxes.append(dict(own, id=len(boxes) + 1, image_id=picture, category_id=kind))
    coco = COCO()
    coco.dataset = dict(
        images=[dict(id=i, width=100, height=100) for i in range(PICTURES)],
        categories=[dict(id=i + 1, name=str(i)) for i in range(CLASSES)],
        annotations=boxes,
    )
    quiet(coco.createIndex)
    return coco


def found(coco: COCO, random: np.random.Generator, noise: float) -> list[dict[str, Any]]:
    """Most of the boxes, moved; some twice; and some that are nothing."""
    boxes = []
    for own in coco.dataset["annotations"]:
        for _ in range(random.integers(0, 3)):
            box = (np.array(own["bbox"]) + random.normal(0, noise, 4)).clip(1).tolist()
            score = round(float(random.random()), 1)  # some are equal
            place = dict(image_id=own["image_id"], category_id=own["category_id"])
            boxes.append(dict(place, bbox=box, score=score))
    for picture in range(PICTURES):
        nothing = dict(bbox=[70.0, 70.0, 9.0, 9.0], score=0.5, category_id=1)
        boxes.append(dict(nothing, image_id=picture))
    return boxes


@pytest.mark.parametrize("most", [100, 2])
def test_ap_of_all_pictures_once_is_cocos(most: int) -> None:
    random = np.random.default_rng(0)
    coco = annotated(random)
    results = found(coco, random, 2.0)
    run = COCOeval(coco, quiet(coco.loadRes, results), "bbox")
    run.params.maxDets = [most]
    quiet(run.evaluate)
    quiet(run.accumulate)
    precision = run.eval["precision"][:, :, :, 0, -1]
    expected = 100 * precision[precision > -1].mean()
    own = quiet(matches, coco, results, "bbox", most)
    assert 5 < expected < 90
    assert average_precision(*own, np.ones(PICTURES, int)) == pytest.approx(expected, abs=1e-9)


def test_a_picture_that_is_not_drawn_does_not_count() -> None:
    """Times of 0 and 1 are COCO's evaluation of those pictures alone."""
    random = np.random.default_rng(1)
    coco = annotated(random)
    results = found(coco, random, 2.0)
    times = np.arange(PICTURES) % 2
    run = COCOeval(coco, quiet(coco.loadRes, results), "bbox")
    run.params.imgIds = [i for i in range(PICTURES) if times[i]]
    quiet(run.evaluate)
    quiet(run.accumulate)
    precision = run.eval["precision"][:, :, :, 0, -1]
    expected = 100 * precision[precision > -1].mean()
    own = quiet(matches, coco, results, "bbox")
    assert average_precision(*own, times) == pytest.approx(expected, abs=1e-9)
    assert np.isnan(average_precision(*own, np.zeros(PICTURES, int)))


def test_a_better_detector_is_ahead_and_an_equal_one_is_not() -> None:
    random = np.random.default_rng(2)
    coco = annotated(random)
    good, alike, bad = (
        [quiet(matches, coco, found(coco, random, noise), "bbox") for _ in range(3)]
        for noise in (0.5, 0.5, 8.0)
    )
    ahead, same = difference(good, bad, draws=200), difference(good, alike, draws=200)
    ones = np.ones(PICTURES, int)
    means = [np.mean([average_precision(*own, ones) for own in of]) for of in (good, bad)]
    assert ahead.mean == pytest.approx(means[0] - means[1])
    assert 0 < ahead.low < ahead.mean < ahead.high
    assert same.low < 0 < same.high
    itself = difference(good, good, draws=20)
    assert itself == (0.0, 0.0, 0.0)
    assert difference(good, bad, draws=200) == ahead  # the draws are the same each time


def test_nothing_found_is_no_ap(tmp_path: Path) -> None:
    coco = annotated(np.random.default_rng(4))
    (tmp_path / "none.json").write_text("[]")
    own = quiet(matches, coco, tmp_path / "none.json", "bbox")
    assert average_precision(*own, np.ones(PICTURES, int)) == 0


def test_what_cannot_be_compared_is_told() -> None:
    random = np.random.default_rng(3)
    coco = annotated(random)
    results = found(coco, random, 1.0)
    own = quiet(matches, coco, results, "bbox")
    with pytest.raises(ValueError, match="kind='keypoints': give one of"):
        matches(coco, results, "keypoints")
    with pytest.raises(ValueError, match="on 1 pictures that are not annotated: 99"):
        quiet(matches, coco, [dict(results[0], image_id=99)], "bbox")
    with pytest.raises(ValueError, match="2 and 1 detectors: give one of each seed"):
        difference([own, own], [own])
    fewer = COCO()
    fewer.dataset = dict(coco.dataset, images=coco.dataset["images"][:6])
    fewer.dataset["annotations"] = [a for a in coco.dataset["annotations"] if a["image_id"] < 6]
    quiet(fewer.createIndex)
    other = quiet(matches, fewer, [r for r in results if r["image_id"] < 6], "bbox")
    with pytest.raises(ValueError, match=r"evaluated on \[6, 12\] pictures"):
        difference([own], [other])
