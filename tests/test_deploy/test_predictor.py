"""From a picture to objects by a detector's file, and such a file in mmdet's test loop."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ltm_det import deploy
from ltm_det.basics.errors import InputError
from ltm_det.deploy.predictor import prepared, resized
from ltm_det.deploy.runtime import described
from tests.test_deploy.conftest import LEAST, MANY, MASK, META, NEAR, SIZE, paste


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


def test_masks_of_boxes_that_reach_into_the_padding(predictor: deploy.Predictor) -> None:
    """Are cut off there, not squeezed."""
    masks = torch.zeros(1, 28, 28)
    masks[..., :14] = 1  # the left half
    found = [torch.tensor([[0.0, 0, 96, 64]]), torch.ones(1), torch.zeros(1, dtype=int), masks]
    objects = predictor.finish(found, (1.0, 1.0), (64, 60))
    assert objects.boxes.tolist() == [[0, 0, 60, 64]]
    assert objects.bitmaps()[0].any(0).nonzero()[0].max() in (47, 48)


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
    pasted, _ = paste(masks[inside][:, None], 4 * boxes[inside], 256, 200, skip_empty=False)
    assert (maps != (pasted >= 0.5).numpy()).mean() < 1e-3


@pytest.mark.parametrize(
    "image", [None, np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_picture_is_named(predictor: deploy.Predictor, image: object) -> None:
    with pytest.raises(ValueError, match=r"a picture is an array \(h, w, 3\) of uint8, not "):
        predictor(image)


@pytest.mark.slow
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


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="holds a whole detector: give it to ltm-det test"):
        deploy.ExportedBackbone(tmp_path / "whole.onnx")

    box = torch.tensor([[10.0, 10, 30, 30]])
    exported.predictor.raw = lambda x: [box, torch.ones(1), box[:, 0].long(), torch.ones(1, 28, 28)]
    exported.predictor.about["classes"] = None
    for extra in (0, 9):  # what the pipeline padded scales nothing
        image = nn.functional.pad(inputs[:, :34, :56], (0, extra, 0, extra))
        assert found(exported, image).bboxes.tolist() == [[20, 20, 60, 60]]


def test_a_file_without_objects(build: Callable, tmp_path: Path) -> None:
    detector = build("demo_ltm_swin_maskrcnn.py")
    detector.roi_head.test_cfg.score_thr = 1.0
    images = torch.randn(1, 3, *SIZE)
    deploy.save_detector(detector, images, tmp_path / "whole.onnx")
    run = deploy.load(tmp_path / "whole.onnx")
    assert [tuple(x.shape) for x in run.raw(images)] == [(0, 4), (0,), (0,), (0, 28, 28)]
    found = run(picture(*SIZE))
    assert len(found) == 0 and found.masks == [] and found.bitmaps().shape == (0, *SIZE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(classes=["a"] * 10, divisor=0), "divisor must be a whole number from 1"),
        (dict(std=[0.0, 0, 0]), r"std\[0\] must be finite and above 0"),
        (dict(mask_threshold="x"), "mask_threshold must be finite"),
        (dict(classes=[0, 1]), r"classes\[0\] must be a string, got 0"),
        ([], "lacks all"),
    ],
)
def test_what_a_file_says_is_looked_at(change: object, words: str) -> None:
    good = dict(mean=[0.0], std=[1.0], rgb=True, pad_value=0, mask_threshold=0.5)
    good |= dict(scale=None, divisor=1, classes=None)
    assert described(json.dumps(good)) == good
    with pytest.raises(InputError, match=words):
        described(json.dumps(good | change if change else change))
    with pytest.raises(InputError, match="lacks \\['classes'\\]"):
        described(json.dumps({key: value for key, value in good.items() if key != "classes"}))


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_damaged_weights_are_named(build: Callable, suffix: str, tmp_path: Path) -> None:
    """A runtime would take them, and find other objects."""
    file = tmp_path / f"whole{suffix}"
    deploy.save_detector(build(MASK), torch.zeros(1, 3, *SIZE), file)
    deploy.load(file)
    weights = file if suffix == ".onnx" else file.with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=f"whole{suffix}.* is not what was written"):
        deploy.load(file)


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="a.onnx cannot be loaded: "):
        deploy.load(tmp_path / "a.onnx")
    (tmp_path / "a.xml").write_text("no model")
    with pytest.raises(FileNotFoundError, match="no .*a.bin beside .*a.xml"):
        deploy.load(tmp_path / "a.xml")
