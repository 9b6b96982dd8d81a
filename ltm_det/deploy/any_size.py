"""A detector's file for pictures of any size: its backbone and its heads are written apart, each by
the exporter that leaves sizes free there, and joined.

torch.export leaves sizes of backbones free, but not numbers of boxes; tracing leaves both free in
necks and heads, but would take for fixed what backbones reckon of sizes.
"""

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ltm_det.deploy.export import sample_size, save
from ltm_det.deploy.runtime import package
from ltm_det.deploy.whole import WholeDetector, trace
from ltm_det.detectors.lean import CoarseConv2d

IMAGES, PREFIX = "images", "heads."


class Heads(nn.Module):
    """What follows a detector's backbone: images, for their size alone, and maps to objects."""

    def __init__(self, whole: WholeDetector) -> None:
        super().__init__()
        self.whole, self.names = whole, whole.names

    def forward(self, images: Tensor, *maps: Tensor) -> list[Tensor]:
        detector = self.whole.detector
        size = torch._shape_as_tensor(images)[2:].unbind()
        return self.whole.objects(detector.neck(maps) if detector.with_neck else maps, size)


def trace_any_size(model: WholeDetector, file: Path) -> None:
    """Writes a detector, batch 1, as .onnx.

    Raises:
        ValueError: Its backbone is none of ours, or a recipe has a grid of one size.
    """
    detector, onnx = model.detector, package("onnx")
    if any(isinstance(module, CoarseConv2d) for module in detector.modules()):
        raise ValueError("lean.neck_finest below 1 is of one size: export it without --dynamic")
    images = torch.zeros(1, 3, *many_anchors(detector.rpn_head))
    with torch.no_grad():
        maps = detector.backbone(images)
    free = {f"map{i}": {2: f"h{i}", 3: f"w{i}"} for i in range(len(maps))}
    with tempfile.TemporaryDirectory() as folder:
        body, rest = Path(folder) / "backbone.onnx", Path(folder) / "heads.onnx"
        sample = torch.randn(2, 3, *sample_size(detector.backbone))
        save(detector.backbone, sample, body, dynamic=True)
        trace(Heads(model), (images, *maps), rest, {IMAGES: {2: "H", 3: "W"}, **free})
        first, second = onnx.load(body), onnx.load(rest)
    (entry,) = first.graph.input
    newest = max(found.version for found in first.opset_import if not found.domain)
    second = onnx.version_converter.convert_version(second, newest)
    second.ir_version = first.ir_version
    pairs = [
        (own.name, f"{PREFIX}{name}") for own, name in zip(first.graph.output, free, strict=True)
    ]
    second = onnx.compose.add_prefix(second, PREFIX)
    whole = onnx.compose.merge_models(first, second, io_map=pairs)
    names = {f"{PREFIX}{name}": name for name in model.names} | {f"{PREFIX}{IMAGES}": entry.name}
    for node in whole.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for own in whole.graph.output:
        own.name = names[own.name]
    inputs = [own for own in whole.graph.input if own.name == entry.name]
    inputs[0].type.tensor_type.shape.dim[0].dim_value = 1
    del whole.graph.input[:]
    whole.graph.input.extend(inputs)
    onnx.checker.check_model(whole)
    onnx.save(whole, file)


def many_anchors(rpn: nn.Module) -> tuple[int, int]:
    """A size of which even the coarsest map has more anchors than go on: tracing keeps the way that
    mmdet goes there, which is right for fewer too."""
    priors = rpn.prior_generator
    stride, anchors = max(priors.strides, key=max), min(priors.num_base_priors)
    cells = math.isqrt(max(0, rpn.test_cfg.nms_pre) // anchors) + 2
    return cells * stride[1], cells * stride[0]
