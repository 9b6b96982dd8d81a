"""Mask R-CNN, Faster R-CNN and Cascade (Mask) R-CNN as one file: images to boxes and masks.

torch's older exporter writes it by tracing, since torch.export wants sizes that the values of
tensors do not decide. OpenVINO reads what it wrote.

Shapes: one image of H x W pixels, n proposals, K objects, h x w pixels of an object's mask.
"""

import json
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmdet.models import CascadeRoIHead, RPNHead, StandardRoIHead, TwoStageDetector
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from ltm_det.deploy.runtime import DETECTOR, DTYPE, package
from ltm_det.deploy.tracing import traceable
from ltm_det.detectors import (
    FastCascadeRoIHead,
    FastFCNMaskHead,
    FastStandardRoIHead,
    LeanRPNHead,
)

OPSET = 17  # the newest that this exporter has operators for; a layer norm is one of them
NAMES = ["boxes", "scores", "labels", "masks"]
FORMATS = {".onnx": ("float32",), ".xml": ("float32", "bfloat16", "int8")}
# Layers, by their names, that int8 leaves in float32.
KEPT = [".*/mask_head.*"]
HEADS = (StandardRoIHead, FastStandardRoIHead, CascadeRoIHead, FastCascadeRoIHead)


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
        if not known or type(heads[0]) not in (RPNHead, LeanRPNHead):
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
        rpn, head = self.detector.rpn_head, self.detector.roi_head
        size = tuple(int(side) for side in images.shape[2:])
        meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        maps = self.detector.extract_feat(images)
        (proposals,) = rpn.predict(maps, [DetDataSample(metainfo=meta)], rescale=False)
        rois, scores, deltas = self.refine(maps, bbox2roi([proposals.bboxes]), meta)
        objects = self.of_stage("bbox_head", self.stages[-1])._predict_by_feat_single(
            rois, scores, deltas, meta, rcnn_test_cfg=head.test_cfg
        )
        out = [objects.bboxes, objects.scores, objects.labels]
        if self.detector.with_mask:
            shown = objects
            if "mask_score" in head.test_cfg:
                shown = shown[shown.scores >= head.test_cfg.mask_score]
            if "masks" in head.test_cfg:
                shown = shown[: head.test_cfg.masks]
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


def described(detector: nn.Module, classes: Sequence[str] | None) -> dict[str, Any]:
    """What one has to know of a detector to use its file: how pictures become its input, names."""
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
    )


def save_detector(
    detector: nn.Module,
    images: Tensor,
    file: str | Path,
    dtype: str = "float32",
    classes: Sequence[str] | None = None,
    calibration: Sequence[Tensor] = (),
) -> None:
    """Writes a detector, which is put into evaluation mode, as a file for one image size.

    Args:
        detector: See :class:`WholeDetector`.
        images: (1, 3, H, W); the file takes images of this shape alone.
        file: .onnx for ONNX Runtime, .xml for OpenVINO, beside which a .bin is written.
        dtype: What to compute in, of ``FORMATS``.
        classes: Names of the labels.
        calibration: Images (1, 3, H, W), as the data preprocessor leaves them, for int8: the ranges
            of what is rounded come from them.

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
    about = json.dumps(described(detector, classes))
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".onnx":
        trace(model, images, file)
        onnx = package("onnx")
        graph = onnx.load(file)
        onnx.helper.set_model_props(graph, {DETECTOR: about})
        onnx.save(graph, file)
        return
    openvino = package("openvino")
    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder) / "model.onnx"
        trace(model, images, traced)
        graph = openvino.convert_model(traced)
        if dtype == "int8":
            graph = quantized(graph, calibration)
        graph.set_rt_info(dtype, DTYPE)
        graph.set_rt_info(about, ["ltm_det", DETECTOR])
        openvino.save_model(graph, file, compress_to_fp16=False)


def trace(model: WholeDetector, images: Tensor, file: Path) -> None:
    """Writes a detector for images of this shape, (1, 3, H, W), as .onnx."""
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
            dynamic_axes={
                name: {0: "masked" if name == "masks" else "objects"} for name in model.names
            },
        )


def quantized(graph: Any, images: Sequence[Tensor]) -> Any:
    """An OpenVINO model whose products and convolutions are of int8, less those of `KEPT`."""
    nncf = package("nncf")
    return nncf.quantize(
        graph,
        nncf.Dataset([image.numpy() for image in images]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(patterns=KEPT, validate=False),
    )
