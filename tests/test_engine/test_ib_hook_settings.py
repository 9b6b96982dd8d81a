"""Settings of IBHook that cannot be, and those of the demo."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmdet.models.backbones import SwinTransformer
from mmdet.registry import HOOKS as MMDET_HOOKS
from mmengine.config import Config
from torch import nn

from ltm_det.engine import IBHook
from tests.test_backbones import swin_cases
from tests.test_engine.ib_runs import POINTS, hook
from tests.test_engine.tiny_detector import build

CONFIGS = Path(__file__).parents[2] / "configs"


def start(backbone: nn.Module, data: Sequence[str] = ("train",), **options: Any) -> None:
    """What a run does first."""
    model = nn.Module()
    model.backbone = backbone
    cfg = {f"{split}_dataloader": {} for split in data}
    IBHook(**options).before_run(SimpleNamespace(model=model, cfg=cfg))


def test_a_dense_backbone_without_points():
    with pytest.raises(ValueError, match="merges nowhere: name the points"):
        start(swin_cases.make(None))
    start(swin_cases.make(None), points=["stages.0.blocks.0"])


@pytest.mark.parametrize("points", [["stages.0.blocks.0"], ["stages.0.blocks.1.ffn"], ["x"]])
def test_points_that_are_not_there(points):
    with pytest.raises(ValueError, match=f"no merge point '{points[0]}': choose of.*{POINTS[1]}"):
        start(swin_cases.make(dict(type="Pool")), points=points)


def test_a_backbone_of_mmdet():
    with pytest.raises(TypeError, match="SwinTransformer has no merge points: use LTMSwin"):
        start(SwinTransformer(**swin_cases.MINI), points=POINTS)


@pytest.mark.parametrize("source, data", [("val", ["train"]), ("train", ["val"])])
def test_no_data_for_the_source(source, data):
    with pytest.raises(ValueError, match=f"source='{source}', but the config has no data for it"):
        start(swin_cases.make(dict(type="Pool")), data, source=source)


def test_data_without_annotations(train, root, tmp_path):
    pipeline = build(root, tmp_path, validate=True).cfg.val_dataloader.dataset.pipeline
    with pytest.raises(ValueError, match="val/0.png.*LoadAnnotations"):
        train(
            hook(source="val"),
            validate=True,
            train_cfg__max_iters=1,
            val_dataloader__dataset__pipeline=[pipeline[0], pipeline[1], pipeline[3]],
        )


@pytest.mark.parametrize(
    "options, told",
    [
        (dict(source="test"), r"unknown source 'test': choose one of \['train', 'val'\]"),
        (dict(weight=-0.1), "weight must be finite and from 0 on, got -0.1"),
        (dict(weight=math.nan), "weight must be finite"),
        (dict(weight=math.inf), "weight must be finite"),
        (dict(weight=0.1, source="val"), "weight=0.1 needs source='train'"),
        (dict(begin=1.0), r"begin must lie in \[0, 1\), got 1.0"),
        (dict(begin=-0.1), "begin must .* got -0.1"),
        (dict(begin=math.nan), "begin must .* got nan"),
        (dict(beta=0.0), "beta must be finite and above 0, got 0.0"),
        (dict(beta=math.inf), "beta must be finite"),
        (dict(interval=0), "interval must be a whole number from 1 on, got 0"),
        (dict(interval=2.5), "interval must be a whole number from 1 on, got 2.5"),
        (dict(num_clusters=1), "num_clusters must be a whole number from 2 on, got 1"),
        (dict(num_clusters="8"), "num_clusters must be .* got '8'"),
        (dict(background=-1), "background must be a whole number from 0 on, got -1"),
        (dict(crop=0), "crop must be a whole number from 1 on, got 0"),
        (dict(num_clusters=8, capacity=7), "capacity must be a whole number from 8 on, got 7"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(map(str, value)),
)
def test_bad_settings(options, told):
    with pytest.raises(ValueError, match=told):
        IBHook(**options)


def test_settings_at_their_limits():
    IBHook(begin=0.0, weight=0, interval=1, num_clusters=2, background=0, crop=1, capacity=2)
    assert MMDET_HOOKS.get("IBHook") is IBHook


def test_the_demo_config():
    """Its hook, next to the config without, refreshes ten times and begins between two of them."""
    cfg, base = (Config.fromfile(CONFIGS / f"demo_ltm_swin{n}_maskrcnn.py") for n in ("_ib", ""))
    (options,) = (hook for hook in cfg.custom_hooks if hook not in base.custom_hooks)
    built = MMDET_HOOKS.build(dict(options))
    assert isinstance(built, IBHook) and built.weight > 0
    assert cfg.train_cfg.max_iters == 10 * built.interval
    assert built.begin * cfg.train_cfg.max_iters >= built.interval  # Q is there by then
    own, theirs = (dict(c.items()) | dict(custom_hooks=None) for c in (cfg, base))
    assert own == theirs
