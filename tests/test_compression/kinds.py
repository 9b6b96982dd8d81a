"""mmdet's own configs of several kinds, on a small Swin, with heads of few channels."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hub import get_config

from ltm_det.conversion.own_config import on_own_data
from ltm_det.datasets.own import own_data
from tests.test_compression.small import ROOT, SWIN

FINER = dict(SWIN, out_indices=(1, 2, 3))
CHANNELS = [16, 32, 64, 128]  # of the Swin's maps


def one_stage(cfg: Config) -> None:
    """RetinaNet, ATSS and their like."""
    cfg.model.neck.update(in_channels=CHANNELS[1:], out_channels=64, start_level=0)
    cfg.model.bbox_head.update(in_channels=64, feat_channels=64, stacked_convs=1)


def cascade(cfg: Config) -> None:
    """Cascade Mask R-CNN and HTC."""
    cfg.model.neck.update(in_channels=CHANNELS, out_channels=32)
    two_stage(cfg)


def two_stage(cfg: Config) -> None:
    """Heads of two-stage detectors."""
    cfg.model.rpn_head.update(in_channels=32, feat_channels=32)
    head = cfg.model.roi_head
    for name in ("bbox_roi_extractor", "mask_roi_extractor"):
        head[name].out_channels = 32
    boxes = head.bbox_head if isinstance(head.bbox_head, list) else [head.bbox_head]
    for own in boxes:
        own.update(in_channels=32, fc_out_channels=64)
    masks = head.mask_head if isinstance(head.mask_head, list) else [head.mask_head]
    for own in masks:
        own.update(num_convs=1, in_channels=32, conv_out_channels=32)
    cfg.model.test_cfg.rpn.update(nms_pre=100, max_per_img=50)
    cfg.model.test_cfg.rcnn.update(max_per_img=20)


def mask2former(cfg: Config) -> None:
    layer = dict(self_attn_cfg=dict(embed_dims=32, num_heads=2))
    layer["ffn_cfg"] = dict(embed_dims=32, feedforward_channels=64)
    decoder = dict(layer, cross_attn_cfg=dict(embed_dims=32, num_heads=2))
    place = dict(num_feats=16)
    head = dict(in_channels=CHANNELS, feat_channels=32, out_channels=32, num_queries=10)
    head |= dict(
        positional_encoding=place,
        pixel_decoder=dict(encoder=dict(num_layers=1, layer_cfg=layer), positional_encoding=place),
        transformer_decoder=dict(num_layers=2, layer_cfg=decoder),
    )
    cfg.merge_from_dict(dict(model=dict(panoptic_head=head)))
    cfg.model.test_cfg.max_per_image = 10


def dino(cfg: Config) -> None:
    model = dict(num_queries=10, encoder=dict(num_layers=1), decoder=dict(num_layers=1))
    cfg.merge_from_dict(dict(model=dict(model, neck=dict(in_channels=CHANNELS[1:]))))
    cfg.model.test_cfg.max_per_img = 10


def rtmdet(cfg: Config) -> None:
    cfg.model.neck.update(in_channels=CHANNELS[1:], out_channels=64, num_csp_blocks=1)
    cfg.model.bbox_head.update(in_channels=64, feat_channels=64, stacked_convs=1)


VIT = dict(embed_dims=32, num_heads=2, depth=4, window_size=4, img_size=64, init_cfg=None)


def vit(cfg: Config) -> None:
    """ViTDet."""
    cfg.merge_from_dict(dict(model=dict(neck=dict(in_channels=32, out_channels=32))))
    cfg.model.roi_head.bbox_head.conv_out_channels = 32
    two_stage(cfg)


# By name: mmdet's config, its backbone, what makes the rest small, whether it is exported whole.
KINDS: dict[str, tuple[str, dict[str, Any], Callable[[Config], None], bool]] = {
    "retinanet": ("retinanet/retinanet_r50_fpn_1x_coco.py", FINER, one_stage, False),
    "atss": ("atss/atss_r50_fpn_1x_coco.py", FINER, one_stage, False),
    "cascade": ("cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py", SWIN, cascade, True),
    "htc": ("htc/htc-without-semantic_r50_fpn_1x_coco.py", SWIN, cascade, False),
    "mask2former": (
        "mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py",
        SWIN,
        mask2former,
        False,
    ),
    "dino": ("dino/dino-4scale_r50_8xb2-12e_coco.py", FINER, dino, False),
    "vit": ("vit_s_maskrcnn.py", VIT, vit, True),
    "rtmdet": ("rtmdet/rtmdet_tiny_8xb32-300e_coco.py", FINER, rtmdet, False),
}


def config_of(kind: str, data: Path, written: Path) -> tuple[Config, bool]:
    """A config of mmdet's or ours, small, as ``ltm-det train --data`` writes it; whether it is
    exported as a whole."""
    name, backbone, shrink, whole = KINDS[kind]
    own = ROOT / "configs" / name
    cfg = Config.fromfile(own) if own.exists() else get_config(f"mmdet::{name}")
    cfg.merge_from_dict(deepcopy(dict(model=dict(backbone=backbone))))
    shrink(cfg)
    found = own_data(data)
    on_own_data(cfg, found, found.write(written), epochs=1, batch=1, say=lambda words: None)
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        cfg[loader].update(num_workers=0, persistent_workers=False, batch_size=1)
    return cfg, whole
