"""Mask R-CNN as one ONNX file: images to boxes, scores, labels and masks.

mmdet's heads branch in Python on how many boxes there are, and mmcv's operators are not ONNX's. So
while a file is written, some functions are replaced by equal ones that have torchvision's operators
and no such branch; and torch's older exporter writes it, since torch.export wants sizes that the
values of tensors do not decide.

Shapes: one image of H x W pixels, n proposals, K objects, h x w pixels of an object's mask.
"""

import sys
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from mmdet.models import RPNHead, SingleRoIExtractor, StandardRoIHead, TwoStageDetector
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor, nn

OPSET = 17  # the newest that this exporter has operators for
NAMES = ["boxes", "scores", "labels", "masks"]


class WholeDetector(nn.Module):
    """What a two-stage detector finds on one image.

    Args:
        detector: With mmdet's standard heads, as Mask R-CNN and Faster R-CNN have them.

    Raises:
        ValueError: For another one.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        heads = getattr(detector, "rpn_head", None), getattr(detector, "roi_head", None)
        standard = isinstance(detector, TwoStageDetector) and type(heads[1]) is StandardRoIHead
        if not standard or type(heads[0]) is not RPNHead:
            names = [type(head).__name__ for head in heads]
            raise ValueError(
                f"a {type(detector).__name__} with {names} is not exported as a whole: Mask R-CNN "
                "and Faster R-CNN are; export the backbone"
            )
        for name, cfg in dict(rpn=heads[0].test_cfg, rcnn=heads[1].test_cfg).items():
            if cfg.nms.type != "nms":
                raise ValueError(f"test_cfg.{name}.nms is of type {cfg.nms.type!r}: give 'nms'")
        self.detector = detector
        self.names = NAMES if detector.with_mask else NAMES[:-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(1, 3, H, W), as the data preprocessor leaves it, to boxes (K, 4), x1, y1, x2, y2 in
        pixels, scores (K,), labels (K,), and probabilities of the mask in its box (K, h, w)."""
        rpn, head = self.detector.rpn_head, self.detector.roi_head
        size = tuple(int(side) for side in images.shape[2:])
        meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        maps = self.detector.extract_feat(images)
        (proposals,) = rpn.predict(maps, [DetDataSample(metainfo=meta)], rescale=False)
        rois = bbox2roi([proposals.bboxes])  # (n, 5)
        found = head._bbox_forward(maps, rois)
        objects = head.bbox_head._predict_by_feat_single(
            rois, found["cls_score"], found["bbox_pred"], meta, rcnn_test_cfg=head.test_cfg
        )
        out = [objects.bboxes, objects.scores, objects.labels]
        if self.detector.with_mask:
            masks = head._mask_forward(maps, bbox2roi([objects.bboxes]))["mask_preds"].sigmoid()
            if not head.mask_head.class_agnostic:
                at = objects.labels[:, None, None, None].expand(-1, 1, *masks.shape[2:])
                masks = masks.gather(1, at)
            out.append(masks[:, 0])
        return out


def save_detector(detector: nn.Module, images: Tensor, file: str | Path) -> None:
    """Writes a detector, which is put into evaluation mode, as an .onnx file for one image size.

    Args:
        detector: See :class:`WholeDetector`.
        images: (1, 3, H, W); the file takes images of this shape alone.
        file: .onnx.

    Raises:
        ValueError: For another detector, or another ending.
    """
    file = Path(file)
    if file.suffix != ".onnx":
        raise ValueError(f"a whole detector goes into .onnx alone, not {file}")
    model = WholeDetector(detector).eval()
    file.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), traceable(max(images.shape[2:]) + 1), warnings.catch_warnings():
        # of branches on sizes, which one file has one of
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(
            model,
            (images,),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=model.names,
            dynamic_axes={name: {0: "objects"} for name in model.names},
        )


@contextmanager
def traceable(apart: float):
    """Replaces what is not traced, see above; boxes of different kinds are moved ``apart``."""

    def of_one_kind(boxes: Tensor, scores: Tensor, kinds: Tensor, nms: Any) -> Tensor:
        moved = boxes + (kinds * apart).to(boxes)[:, None]
        return torchvision.ops.nms(moved, scores, nms.iou_threshold)

    def proposals(self: RPNHead, results: InstanceData, cfg: Any, **_: Any) -> InstanceData:
        width, height = (results.bboxes[:, 2:] - results.bboxes[:, :2]).unbind(-1)
        results = results[(width > cfg.min_bbox_size) & (height > cfg.min_bbox_size)]
        kept = of_one_kind(results.bboxes, results.scores, results.level_ids, cfg.nms)
        return results[kept[: cfg.max_per_img]]

    def objects(
        boxes: Tensor, scores: Tensor, least: float, nms: Any, most: int, box_dim: int = 4
    ) -> tuple[Tensor, Tensor]:
        scores = scores[:, :-1]  # less background
        boxes = boxes.reshape(scores.shape[0], -1, box_dim).expand(-1, scores.shape[1], -1)
        at, labels = (scores > least).nonzero().unbind(-1)
        boxes, scores = boxes[at, labels], scores[at, labels]
        kept = of_one_kind(boxes, scores, labels, nms)[:most]
        return torch.cat([boxes, scores[:, None]], -1)[kept], labels[kept]

    def regions(self: SingleRoIExtractor, maps: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        maps = maps[: self.num_inputs]
        levels = self.map_roi_levels(rois, len(maps))
        size = self.roi_layers[0].output_size
        out = maps[0].new_zeros(rois.shape[0], self.out_channels, *size)
        for level, (layer, x) in enumerate(zip(self.roi_layers, maps, strict=True)):
            at = (levels == level).nonzero().squeeze(1)
            found = torchvision.ops.roi_align(
                x, rois[at], size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
            )
            out = out.index_put((at,), found)
        return out

    bbox_head = sys.modules["mmdet.models.roi_heads.bbox_heads.bbox_head"]
    with ExitStack() as stack:
        for place, name, function in (
            (RPNHead, "_bbox_post_process", proposals),
            (bbox_head, "multiclass_nms", objects),
            (SingleRoIExtractor, "forward", regions),
            (torch.onnx, "is_in_onnx_export", lambda: False),  # mmdet's own forms are gone
        ):
            stack.enter_context(mock.patch.object(place, name, function))
        yield
