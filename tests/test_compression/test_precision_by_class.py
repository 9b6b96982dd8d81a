"""AP by class and by size against mmdet's own metric, and objects in what a file finds."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from torch import nn

from ltm_det.compression import evaluation, exporting
from ltm_det.compression.evaluation import evaluate, loss_of
from ltm_det.compression.exporting import same
from tests.test_compression import small

NAMES = ["cat", "dog", "owl", "emu"]  # the last on no picture


class Finder(nn.Module):
    """Finds the truth, moved a little, with a mask, and something that is not there."""

    def __init__(self, truth: COCO, far: float) -> None:
        super().__init__()
        self.data_preprocessor = SimpleNamespace(pad_size_divisor=32)
        self.truth, self.far = truth, far

    def test_step(self, batch: dict[str, Any]) -> list[DetDataSample]:
        out = []
        for i in batch["ids"]:
            info = self.truth.loadImgs([i])[0]
            rows = self.truth.loadAnns(self.truth.getAnnIds(imgIds=[i]))
            names = {row["id"]: row["name"] for row in self.truth.dataset["categories"]}
            boxes, labels = [], []
            for row in rows:
                x, y, w, h = row["bbox"]
                boxes.append([x + self.far, y, x + w, y + h])
                labels.append(NAMES.index(names[row["category_id"]]))
            boxes.append([0.0, 0.0, 9.0, 9.0])
            labels.append(0)
            size = info["height"], info["width"]
            masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes):
                mask[int(y1) : int(y2), int(x1) : int(x2)] = True
            scores = torch.linspace(0.5, 0.9, len(boxes))
            sample = DetDataSample(metainfo=dict(img_id=i, ori_shape=size, img_shape=size))
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor(boxes), labels=torch.tensor(labels), scores=scores, masks=masks
            )
            out.append(sample)
        return out


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, COCO]:
    file = small.data(tmp_path / "data") / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"].append(dict(id=99, name="emu"))
    file.write_text(json.dumps(content))
    truth = evaluation.coco_of(str(file))
    batches = [dict(ids=[i]) for i in truth.getImgIds()]
    monkeypatch.setattr(evaluation, "batches_of", lambda cfg: batches)
    return Config(dict(val_evaluator=dict(ann_file=str(file)))), truth


@pytest.mark.parametrize("far", [0.0, 3.0])
def test_it_is_mmdets_metric(given: tuple[Config, COCO], far: float) -> None:
    cfg, truth = given
    finder = Finder(truth, far)
    found = evaluate(finder, cfg, True, NAMES)
    metric = CocoMetric(cfg.val_evaluator.ann_file, ["bbox", "segm"], classwise=True)
    metric.dataset_meta = dict(classes=NAMES)
    for i in truth.getImgIds():
        samples = [sample.to_dict() for sample in finder.test_step(dict(ids=[i]))]
        metric.process({}, samples)
    wanted = metric.evaluate(len(truth.getImgIds()))
    for kind in ("bbox", "segm"):
        for ours, theirs in dict(AP="mAP", AP50="mAP_50", small="mAP_s", medium="mAP_m").items():
            value, told = found[kind][ours], wanted[f"coco/{kind}_{theirs}"]
            assert told == -1 if value is None else value == pytest.approx(100 * told, abs=0.051)
        assert found[kind]["classes"]["emu"] is None
    assert found["pictures"] == 3
    assert found["sizes"] == {"64 x 64": 3}  # of 40 x 60, 64 x 48 and 50 x 50 pixels
    assert found["segm"]["classes"]["dog"] == pytest.approx(
        100 * wanted["coco/dog_precision"], abs=0.051
    )  # of masks, which come last
    # of three classes, one of which has what is not there before its own
    assert (found["bbox"]["AP"] == pytest.approx((25 + 100 + 100) / 3)) == (far == 0)


def test_losses() -> None:
    before = dict(bbox=dict(AP=50.0), segm=dict(AP=40.0))
    assert loss_of(before, dict(bbox=dict(AP=49.5), segm=dict(AP=38.0))) == 2.0
    assert loss_of(dict(bbox=dict(AP=50.0)), dict(bbox=dict(AP=51.0))) == -1.0


def found(scores: list[float], move: float = 0.0, label: int = 0) -> list[torch.Tensor]:
    """Two objects, as a whole detector and its file give them."""
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 60.0, 60.0]]) + move
    return [boxes, torch.tensor(scores), torch.tensor([0, label]), torch.ones(2, 28, 28)]


def are_same(ones: list[torch.Tensor], others: list[torch.Tensor], patch: Any) -> bool:
    patch.setattr(exporting.deploy, "WholeDetector", lambda detector: lambda images: ones)
    detector: Any = SimpleNamespace(data_preprocessor=lambda batch, training: dict(inputs=None))
    file: Any = SimpleNamespace(predictor=SimpleNamespace(raw=lambda images: others))
    return same(detector, file, True, [{}])["same"]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (found([0.9, 0.8]), True),
        (found([0.9, 0.81], 0.1), True),
        (found([0.9, 0.8], 2.0), False),
        (found([0.9, 0.5]), False),
        (found([0.9, 0.8], label=1), False),
        (found([0.9, 0.2]), False),  # what the file is not sure of
    ],
)
def test_a_file_has_to_find_the_same(
    other: list[torch.Tensor], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert are_same(found([0.9, 0.8]), other, monkeypatch) is expected


def test_what_neither_is_sure_of_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert are_same(found([0.9, 0.1]), found([0.9, 0.2], label=1), monkeypatch)
