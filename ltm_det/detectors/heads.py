"""RoI heads that tell their mask heads which classes will be read."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from mmdet.models import CascadeRoIHead, StandardRoIHead
from mmdet.registry import MODELS
from torch import Tensor

from ltm_det.detectors.masks import FastFCNMaskHead


class ReadsOneClass:
    """For a RoI head: mask heads compute the logits of each object's class alone."""

    def predict_mask(
        self, x: Sequence[Tensor], batch_img_metas: list[dict], results_list: list, *args: Any, **kw
    ) -> list:
        """Maps and detected objects to objects with masks, see mmdet's heads."""
        own = self.mask_head
        labels = torch.cat([found.labels for found in results_list])
        with ExitStack() as stack:
            for head in own if isinstance(own, torch.nn.ModuleList) else [own]:
                if isinstance(head, FastFCNMaskHead) and len(labels):
                    stack.enter_context(head.reading(labels))
            return super().predict_mask(x, batch_img_metas, results_list, *args, **kw)


@MODELS.register_module()
class FastStandardRoIHead(ReadsOneClass, StandardRoIHead):
    """mmdet's ``StandardRoIHead``, see :class:`ReadsOneClass`."""


@MODELS.register_module()
class FastCascadeRoIHead(ReadsOneClass, CascadeRoIHead):
    """mmdet's ``CascadeRoIHead``, see :class:`ReadsOneClass`."""
