"""The same real pictures in COCO's form and in YOLO's: the same detections get the same AP."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from pycocotools import mask as coco_mask

from ltm_det.datasets.own import own_data

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "coco200"
METRICS = dict(bbox_mAP=2e-3, bbox_mAP_50=2e-3, segm_mAP=1e-2, segm_mAP_50=1e-2)


def found(split, classes: tuple[str, ...]) -> dict[str, dict]:
    """As a detector finds it, by the pictures' names: the truth, of which a part is lost, moved or
    taken for another class."""
    rng = np.random.default_rng(0)
    names = {row["id"]: row["name"] for row in split.coco["categories"]}
    rows = {row["id"]: row for row in split.coco["images"]}
    by_picture: dict[str, list] = {Path(row["file_name"]).name: [] for row in rows.values()}
    for row in split.coco["annotations"]:
        image = rows[row["image_id"]]
        size, (x, y, w, h) = (image["height"], image["width"]), row["bbox"]
        rle = coco_mask.merge(coco_mask.frPyObjects(row["segmentation"], *size))
        kind, score, shift = rng.random(), rng.random(), rng.normal(size=2) * 0.1
        if kind < 0.2 or not coco_mask.area(rle):
            continue
        label = classes.index(names[row["category_id"]])
        label = (label + 1) % len(classes) if kind < 0.4 else label
        x, y = x + shift[0] * w, y + shift[1] * h
        item = ([x, y, x + w, y + h], score, label, rle)
        by_picture[Path(image["file_name"]).name].append(item)
    return by_picture


def evaluated(split, file: Path, classes: tuple[str, ...], predictions: dict) -> dict[str, float]:
    metric = CocoMetric(ann_file=str(file), metric=["bbox", "segm"])
    metric.dataset_meta = dict(classes=classes)
    for row in split.coco["images"]:
        items = predictions[Path(row["file_name"]).name]
        boxes, scores, labels, masks = zip(*items) if items else ([], [], [], [])
        instances = dict(
            bboxes=torch.tensor(boxes).reshape(-1, 4),
            scores=torch.tensor(scores),
            labels=torch.tensor(labels, dtype=torch.long),
            masks=list(masks),
        )
        size = (row["height"], row["width"])
        metric.process({}, [dict(img_id=row["id"], ori_shape=size, pred_instances=instances)])
    return metric.evaluate(len(split.coco["images"]))


def boxes(split) -> dict[tuple[str, str], list]:
    """By picture and class."""
    pictures = {row["id"]: Path(row["file_name"]).name for row in split.coco["images"]}
    names = {row["id"]: row["name"] for row in split.coco["categories"]}
    found: dict[tuple[str, str], list] = {}
    for row in split.coco["annotations"]:
        key = pictures[row["image_id"]], names[row["category_id"]]
        found.setdefault(key, []).append(row["bbox"])
    return {key: sorted(own) for key, own in found.items()}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared pictures are not here")
def test_coco_and_yolo_say_the_same(tmp_path: Path) -> None:
    """COCO's ids have gaps. Corners of YOLO's polygons are rounded to a hundredth of a pixel, which
    moves masks of few pixels over a threshold."""
    yolo, coco = own_data(SHARED), own_data(SHARED / "annotations")
    assert [c["id"] for c in coco.val.coco["categories"]] != [*range(80)]
    assert yolo.classes == coco.classes and len(coco.classes) == 80
    of_yolo, of_coco = boxes(yolo.val), boxes(coco.val)
    assert of_yolo.keys() == of_coco.keys()
    for key, own in of_coco.items():
        np.testing.assert_allclose(of_yolo[key], own, atol=0.02)
    predictions = found(coco.val, coco.classes)
    results = {}
    for data in (yolo, coco):
        _, file = data.write(tmp_path / data.form)
        results[data.form] = evaluated(data.val, file, data.classes, predictions)
    for name, rounding in METRICS.items():
        value = results["COCO"][f"coco/{name}"]
        assert results["YOLO"][f"coco/{name}"] == pytest.approx(value, abs=rounding)
        assert 0.2 < value < 0.9
