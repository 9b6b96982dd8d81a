"""Proposals are mmdet's, chosen faster."""

import copy

import pytest
import torch
from mmdet.models import RPNHead
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from ltm_det.detectors import FastRPNHead
from ltm_det.detectors.rpn import best_anchors, highest, level_nms

CELLS = [(20, 32), (10, 16), (5, 8), (3, 4), (2, 2)]  # of each map
SIZE = (80, 128)
USUAL = dict(nms_pre=300, max_per_img=200, min_bbox_size=0, nms=dict(type="nms", iou_threshold=0.7))


def heads(options: dict, **others) -> list[RPNHead]:
    test_cfg = ConfigDict(USUAL | options)
    sizes = dict(num_classes=1, in_channels=8, feat_channels=8)
    pair = [
        kind(**sizes, test_cfg=copy.deepcopy(test_cfg), **others) for kind in (RPNHead, FastRPNHead)
    ]
    return [head.eval() for head in pair]


def outputs(anchors: int, images: int, classes: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and deltas as a trained head has them: boxes that are apart, and many that are not."""
    logits = [torch.randn(images, anchors * classes, *cells) for cells in CELLS]
    deltas = [torch.randn(images, anchors * 4, *cells) for cells in CELLS]
    return logits, deltas


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(nms_pre=-1),
        dict(nms_pre=7, max_per_img=5),
        dict(min_bbox_size=30),
        dict(min_bbox_size=-1),
        dict(min_bbox_size=10_000),  # none is so large
        dict(nms=dict(type="nms", iou_threshold=0.3)),
        dict(nms=dict(type="nms", iou_threshold=0.7, class_agnostic=True)),
        dict(nms=dict(type="nms", iou_threshold=0.7, split_thr=100)),  # level by level in mmcv
    ],
    ids=str,
)
@pytest.mark.parametrize("rescale", [False, True])
def test_proposals_are_mmdets(options: dict, rescale: bool) -> None:
    theirs, ours = heads(options)
    logits, deltas = outputs(theirs.num_base_priors, images=2)
    metas = [dict(img_shape=SIZE, ori_shape=SIZE, scale_factor=(0.5, 0.8))] * 2
    expected, found = (
        head.predict_by_feat(logits, deltas, batch_img_metas=metas, rescale=rescale)
        for head in (theirs, ours)
    )
    for own, other in zip(found, expected, strict=True):
        assert set(own.keys()) == set(other.keys()) == {"bboxes", "scores", "labels"}
        assert (len(own) > 0) == (options.get("min_bbox_size") != 10_000)
        torch.testing.assert_close(own.bboxes, other.bboxes)
        torch.testing.assert_close(own.scores, other.scores)
        assert torch.equal(own.labels, other.labels)


def test_proposals_of_a_softmax_are_mmdets() -> None:
    loss = dict(type="CrossEntropyLoss", use_sigmoid=False)
    theirs, ours = heads({}, loss_cls=loss)
    logits, deltas = outputs(theirs.num_base_priors, images=1, classes=2)
    meta = dict(img_shape=SIZE)
    expected, found = (
        head.predict_by_feat(logits, deltas, batch_img_metas=[meta])[0] for head in (theirs, ours)
    )
    torch.testing.assert_close(found.bboxes, expected.bboxes)


def test_the_best_anchors_are_those_of_a_sort() -> None:
    logits, deltas = torch.randn(3, 4, 5), torch.randn(12, 4, 5)
    priors = torch.randn(60, 4)
    best, moves, kept = best_anchors(logits, deltas, priors, 9)
    order = logits.permute(1, 2, 0).flatten().argsort(descending=True)[:9]
    assert torch.equal(best.flatten(), logits.permute(1, 2, 0).flatten()[order])
    assert torch.equal(moves[:, 0].t(), deltas.permute(1, 2, 0).reshape(60, 4)[order])
    assert torch.equal(kept, priors[order])


@pytest.mark.parametrize(("anchors", "most"), [(1000, 7), (1001, 9), (100, 99), (64, 64), (50, 1)])
def test_the_highest_are_those_of_a_sort(anchors: int, most: int) -> None:
    """In groups of several sizes, whole ones and not."""
    scores = torch.rand(anchors)
    expected = scores.argsort(descending=True)[:most]
    assert torch.equal(highest(scores, most), expected)


def test_boxes_of_two_levels_do_not_compete() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    scores, levels = torch.tensor([0.5, 0.9, 0.8, 0.7]), torch.tensor([0, 1, 1, 0])
    assert level_nms(boxes, scores, levels, 0.7).tolist() == [1, 3, 0]
    nothing = level_nms(boxes[:0], scores[:0], levels[:0], 0.7)
    assert nothing.tolist() == []


def test_an_empty_result_stays_mmdets() -> None:
    results = InstanceData(
        bboxes=torch.zeros(0, 4), scores=torch.zeros(0), level_ids=torch.zeros(0, dtype=torch.long)
    )
    (_, ours) = heads({})
    found = ours._bbox_post_process(results, ours.test_cfg)
    assert len(found) == 0 and found.bboxes.shape == (0, 4)
