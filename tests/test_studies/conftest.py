"""Data, configs and checkpoints of the tiny detectors whose bottleneck is measured."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from tests.test_tools.conftest import CONFIG, write_split

# Merges 2 x 2 windows in stage 2, and in stage 4 one of 2 x 2 tokens, the rest of it padding.
SWIN = """
_base_ = './tiny.py'
train_dataloader = dict(dataset=dict(serialize_data=False))
val_dataloader = dict(dataset=dict(serialize_data=False))
model = dict(backbone=dict(type='LTMSwin', depths=[1, 2, 1, 2],
    merger=dict(type='LTM', compression_ratio=0.5, mask='hard_soft', temperature=0.5)))
"""
VIT = """
_base_ = './swin.py'
model = dict(
    backbone=dict(
        _delete_=True, type='LTMViT', embed_dims=16, depth=4, num_heads=2, patch_size=8,
        window_size=4, pretrain_img_size=64, img_size=64,
        merger=dict(type='LTM', merge_at=2, compression_ratio=0.25)),
    neck=dict(_delete_=True, type='SimpleFPN', in_channels=16, out_channels=16))
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and four validation images, and configs on them."""
    root = tmp_path_factory.mktemp("ib")
    rng = np.random.default_rng(0)
    write_split(root, "train", 8, rng)
    write_split(root, "val", 4, rng)
    (root / "tiny.py").write_text(CONFIG.replace("{root}", str(root)))
    (root / "swin.py").write_text(SWIN)
    (root / "vit.py").write_text(VIT)
    return root


@pytest.fixture(scope="session")
def config(folder: Path) -> Callable[..., Config]:
    """``config(name, **{'model.backbone.depths': ...})``."""
    read = {name: Config.fromfile(folder / f"{name}.py") for name in ("tiny", "swin", "vit")}

    def load(name: str = "swin", **options: object) -> Config:
        cfg = copy.deepcopy(read[name])
        cfg.merge_from_dict(options)
        return cfg

    return load


@pytest.fixture
def saved(folder: Path) -> Callable[[Config], str]:
    """The file of a checkpoint with random weights, mask modules included, for a config."""

    def save(cfg: Config, seed: int = 0) -> str:
        generator = torch.Generator().manual_seed(seed)
        model = MODELS.build(cfg.model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                std = 1.0 if "merger" in name else 0.1
                parameter += std * torch.randn(parameter.shape, generator=generator)
        path = folder / f"{seed}.pth"
        torch.save(dict(state_dict=model.state_dict(), meta=dict()), path)
        return str(path)

    return save
