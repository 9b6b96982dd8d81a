"""Two-stage detectors of mmdet's as they can be traced.

mmdet's heads branch in Python on how many boxes there are, and mmcv's operators are not ONNX's. So
while a file is written, some functions are replaced by equal ones that have torchvision's operators
and no such branch.
"""

import sys
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import torchvision
from mmdet.models import RPNHead, SingleRoIExtractor
from mmdet.models.task_modules import DeltaXYWHBBoxCoder
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ltm_det.backbones.swin.layers import WindowAttention
from ltm_det.cpu.door import altered, is_linear
from ltm_det.detectors import FastRoIExtractor, FastRPNHead


@contextmanager
def traceable(any_size: bool = False):
    """Replaces what is not traced, see above.

    Args:
        any_size: Whether sizes are free, so that nobody knows how many anchors a map has.
    """
    decode, plain_attention = DeltaXYWHBBoxCoder.decode, WindowAttention.forward

    def of_one_kind(boxes: Tensor, scores: Tensor, kinds: Tensor, nms: Any) -> Tensor:
        boxes = boxes.reshape(-1, 4)  # the graph knows that there are 4
        if nms.get("class_agnostic", False):
            return torchvision.ops.nms(boxes, scores, nms.iou_threshold)
        apart = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
        moved = boxes + (kinds * apart).to(boxes)[:, None]
        return torchvision.ops.nms(moved, scores, nms.iou_threshold)

    def clipped(self: DeltaXYWHBBoxCoder, *args: Any, max_shape: Any = None) -> Tensor:
        found = decode(self, *args)
        if not self.clip_border or max_shape is None:
            return found
        sides = [torch.as_tensor(side).to(found) for side in (max_shape[1], max_shape[0])]
        limit = torch.stack(sides).repeat(found.shape[-1] // 2)
        return torch.minimum(found.clamp(min=0), limit)

    def proposals(self: RPNHead, results: InstanceData, cfg: Any, **_: Any) -> InstanceData:
        width, height = (results.bboxes[:, 2:] - results.bboxes[:, :2]).unbind(-1)
        least = cfg.get("min_bbox_size", -1)
        if least >= 0:
            results = results[(width > least) & (height > least)]
        kept = of_one_kind(results.bboxes, results.scores, results.level_ids, cfg.nms)
        return results[kept[: cfg.max_per_img]]

    def objects(
        boxes: Tensor, scores: Tensor, least: float, nms: Any, most: int, box_dim: int = 4
    ) -> tuple[Tensor, Tensor]:
        scores = scores[:, :-1]  # less background
        boxes = boxes.reshape(scores.shape[0], -1, box_dim).expand(-1, scores.shape[1], -1)
        at, labels = (scores > least).nonzero().unbind(-1)
        boxes, scores = boxes[at, labels], scores[at, labels]
        kept = of_one_kind(boxes, scores, labels, nms)
        if most > 0:
            kept = kept[:most]
        return torch.cat([boxes, scores[:, None]], -1)[kept], labels[kept]

    def regions(self: SingleRoIExtractor, maps: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        maps = maps[: self.num_inputs]
        levels = self.map_roi_levels(rois, len(maps))
        size, places, found = self.roi_layers[0].output_size, [], []
        for level, (layer, x) in enumerate(zip(self.roi_layers, maps, strict=True)):
            at = (levels == level).nonzero().squeeze(1)
            options = layer.spatial_scale, layer.sampling_ratio, layer.aligned
            found.append(torchvision.ops.roi_align(x, rois[at], size, *options))
            places.append(at)
        return torch.cat(found)[torch.cat(places).argsort()]

    def attention(
        self: WindowAttention, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """With a product each for queries, keys and values, and the logits' scale in the weights of
        the queries, so that OpenVINO needs neither a transpose of all three nor a pass to scale."""
        dropped = type(self.attn_drop) is nn.Dropout and not altered(self.attn_drop)
        if not (dropped and is_linear(self.qkv)):  # what wraps them is called
            return plain_attention(self, x, mask, bias)
        b, w, n, c = x.shape
        if mask is not None and mask.ndim == 3:
            mask = mask.repeat(b, 1, 1)[:, None]
        elif mask is not None:
            mask = mask.expand(b, w, -1, -1).flatten(0, 1)[:, None]
        if bias is None:
            bias = self.position_bias()[None]
            bias = bias if mask is None else bias + mask
        else:
            bias = bias.expand(b, w, -1, -1, -1).flatten(0, 1)

        def heads(part: int, scale: float) -> Tensor:
            own = slice(part * c, (part + 1) * c)
            offset = None if self.qkv.bias is None else scale * self.qkv.bias[own]
            y = F.linear(x, scale * self.qkv.weight[own], offset)
            return y.reshape(b * w, n, self.num_heads, -1).transpose(1, 2)

        q, k, v = heads(0, self.scale), heads(1, 1.0), heads(2, 1.0)
        x = (q @ k.transpose(-1, -2) + bias).softmax(-1) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(b, w, n, c)))

    bbox_head = sys.modules["mmdet.models.roi_heads.bbox_heads.bbox_head"]
    with ExitStack() as stack:
        for place, name, function in (
            (DeltaXYWHBBoxCoder, "decode", clipped),
            (RPNHead, "_bbox_post_process", proposals),
            (FastRPNHead, "_bbox_post_process", proposals),
            (bbox_head, "multiclass_nms", objects),
            (SingleRoIExtractor, "forward", regions),
            (FastRoIExtractor, "forward", regions),
            (WindowAttention, "forward", attention),
            (torch.onnx, "is_in_onnx_export", lambda: False),  # mmdet's own forms are gone
        ):
            stack.enter_context(mock.patch.object(place, name, function))
        if any_size:  # a sort serves maps of fewer anchors than go on as well
            sort = RPNHead._predict_by_feat_single
            stack.enter_context(mock.patch.object(FastRPNHead, "_predict_by_feat_single", sort))
        yield
