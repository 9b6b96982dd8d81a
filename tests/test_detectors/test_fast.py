"""The fast detectors against mmdet's of the same weights, part by part and as a whole."""

import copy
import pickle

import pytest
import torch
from mmdet.models import FCNMaskHead
from mmdet.structures import DetDataSample
from mmdet.testing import demo_mm_inputs
from mmengine.structures import InstanceData
from pycocotools import mask as coco
from torch import nn
from torchvision.ops import box_iou

from ltm_det.detectors import FastConv2d, FastFCNMaskHead, FastRoIExtractor
from ltm_det.detectors.detectors import with_fast_parts
from tests.test_detectors.conftest import SIZE

ROIS = torch.tensor(
    [[0, 3, 5, 60, 70], [0, 0, 0, 199, 159], [1, 90, 20, 130, 150], [1, 10, 10, 14, 12.0]]
)


def close(found, expected, near=1e-4) -> None:
    """As a share of the largest number."""
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= near * other.abs().max().clamp(min=1e-6)


def batch(images: int = 2) -> dict:
    height, width = SIZE
    meta = dict(img_shape=SIZE, ori_shape=(2 * height, 2 * width), scale_factor=(0.5, 0.5))
    generator = torch.Generator().manual_seed(0)
    return dict(
        inputs=[torch.randint(0, 256, (3, *SIZE), generator=generator) for _ in range(images)],
        data_samples=[DetDataSample(metainfo=dict(meta, img_id=i)) for i in range(images)],
    )


@torch.no_grad()
def test_maps_and_region_heads_agree(pair) -> None:
    detector, fast = pair
    images = torch.randn(2, 3, *SIZE)
    maps, fast_maps = detector.extract_feat(images), fast.extract_feat(images)
    close(fast_maps, maps)
    for found, expected in zip(fast.rpn_head(fast_maps), detector.rpn_head(maps)):
        close(found, expected)
    heads = detector.roi_head, fast.roi_head
    stages = [(0,)] if isinstance(heads[0].bbox_head, nn.ModuleList) else [()]
    for stage in stages:
        expected, found = (
            head._bbox_forward(*stage, m, ROIS) for head, m in zip(heads, (maps, fast_maps))
        )
        close([found[key] for key in sorted(found)], [expected[key] for key in sorted(expected)])


