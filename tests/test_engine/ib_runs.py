"""Runs of a tiny detector with IBHook, and what is kept of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ltm_det  # noqa: F401  first: it makes mmdet's models importable

# isort: split
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ltm_det.engine import IBHook
from ltm_det.engine.bottleneck import Bottleneck
from ltm_det.merging import BottleneckStep
from tests.test_engine.tiny_detector import build

POINTS = ["stages.0.blocks.1", "stages.1.blocks.1"]
LOSSES = [f"loss_ib_{name}" for name in POINTS]
TOLD = ["information_x", "information_y", "ib", "bound", "input_term", "label_entropy"]
TOLD += ["softness", "samples"]
GRADIENT = {
    f"model__backbone__merger__{option}": value
    for option, value in dict(update="gradient", clusters=3, classes=3).items()
}


@HOOKS.register_module(force=True)
class Record(Hook):
    """Keeps the losses of each iteration, and what the bottleneck had before it."""

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self.losses: dict[int, dict[str, float]] = {}
        self.bottlenecks: dict[int, tuple[dict, dict]] = {}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        for hook in runner.hooks:
            if isinstance(hook, IBHook) and hook.bottleneck is not None:
                kept = hook.bottleneck
                self.bottlenecks[runner.iter] = dict(kept.centroids), dict(kept.q)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        self.losses[runner.iter] = {k: v.item() for k, v in outputs.items() if "loss" in k}


def hook(**options: Any) -> dict:
    return dict(type="IBHook", num_clusters=3, interval=2) | options


def hook_of(runner: Runner) -> IBHook:
    (found,) = (hook for hook in runner.hooks if isinstance(hook, IBHook))
    return found


class Trained:
    """A run that is over: its losses, its scalars, its parameters, and what was called on the way.

    Attributes:
        losses: By iteration from 0 on, by name.
        scalars: Of the bottleneck, in order: (step, {name: value}).
        added: Of each batch, the arguments of Bottleneck.add.
        refreshed: At which iteration (from 0 on) Bottleneck.refresh was called.
        given: Name of the mask module's point and arguments of set_bottleneck.
    """

    def __init__(self, root: Path, work_dir: Path, *hooks: dict, before=None, **options) -> None:
        self.added, self.refreshed, self.given = [], [], []
        self.work_dir = work_dir
        runner = build(root, work_dir, [*hooks, dict(type="Record")], **options)
        if before is not None:
            before(runner)
        with pytest.MonkeyPatch.context() as patch:
            self.spy(patch, Bottleneck, "add", lambda own, *args: self.added.append(args))
            self.spy(patch, Bottleneck, "refresh", lambda own: self.refreshed.append(runner.iter))
            self.spy(
                patch,
                BottleneckStep,
                "set_bottleneck",
                lambda own, *args: self.given.append((own, args)),
            )
            runner.train()
        self.runner, self.model = runner, runner.model
        (record,) = (h for h in runner.hooks if isinstance(h, Record))
        self.losses, self.bottlenecks = record.losses, record.bottlenecks
        log = Path(runner.log_dir) / "vis_data" / "scalars.json"
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        self.scalars = [
            (row.pop("step"), row) for row in rows if any(k.startswith("ib") for k in row)
        ]

    @staticmethod
    def spy(patch: pytest.MonkeyPatch, cls: type, name: str, told: Callable) -> None:
        plain = getattr(cls, name)

        def spied(own, *args):
            told(own, *args)
            return plain(own, *args)

        patch.setattr(cls, name, spied)

    @property
    def ib_losses(self) -> list[int]:
        """Iterations whose losses had the bound's, all points together."""
        found = [i for i, losses in self.losses.items() if LOSSES[0] in losses]
        for i, losses in self.losses.items():
            names = [name for name in losses if "ib" in name]
            assert names == (LOSSES if i in found else [])
        return found


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
