"""Small detectors with weights, and pictures for them."""

from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config

from ltm_det.compat.weight_files import write_weights
from ltm_det.measure.flops import build_detector
from tests.test_datasets.test_own import CLASSES, coco_folder

ROOT = Path(__file__).resolve().parents[2]
SIDE = 64
SWIN = dict(
    _delete_=True,
    type="SwinTransformer",
    embed_dims=16,
    depths=[1, 2, 1, 1],
    num_heads=[1, 2, 4, 8],
    window_size=7,
)


def data(folder: Path) -> Path:
    """COCO data with three pictures a part, each of its own noise."""
    coco_folder(folder)
    rng = np.random.default_rng(0)
    for file in sorted(folder.glob("*/*.png")):
        small = rng.integers(0, 256, (8, 8, 3), np.uint8)
        size = cv2.imread(str(file)).shape[1::-1]
        cv2.imwrite(str(file), cv2.resize(small, size, interpolation=cv2.INTER_CUBIC))
    return folder


def save(cfg: Config, folder: Path) -> tuple[str, str]:
    """Writes a config and a checkpoint of it, whose detector is sure of what it finds."""
    register_all_modules()
    torch.manual_seed(0)
    model = build_detector(cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("fc_cls.weight"):
                parameter.normal_(std=1.0)
    folder.mkdir(parents=True, exist_ok=True)
    meta = dict(dataset_meta=dict(classes=tuple(CLASSES)))
    write_weights(folder / "dense.pth", model.state_dict(), meta)
    cfg.dump(folder / "dense.py")
    return str(folder / "dense.py"), str(folder / "dense.pth")


def mask_rcnn() -> Config:
    """The demo's detector, smaller, for three classes."""
    cfg = Config.fromfile(ROOT / "configs/demo_swin_maskrcnn.py")
    cfg.merge_from_dict(
        dict(
            model=dict(
                backbone=dict(SWIN),
                neck=dict(in_channels=[16, 32, 64, 128]),
                roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)),
            )
        )
    )
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        cfg[loader].update(num_workers=0, persistent_workers=False, batch_size=1)
        cfg[loader].dataset.metainfo = dict(classes=tuple(CLASSES))
    return cfg
