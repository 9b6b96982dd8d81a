"""Mask heads that compute what is read: one class, inside each box, as run lengths if asked for.

Shapes: K objects, C channels, h x w pixels of an object's mask, H x W of the image.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmdet.models import FCNMaskHead
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.registry import MODELS
from pycocotools import mask as coco
from torch import Tensor, nn

from ltm_det.cpu.door import untouched

FORMATS = ("bitmap", "rle")


@MODELS.register_module()
class FastFCNMaskHead(FCNMaskHead):
    """mmdet's ``FCNMaskHead``, of which only the logits of each object's own class are computed.

    ``test_cfg.rcnn.mask_format`` is 'bitmap', mmdet's (K, H, W) of bool, or 'rle', a list of K of
    COCO's compressed run lengths, which CocoMetric takes as they are: then no map of the image's
    size is ever made, whatever its size.
    """

    labels: Tensor | None = None

    @contextmanager
    def reading(self, labels: Tensor) -> Iterator[None]:
        """Inside, the head is called on objects of these classes (K,), and gives (K, 1, h, w)."""
        self.labels = labels
        try:
            yield
        finally:
            self.labels = None

    def forward(self, x: Tensor) -> Tensor:
        """Features of regions (K, C, h', w') to logits (K, classes, h, w), see `reading`."""
        if self.labels is None or self.class_agnostic:
            return super().forward(x)
        if not (isinstance(self.conv_logits, nn.Conv2d) and untouched(self.conv_logits)):
            return self.of_labels(super().forward(x), self.labels)
        for conv in self.convs:
            x = conv(x)
        if self.upsample is not None:
            x = self.upsample(x)
            if self.upsample_method == "deconv":
                x = self.relu(x)
        weight = self.conv_logits.weight[self.labels].flatten(1)  # (K, C)
        x = (weight[:, None] @ x.flatten(2)).unflatten(2, x.shape[2:])
        if self.conv_logits.bias is not None:
            x = x + self.conv_logits.bias[self.labels][:, None, None, None]
        return x

    @staticmethod
    def of_labels(masks: Tensor, labels: Tensor) -> Tensor:
        """(K, classes, h, w) to those of each object's class, (K, 1, h, w)."""
        return masks[torch.arange(len(labels)), labels][:, None]

    def _predict_by_feat_single(
        self,
        mask_preds: Tensor,
        bboxes: Tensor,
        labels: Tensor,
        img_meta: dict[str, Any],
        rcnn_test_cfg: Any,
        rescale: bool = False,
        activate_map: bool = False,
    ) -> Tensor | list[dict[str, Any]]:
        form = rcnn_test_cfg.get("mask_format", "bitmap")
        if form not in FORMATS:
            raise ValueError(f"test_cfg.rcnn.mask_format={form!r}: give one of {FORMATS}")
        threshold = rcnn_test_cfg.mask_thr_binary
        if form == "rle" and threshold < 0:
            raise ValueError(
                f"test_cfg.rcnn.mask_thr_binary={threshold} asks for soft masks, which have no run "
                "lengths: give mask_format='bitmap', or a threshold of at least 0"
            )
        if not self.class_agnostic and mask_preds.shape[1] > 1:
            mask_preds = self.of_labels(mask_preds, labels)
        if form == "bitmap":
            args = mask_preds, bboxes, torch.zeros_like(labels), img_meta, rcnn_test_cfg
            return super()._predict_by_feat_single(*args, rescale, activate_map)
        if not activate_map:
            mask_preds = mask_preds.sigmoid()
        size, scale = pasted_size(img_meta, rescale, bboxes)
        if rescale:  # in place, as mmdet does it
            bboxes /= scale.repeat(2)
        return [pasted_rle(mask, box, size, threshold) for mask, box in zip(mask_preds, bboxes)]


def pasted_size(
    meta: dict[str, Any], rescale: bool, like: Tensor
) -> tuple[tuple[int, int], Tensor]:
    """Height and width of an image's masks, as mmdet has them, and what boxes are scaled by, x and
    y (2,), on the device of ``like``."""
    scale = like.new_tensor(meta["scale_factor"])
    height, width = meta["ori_shape"][:2]
    if not rescale:
        width, height = (round(n * s) for n, s in zip((width, height), scale.tolist()))
    return (height, width), scale


def pasted_rle(
    mask: Tensor, box: Tensor, size: tuple[int, int], threshold: float
) -> dict[str, Any]:
    """An object's mask (1, h, w) in its box (4,), on an image (H, W), as COCO's run lengths.

    What mmdet pastes, bit for bit, without the rest of the image.
    """
    (height, width), (left, top, right, bottom) = size, box.tolist()
    if left >= width + 1 or top >= height + 1 or right <= -1 or bottom <= -1:  # mmdet's own fails
        return empty_rle(size)
    values, at = _do_paste_mask(mask[None], box[None], *size, skip_empty=True)
    return encode_crop((values[0] >= threshold).cpu().numpy(), at, size)


def empty_rle(size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run lengths of nothing."""
    return encode_crop(np.zeros((0, 0), bool), (slice(0, 0), slice(0, 0)), size)


def encode_crop(crop: np.ndarray, at: tuple[slice, slice], size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask that is zero but for a part of it.

    Args:
        crop: That part, of bool.
        at: Where it lies, rows and columns.
        size: Height and width of the whole.
    """
    (height, width), (rows, columns) = size, at
    columns = np.pad(crop.T.astype(np.int8), ((0, 0), (1, 1)))  # a column lies in one piece
    column, row = np.nonzero(np.diff(columns, axis=1))  # where a run starts, where it ends
    x, y = int(at[1].start), int(rows.start)
    edges = (x + column) * height + y + row
    if len(edges) > 2:  # a run that goes on in the next column is one
        joined = edges[1:-1:2] == edges[2::2]
        kept = np.ones(len(edges), bool)
        kept[1:-1:2], kept[2::2] = ~joined, ~joined
        edges = edges[kept]
    counts = np.diff(edges, prepend=0, append=height * width)
    counts = counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts
    return coco.frPyObjects(dict(counts=counts.tolist(), size=[height, width]), height, width)
