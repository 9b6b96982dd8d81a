"""Small detectors whose files are compared with them, and what to compare by."""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmdet.models.roi_heads.mask_heads import fcn_mask_head
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ltm_det.engine.preflight import load_config
from ltm_det.measure.flops import build_detector

CONFIGS = Path(__file__).parents[2] / "configs"
SIZE = (64, 96)
LEAST = 0.2  # score of what the file's detector finds
META = dict(img_shape=SIZE, ori_shape=SIZE, batch_input_shape=SIZE, scale_factor=(1.0, 1.0))
NEAR = 1e-4  # scores: by so much two ways to compute may differ, and by 100 times that in pixels


@pytest.fixture(scope="module")
def build() -> Callable[..., nn.Module]:
    """A small detector that finds a lot, in noise too, and amplifies no rounding."""

    def of(name: str, **options: object) -> nn.Module:
        torch.manual_seed(0)
        detector = build_detector(load_config(str(CONFIGS / name), options)).eval()
        for parameter in detector.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        return detector

    return of


MASK, CASCADE = "demo_ltm_swin_maskrcnn.py", "demo_ltm_swin_cascade.py"
MANY = {"model.test_cfg.rcnn.max_per_img": 1000, "model.test_cfg.rcnn.score_thr": LEAST}


@pytest.fixture(scope="module")
def detector(build: Callable) -> nn.Module:
    return build(MASK, **MANY)


def paste(masks: Tensor, boxes: Tensor, *size: int, paste=fcn_mask_head._do_paste_mask, **options):
    """mmdet's, which takes float32 alone."""
    return paste(masks, boxes.float(), *size, **options)


def predict(detector: nn.Module, images: Tensor) -> InstanceData:
    size = tuple(images.shape[2:])
    meta = dict(META, img_shape=size, ori_shape=size, batch_input_shape=size)
    with torch.no_grad(), mock.patch.object(fcn_mask_head, "_do_paste_mask", paste):
        (sample,) = detector.predict(images, [DetDataSample(metainfo=meta)], rescale=False)
    return sample.pred_instances
