"""A detector as a file: for ONNX Runtime or OpenVINO, of one size or any, in int8 too."""

import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ltm_det.basics.files import whole_set
from ltm_det.deploy.any_size import trace_any_size
from ltm_det.deploy.runtime import DETECTOR, DTYPE, openvino_core, package
from ltm_det.deploy.seal import seal
from ltm_det.deploy.whole import WholeDetector, trace

FORMATS = {".onnx": ("float32",), ".xml": ("float32", "bfloat16", "int8")}
# Layers, by their names, that int8 leaves in float32.
KEPT = [".*/mask_head.*"]


def described(
    detector: nn.Module,
    classes: Sequence[str] | None,
    scale: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """What one has to know of a detector to use its file: how pictures become its input, names.

    Args:
        detector: With mmdet's data preprocessor.
        classes: Names of the labels.
        scale: Into which pictures are fitted, their longer and their shorter side in pixels, where
            the file does not say so.
    """
    given = detector.data_preprocessor
    normal = given._enable_normalize
    head = detector.roi_head
    return dict(
        mean=given.mean.flatten().tolist() if normal else [0.0] * 3,
        std=given.std.flatten().tolist() if normal else [1.0] * 3,
        rgb=bool(given._channel_conversion),
        pad_value=float(given.pad_value),
        mask_threshold=float(head.test_cfg.get("mask_thr_binary", 0.5)),
        classes=None if classes is None else list(classes),
        scale=None if scale is None else [max(scale), min(scale)],
        divisor=int(given.pad_size_divisor),
    )


def save_detector(
    detector: nn.Module,
    images: Tensor,
    file: str | Path,
    dtype: str = "float32",
    classes: Sequence[str] | None = None,
    calibration: Sequence[Tensor] = (),
    dynamic: bool = False,
    scale: tuple[int, int] | None = None,
) -> None:
    """Writes a detector, which is put into evaluation mode, as a file for one image at a time.

    Args:
        detector: See :class:`WholeDetector`.
        images: (1, 3, H, W); the file takes images of this shape alone, where not ``dynamic``.
        file: .onnx for ONNX Runtime, .xml for OpenVINO, beside which a .bin is written.
        dtype: What to compute in, of ``FORMATS``.
        classes: Names of the labels.
        calibration: Images (1, 3, H, W), as the data preprocessor leaves them, for int8: the ranges
            of what is rounded come from them.
        dynamic: Whether height and width are free.
        scale: Into which pictures are fitted then, see :func:`described`.

    Raises:
        ValueError: For another detector, another ending, a dtype that its runtime has not, int8
            without images, another number of names than of classes.
        ImportError: A package is missing.
    """
    file = Path(file)
    if file.suffix not in FORMATS:
        raise ValueError(f"{file} ends in none of {sorted(FORMATS)}")
    if dtype not in FORMATS[file.suffix]:
        raise ValueError(f"no {dtype} in {file.suffix}: choose one of {FORMATS[file.suffix]}")
    if (dtype == "int8") != bool(len(calibration)):
        raise ValueError("int8, and nothing else, is calibrated: give images for it")
    model = WholeDetector(detector).eval()
    head = model.of_stage("bbox_head", model.stages[-1])
    if classes is not None and len(classes) != head.num_classes:
        raise ValueError(f"{len(classes)} names for {head.num_classes} classes: give one each")
    about = json.dumps(described(detector, classes, scale if dynamic else None))
    write = partial(trace_any_size, model) if dynamic else partial(trace, model, (images,))
    if file.suffix == ".onnx":
        onnx = package("onnx")
        with whole_set(file) as part:
            write(part)
            graph = onnx.load(part)
            onnx.helper.set_model_props(graph, {DETECTOR: about})
            onnx.save(graph, part)
            seal(part)
        return
    openvino = package("openvino")
    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder) / "model.onnx"
        write(traced)
        graph = openvino.convert_model(traced)
        if dtype == "int8":
            graph = quantized(graph, calibration)
        graph.set_rt_info(dtype, DTYPE)
        graph.set_rt_info(about, ["ltm_det", DETECTOR])
        with whole_set(file) as part:
            openvino.save_model(graph, part, compress_to_fp16=False)
            seal(part)


def quantized(graph: Any, images: Sequence[Tensor]) -> Any:
    """An OpenVINO model whose products and convolutions are of int8, less those of `KEPT`."""
    nncf = package("nncf")
    openvino_core()  # before those of nncf, which end
    return nncf.quantize(
        graph,
        nncf.Dataset([image.numpy() for image in images]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(patterns=KEPT, validate=False),
    )
