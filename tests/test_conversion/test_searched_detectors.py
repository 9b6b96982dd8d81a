"""What whole detectors cost and lose when parts are left out, without labels."""

from collections.abc import Mapping
from dataclasses import asdict

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from pycocotools import mask as coco
from torch import Tensor, nn

from ltm_det.conversion.searched_detectors import (
    SearchedDetectors,
    objects_on,
    precision_against,
)
from ltm_det.detectors import FastRPNHead, Recipe
from ltm_det.measure.flops import build_detector, count_macs
from tests.test_detectors.conftest import small_model


def objects(*boxes: list[float], scores: list[float] | None = None) -> InstanceData:
    bboxes = torch.tensor(boxes).reshape(-1, 4)
    masks = []
    for left, top, right, bottom in bboxes.int().tolist():
        pixels = torch.zeros(40, 40, dtype=torch.uint8)
        pixels[top:bottom, left:right] = 1
        masks.append(coco.encode(pixels.t().contiguous().t().numpy()))
    scores = torch.tensor(scores or [1.0] * len(boxes))
    labels = torch.zeros(len(boxes), dtype=torch.long)
    return InstanceData(bboxes=bboxes, scores=scores, labels=labels, masks=masks)


A, B = [0.0, 0.0, 20.0, 20.0], [22.0, 22.0, 38.0, 38.0]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (objects(A, B), 1.0),
        (objects(A, B, A, scores=[0.9, 0.8, 0.1]), 1.0),  # what comes after all truth costs nothing
        (objects(A), 51 / 101),  # recalls 0, 0.01, ... 0.5 of the 101 that COCO has
        (objects([0.0, 0.0, 20.0, 15.0], B), None),  # overlaps by 0.75
        (objects(), 0.0),
    ],
)
def test_precision_by_hand(kind: str, found: InstanceData, expected: float | None) -> None:
    got = precision_against([objects(A, B)], [found], [(40, 40)], kind)
    if expected is None:  # both at overlaps of 0.5 to 0.75; above, the second alone
        low, high = 51 / 101 / 2, 51 / 101
        assert (6 + 4 * low) / 10 - 1e-3 <= got <= (6 + 4 * high) / 10 + 1e-3
    else:
        assert got == pytest.approx(expected, abs=1e-6)


def test_other_classes_and_images_do_not_count() -> None:
    other = objects(A, B)
    other.labels = other.labels + 1
    assert precision_against([objects(A, B)], [other], [(40, 40)], "bbox") == 0
    nothing, size = objects(), [(40, 40)] * 2
    assert precision_against([objects(A), nothing], [nothing, objects(A)], size, "bbox") == 0


@pytest.fixture(scope="module")
def sure() -> tuple[Config, dict[str, Tensor]]:
    """A tiny detector that is sure of what it finds, and its weights."""
    model = small_model("mask")
    model.test_cfg.rcnn.score_thr = 0.05
    model.backbone.update(type="LTMSwin", depths=[1, 2, 1, 1])
    cfg = Config(dict(model=model, default_scope="mmdet"))
    torch.manual_seed(0)
    built = build_detector(cfg)
    with torch.no_grad():
        built.roi_head.bbox_head.fc_cls.weight.normal_(std=1.0)
    return cfg, built.state_dict()


@pytest.fixture(scope="module")
def searched(sure: tuple[Config, Mapping[str, Tensor]]) -> SearchedDetectors:
    cfg, state = sure
    return SearchedDetectors(cfg, dict(type="LTM"), dict(state_dict=state), [0.5], "stage", "cpu")


def test_units_are_those_of_the_backbone_and_the_heads(searched: SearchedDetectors) -> None:
    assert set(searched.backbones.units) < set(searched.units)
    heads = {name: own for name, own in searched.units.items() if name.startswith("lean.")}
    assert {f"lean.{name}" for name in asdict(Recipe())} == heads.keys()
    assert heads["lean.rpn_finest"] == ["exact", "strided", "half", "none"]
    assert all(own[0] == "exact" for own in heads.values())


def test_there_are_as_many_proposals_as_a_picture_may_have_objects(
    sure: tuple[Config, Mapping[str, Tensor]], searched: SearchedDetectors
) -> None:
    cfg, state = sure
    least = int(searched.units["lean.proposals"][-1])
    dense = cfg.copy()
    dense.model.test_cfg.rcnn.max_per_img = least + 1
    words = dict(type="LTM"), dict(state_dict=state), [0.5], "stage", "cpu"
    there = SearchedDetectors(dense, *words).units.get("lean.proposals", [])
    assert str(least) not in there


def test_a_choice_is_built_of_the_same_weights(searched: SearchedDetectors) -> None:
    unit = next(iter(searched.backbones.units))
    labels = [(unit, searched.units[unit][1]), ("lean.rpn_finest", "none")]
    model = searched.model(labels)
    assert model.rpn_head.finest == "none" and searched.recipe(labels) == dict(rpn_finest="none")
    assert searched.merger(labels)["type"] == "LTM"
    own, dense = dict(model.named_parameters()), dict(searched.dense.named_parameters())
    shared = [key for key in own if ".merger" not in key]
    assert shared and all(own[key].data_ptr() == dense[key].data_ptr() for key in shared)
    assert type(searched.model([]).rpn_head) is FastRPNHead


def test_costs_and_errors(searched: SearchedDetectors) -> None:
    images = torch.randn(2, 3, 64, 64)
    few = searched.model([("lean.proposals", searched.units["lean.proposals"][-1])])
    models = [searched.dense, few]
    whole, less = searched.costs(models, "gmacs", (64, 64), images[:1])
    assert whole == count_macs(searched.dense, (64, 64)).macs["detector"] / 1e9 and less < whole
    times = searched.costs(models, "latency", (64, 64), images[:1])
    assert len(times) == 2 and min(times) > 0
    same, fewer = searched.errors(models, [images])
    assert same == pytest.approx(0, abs=1e-6) and 0 <= fewer <= 1
    assert len(objects_on(searched.dense, images)) == 2


def test_a_detector_that_finds_nothing_is_named(searched: SearchedDetectors) -> None:
    layer: nn.Linear = searched.dense.roi_head.bbox_head.fc_cls
    before = layer.weight.detach().clone()
    try:
        layer.weight.data.zero_()
        with pytest.raises(ValueError, match="finds nothing of a score of 0.3 on 1 images"):
            searched.errors([], [torch.randn(1, 3, 64, 64)])
    finally:
        layer.weight.data.copy_(before)


def test_other_detectors_and_weights_are_refused(
    sure: tuple[Config, Mapping[str, Tensor]],
) -> None:
    cfg, state = sure
    given = dict(type="LTM"), dict(state_dict=dict(state)), [0.5], "stage", "cpu"
    other = cfg.copy()
    other.model = dict(cfg.model, type="SparseRCNN")
    with pytest.raises(ValueError, match="a SparseRCNN: give one of"):
        SearchedDetectors(other, *given)
    given[1]["state_dict"].pop("rpn_head.rpn_cls.weight")
    with pytest.raises(ValueError, match="of another detector"):
        SearchedDetectors(cfg, *given)
