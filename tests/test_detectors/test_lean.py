"""Lean recipes: each part of one does what it says, and nothing else changes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import RPNHead
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.structures import InstanceData
from pycocotools import mask as coco
from torch import nn
from torch.nn.utils import parametrize

from ltm_det.detectors import FAST, LEAN, LeanRPNHead, Recipe
from ltm_det.detectors.lean import CoarseConv2d, lean_anchors
from tests.test_detectors.conftest import SIZE, small_model
from tests.test_detectors.test_fast import batch, close


@pytest.fixture
def build():
    """Detectors of one set of weights, mmdet's without ``lean``."""
    register_all_modules()
    states: dict[str, dict] = {}

    def of(name: str, lean: object = None, **test_cfg: object) -> nn.Module:
        cfg = copy.deepcopy(small_model(name))
        cfg.test_cfg.rcnn.update(test_cfg)
        if lean is not None:
            cfg.update(type=FAST[cfg.type], lean=lean)
        torch.manual_seed(0)
        detector = MODELS.build(cfg)
        if name not in states:
            for parameter in detector.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.5 / parameter[0].numel() ** 0.5)
            states[name] = detector.state_dict()
        detector.load_state_dict(states[name])
        return detector.eval()

    return of


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (dict(proposal=3), r"lean has no \['proposal'\]: give some of \['proposals', "),
        (dict(proposals=0), "lean.proposals=0: give a whole number from 1"),
        (dict(masks=1.5), "lean.masks=1.5: give a whole number"),
        (dict(rpn_finest="quarter"), "lean.rpn_finest='quarter': give one of"),
        (dict(neck_finest=0.4), "lean.neck_finest=0.4: give 0.5 to 1"),
        (dict(neck_finest="5/7"), "lean.neck_finest='5/7': give a number"),
        (dict(mask_score=None), "lean.mask_score=None: give a number"),
        (3, "lean=3: give True, None, or a dict"),
        (dict(mask_score=-0.1), "lean.mask_score=-0.1: give 0 to 1"),
    ],
)
def test_a_recipe_is_checked(given: dict, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Recipe.of(given)


def test_what_a_config_may_say() -> None:
    assert Recipe.of(True) == LEAN == Recipe.of(LEAN.as_dict())
    assert Recipe.of(None) == Recipe.of(False) == Recipe.of({}) == Recipe()
    assert Recipe.of(dict(masks=3)).masks == 3


@pytest.mark.parametrize(
    ("name", "rpn_finest"),
    [("mask", "half"), ("faster", "none"), ("cascade", "half"), ("mask", "strided")],
)
def test_names_and_training(build, name: str, rpn_finest: str) -> None:
    """Weights are mmdet's, and all of them learn."""
    lean = build(name, {**LEAN.as_dict(), "rpn_finest": rpn_finest, "neck_finest": 5 / 7})
    shapes = {key: value.shape for key, value in build(name).state_dict().items()}
    assert {key: value.shape for key, value in lean.state_dict().items()} == shapes
    data = demo_mm_inputs(2, [(3, 96, 128)] * 2, num_classes=3, with_mask=lean.with_mask)
    data = lean.data_preprocessor(data, True)
    losses = lean.train().loss(data["inputs"], data["data_samples"])
    sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if "loss" in k).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in lean.parameters())
    assert lean.neck.fpn_convs[0].conv.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_fewer_proposals_are_mmdets_own(build) -> None:
    """As with mmdet's ``max_per_img``, which is not raised."""
    detector, lean = build("mask"), build("mask", dict(proposals=20))
    maps = detector.extract_feat(torch.randn(1, 3, *SIZE))
    samples = batch(1)["data_samples"]
    (all_boxes,), (few,) = (
        d.rpn_head.predict(maps, samples, rescale=False) for d in (detector, lean)
    )
    assert len(few) == 20 < len(all_boxes)
    close([few.bboxes], [all_boxes.bboxes[:20]])
    assert build("mask", dict(proposals=10**6)).test_cfg.rpn.max_per_img == 100


