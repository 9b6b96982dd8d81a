"""A tiny COCO data set, a tiny Mask R-CNN on it, and a way to run the tools on them."""

import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64

CONFIG = """
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py']
custom_imports = dict(imports=['ltm_det'])
classes = ('box', 'slab')
model = dict(
    backbone=dict(
        _delete_=True, type='SwinTransformer', embed_dims=16, depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8], window_size=4, drop_path_rate=0.3),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=2),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(num_convs=1, in_channels=16, conv_out_channels=16, num_classes=2)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=16)), rpn_proposal=dict(nms_pre=50, max_per_img=20),
        rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20)))
data = dict(type='CocoDataset', data_root='{root}/', metainfo=dict(classes=classes))
load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_dataloader = dict(
    batch_size=2, num_workers=2, persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        **data, ann_file='train.json', data_prefix=dict(img='train/'),
        pipeline=[
            *load,
            dict(type='RandomChoiceResize', scales=[(64, 64), (96, 96)], keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackDetInputs')]))
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **data, ann_file='val.json', data_prefix=dict(img='val/'), test_mode=True,
        pipeline=[
            load[0], dict(type='Resize', scale=(64, 64), keep_ratio=True), load[1],
            dict(type='PackDetInputs', meta_keys=meta)]))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', ann_file='{root}/val.json', metric=['bbox', 'segm'])
test_evaluator = val_evaluator
train_cfg = dict(type='IterBasedTrainLoop', max_iters=40, val_interval=1000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, end=40)]
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval=10, max_keep_ckpts=2))
log_processor = dict(by_epoch=False, window_size=1)
randomness = dict(seed=1)
"""


def write_split(root: Path, split: str, images: int, rng: np.random.Generator) -> None:
    """Images of noise, half of them high and half wide, each with two bright rectangles."""
    (root / split).mkdir(parents=True)
    coco = dict(images=[], annotations=[], categories=[])
    coco["categories"] = [dict(id=1, name="box"), dict(id=2, name="slab")]
    for i in range(1, images + 1):
        height, width = (SIZE, SIZE * 3 // 4) if i % 2 else (SIZE * 3 // 4, SIZE)
        image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        for category, (w, h) in ((1, (16, 16)), (2, (24, 10))):
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            image[y : y + h, x : x + w] = 100 * category
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            coco["annotations"].append(
                dict(
                    id=len(coco["annotations"]) + 1,
                    image_id=i,
                    category_id=category,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[corners],
                )
            )
        name = f"{i}.png"
        cv2.imwrite(str(root / split / name), image)
        coco["images"].append(dict(id=i, file_name=name, height=height, width=width))
    (root / f"{split}.json").write_text(json.dumps(coco))


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a tiny Mask R-CNN on eight training and four validation images."""
    root = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    write_split(root, "train", 8, rng)
    write_split(root, "val", 4, rng)
    config = root / "tiny.py"
    config.write_text(CONFIG.replace("{root}", str(root)))
    return config


@pytest.fixture(scope="session")
def tool() -> Callable:
    """Runs a tool in a process of its own and waits for it: ``tool('train.py', *options)``."""

    def run(name: str, *options: object, **env: str) -> subprocess.CompletedProcess:
        command = [sys.executable] if name.endswith(".py") else ["bash"]
        return subprocess.run(
            [*command, str(ROOT / "tools" / name), *map(str, options)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **env},
            timeout=300,
        )

    return run


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a tool's ``main`` in this process, which spares the imports; gives its exit code."""

    def run(name: str, *options: object) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        monkeypatch.setenv("LOCAL_RANK", os.environ.get("LOCAL_RANK", "0"))
        return runpy.run_path(str(ROOT / "tools" / name), run_name="tool")["main"]()

    return run


@pytest.fixture
def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
