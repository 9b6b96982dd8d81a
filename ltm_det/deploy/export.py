"""Write a model as a file for ONNX Runtime or OpenVINO.

Shapes: B images, H x W pixels, M side of a window in tokens.
"""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmdet.models.layers.transformer.utils import AdaptivePadding
from torch import Tensor, nn
from torch.export import Dim

from ltm_det.backbones import LTMMobileViT, LTMSwin, LTMViT
from ltm_det.backbones.common.convolutional import ConvolutionalBackbone
from ltm_det.basics.files import whole_set
from ltm_det.deploy.runtime import DTYPE, package
from ltm_det.deploy.seal import seal

OPSET = 20  # the first with GELU
FORMATS = {".onnx": ("float32",), ".xml": ("float32", "bfloat16")}  # and what they compute in


def sample_size(backbone: nn.Module) -> tuple[int, int]:
    """(H, W) of images to trace for any size: of the cases that sizes make, the most general one.

    There everything has to be padded (patches, pairs of tokens, windows), and each map has several
    windows along both axes.

    Raises:
        ValueError: For a backbone that is not ours.
    """
    if isinstance(backbone, LTMSwin):
        patch, pixels, window = backbone.strides[0], backbone.strides[-1], backbone.stages[0].window
    elif isinstance(backbone, LTMViT):
        patch = pixels = backbone.patch_embed.patch_size[0]
        window = backbone.window
    elif isinstance(backbone, ConvolutionalBackbone):
        patch, window = 2, backbone.window  # convolutions halve the map
        pixels = backbone.strides[-1] * (2 if isinstance(backbone, LTMMobileViT) else 1)
    else:
        name = type(backbone).__name__
        raise ValueError(f"{name} is not exported for any size: our own backbones are")
    return pixels * (window + 1) + patch - 1, pixels * (2 * window + 1) + patch - 1


def whole_steps(padding: AdaptivePadding, shape: Sequence[int]) -> tuple[int, int]:
    """What mmdet's patches are padded by, for kernels as long as their steps, in whole numbers:
    fractions and maxima of symbols would be carried along in all later sizes."""
    pads = []
    for length, step, kernel in zip(shape, padding.stride, padding.kernel_size, strict=True):
        if kernel != step:
            raise ValueError(f"patches of {kernel} in steps of {step}: export one size")
        pads.append((length + step - 1) // step * step - length)
    return tuple(pads)


def stable_sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> tuple:
    """aten::sort.stable for ONNX, which torch has no form of: TopK of all puts the earlier of
    equals first."""
    op = package("onnxscript").opset20
    count = op.Constant(value_ints=[x.shape[dim]])
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def save(
    model: nn.Module,
    images: Tensor,
    file: str | Path,
    dynamic: bool = False,
    dtype: str = "float32",
) -> None:
    """Writes ``model``, which is put into evaluation mode, as ``file``.

    Args:
        model: From images to a list of maps.
        images: (B, 3, H, W). Where not ``dynamic``, the file takes images of this shape alone.
        file: .onnx, or .xml, beside which a .bin is written.
        dynamic: Whether B, H and W are free; ``images`` should be of :func:`sample_size`.
        dtype: What to compute in. Weights, images and maps are float32 in any case.

    Raises:
        ValueError: On another ending, or a dtype that its runtime has no kernels for.
        ImportError: A package is missing.
    """
    file = Path(file)
    if file.suffix not in FORMATS:
        raise ValueError(f"{file} ends in none of {sorted(FORMATS)}")
    if dtype not in FORMATS[file.suffix]:
        raise ValueError(f"no {dtype} in {file.suffix}: choose one of {FORMATS[file.suffix]}")
    package("onnxscript")
    free = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},) if dynamic else None
    model.eval()  # not chained: mmdet's Swin returns None
    exact = mock.patch.object(AdaptivePadding, "get_pad_shape", whole_steps)
    with torch.no_grad(), exact if dynamic else nullcontext():
        # sizes decide on padding alone, of which no padding is a case: so nothing to guard
        traced = torch.export.export(
            model, (images,), dynamic_shapes=free, prefer_deferred_runtime_asserts_over_guards=True
        )
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            verbose=False,
            custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
        )
    if file.suffix == ".onnx":
        with whole_set(file) as part:
            program.save(part)
            seal(part)
        return
    openvino = package("openvino")
    with tempfile.TemporaryDirectory() as folder:
        program.save(Path(folder) / "model.onnx")
        graph = openvino.convert_model(Path(folder) / "model.onnx")
        graph.set_rt_info(dtype, DTYPE)
        with whole_set(file) as part:
            openvino.save_model(graph, part, compress_to_fp16=False)
            seal(part)


def relative_errors(ones: Sequence[Tensor], others: Sequence[Tensor]) -> list[float]:
    """|one - other| / |other| of each map, Euclidean."""
    return [((a - b).norm() / b.norm()).item() for a, b in zip(ones, others, strict=True)]
