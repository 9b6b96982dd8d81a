"""torchvision's Mask R-CNN and Faster R-CNN with the weights of one of mmdet's, to set ours beside.

Anchors, thresholds and numbers of regions are the given detector's. One thing stays torchvision's:
its RoIAlign samples half a cell beside mmdet's, so that boxes and scores are near, not equal.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from mmdet.models import FPN, FasterRCNN, FCNMaskHead, Shared2FCBBoxHead, StandardRoIHead
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as Boxes
from torchvision.models.detection import MaskRCNN as Masks
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

# By the names of the benchmark's parts, modules and methods of torchvision's.
PARTS = {
    "preprocess": ("model.transform", "forward"),
    "backbone": ("model.backbone.body", "forward"),
    "neck": ("model.backbone.fpn", "forward"),
    "RPN convs": ("model.rpn.head", "forward"),
    "RPN boxes": ("model.rpn", "filter_proposals"),
    "RoIAlign": ("model.roi_heads.box_roi_pool", "forward"),
    "box head": ("model.roi_heads.box_head", "forward"),
    "NMS": ("model.roi_heads", "postprocess_detections"),
    "mask RoIAlign": ("model.roi_heads.mask_roi_pool", "forward"),
    "mask head": ("model.roi_heads.mask_head", "forward"),
    "paste": ("model.transform", "postprocess"),
}


def fits(cfg: Config) -> bool:
    """Whether torchvision has the detector of a config: one with an FPN, two layers in its box
    head, and one anchor size a level."""

    def kind(*path: str) -> str:
        part = cfg.model
        for name in path:
            part = part.get(name) or {} if isinstance(part, dict) else {}
        found = str(part.get("type")) if isinstance(part, dict) else ""
        return found.removeprefix("mmdet.").removeprefix("Fast")

    heads = kind("roi_head"), kind("roi_head", "bbox_head")
    return kind("neck") == "FPN" and heads == ("StandardRoIHead", "Shared2FCBBoxHead")


class Levels(nn.Module):
    """A backbone and torchvision's FPN: images to its maps, by the number of the level."""

    def __init__(self, body: nn.Module, neck: FPN) -> None:
        super().__init__()
        self.body, self.out_channels = body, neck.out_channels
        extra = LastLevelMaxPool() if neck.num_outs > neck.num_ins else None
        self.fpn = FeaturePyramidNetwork(neck.in_channels, neck.out_channels, extra)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        return self.fpn(OrderedDict((str(i), x) for i, x in enumerate(maps)))


class AsLarge(GeneralizedRCNNTransform):
    """torchvision's preprocessing of images that have their size already."""

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target


class TorchvisionDetector(nn.Module):
    """torchvision's detector of a detector's weights.

    Args:
        detector: mmdet's ``MaskRCNN`` or ``FasterRCNN``, or a fast one, see :func:`fits`; its
            weights are shared.
        body: A backbone with the same maps.

    Raises:
        ValueError: torchvision has no such detector.
    """

    parts = PARTS

    def __init__(self, detector: FasterRCNN, body: nn.Module) -> None:
        super().__init__()
        rpn, head, given = detector.rpn_head, detector.roi_head, detector.data_preprocessor
        known = isinstance(detector.neck, FPN) and isinstance(head, StandardRoIHead)
        known = known and type(head.bbox_head) is Shared2FCBBoxHead
        if not known or detector.with_mask and not isinstance(head.mask_head, FCNMaskHead):
            raise ValueError(f"torchvision has no {type(detector).__name__} with these heads")
        priors, box = rpn.prior_generator, head.bbox_head
        classes, width = box.num_classes + 1, box.fc_cls.in_features
        anchors = AnchorGenerator(
            tuple((float(size),) for size in priors.base_sizes),
            tuple(priors.ratios.tolist() for _ in priors.base_sizes),
        )
        anchors.cell_anchors = [*priors.base_anchors]  # torchvision's are rounded
        options: dict[str, Any] = dict(
            rpn_anchor_generator=anchors,
            rpn_head=RPNHead(rpn.in_channels, priors.num_base_priors[0]),
            rpn_pre_nms_top_n_test=rpn.test_cfg.nms_pre,
            rpn_post_nms_top_n_test=rpn.test_cfg.max_per_img,
            rpn_nms_thresh=rpn.test_cfg.nms.iou_threshold,
            box_roi_pool=regions(head.bbox_roi_extractor),
            box_head=TwoMLPHead(box.shared_fcs[0].in_features, width),
            box_predictor=FastRCNNPredictor(width, classes),
            box_nms_thresh=head.test_cfg.nms.iou_threshold,
            box_detections_per_img=head.test_cfg.max_per_img,
            bbox_reg_weights=tuple(1 / std for std in box.bbox_coder.stds),
        )
        kind = Boxes
        if detector.with_mask:
            mask = head.mask_head
            layers = [mask.conv_out_channels] * len(mask.convs)
            own = MaskRCNNPredictor(layers[-1], mask.upsample.out_channels, classes)
            options |= dict(
                mask_roi_pool=regions(head.mask_roi_extractor),
                mask_head=MaskRCNNHeads(mask.in_channels, layers, 1),
                mask_predictor=own,
            )
            kind = Masks
        self.rgb = given._channel_conversion
        self.model = kind(Levels(body, detector.neck), **options)
        normal = given.mean.flatten().tolist(), given.std.flatten().tolist()
        self.model.transform = AsLarge(1, 1, *normal, size_divisible=given.pad_size_divisor)
        self.model.roi_heads.score_thresh = head.test_cfg.score_thr
        own = self.model.state_dict()
        body_state = {k: v for k, v in own.items() if k.startswith("backbone.body.")}
        self.model.load_state_dict({**body_state, **dict(translated(detector))}, assign=True)

    def test_step(self, data: dict[str, Any]) -> list[DetDataSample]:
        """As mmdet's: images (3, H, W) of 0 to 255 to what is found on each."""
        device = next(self.parameters()).device
        images = [image.to(device).float() for image in data["inputs"]]
        found = self.model([image.flip(0) for image in images] if self.rgb else images)
        samples = []
        for own in found:
            objects = InstanceData(
                bboxes=own["boxes"], scores=own["scores"], labels=own["labels"] - 1
            )
            if "masks" in own:
                objects.masks = own["masks"][:, 0] >= 0.5
            samples.append(DetDataSample(pred_instances=objects))
        return samples


