"""The forms in which a whole detector is run: as it is, compiled, or as a file in a runtime."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from ltm_det import deploy
from ltm_det.deploy.detector import described
from ltm_det.deploy.predictor import prepared

# From images (B, 3, H, W) of 0 to 255, on the CPU, to what is found on each.
Run = Callable[[Tensor], list[Any]]


def batch_of(images: Tensor) -> dict[str, Any]:
    """What a test pipeline gives for images (B, 3, H, W) of 0 to 255 that it leaves as they are."""
    size = tuple(images.shape[2:])
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
    samples = [DetDataSample(metainfo=dict(meta, img_id=i)) for i in range(len(images))]
    return dict(inputs=list(images), data_samples=samples)


def batch_step(detector: nn.Module, images: Tensor) -> list[Any]:
    """As mmdet's test loop calls it."""
    return detector.test_step(batch_of(images))


def compiled(detector: nn.Module, images: Tensor) -> Run:
    """Maps and the RPN's convolutions by torch.compile for one size; the rest as it is, since sizes
    there hang on values."""
    twin = type(detector).__new__(type(detector))
    twin.__dict__ = {**detector.__dict__, "_modules": dict(detector._modules)}
    for name in ("backbone", "neck", "rpn_head"):
        part = getattr(twin, name, None)
        if part is not None:
            own = type(part).__new__(type(part))
            own.__dict__ = dict(part.__dict__)
            own.forward = torch.compile(part.forward, dynamic=False)
            twin._modules[name] = own
    return partial(batch_step, twin)


def as_file(
    detector: nn.Module, images: Tensor, ending: str = ".xml", dtype: str = "float32"
) -> Run:
    """What ``ltm-det export --part detector`` writes, from pictures to masks' run lengths, one
    picture after the other. Int8 takes its ranges from ``images``.

    Raises:
        ValueError: The detector is on another device than the CPU.
    """
    if next(detector.parameters()).device.type != "cpu":
        raise ValueError("files run on the CPU: give --device cpu")
    folder = tempfile.TemporaryDirectory()
    file, about = Path(folder.name) / f"detector{ending}", described(detector, None)
    pictures = [image.permute(1, 2, 0).contiguous().numpy() for image in images]
    given = [prepared(picture, tuple(images.shape[2:]), about) for picture in pictures]
    ranges = given if dtype == "int8" else ()
    deploy.save_detector(detector, given[0], file, dtype=dtype, calibration=ranges)
    predictor = deploy.load(file, torch.get_num_threads())

    def run(images: Tensor) -> list[Any]:
        assert folder  # lives as long as the function, which may map its weights from there
        return [predictor(image.permute(1, 2, 0).contiguous().numpy()) for image in images]

    return run


EAGER = "eager"
FORMS: dict[str, Callable[[nn.Module, Tensor], Run]] = {
    EAGER: lambda detector, images: partial(batch_step, detector),
    "compiled": compiled,
    "onnxruntime": partial(as_file, ending=".onnx"),
    "openvino": as_file,
    "openvino_bfloat16": partial(as_file, dtype="bfloat16"),
    "openvino_int8": partial(as_file, dtype="int8"),
}
