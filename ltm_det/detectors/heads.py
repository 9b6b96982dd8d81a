"""RoI heads that tell their mask heads which classes will be read, and mask whom a recipe asks for.

Shapes: K objects of an image, H x W its pixels.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from mmdet.models import CascadeRoIHead, StandardRoIHead
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

from ltm_det.detectors.masks import FastFCNMaskHead, empty_rle, pasted_size


class ReadsOneClass:
    """For a RoI head: mask heads compute the logits of each object's class alone.

    ``test_cfg.rcnn`` may have ``mask_score`` and ``masks``, see :class:`.lean.Recipe`: objects that
    are left out have an empty mask.
    """

    def predict_mask(
        self,
        x: Sequence[Tensor],
        batch_img_metas: list[dict],
        results_list: list,
        rescale: bool = False,
    ) -> list:
        """Maps and detected objects to objects with masks, see mmdet's heads."""
        own = self.mask_head
        shown = [with_masks(found, self.test_cfg) for found in results_list]
        labels = torch.cat([found.labels for found in shown])
        with ExitStack() as stack:
            for head in own if isinstance(own, torch.nn.ModuleList) else [own]:
                if isinstance(head, FastFCNMaskHead) and len(labels):
                    stack.enter_context(head.reading(labels))
            shown = super().predict_mask(x, batch_img_metas, shown, rescale)
        rle = self.test_cfg.get("mask_format", "bitmap") == "rle"
        pairs = zip(shown, results_list, batch_img_metas, strict=True)
        return [
            with_rest(some, found[len(some) :], meta, rescale, rle) for some, found, meta in pairs
        ]


def with_masks(objects: InstanceData, cfg: Any) -> InstanceData:
    """The objects, of which the best come first, that have a mask."""
    if "mask_score" in cfg:
        objects = objects[objects.scores >= cfg["mask_score"]]
    return objects[: cfg["masks"]] if "masks" in cfg else objects


def with_rest(
    shown: InstanceData, rest: InstanceData, meta: dict[str, Any], rescale: bool, rle: bool
) -> InstanceData:
    """Objects with masks, and then those that have an empty one."""
    if rle and not len(shown):
        shown.masks = []  # mmdet's are (0, H, W)
    if not len(rest):
        return shown
    size, scale = pasted_size(meta, rescale, rest.bboxes)
    if rescale:  # as masks' heads do it for objects with masks
        rest.bboxes = rest.bboxes / scale.repeat(2)
    if rle:
        rest.masks = [empty_rle(size) for _ in range(len(rest))]
    else:
        rest.masks = torch.zeros(len(rest), *size, dtype=torch.bool, device=rest.bboxes.device)
    if not len(shown):
        return rest
    return InstanceData.cat([shown, rest])


@MODELS.register_module()
class FastStandardRoIHead(ReadsOneClass, StandardRoIHead):
    """mmdet's ``StandardRoIHead``, see :class:`ReadsOneClass`."""


@MODELS.register_module()
class FastCascadeRoIHead(ReadsOneClass, CascadeRoIHead):
    """mmdet's ``CascadeRoIHead``, see :class:`ReadsOneClass`."""