def regions(extractor: nn.Module) -> MultiScaleRoIAlign:
    """torchvision's RoIAlign with an extractor's numbers of levels, cells and samples."""
    first = extractor.roi_layers[0]
    names = [str(i) for i in range(extractor.num_inputs)]
    return MultiScaleRoIAlign(names, first.output_size, first.sampling_ratio)


def translated(detector: FasterRCNN) -> Iterator[tuple[str, Tensor]]:
    """The parameters of neck and heads under torchvision's names; of classes the background is
    torchvision's first and mmdet's last."""

    def both(ours: nn.Module, theirs: str) -> Iterator[tuple[str, Tensor]]:
        yield f"{theirs}.weight", ours.weight
        yield f"{theirs}.bias", ours.bias

    def with_background(rows: Tensor, count: int) -> nn.Parameter:
        """Rows of each class, ``count`` each, which may be one for all, after the background's."""
        rows = rows.repeat(classes * count // len(rows), *[1] * (rows.dim() - 1))
        return nn.Parameter(torch.cat([rows.new_zeros(count, *rows.shape[1:]), rows]))

    neck, rpn, head = detector.neck, detector.rpn_head, detector.roi_head
    classes = head.bbox_head.num_classes
    for i, (lateral, out) in enumerate(zip(neck.lateral_convs, neck.fpn_convs)):
        yield from both(lateral.conv, f"backbone.fpn.inner_blocks.{i}.0")
        if i < neck.num_ins:
            yield from both(out.conv, f"backbone.fpn.layer_blocks.{i}.0")
    yield from both(rpn.rpn_conv, "rpn.head.conv.0.0")
    yield from both(rpn.rpn_cls, "rpn.head.cls_logits")
    yield from both(rpn.rpn_reg, "rpn.head.bbox_pred")
    box = head.bbox_head
    for name, layer in zip(("fc6", "fc7"), box.shared_fcs, strict=True):
        yield from both(layer, f"roi_heads.box_head.{name}")
    for key, value in both(box.fc_cls, "roi_heads.box_predictor.cls_score"):
        yield key, nn.Parameter(value.detach().roll(1, 0))
    for key, value in both(box.fc_reg, "roi_heads.box_predictor.bbox_pred"):
        yield key, with_background(value.detach(), 4)
    if detector.with_mask:
        for i, conv in enumerate(head.mask_head.convs):
            yield from both(conv.conv, f"roi_heads.mask_head.{i}.0")
        yield from both(head.mask_head.upsample, "roi_heads.mask_predictor.conv5_mask")
        logits = "roi_heads.mask_predictor.mask_fcn_logits"
        for key, value in both(head.mask_head.conv_logits, logits):
            yield key, with_background(value.detach(), 1)
