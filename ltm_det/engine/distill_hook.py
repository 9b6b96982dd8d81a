"""Makes a merged backbone's maps follow those of its dense twin while the detector trains.

Shapes: B images, C channels, H x W grid of a map.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import HOOKS, MODELS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ltm_det.basics.errors import InputError


def map_errors(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Of each output map |s - t|^2 / |t - mean(t)|^2, each channel with its own mean, in float32.

    Zero for equal maps, 1 for maps that are the teacher's channels' means everywhere.

    Args:
        student, teacher: Maps (B, C, H, W) of a backbone, finest first.
    """
    errors = []
    for s, t in zip(student, teacher, strict=True):
        s, t = s.float(), t.float()
        spread = (t - t.mean((0, 2, 3), keepdim=True)).square().sum()
        errors.append((s - t).square().sum() / spread.clamp(min=torch.finfo(t.dtype).tiny))
    return torch.stack(errors)


@HOOKS.register_module()
class DistillHook(Hook):
    """Adds ``loss_distill_i`` = weight * relative squared error of output map i to the losses.

    The teacher is the config's backbone without mergers, in evaluation mode, whose weights stay.
    It asks for no labels; the detector's own losses go on. Nothing of it is in checkpoints, so that
    a run is resumed with the same file.

    Both compute the stem and the blocks before the first merge. They are the same in both only
    where the student's are frozen (``frozen_stages``); once they train, their outputs differ. To
    take them from the student in the frozen case would need hooks inside its backbone, for which
    these parts would leave the fast way on the CPU (:mod:`ltm_det.cpu.door`), and it is whole
    stages that freeze, while a merged stage as a rule merges from its second block on: little more
    than the stem would be spared.

    Args:
        teacher: Checkpoint of the dense detector, or of its backbone.
        weight: Of each output map, or one for all; 0 leaves a map out.
        end: Share of the training iterations after which the teacher is asked no more, in (0, 1].

    Raises:
        InputError: A value out of range, as many weights as there are no maps, a backbone that has
            no dense twin, and a checkpoint that does not fit it.
    """

    priority = "NORMAL"

    def __init__(
        self, teacher: str, weight: float | Sequence[float] = 1.0, end: float = 1.0
    ) -> None:
        if not isinstance(teacher, str) or not teacher:
            raise InputError(f"DistillHook.teacher={teacher!r}: give the dense checkpoint's path")
        weights = [weight] if isinstance(weight, (int, float)) else list(weight)
        good = [isinstance(w, (int, float)) and 0 <= w < math.inf for w in weights]
        if not all(good) or not any(weights):
            raise InputError(f"DistillHook.weight={weight!r}: give numbers from 0, one above 0")
        if not isinstance(end, (int, float)) or not 0 < end <= 1:
            raise InputError(f"DistillHook.end={end!r}: give a share of the iterations, in (0, 1]")
        self.file, self.weights, self.end = teacher, weights, end
        self.errors: Tensor | None = None  # of the maps of the pass that goes on

    def __deepcopy__(self, memo: dict) -> "DistillHook":
        """Itself: a copy of the hooked detector, such as EMAHook's, copies no teacher."""
        return self

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.runner = runner
        self.teacher = self.dense_twin(runner.cfg.model.backbone, model.backbone)
        levels = len(model.backbone.out_indices)
        if len(self.weights) not in (1, levels):
            raise InputError(
                f"DistillHook.weight={self.weights}: give one, or {levels} for {levels} maps"
            )
        self.each = torch.tensor(self.weights * (1 if len(self.weights) > 1 else levels))
        self.handles = [
            model.backbone.register_forward_hook(self._after_backbone),
            model.register_forward_hook(self._after_forward, with_kwargs=True),
        ]

    def after_train(self, runner: Runner) -> None:
        for handle in self.handles:
            handle.remove()

    def dense_twin(self, cfg: Any, backbone: nn.Module) -> nn.Module:
        """The backbone without mergers, of the teacher's weights, where the backbone is."""
        if not getattr(backbone, "mergers_by_point", dict)():
            kind = type(backbone).__name__
            raise InputError(
                f"DistillHook: {kind} merges nowhere, so it has no dense twin to follow"
            )
        start = dict(type="Pretrained", checkpoint=self.file)
        teacher = MODELS.build({**cfg, "merger": None, "init_cfg": start})
        try:
            teacher.init_weights()
        except (OSError, ValueError) as error:
            raise InputError(f"DistillHook.teacher={self.file}: {error}") from error
        teacher.requires_grad_(False)
        teacher.train(False)
        return teacher.to(next(backbone.parameters()).device)

    def _after_backbone(self, backbone: nn.Module, args: tuple, output: Sequence[Tensor]) -> None:
        late = self.runner.iter >= self.end * self.runner.max_iters
        if not backbone.training or not torch.is_grad_enabled() or late:
            return
        with torch.no_grad():
            wanted = self.teacher(*args)
        self.errors = map_errors(output, wanted)

    def _after_forward(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """In training, the losses with those of the maps."""
        errors, self.errors = self.errors, None
        given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        if given.get("mode") != "loss" or errors is None:
            return output
        losses = self.each.to(errors.device) * errors
        return output | {f"loss_distill_{i}": loss for i, loss in enumerate(losses) if self.each[i]}
