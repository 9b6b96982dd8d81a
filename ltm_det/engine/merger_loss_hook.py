"""Adds the losses of mergers themselves, such as LTMP's budget, to those of a detector."""

import inspect
from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ltm_det.basics.arguments import checked, number
from ltm_det.basics.errors import InputError


@HOOKS.register_module()
class MergerLossHook(Hook):
    """Adds ``loss_merger_POINT`` = weight * ``auxiliary_loss`` of each merger that has one.

    It works with any optimiser wrapper and with activation checkpoints: the loss is that of the
    pass whose losses it joins.

    Args:
        weight: Above 0. LTMP's paper (arXiv 2307.10780) weighs its budget by 10.

    Raises:
        InputError: On a weight out of range, and in a run whose backbone has no such merger: one
            without mergers as it begins, others at the first training iteration.
    """

    priority = "NORMAL"

    @checked(weight=number(above=0))
    def __init__(self, weight: float = 10.0) -> None:
        self.weight = weight

    def __deepcopy__(self, memo: dict) -> "MergerLossHook":
        """Itself: it holds nothing of the detector whose copy, such as EMAHook's, asks for it."""
        return self

    def before_run(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        points = getattr(model.backbone, "mergers_by_point", dict)()
        if not points:
            raise _no_loss(f"{type(model.backbone).__name__} has no mergers")
        self.handle = model.register_forward_hook(self._after_forward, with_kwargs=True)

    def after_run(self, runner: Runner) -> None:
        self.handle.remove()

    def _after_forward(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """In training, the losses with those of the mergers."""
        given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        if given.get("mode") != "loss" or not model.training:
            return output
        mergers = model.backbone.mergers_by_point()
        losses = {
            f"loss_merger_{name}": self.weight * merger.auxiliary_loss
            for name, merger in mergers.items()
            if merger.auxiliary_loss is not None
        }
        if not losses:
            kinds = sorted({type(merger).__name__ for merger in mergers.values()})
            raise _no_loss(f"mergers {kinds} have no loss of their own, or are frozen")
        return output | losses


def _no_loss(found: str) -> InputError:
    return InputError(
        f"MergerLossHook: {found}: take it out of custom_hooks, or choose a merger with a loss, "
        "such as LTMP"
    )
