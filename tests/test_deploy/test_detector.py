"""A whole detector in one file finds what mmdet's finds."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ltm_det import deploy
from ltm_det.backbones import LTMSwin
from ltm_det.deploy.tracing import traceable
from tests.test_deploy.conftest import CASCADE, LEAST, MANY, MASK, NEAR, SIZE, paste, predict


def assert_masks(found: Tensor, boxes: Tensor, expected: Tensor) -> None:
    """Probabilities in their boxes (K, h, w) against masks on the image (K, H, W)."""
    big = (boxes[:, 2:] - boxes[:, :2]).amin(-1) > 2  # pixels; others paste at random
    pasted, _ = paste(found[big][:, None], boxes[big], *SIZE, skip_empty=False)
    assert big.any() and expected[big].any() and not expected[big].all()
    assert ((pasted >= 0.5) != expected[big]).float().mean() < 1e-3


MANY_ALL = {"model.test_cfg.rpn.max_per_img": 40}
BOXES_ONLY = {"model.roi_head.mask_head": None}
ALL_CLASSES = {"model.roi_head.mask_head.class_agnostic": False}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (MASK, {}),
        (MASK, BOXES_ONLY),
        (MASK, {**ALL_CLASSES, "model.type": "FastMaskRCNN"}),
        (MASK, {"model.type": "FastMaskRCNN", "model.lean": dict(rpn_finest="strided")}),
        ("demo_vit_maskrcnn.py", {}),
        ("demo_vit_maskrcnn.py", BOXES_ONLY),
        (MASK, {"model.test_cfg.rcnn.nms.class_agnostic": True}),
        (MASK, {"model.test_cfg.rcnn.max_per_img": -1, **MANY_ALL}),
        (CASCADE, {}),
        (CASCADE, {"model.type": "FastCascadeRCNN"}),
    ],
)
def test_what_is_traced_is_mmdets(build: Callable, name: str, options: dict) -> None:
    """In float64, in which no rounding decides on what is kept."""
    detector = build(name, **options).double()
    whole = deploy.WholeDetector(detector)
    for _ in range(3):
        images = 3 * torch.randn(1, 3, *SIZE, dtype=torch.float64)
        with traceable(), torch.no_grad():
            boxes, scores, labels, *masks = whole(images)
        expected = predict(detector, images)
        assert len(boxes) == len(expected) > 0 and len(masks) == (options != BOXES_ONLY)
        torch.testing.assert_close(boxes, expected.bboxes, atol=1e-6, rtol=0)
        torch.testing.assert_close(scores, expected.scores, atol=1e-8, rtol=0)
        assert torch.equal(labels, expected.labels)
        if masks:
            assert_masks(masks[0], boxes, expected.masks)


def assert_finds(found: list[Tensor], expected: InstanceData, size: tuple[int, int] = SIZE) -> None:
    """What lies clearly above the least score is found in both; of the rest, rounding decides."""
    boxes, scores, labels, masks = found
    apart = (boxes[:, None] - expected.bboxes).abs().amax(-1)  # (found, expected)
    apart += 1e6 * (labels[:, None] != expected.labels)
    for dim, own in ((1, scores), (0, expected.scores)):
        clear = own > LEAST + NEAR
        assert clear.any() and (own > LEAST).all()
        assert (apart.amin(dim)[clear] < 100 * NEAR).all()
    assert (scores.diff() <= 0).all()  # the best first
    clear, partner = scores > LEAST + NEAR, apart.argmin(1)
    assert len(set(partner[clear].tolist())) == clear.sum()
    expected = expected[partner[clear]]
    torch.testing.assert_close(scores[clear], expected.scores, atol=NEAR, rtol=0)
    assert_masks(masks[clear], boxes[clear], expected.masks)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        (MASK, ".onnx"),
        pytest.param(MASK, ".xml", marks=pytest.mark.slow),
        pytest.param(CASCADE, ".xml", marks=pytest.mark.slow),
    ],
)
def test_a_file_finds_what_the_detector_finds(
    build: Callable, name: str, ending: str, tmp_path: Path
) -> None:
    """Traced on one image, it is right on others, with other numbers of objects."""
    detector, file = build(name, **MANY), tmp_path / f"whole{ending}"
    deploy.save_detector(detector, torch.zeros(1, 3, *SIZE), file)
    run, counts = deploy.load(file, threads=1).raw, set()
    for scale in (0.5, 1.0, 3.0):
        images = scale * torch.randn(1, 3, *SIZE)
        found = run(images)
        assert_finds(found, predict(detector, images))
        counts.add(len(found[0]))
    assert len(counts) > 1
    with pytest.raises(
        ValueError, match=r"takes images of shape .*\[?1, ?3, ?64, ?96\]?.*got \[2, 3,"
    ):
        run(torch.zeros(2, 3, *SIZE))


# A backbone of two stages: for four, torch.export reckons with symbols for minutes.
SHALLOW = {
    "model.backbone.depths": [1, 2],
    "model.backbone.num_heads": [1, 2],
    "model.backbone.strides": [4, 2],
    "model.backbone.out_indices": [0, 1],
    "model.backbone.merger.compression_ratio": 0.5,
    "model.backbone.merger.dense_blocks": 0,
    "model.neck.in_channels": [32, 64],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "ending"),
    [
        (MASK, {**SHALLOW, "model.type": "FastMaskRCNN"}, ".onnx"),
        ("demo_ltm_vit_maskrcnn.py", {}, ".xml"),
        (CASCADE, SHALLOW, ".xml"),
    ],
)
def test_a_file_for_any_size(
    build: Callable, name: str, options: dict, ending: str, tmp_path: Path
) -> None:
    """High and wide ones, smaller and larger than what it was traced on, odd ones too."""
    detector, file = build(name, **options), tmp_path / f"whole{ending}"
    own = [tmp_path / "backbone.onnx", tmp_path / "heads.onnx"]
    for other in own:
        other.write_text("somebody's")
    deploy.save_detector(detector, torch.zeros(1, 3, *SIZE), file, dynamic=True, scale=(200, 100))
    predictor = deploy.load(file, threads=1)
    for size in ((64, 96), (128, 64), (93, 131)):
        images = 3 * torch.randn(1, 3, *size)
        (boxes, _, labels, _), expected = predictor.raw(images), predict(detector, images)
        apart = (boxes[:, None] - expected.bboxes).abs().amax(-1)  # (found, expected)
        same = (apart < 100 * NEAR) & (labels[:, None] == expected.labels)
        # rounding decides of a few what other boxes suppress
        assert same.any(1).float().mean() > 0.8 and same.any(0).float().mean() > 0.8
    assert {other.stem for other in tmp_path.iterdir()} == {"whole", "backbone", "heads"}
    assert all(other.read_text() == "somebody's" for other in own)
    assert predictor.factor(50, 50) == 2 and predictor.factor(100, 400) == 0.5
    assert len(predictor(np.zeros((75, 40, 3), np.uint8)).size) == 2


@pytest.mark.slow
def test_layer_norms_are_one_node(detector: nn.Module, tmp_path: Path) -> None:
    """In float16 engines sums of squares of their own would overflow."""
    deploy.save_detector(detector, torch.zeros(1, 3, *SIZE), tmp_path / "whole.onnx")
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "whole.onnx").graph.node)
    norms = sum(isinstance(module, nn.LayerNorm) for module in detector.modules())
    assert nodes["LayerNormalization"] >= norms > 0 and not nodes["ReduceMean"]


@pytest.mark.slow
def test_int8(detector: nn.Module, tmp_path: Path) -> None:
    images = [torch.randn(1, 3, *SIZE) for _ in range(2)]
    file, options = tmp_path / "whole.xml", dict(dtype="int8", calibration=images)
    deploy.save_detector(detector, images[0], file, **options)
    assert file.read_text().count('type="FakeQuantize"') > 50
    assert file.with_suffix(".bin").stat().st_size < 0.4 * 4 * sum(
        p.numel() for p in detector.parameters()
    )
    boxes, scores, labels, masks = deploy.load(file, threads=1).raw(images[1])
    assert len(boxes) == len(scores) == len(labels) == len(masks) > 0
    with pytest.raises(ValueError, match="int8, and nothing else, is calibrated"):
        deploy.save_detector(detector, images[0], file, dtype="int8")


def test_what_is_not_exported_is_named(
    build: Callable, detector: nn.Module, tmp_path: Path
) -> None:
    images = torch.zeros(1, 3, *SIZE)
    other = build(MASK)
    other.roi_head = nn.Identity()
    with pytest.raises(ValueError, match=r"Identity'\] is not exported as a whole"):
        deploy.save_detector(other, images, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"a.pt ends in none of"):
        deploy.save_detector(detector, images, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"no int8 in .onnx: choose one of"):
        deploy.save_detector(detector, images, tmp_path / "a.onnx", dtype="int8")
    soft = build(MASK, **{"model.test_cfg.rcnn.nms.type": "soft_nms"})
    with pytest.raises(ValueError, match=r"test_cfg.rcnn.nms is of type 'soft_nms'"):
        deploy.save_detector(soft, images, tmp_path / "a.onnx")
    several = build(MASK, **{"model.test_cfg.rcnn.nms.max_num": 5})
    with pytest.raises(ValueError, match=r"test_cfg.rcnn.nms has \['max_num'\]"):
        deploy.save_detector(several, images, tmp_path / "a.onnx")
    smooth = build(MASK, **{"model.test_cfg.rcnn.mask_thr_binary": -1})
    with pytest.raises(ValueError, match="asks for soft masks"):
        deploy.save_detector(smooth, images, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="1 names for 10 classes"):
        deploy.save_detector(detector, images, tmp_path / "a.onnx", classes=["zero"])
    assert not list(tmp_path.iterdir())


def test_attention_is_the_same_as_it_is_traced() -> None:
    """In windows of all images and of one, with a bias of their own, and with a mask or none."""
    attention = LTMSwin(embed_dims=12, depths=(1,), num_heads=(3,), out_indices=(0,), window_size=4)
    attention = attention.eval().stages[0].blocks[0].attn.w_msa
    x = torch.randn(2, 5, 16, 12)
    masks = [None, *(torch.randn(shape) for shape in ((5, 16, 16), (2, 5, 1, 16)))]
    bias = torch.randn(1, 5, 3, 16, 16)
    given = [dict(mask=mask) for mask in masks] + [dict(bias=bias)]
    with torch.no_grad():
        expected = [attention(x, **options) for options in given]
        with traceable():
            found = [attention(x, **options) for options in given]
            attention.qkv = nn.Sequential(attention.qkv, nn.ReLU())  # an adapter: it is called
            adapted = attention(x)
        own = attention(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(adapted, own)
    assert not torch.allclose(own, expected[0])