@torch.no_grad()
def test_an_rpn_without_the_finest_map(build) -> None:
    """Is mmdet's on the other maps, with their anchors."""
    detector, lean = build("faster"), build("faster", dict(rpn_finest="none"))
    assert type(lean.rpn_head) is LeanRPNHead
    maps = detector.extract_feat(torch.randn(1, 3, *SIZE))
    for found, expected in zip(lean.rpn_head(maps), detector.rpn_head(maps)):
        close(found, expected[1:])
    sizes = [x.shape[2:] for x in maps[1:]]
    own = lean.rpn_head.prior_generator.grid_priors(sizes, device="cpu")
    given = detector.rpn_head.prior_generator
    for level, anchors in enumerate(own, start=1):
        expected = given.single_level_grid_priors(maps[level].shape[2:], level, device="cpu")
        assert torch.equal(anchors, expected)


@pytest.mark.parametrize("convs", [1, 2])
@pytest.mark.parametrize("change", ["nothing", "hook", "adapter"])
def test_a_strided_rpn(build, convs: int, change: str) -> None:
    """Gives every second cell of what it gives, with the anchors there, and the same gradients."""
    small = small_model("faster")
    small.rpn_head.num_convs = convs
    torch.manual_seed(0)
    heads = []
    for lean in ({}, dict(rpn_finest="strided")):
        cfg = copy.deepcopy(small)
        cfg.update(type="FastFasterRCNN", lean=lean)
        heads.append(MODELS.build(cfg).rpn_head.eval())
    whole, lean = heads
    lean.load_state_dict(whole.state_dict())
    seen = []
    for head in heads:
        last = head.rpn_conv if convs == 1 else head.rpn_conv[-1].conv
        if change == "hook":
            last.register_forward_hook(lambda *_: seen.append(1))
        elif change == "adapter":
            parametrize.register_parametrization(last, "weight", nn.Tanh())
    maps = [torch.randn(2, 32, *size, requires_grad=True) for size in ((41, 50), (21, 25))]
    own = [[x for part in head(tuple(maps)) for x in part] for head in heads]
    expected = [own[0][0][..., ::2, ::2], own[0][1], own[0][2][..., ::2, ::2], own[0][3]]
    close(own[1], expected)
    assert len(seen) == (4 if change == "hook" else 0)
    grads = [
        torch.autograd.grad(sum(x.square().sum() for x in y), maps) for y in (own[1], expected)
    ]
    close(grads[0], grads[1])
    with torch.no_grad():
        close([x for part in lean(tuple(maps)) for x in part], expected)
    of, fine = (head.prior_generator.single_level_grid_priors for head in (lean, whole))
    assert torch.equal(of((21, 25), 1, device="cpu"), fine((21, 25), 1, device="cpu"))
    expected = fine((41, 50), 0, device="cpu").view(41, 50, -1)[::2, ::2]
    assert torch.equal(of((21, 25), 0, device="cpu").view(21, 25, -1), expected)


@torch.no_grad()
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_an_rpn_of_half_the_finest_map(build, offset: float) -> None:
    """Sees means of 2 x 2 cells, whose anchors have the mean place of the four."""
    detector, lean = build("faster"), build("faster", dict(rpn_finest="half"))
    maps = detector.extract_feat(torch.randn(1, 3, *SIZE))
    for found, expected in zip(lean.rpn_head(maps), detector.rpn_head(maps)):
        close(found[1:], expected[1:])
    half = F.avg_pool2d(maps[0], 2)
    close(lean.rpn_head(maps)[0][:1], detector.rpn_head.forward_single(half)[:1])

    cfg = dict(type="AnchorGenerator", scales=[8], ratios=[0.5, 1.0], strides=[4, 8])
    cfg["center_offset"] = offset
    fine, coarse = (
        RPNHead(4, anchor_generator=own).prior_generator for own in (cfg, lean_anchors(cfg, "half"))
    )
    fine = fine.grid_priors([(6, 10), (3, 5)], device="cpu")
    coarse = coarse.grid_priors([(3, 5), (3, 5)], device="cpu")
    assert torch.equal(fine[1], coarse[1])
    four = fine[0].view(3, 2, 5, 2, 2, 4).mean((1, 3))
    torch.testing.assert_close(coarse[0].view(3, 5, 2, 4), four)


