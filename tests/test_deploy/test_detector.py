"""A whole detector in one file finds what mmdet's finds."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from mmdet.models.roi_heads.mask_heads import fcn_mask_head
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ltm_det import deploy
from ltm_det.deploy.predictor import prepared, resized
from ltm_det.deploy.tracing import traceable
from ltm_det.engine.preflight import load_config
from ltm_det.measure.flops import build_detector

CONFIGS = Path(__file__).parents[2] / "configs"
SIZE = (64, 96)
LEAST = 0.2  # score of what the file's detector finds
META = dict(img_shape=SIZE, ori_shape=SIZE, batch_input_shape=SIZE, scale_factor=(1.0, 1.0))
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


MASK, CASCADE = "demo_ltm_swin_maskrcnn.py", "demo_ltm_swin_cascade.py"
MANY = {"model.test_cfg.rcnn.max_per_img": 1000, "model.test_cfg.rcnn.score_thr": LEAST}


@pytest.fixture(scope="module")
def detector(build: Callable) -> nn.Module:
    return build(MASK, **MANY)


def paste(masks: Tensor, boxes: Tensor, *size: int, paste=fcn_mask_head._do_paste_mask, **options):
    """mmdet's, which takes float32 alone."""
    return paste(masks, boxes.float(), *size, **options)


def predict(detector: nn.Module, images: Tensor) -> InstanceData:
    with torch.no_grad(), mock.patch.object(fcn_mask_head, "_do_paste_mask", paste):
        (sample,) = detector.predict(images, [DetDataSample(metainfo=META)], rescale=False)
    return sample.pred_instances


def assert_masks(found: Tensor, boxes: Tensor, expected: Tensor) -> None:
    """Probabilities in their boxes (K, h, w) against masks on the image (K, H, W)."""
    big = (boxes[:, 2:] - boxes[:, :2]).amin(-1) > 2  # pixels; others paste at random
    pasted, _ = paste(found[big][:, None], boxes[big], *SIZE, skip_empty=False)
    assert big.any() and expected[big].any() and not expected[big].all()
    assert ((pasted >= 0.5) != expected[big]).float().mean() < 1e-3


BOXES_ONLY = {"model.roi_head.mask_head": None}
ALL_CLASSES = {"model.roi_head.mask_head.class_agnostic": False}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (MASK, {}),
        (MASK, BOXES_ONLY),
        (MASK, {**ALL_CLASSES, "model.type": "FastMaskRCNN"}),
        ("demo_vit_maskrcnn.py", {}),
        ("demo_vit_maskrcnn.py", BOXES_ONLY),
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
        with traceable(max(SIZE) + 1), torch.no_grad():
            boxes, scores, labels, *masks = whole(images)
        expected = predict(detector, images)
        assert len(boxes) == len(expected) > 0 and len(masks) == (options != BOXES_ONLY)
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


@pytest.mark.parametrize(("name", "ending"), [(MASK, ".onnx"), (MASK, ".xml"), (CASCADE, ".xml")])
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


def test_layer_norms_are_one_node(detector: nn.Module, tmp_path: Path) -> None:
    """In float16 engines sums of squares of their own would overflow."""
    deploy.save_detector(detector, torch.zeros(1, 3, *SIZE), tmp_path / "whole.onnx")
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "whole.onnx").graph.node)
    norms = sum(isinstance(module, nn.LayerNorm) for module in detector.modules())
    assert nodes["LayerNormalization"] >= norms > 0 and not nodes["ReduceMean"]


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


@pytest.fixture(scope="module")
def predictor(detector: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> deploy.Predictor:
    file = tmp_path_factory.mktemp("file") / "whole.onnx"
    classes = [f"digit {i}" for i in range(10)]
    deploy.save_detector(detector, torch.zeros(1, 3, *SIZE), file, classes=classes)
    return deploy.load(file, threads=1)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pictures_become_what_the_data_preprocessor_makes_of_them(
    detector: nn.Module, predictor: deploy.Predictor
) -> None:
    image = picture(*SIZE)
    data = dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)], data_samples=[DetDataSample()])
    expected = detector.data_preprocessor(data)["inputs"]
    torch.testing.assert_close(prepared(image, SIZE, predictor.about), expected)
    part = prepared(image[:40, :50], SIZE, predictor.about)
    torch.testing.assert_close(part[..., :40, :50], expected[..., :40, :50])
    assert not part[..., 40:, :].any() and not part[..., 50:].any()


