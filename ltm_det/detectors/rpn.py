"""mmdet's RPN head whose proposals are chosen faster.

Shapes: A anchors of a cell, H x W cells of a map, k anchors kept of it, n of all maps.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops import nms
from mmdet.models import RPNHead
from mmdet.registry import MODELS
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from ltm_det.detectors.convolutions import FastConv2d


@MODELS.register_module()
class FastRPNHead(RPNHead):
    """mmdet's ``RPNHead``; in evaluation the best anchors of a map are found without sorting the
    others, and on a CPU ReLU is part of the convolution, and boxes are compared with those of their
    own map alone."""

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A map (B, C, H, W) to logits (B, A, H, W) and deltas (B, 4A, H, W)."""
        if not isinstance(self.rpn_conv, FastConv2d):
            return super().forward_single(x)
        x = self.rpn_conv.then_relu(x)
        return self.rpn_cls(x), self.rpn_reg(x)

    def _predict_by_feat_single(
        self,
        cls_score_list: Sequence[Tensor],
        bbox_pred_list: Sequence[Tensor],
        score_factor_list: Sequence[Any],
        mlvl_priors: Sequence[Tensor],
        img_meta: dict[str, Any],
        cfg: Any = None,
        **options: Any,
    ) -> InstanceData:
        """Logits (A, H, W), deltas (4A, H, W) and anchors (HWA, 4) of each map to proposals."""
        cfg = self.test_cfg if cfg is None else cfg
        most = cfg.get("nms_pre", -1)
        if most > 0 and self.use_sigmoid_cls and not self.training:
            maps = zip(cls_score_list, bbox_pred_list, mlvl_priors, strict=True)
            best = [best_anchors(*parts, most) for parts in maps]
            cls_score_list, bbox_pred_list, mlvl_priors = zip(*best, strict=True)
        return super()._predict_by_feat_single(
            cls_score_list,
            bbox_pred_list,
            score_factor_list,
            mlvl_priors,
            img_meta,
            cfg,
            **options,
        )

    def _bbox_post_process(
        self, results: InstanceData, cfg: Any, rescale: bool = False, **options: Any
    ) -> InstanceData:
        """Boxes, scores and levels (n,) to the proposals that no better one of their map covers."""
        boxes = get_box_tensor(results.bboxes)
        usual = cfg.nms.get("type") == "nms" and set(cfg.nms) <= {"type", "iou_threshold"}
        usual = usual and not rescale and not self.training and boxes.device.type == "cpu"
        if not usual or not len(boxes):
            return super()._bbox_post_process(results, cfg, rescale, **options)
        least = cfg.get("min_bbox_size", -1)
        if least >= 0:
            results = results[((boxes[:, 2:] - boxes[:, :2]) > least).all(-1)]
            boxes = get_box_tensor(results.bboxes)
        kept = level_nms(boxes, results.scores, results.level_ids, cfg.nms.iou_threshold)
        results = results[kept[: cfg.max_per_img]]
        results.labels = results.scores.new_zeros(len(results), dtype=torch.long)
        del results.level_ids
        return results


def best_anchors(
    logits: Tensor, deltas: Tensor, priors: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """At most so many anchors of a map, as maps (1, 1, k) and (4, 1, k), and anchors (k, 4)."""
    logits = logits.permute(1, 2, 0).flatten()
    deltas = deltas.permute(1, 2, 0).reshape(len(logits), -1)
    if most < len(logits):
        top = highest(logits.sigmoid(), most)
        logits, deltas, priors = logits[top], deltas[top], priors[top]
    return logits[None, None], deltas.t()[:, None], priors


def highest(scores: Tensor, most: int) -> Tensor:
    """Indices of the highest of scores (n,) from 0 to 1, in descending order.

    The highest lie in the groups of highest maxima, of which there are as many: so two small
    choices are made in the place of a large one, for which some runtimes sort all.
    """
    size = max(1, math.isqrt(len(scores) // most))  # about the least to choose from, in both
    groups = F.pad(scores, (0, -len(scores) % size), value=-1.0).view(-1, size)
    rows = groups.amax(1).topk(most).indices
    at = groups[rows].flatten().topk(most).indices
    return rows[at // size] * size + at % size


def level_nms(boxes: Tensor, scores: Tensor, levels: Tensor, threshold: float) -> Tensor:
    """Indices of boxes (n, 4) that overlap no better one of their level (n,) by more than the
    threshold, the best first."""
    kept = []
    for level in levels.unique():
        (at,) = (levels == level).nonzero(as_tuple=True)
        _, best = nms(boxes[at], scores[at], threshold)
        kept.append(at[best])
    if not kept:
        return levels
    index = torch.cat(kept)
    return index[scores[index].argsort(descending=True)]
