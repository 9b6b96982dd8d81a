"""Tiny detectors with checkpoints, for the tools that start from one."""

from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config

SWIN = """
_base_ = '{base}'
model = dict(backbone=dict(
    type='LTMSwin', depths=[1, 1], num_heads=[1, 2], strides=[4, 2], out_indices=[0, 1],
    merger=dict(type='Pool', compression_ratio=0.5, dense_blocks=0)),
    neck=dict(in_channels=[16, 32]))
"""


def saved_detector(tiny_config: Path, name: str, text: str) -> tuple[Path, Path]:
    """Config, made of ``text`` upon the tiny one, and checkpoint of a detector."""
    config = tiny_config.with_name(f"{name}.py")
    config.write_text(text.format(base=tiny_config))
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    checkpoint = config.with_suffix(".pth")
    meta = dict(dataset_meta=dict(classes=("box", "slab")))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), checkpoint)
    return config, checkpoint
