"""A tiny Faster R-CNN on LTMSwin, eight training and four validation images, and runs of it."""

import copy
import itertools
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner

CLASSES = ("box", "slab")
SIZE = 64
NUMBERS = itertools.count()

CONFIG = """
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py']
default_scope = 'mmdet'
model = dict(
    backbone=dict(
        _delete_=True, type='LTMSwin', embed_dims=8, depths=[2, 2, 1, 1], num_heads=[1, 2, 4, 4],
        window_size=4, drop_path_rate=0.1,
        merger=dict(type='LTM', compression_ratio=[0.5, 0.5, 1.0, 1.0], dense_blocks=1)),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=8),
    rpn_head=dict(in_channels=8, feat_channels=8),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=8),
        bbox_head=dict(in_channels=8, fc_out_channels=16, num_classes=2)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=16)), rpn_proposal=dict(nms_pre=50, max_per_img=20),
        rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20)))
data = dict(
    type='CocoDataset', data_root='{root}/', metainfo=dict(classes=('box', 'slab')),
    serialize_data=False)
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **data, ann_file='train.json', data_prefix=dict(img='train/'),
        pipeline=[*load, dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]))
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **data, ann_file='val.json', data_prefix=dict(img='val/'), test_mode=True,
        pipeline=[
            load[0], dict(type='Resize', scale=(96, 96), keep_ratio=True), load[1],
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
val_evaluator = dict(type='CocoMetric', ann_file='{root}/val.json', metric='bbox')
train_cfg = dict(type='IterBasedTrainLoop', max_iters=6, val_interval=1000)
val_cfg = dict(type='ValLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1000, save_last=False))
log_processor = dict(by_epoch=False, window_size=1)
randomness = dict(seed=1)
log_level = 'ERROR'
"""


def write_data(root: Path) -> Path:
    """Images of noise, half of them high and half wide, each with a bright box and a slab."""
    rng = np.random.default_rng(0)
    for split, images in (("train", 8), ("val", 4)):
        (root / split).mkdir(parents=True)
        categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES)]
        coco = dict(images=[], annotations=[], categories=categories)
        for i in range(images):
            height, width = (SIZE, SIZE * 3 // 4) if i % 2 else (SIZE * 3 // 4, SIZE)
            image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
            for category, (w, h) in enumerate([(16, 16), (24, 10)]):
                x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
                image[y : y + h, x : x + w] = 100 * (category + 1)
                box = dict(bbox=[x, y, w, h], area=w * h, iscrowd=0)
                where = dict(id=len(coco["annotations"]), image_id=i, category_id=category)
                coco["annotations"].append(box | where)
            cv2.imwrite(str(root / split / f"{i}.png"), image)
            coco["images"].append(dict(id=i, file_name=f"{i}.png", height=height, width=width))
        (root / f"{split}.json").write_text(json.dumps(coco))
    return root


@lru_cache
def base_config(root: Path) -> Config:
    cfg = Config.fromstring(CONFIG.replace("{root}", str(root)), ".py")
    return Config(cfg.to_dict(), format_python_code=False)  # formatting would take half of a run


def build(
    root: Path, work_dir: Path, hooks: Sequence[dict] = (), validate: bool = False, **options: Any
) -> Runner:
    """A run; options are merged into its config, with ``__`` for the dots in their names."""
    cfg = copy.deepcopy(base_config(root))
    if not validate:
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.merge_from_dict({key.replace("__", "."): value for key, value in options.items()})
    cfg.work_dir, cfg.custom_hooks = str(work_dir), list(hooks)
    cfg.experiment_name = (
        f"tiny_{next(NUMBERS)}"  # mmengine wants each of a process to have its own
    )
    return Runner.from_cfg(cfg)