@torch.no_grad()
def test_whole_detectors_find_the_same(pair) -> None:
    """Which of boxes of equal worth NMS keeps may hang on a rounding, so that each of the better
    half is looked for among all of the other's."""
    detector, fast = pair
    for expected, found in zip(detector.test_step(batch()), fast.test_step(batch()), strict=True):
        expected, found = expected.pred_instances, found.pred_instances
        assert len(found) == 30
        better = expected[: len(expected) // 2]
        overlap = box_iou(better.bboxes, found.bboxes)
        overlap[better.labels[:, None] != found.labels] = 0
        best, at = overlap.max(1)
        same = best > 0.99
        assert same.float().mean() > 0.9
        close([found.scores[at[same]]], [better.scores[same]], 1e-3)
        if "masks" in expected:
            masks, own = better.masks[same], found.masks[at[same]]
            assert masks.shape == own.shape and (masks != own).float().mean() < 1e-3


@pytest.mark.parametrize("name", ["mask", "cascade"], indirect=True)
@torch.no_grad()
def test_masks_of_given_boxes_agree(pair) -> None:
    """Bitmaps, and run lengths of the same; one image has none."""
    images, found = torch.randn(2, 3, *SIZE), []
    for detector in pair:
        for form in ("bitmap", "rle"):
            head = detector.roi_head
            head.test_cfg.mask_format = form
            objects = [instances(ROIS[:, 1:]), instances(ROIS[:0, 1:])]
            metas = [sample.metainfo for sample in batch()["data_samples"]]
            maps = detector.extract_feat(images)
            results = head.predict_mask(maps, metas, objects, rescale=True)
            assert len(results[1].masks) == 0
            found.append((results[0].bboxes, results[0].masks))
    (boxes, expected), _, (own_boxes, own), (rle_boxes, rles) = found
    close([own_boxes, rle_boxes], [boxes, boxes])
    assert own.shape == (4, 2 * SIZE[0], 2 * SIZE[1]) and (own != expected).float().mean() < 1e-3
    assert (torch.from_numpy(coco.decode(rles)).permute(2, 0, 1).bool() == own).all()


def instances(boxes: torch.Tensor) -> InstanceData:
    labels = torch.arange(len(boxes)) % 3
    return InstanceData(bboxes=boxes.clone(), labels=labels, scores=torch.rand(len(boxes)))


def test_a_training_step_is_mmdets(pair) -> None:
    losses = []
    with_mask = pair[0].with_mask
    for detector in pair:
        torch.manual_seed(0)
        data = demo_mm_inputs(2, [(3, 96, 128)] * 2, num_classes=3, with_mask=with_mask)
        data = detector.data_preprocessor(data, True)
        found = detector.train().loss(data["inputs"], data["data_samples"])
        loss = sum(sum(v) if isinstance(v, list) else v for k, v in found.items() if "loss" in k)
        loss.backward()
        losses.append([loss.detach()] + [p.grad for p in detector.parameters()])
    close(*losses)


def test_parts_and_names(pair) -> None:
    detector, fast = pair
    assert list(fast.state_dict()) == list(detector.state_dict())
    kinds = {type(module) for part in (fast.neck, fast.rpn_head) for module in part.modules()}
    assert FastConv2d in kinds and nn.Conv2d not in kinds
    assert any(isinstance(module, FastRoIExtractor) for module in fast.modules())
    assert fast.with_mask == any(isinstance(m, FastFCNMaskHead) for m in fast.modules())


@torch.no_grad()
def test_copies_and_hooks(pair) -> None:
    _, fast = pair
    images = torch.randn(1, 3, *SIZE)
    expected = fast.extract_feat(images)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        close(twin.extract_feat(images), expected, 0)
    conv, seen = fast.neck.fpn_convs[0].conv, []
    conv.register_forward_hook(lambda *args: seen.append(args[2].shape))
    fast.extract_feat(images)
    assert seen == [expected[0].shape]


@pytest.mark.parametrize("name", ["mask", "cascade"], indirect=True)
@torch.no_grad()
def test_only_the_class_that_is_read_is_computed(pair, monkeypatch) -> None:
    """By mmdet's head alone where somebody watches the layer, which then is called."""
    _, fast = pair
    whole, forward = [], FCNMaskHead.forward
    monkeypatch.setattr(FCNMaskHead, "forward", lambda *a: whole.append(1) or forward(*a))
    head, seen, calls = fast.roi_head.mask_head, [], []
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    head.register_forward_hook(lambda *args: seen.append(args[2].shape[1]))
    fast.test_step(batch(1))
    assert not whole
    head.conv_logits.register_forward_hook(lambda *_: calls.append(1))
    fast.test_step(batch(1))
    assert seen == [1, 1] and calls == whole == [1]


@torch.no_grad()
def test_watched_region_layers_are_called(pair) -> None:
    _, fast = pair
    extractor = fast.roi_head.bbox_roi_extractor
    extractor = extractor[0] if isinstance(extractor, nn.ModuleList) else extractor
    calls = []
    maps = fast.extract_feat(torch.randn(2, 3, *SIZE))[: extractor.num_inputs]
    expected = extractor(maps, ROIS)
    extractor.roi_layers[0].register_forward_hook(lambda *_: calls.append(1))
    close([extractor(maps, ROIS)], [expected])
    assert calls


@torch.no_grad()
def test_changed_weights_are_read(pair) -> None:
    """In whatever way they change."""
    _, fast = pair
    images = torch.randn(1, 3, *SIZE)
    fast.extract_feat(images)
    conv = fast.neck.fpn_convs[0].conv
    conv.weight.data.zero_()
    conv.bias.data.fill_(3.0)
    assert (fast.extract_feat(images)[0] == 3).all()


def test_other_parts_stay() -> None:
    cfg = dict(type="PointRendRoIHead", mask_head=[dict(type="CoarseMaskHead")], size=(7, 7))
    assert with_fast_parts(cfg) == cfg
    named = with_fast_parts(dict(type="mmdet.FCNMaskHead", num_classes=3))
    assert named == dict(type="FastFCNMaskHead", num_classes=3)


@pytest.mark.parametrize("name", ["mask"], indirect=True)
def test_a_wrong_format_is_named(pair) -> None:
    _, fast = pair
    fast.roi_head.test_cfg.mask_format = "polygon"
    with pytest.raises(ValueError, match="mask_format='polygon': give one of"):
        fast.test_step(batch(1))


@pytest.mark.parametrize("name", ["mask"], indirect=True)
def test_soft_masks_have_no_run_lengths(pair) -> None:
    _, fast = pair
    fast.roi_head.test_cfg.update(mask_format="rle", mask_thr_binary=-1)
    with pytest.raises(ValueError, match="mask_thr_binary=-1 asks for soft masks"):
        fast.test_step(batch(1))


@torch.no_grad()
def test_no_proposals(pair) -> None:
    _, fast = pair
    fast.test_cfg.rpn.min_bbox_size = fast.rpn_head.test_cfg.min_bbox_size = 10_000
    for sample in fast.test_step(batch()):
        assert len(sample.pred_instances) == 0