def test_a_predictor_gives_objects_on_the_picture(predictor: deploy.Predictor) -> None:
    """Of another size and shape than the file's: boxes and masks are of the picture."""
    image = picture(256, 200)  # becomes 64 x 50
    found = predictor(image)
    small = resized(image, 0.25)
    assert small.shape == (64, 50, 3)
    boxes, scores, labels, masks = predictor.raw(prepared(small, SIZE, predictor.about))
    limit = torch.tensor([200.0, 256.0] * 2)
    expected = torch.minimum(4 * boxes, limit)
    inside = (expected[:, 2:] > expected[:, :2]).all(1)
    assert 0 < inside.sum() < len(boxes)  # some lie in the padding
    np.testing.assert_allclose(found.boxes, expected[inside], atol=1e-3)
    assert np.array_equal(found.scores, scores[inside])
    assert found.names == [f"digit {label}" for label in labels[inside]]
    maps = found.bitmaps()
    assert maps.shape == (len(found), 256, 200) and maps.any()
    pasted, _ = paste(masks[inside][:, None], expected[inside], 256, 200, skip_empty=False)
    assert (maps != (pasted >= 0.5).numpy()).mean() < 1e-3


@pytest.mark.parametrize(
    "image", [None, np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_picture_is_named(predictor: deploy.Predictor, image: object) -> None:
    with pytest.raises(ValueError, match=r"a picture is an array \(h, w, 3\) of uint8, not "):
        predictor(image)


def test_a_file_of_a_lean_recipe(build: Callable, tmp_path: Path) -> None:
    lean = dict(masks=2, rpn_finest="half", neck_finest=0.5, mask_score=0.01)
    detector = build(MASK, **MANY, **{"model.type": "FastMaskRCNN", "model.lean": lean})
    file, image = tmp_path / "lean.xml", picture(*SIZE)
    deploy.save_detector(detector, torch.zeros(1, 3, *SIZE), file)
    run = deploy.load(file, threads=1)
    images = prepared(image, SIZE, run.about)
    boxes, *_, masks = run.raw(images)
    with torch.no_grad():
        (sample,) = detector.predict(images, [DetDataSample(metainfo=META)], rescale=False)
    assert len(masks) == 2 < len(boxes)
    expected = sample.pred_instances
    near = (boxes[:2, None] - expected.bboxes).abs().amax(-1).amin(1)
    assert (near < 0.01).all()
    found = run(image)
    assert len(found.masks) == len(found) and not found.bitmaps()[2:].any()


def test_an_exported_detector_in_a_test_loop(
    detector: nn.Module, predictor: deploy.Predictor, tmp_path: Path
) -> None:
    deploy.save_detector(detector, torch.zeros(1, 3, *SIZE), tmp_path / "whole.onnx")
    exported = deploy.ExportedDetector(tmp_path / "whole.onnx", threads=1)
    inputs = torch.from_numpy(picture(*SIZE)).permute(2, 0, 1)

    def found(model: nn.Module, image: Tensor) -> InstanceData:
        meta = META | dict(ori_shape=(2 * SIZE[0], 2 * SIZE[1]), scale_factor=(0.5, 0.5))
        data = dict(inputs=[image], data_samples=[DetDataSample(metainfo=meta)])
        with torch.no_grad():
            return model.test_step(data)[0].pred_instances

    own, expected = found(exported, inputs), found(detector, inputs)
    clear = expected.scores > LEAST + NEAR
    apart = (own.bboxes[:, None] - expected.bboxes).abs().amax(-1)
    apart += 1e6 * (own.labels[:, None] != expected.labels)
    assert clear.any() and (apart.amin(0)[clear] < 0.02).all()
    assert own.masks[0]["size"] == [128, 192]
    exported.mask_format = "bitmap"
    assert found(exported, inputs).masks.shape == (len(own), 128, 192)
    with pytest.warns(UserWarning, match=r"takes \(64, 96\) pixels, a picture of \(128, 192\) is"):
        larger = found(exported, inputs.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert len(larger) > 0 and larger.bboxes.max() <= 192
    with pytest.raises(RuntimeError, match="is an exported detector: it has test_step alone"):
        exported(inputs)
    with pytest.raises(ValueError, match="mask_format='png': give one of"):
        deploy.ExportedDetector(tmp_path / "whole.onnx", mask_format="png")
    with pytest.raises(ValueError, match="holds a whole detector: give it to tools/test.py"):
        deploy.ExportedBackbone(tmp_path / "whole.onnx")


def test_a_file_without_objects(build: Callable, tmp_path: Path) -> None:
    detector = build("demo_ltm_swin_maskrcnn.py")
    detector.roi_head.test_cfg.score_thr = 1.0
    images = torch.randn(1, 3, *SIZE)
    deploy.save_detector(detector, images, tmp_path / "whole.onnx")
    run = deploy.load(tmp_path / "whole.onnx")
    assert [tuple(x.shape) for x in run.raw(images)] == [(0, 4), (0,), (0,), (0, 28, 28)]
    found = run(picture(*SIZE))
    assert len(found) == 0 and found.masks == [] and found.bitmaps().shape == (0, *SIZE)


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
    assert not list(tmp_path.iterdir())