def test_what_has_no_finest_map_is_named(build) -> None:
    cfg = small_model("mask")
    cfg.update(type="FastMaskRCNN", lean=dict(rpn_finest="half"))
    cfg.rpn_head.type = "GARPNHead"
    with pytest.raises(ValueError, match="is of an RPNHead, not a GARPNHead"):
        MODELS.build(cfg)
    cfg = small_model("mask")
    cfg.update(type="FastMaskRCNN", lean=dict(neck_finest=0.5), neck=None)
    with pytest.raises(ValueError, match="is of an FPN, not a NoneType"):
        MODELS.build(cfg)
    with pytest.raises(ValueError, match="is of an AnchorGenerator, not a SSDAnchorGenerator"):
        lean_anchors(dict(type="SSDAnchorGenerator"), "half")


@torch.no_grad()
def test_a_coarse_convolution(build) -> None:
    """The other maps are as they were; where nothing changes nearby, this one is too."""
    detector, lean = build("faster"), build("faster", dict(neck_finest=5 / 7))
    assert type(lean.neck.fpn_convs[0].conv) is CoarseConv2d
    inputs = [torch.randn(1, 16 * 2**i, 28 // 2**i, 56 // 2**i) for i in range(4)]
    maps, own = detector.neck(inputs), lean.neck(inputs)
    close(own[1:], maps[1:])
    assert own[0].shape == maps[0].shape and (own[0] - maps[0]).abs().max() > 0.01
    inputs = [torch.ones_like(x) for x in inputs]
    (finest, *_), (mine, *_) = detector.neck(inputs), lean.neck(inputs)
    close([mine[..., 4:-4, 4:-4]], [finest[..., 4:-4, 4:-4]])


@torch.no_grad()
@pytest.mark.parametrize("name", ["mask", "cascade"])
@pytest.mark.parametrize("form", ["bitmap", "rle"])
@pytest.mark.parametrize("rescale", [True, False])
def test_the_best_alone_have_masks(build, name: str, form: str, rescale: bool) -> None:
    """One image has more objects than that, one has none of such a score, one has none at all."""
    detector, lean = (
        build(name, mask_format=form),
        build(name, dict(masks=3, mask_score=0.5), mask_format=form),
    )
    every = build(name, {}, mask_format=form)
    scores = [torch.linspace(0.9, 0.1, 12), torch.full((2,), 0.4), torch.zeros(0)]
    torch.manual_seed(1)
    corners = [torch.rand(len(s), 2) * 80 for s in scores]
    boxes = [torch.cat([low, low + 20 + 60 * torch.rand_like(low)], 1) for low in corners]
    maps = detector.extract_feat(torch.randn(3, 3, *SIZE))
    metas = [sample.metainfo for sample in batch(3)["data_samples"]]

    def results(model: nn.Module) -> list[InstanceData]:
        objects = [
            InstanceData(bboxes=b.clone(), scores=s, labels=torch.arange(len(s)) % 3)
            for b, s in zip(boxes, scores)
        ]
        return model.roi_head.predict_mask(maps, metas, objects, rescale=rescale)

    for found, expected, shown in zip(results(lean), results(every), (3, 0, 0), strict=True):
        assert len(found) == len(expected)
        torch.testing.assert_close(found.bboxes, expected.bboxes, atol=1e-3, rtol=0)
        if form == "rle":
            assert isinstance(found.masks, list) and len(found.masks) == len(found)
            if not len(found):
                continue
            found.masks, expected.masks = (
                torch.from_numpy(coco.decode(x.masks)).permute(2, 0, 1) for x in (found, expected)
            )
        assert found.masks[:shown].equal(expected.masks[:shown])
        assert not found.masks[shown:].any() and bool(found.masks[:shown].any()) == (shown > 0)
        assert bool(expected.masks[shown:].any()) == (len(expected) > 0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mask", "faster", "cascade"])
def test_a_lean_detector_finds_objects(build, name: str) -> None:
    for lean in (True, dict(rpn_finest="half", neck_finest=0.6)):
        for sample in build(name, lean).test_step(batch()):
            assert len(sample.pred_instances) == 30
