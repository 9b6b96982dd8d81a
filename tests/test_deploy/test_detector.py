"""A whole Mask R-CNN in one file finds what mmdet's finds."""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmdet.models.roi_heads.mask_heads import fcn_mask_head
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ltm_det import deploy
from ltm_det.deploy.detector import traceable
from ltm_det.engine.preflight import load_config
from ltm_det.measure.flops import build_detector

CONFIGS = Path(__file__).parents[2] / "configs"
SIZE = (64, 96)
LEAST = 0.2  # score of what the file's detector finds
NEAR = 1e-4  # scores: by so much two ways to compute may differ, and by 100 times that in pixels


@pytest.fixture(scope="module")
def build() -> Callable[..., nn.Module]:
    """A small detector that finds a lot, in noise too, and amplifies no rounding."""

    def of(name: str, **options: object) -> nn.Module:
        torch.manual_seed(0)
        detector = build_detector(load_config(str(CONFIGS / name), options)).eval()
        for parameter in detector.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        return detector

    return of


@pytest.fixture(scope="module")
def detector(build: Callable) -> nn.Module:
    options = {"model.test_cfg.rcnn.max_per_img": 1000, "model.test_cfg.rcnn.score_thr": LEAST}
    return build("demo_ltm_swin_maskrcnn.py", **options)


def paste(masks: Tensor, boxes: Tensor, *size: int, paste=fcn_mask_head._do_paste_mask, **options):
    """mmdet's, which takes float32 alone."""
    return paste(masks, boxes.float(), *size, **options)


def predict(detector: nn.Module, images: Tensor) -> InstanceData:
    meta = dict(img_shape=SIZE, ori_shape=SIZE, batch_input_shape=SIZE, scale_factor=(1.0, 1.0))
    with torch.no_grad(), mock.patch.object(fcn_mask_head, "_do_paste_mask", paste):
        (sample,) = detector.predict(images, [DetDataSample(metainfo=meta)], rescale=False)
    return sample.pred_instances


def assert_masks(found: Tensor, boxes: Tensor, expected: Tensor) -> None:
    """Probabilities in their boxes (K, h, w) against masks on the image (K, H, W)."""
    big = (boxes[:, 2:] - boxes[:, :2]).amin(-1) > 2  # pixels; others paste at random
    pasted, _ = paste(found[big][:, None], boxes[big], *SIZE, skip_empty=False)
    assert big.any() and expected[big].any() and not expected[big].all()
    assert ((pasted >= 0.5) != expected[big]).float().mean() < 1e-3


@pytest.mark.parametrize("options", [{}, {"model.roi_head.mask_head": None}], ids=["mask", "box"])
@pytest.mark.parametrize("name", ["demo_ltm_swin_maskrcnn.py", "demo_vit_maskrcnn.py"])
def test_what_is_traced_is_mmdets(build: Callable, name: str, options: dict) -> None:
    """In float64, in which no rounding decides on what is kept."""
    detector = build(name, **options).double()
    whole = deploy.WholeDetector(detector)
    for _ in range(3):
        images = 3 * torch.randn(1, 3, *SIZE, dtype=torch.float64)
        with traceable(max(SIZE) + 1), torch.no_grad():
            boxes, scores, labels, *masks = whole(images)
        expected = predict(detector, images)
        assert len(boxes) == len(expected) > 0 and len(masks) == (not options)
        torch.testing.assert_close(boxes, expected.bboxes, atol=1e-6, rtol=0)
        torch.testing.assert_close(scores, expected.scores, atol=1e-8, rtol=0)
        assert torch.equal(labels, expected.labels)
        if masks:
            assert_masks(masks[0], boxes, expected.masks)


def assert_finds(found: list[Tensor], expected: InstanceData) -> None:
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


def test_a_file_finds_what_the_detector_finds(detector: nn.Module, tmp_path: Path) -> None:
    """Traced on one image, it is right on others, with other numbers of objects."""
    deploy.save_detector(detector, torch.zeros(1, 3, *SIZE), tmp_path / "whole.onnx")
    run = deploy.load(tmp_path / "whole.onnx", threads=1)
    counts = set()
    for scale in (0.5, 1.0, 3.0):
        images = scale * torch.randn(1, 3, *SIZE)
        found = run(images)
        assert_finds(found, predict(detector, images))
        counts.add(len(found[0]))
    assert len(counts) > 1
    with pytest.raises(ValueError, match=r"takes images of shape \[1, 3, 64, 96\], got \[2, 3,"):
        run(torch.zeros(2, 3, *SIZE))


def test_a_file_without_objects(build: Callable, tmp_path: Path) -> None:
    detector = build("demo_ltm_swin_maskrcnn.py")
    detector.roi_head.test_cfg.score_thr = 1.0
    images = torch.randn(1, 3, *SIZE)
    deploy.save_detector(detector, images, tmp_path / "whole.onnx")
    shapes = [tuple(x.shape) for x in deploy.load(tmp_path / "whole.onnx")(images)]
    assert shapes == [(0, 4), (0,), (0,), (0, 28, 28)]


def test_what_is_not_exported_is_named(
    build: Callable, detector: nn.Module, tmp_path: Path
) -> None:
    images = torch.zeros(1, 3, *SIZE)
    with pytest.raises(ValueError, match=r"CascadeRoIHead'\] is not exported as a whole"):
        deploy.save_detector(build("demo_ltm_swin_cascade.py"), images, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"into .onnx alone, not .*a.xml"):
        deploy.save_detector(detector, images, tmp_path / "a.xml")
    soft = build("demo_ltm_swin_maskrcnn.py", **{"model.test_cfg.rcnn.nms.type": "soft_nms"})
    with pytest.raises(ValueError, match=r"test_cfg.rcnn.nms is of type 'soft_nms'"):
        deploy.save_detector(soft, images, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
