"""A bar of a run's iterations with the time left, on a terminal."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ltm_det.engine.first_step import START


class ProgressHook(Hook):
    """A bar with the loss, the AP that was last found, and the time left; below it one of the
    validation. What is logged meanwhile stands above. Where errors go to no terminal it does
    nothing, as logs have mmengine's own estimate.

    It belongs to a process, not to a config, so it is given to a runner by ``register_hook``.
    """

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self.shown = is_main_process() and sys.stderr.isatty()
        self.stack = ExitStack()
        self.bar: tqdm | None = None
        self.below: tqdm | None = None
        self.told: dict[str, str] = {}

    def before_train(self, runner: Runner) -> None:
        setattr(runner, START, runner.iter)
        if self.shown:
            self.stack.enter_context(logging_redirect_tqdm([runner.logger]))
            self.bar = self.stack.enter_context(
                tqdm(
                    total=runner.max_iters,
                    initial=runner.iter,
                    desc="training",
                    unit=" steps",
                    dynamic_ncols=True,
                )
            )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if self.bar is not None:
            if outputs and "loss" in outputs:
                self.told["loss"] = f"{outputs['loss'].item():.3g}"
            self.bar.set_postfix(self.told, refresh=False)
            self.bar.update(runner.iter + 1 - self.bar.n)

    def before_val_epoch(self, runner: Runner) -> None:
        if self.bar is not None:
            options = dict(desc="validation", unit=" batches", leave=False, dynamic_ncols=True)
            self.below = tqdm(total=len(runner.val_dataloader), **options)

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence | None = None,
    ) -> None:
        if self.below is not None:
            self.below.update()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if self.bar is None:
            return
        if self.below is not None:
            self.below.close()
            self.below = None
        for name, value in (metrics or {}).items():
            if name.endswith("_mAP"):
                self.told[f"{name.rpartition('/')[2].removesuffix('_mAP')} AP"] = f"{value:.3f}"

    def after_train(self, runner: Runner) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bars away, also after an error."""
        if self.below is not None:
            self.below.close()
        self.stack.close()
        self.bar = self.below = None
