"""Small detectors, mmdet's and the fast ones of the same weights."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hub import get_config

from ltm_det.detectors import FAST

BASES = dict(
    mask="mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    faster="mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    cascade="mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py",
)
SIZE = (160, 200)


def small_model(name: str) -> Config:
    """A config of mmdet's detector on a Swin of few channels and three classes."""
    cfg = get_config(BASES[name]).model
    cfg.backbone = dict(
        type="SwinTransformer", embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8]
    )
    cfg.neck.update(in_channels=[16, 32, 64, 128], out_channels=32)
    cfg.rpn_head.update(in_channels=32, feat_channels=32)
    head = cfg.roi_head
    heads = head.bbox_head if isinstance(head.bbox_head, list) else [head.bbox_head]
    head.bbox_roi_extractor.out_channels = 32
    for bbox_head in heads:
        bbox_head.update(in_channels=32, fc_out_channels=64, num_classes=3)
    if "mask_head" in head:
        head.mask_roi_extractor.out_channels = 32
        head.mask_head.update(num_convs=2, in_channels=32, conv_out_channels=32, num_classes=3)
    cfg.test_cfg.rpn.update(nms_pre=200, max_per_img=100)
    cfg.test_cfg.rcnn.update(score_thr=0.0, max_per_img=30)
    return cfg


@pytest.fixture(params=BASES)
def name(request) -> str:
    return request.param


@pytest.fixture
def pair(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """mmdet's detector and the fast one, in evaluation mode."""
    register_all_modules()
    cfg = small_model(name)
    fast_cfg = copy.deepcopy(cfg)
    fast_cfg.type = FAST[cfg.type]
    detector, fast = MODELS.build(cfg), MODELS.build(fast_cfg)
    with torch.no_grad():
        for name, parameter in detector.named_parameters():  # so that scores and boxes differ
            if parameter.ndim > 1:
                # boxes of later stages hang on these; and no two scores shall be 1, so equal
                far = 0.1 if "reg" in name or "rpn_cls" in name else 2**0.5
                parameter.normal_(std=far / parameter[0].numel() ** 0.5)
    fast.load_state_dict(detector.state_dict())
    return detector.eval(), fast.eval()
