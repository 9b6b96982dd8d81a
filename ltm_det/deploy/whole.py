"""Mask R-CNN, Faster R-CNN and Cascade (Mask) R-CNN as one graph: images to boxes and masks.

torch's older exporter writes it by tracing, since torch.export wants sizes that the values of
tensors do not decide.

Shapes: one image of H x W pixels, n proposals, K objects, h x w pixels of an object's mask.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmdet.models import CascadeRoIHead, RPNHead, StandardRoIHead, TwoStageDetector
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from ltm_det.deploy.tracing import traceable
from ltm_det.detectors import (
    FastCascadeRoIHead,
    FastFCNMaskHead,
    FastRPNHead,
    FastStandardRoIHead,
    LeanRPNHead,
)
from ltm_det.detectors.heads import with_masks

OPSET = 17  # the newest that this exporter has operators for; a layer norm is one of them
NAMES = ["boxes", "scores", "labels", "masks"]
HEADS = (StandardRoIHead, FastStandardRoIHead, CascadeRoIHead, FastCascadeRoIHead)


class Size(tuple):
    """Height and width that a trace follows: a copy of a tensor would be a constant in it."""

    def __deepcopy__(self, memo: dict) -> "Size":
        return self


class WholeDetector(nn.Module):
    """What a two-stage detector finds on one image.

    Args:
        detector: With mmdet's standard or cascaded heads, or our fast ones.

    Raises:
        ValueError: For another one.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        heads = getattr(detector, "rpn_head", None), getattr(detector, "roi_head", None)
        known = isinstance(detector, TwoStageDetector) and type(heads[1]) in HEADS
        if not known or type(heads[0]) not in (RPNHead, FastRPNHead, LeanRPNHead):
            names = [type(head).__name__ for head in heads]
            raise ValueError(
                f"a {type(detector).__name__} with {names} is not exported as a whole: Mask, "
                "Faster and Cascade R-CNN are; export the backbone"
            )
        for name, cfg in dict(rpn=heads[0].test_cfg, rcnn=heads[1].test_cfg).items():
            if cfg.nms.type != "nms":
                raise ValueError(f"test_cfg.{name}.nms is of type {cfg.nms.type!r}: give 'nms'")
            if unknown := set(cfg.nms) - {"type", "iou_threshold", "class_agnostic"}:
                raise ValueError(f"test_cfg.{name}.nms has {sorted(unknown)}: no file can do that")
        threshold = heads[1].test_cfg.get("mask_thr_binary", 0.5)
        if detector.with_mask and threshold < 0:
            raise ValueError(
                f"test_cfg.rcnn.mask_thr_binary={threshold} asks for soft masks: a file gives "
                "binary ones, give at least 0"
            )
        self.detector = detector
        self.names = NAMES if detector.with_mask else NAMES[:-1]
        cascade = isinstance(heads[1], CascadeRoIHead)
        self.stages = [(i,) for i in range(heads[1].num_stages)] if cascade else [()]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(1, 3, H, W), as the data preprocessor leaves it, to boxes (K, 4), x1, y1, x2, y2 in
        pixels, scores (K,), labels (K,), and probabilities of the mask in its box (K, h, w), of
        the best alone where a lean recipe says so."""
        size = tuple(int(side) for side in images.shape[2:])
        return self.objects(self.detector.extract_feat(images), size)

    def objects(self, maps: Sequence[Tensor], size: tuple[Any, Any]) -> list[Tensor]:
        """The neck's maps of an image of this height and width to what is found on it."""
        rpn, head = self.detector.rpn_head, self.detector.roi_head
        meta = dict(img_shape=Size(size), ori_shape=Size(size), scale_factor=(1.0, 1.0))
        (proposals,) = rpn.predict(maps, [DetDataSample(metainfo=meta)], rescale=False)
        rois, scores, deltas = self.refine(maps, bbox2roi([proposals.bboxes]), meta)
        objects = self.of_stage("bbox_head", self.stages[-1])._predict_by_feat_single(
            rois, scores, deltas, meta, rcnn_test_cfg=head.test_cfg
        )
        out = [objects.bboxes, objects.scores, objects.labels]
        if self.detector.with_mask:
            shown = with_masks(objects, head.test_cfg)
            rois = bbox2roi([shown.bboxes])
            masks = [self.masks(maps, rois, shown.labels, stage) for stage in self.stages]
            out.append(sum(masks) / len(masks))
        return out

    def of_stage(self, name: str, stage: tuple[int, ...]) -> nn.Module:
        """The head of a stage, of which a standard head, whose stage is (), has one."""
        own = getattr(self.detector.roi_head, name)
        return own[stage[0]] if stage else own

    def refine(
        self, maps: Sequence[Tensor], rois: Tensor, meta: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Regions (n, 5) to those of the last stage, the mean of the stages' logits, and how far
        the boxes are from there."""
        logits = []
        for stage in self.stages:
            found = self.detector.roi_head._bbox_forward(*stage, maps, rois)
            scores, deltas = found["cls_score"], found["bbox_pred"]
            logits.append(scores)
            if stage != self.stages[-1]:
                head = self.of_stage("bbox_head", stage)
                if head.custom_activation:
                    scores = head.loss_cls.get_activation(scores)
                labels = scores[:, :-1].argmax(1)
                boxes = head.regress_by_class(rois[:, 1:], labels, deltas, meta)
                rois = torch.cat([rois[:, :1], boxes], dim=1)
        return rois, sum(logits) / len(logits), deltas

    def masks(
        self, maps: Sequence[Tensor], rois: Tensor, labels: Tensor, stage: tuple[int, ...]
    ) -> Tensor:
        """Probabilities (K, h, w) of the objects' classes, of a stage."""
        head = self.of_stage("mask_head", stage)
        fast = isinstance(head, FastFCNMaskHead) and not head.class_agnostic
        with head.reading(labels) if fast else nullcontext():
            found = self.detector.roi_head._mask_forward(*stage, maps, rois)["mask_preds"]
        if not fast and not head.class_agnostic:
            at = labels[:, None, None, None].expand(-1, 1, *found.shape[2:])
            found = found.gather(1, at)
        return found.sigmoid()[:, 0]


def trace(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    file: Path,
    free: Mapping[str, Mapping[int, str]] | None = None,
) -> None:
    """Writes a detector, or its heads, as .onnx.

    Args:
        model: With the ``names`` of what comes out.
        inputs: Images (1, 3, H, W), and maps (1, C, h, w) if the model takes them.
        file: To write.
        free: By the names of the inputs, 'images', 'map0', ..., axes that are free and their names.
            None: the file takes inputs of these shapes alone.
    """
    objects = {n: {0: "masked" if n == "masks" else "objects"} for n in model.names}
    names = ["images", *(f"map{i}" for i in range(len(inputs) - 1))]
    with torch.no_grad(), traceable(any_size=bool(free)), warnings.catch_warnings():
        # of branches on sizes, which one file has one of
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        # of indices that may be negative, and of slices that are not folded: here none is
        warnings.filterwarnings("ignore", "Exporting aten::index operator", UserWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        torch.onnx.export(
            model,
            inputs,
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=names,
            output_names=model.names,
            dynamic_axes={**objects, **(free or {})},
        )
