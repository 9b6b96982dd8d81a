"""Fitting a converted backbone's mergers to its dense twin, on images without labels.

Shapes: B images, C channels, H x W grid of a map. Only what belongs to the mergers is fitted, by
the error of the backbone's output maps, through all that lies between.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from ltm_det.basics.finite import check_numbers
from ltm_det.engine.distill_hook import map_errors

STEPS = 200
LEARNING_RATE = 0.02


class Calibrated(NamedTuple):
    """What :func:`calibrate_if_better` did.

    Attributes:
        before: Relative error on the held-out images at the start.
        after: The same of the fitted mergers.
        losses: Of every step.
        kept: Whether the fitted mergers were kept, since ``after`` is below ``before``.
    """

    before: float
    after: float
    losses: list[float]
    kept: bool


def map_error(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over output maps of :func:`ltm_det.engine.distill_hook.map_errors`."""
    return map_errors(student, teacher).mean()


@torch.no_grad()
def relative_error(student: nn.Module, teacher: nn.Module, batches: Sequence[Tensor]) -> float:
    """:func:`map_error` of a backbone against another, mean over images of batches (B, 3, H, W).

    Both run in the mode that they are in, where the student's parameters lie.
    """
    device = next(student.parameters()).device
    total = 0.0
    for batch in batches:
        images = batch.to(device)
        total += len(batch) * map_error(student(images), teacher(images)).item()
    return total / sum(map(len, batches))


def merger_parameters(backbone: nn.Module) -> list[nn.Parameter]:
    """All parameters of a backbone's mergers, each once.

    Raises:
        ValueError: If there are none.
    """
    mergers = backbone.mergers_by_point().values()
    found = dict.fromkeys(p for merger in mergers for p in merger.parameters())
    if not found:
        kinds = sorted({type(merger).__name__ for merger in mergers})
        reason = f"{', '.join(kinds)} has no parameters" if kinds else "the backbone merges nowhere"
        raise ValueError(f"nothing to calibrate: {reason}")
    return list(found)


def calibrate(
    student: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Tensor],
    steps: int = STEPS,
    lr: float = LEARNING_RATE,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[float]:
    """Fits the mergers of a backbone so that its output maps equal the dense one's.

    By Adam, one batch a step, at a rate that falls to zero on a cosine. The backbone is in
    evaluation mode, without stochastic depth; its mergers are in training mode, since hard masks
    have gradients there alone. Nothing outside the mergers changes, and which parameters need
    gradients and which modules train is afterwards as before.

    Args:
        student: LTMSwin or LTMViT with mergers.
        teacher: The dense backbone, in evaluation mode, on the same device.
        batches: Images (B, 3, H, W), see :func:`ltm_det.conversion.unlabelled.unlabelled_batches`.
        steps: Each takes a batch, in an order drawn anew for every round.
        lr: Learning rate at the start.
        seed: Of the order, and of the noise of hard masks.
        progress: Wraps the steps' numbers, as tqdm does.

    Returns:
        The loss of every step, see :func:`map_error`. A step whose gradient is not finite, as too
        high a rate may make it, changes nothing, and a loss that is not finite is the last.

    Raises:
        ValueError: If the mergers have no parameters, or there is no batch or no step.
    """
    fitted = merger_parameters(student)
    if not batches or steps < 1:
        raise ValueError(f"{len(batches)} batches and {steps} steps: give one or more of each")
    wanted = [(p, p.requires_grad) for p in student.parameters()]
    modes = [(module, module.training) for module in student.modules()]
    device = fitted[0].device
    optimizer = Adam(fitted, lr)
    scheduler = CosineAnnealingLR(optimizer, steps)
    losses, order = [], []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student.eval()
        for merger in student.mergers_by_point().values():
            merger.train()
        student.requires_grad_(False)
        for parameter in fitted:
            parameter.requires_grad_(True)
        try:
            for _ in progress(range(steps)):
                order = order or torch.randperm(len(batches)).tolist()
                images = batches[order.pop()].to(device)
                with torch.no_grad():
                    target = teacher(images)
                loss = map_error(student(images), target)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    break
                optimizer.zero_grad()
                loss.backward()
                # too high a rate may have left nothing finite to learn from
                if all(p.grad is None or p.grad.isfinite().all() for p in fitted):
                    optimizer.step()
                scheduler.step()
        finally:
            optimizer.zero_grad()
            for parameter, flag in wanted:
                parameter.requires_grad_(flag)
            for module, mode in modes:
                module.training = mode
    return losses


def calibrate_if_better(
    student: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Tensor],
    held_out: Sequence[Tensor],
    **options,
) -> Calibrated:
    """:func:`calibrate`, taken back unless it lowers the error on images it did not fit.

    Args:
        student, teacher, batches: See :func:`calibrate`. The student is in evaluation mode.
        held_out: Other images, in batches.
        options: Of :func:`calibrate`.

    Raises:
        InputError: Maps are not finite before anything is fitted.
    """
    fitted = merger_parameters(student)
    start = [parameter.detach().clone() for parameter in fitted]
    before = relative_error(student, teacher, held_out)
    check_numbers(dict(error=before), "the maps before calibration")
    losses = calibrate(student, teacher, batches, **options)
    after = relative_error(student, teacher, held_out)
    kept = math.isfinite(after) and after < before
    if not kept:
        with torch.no_grad():
            for parameter, value in zip(fitted, start, strict=True):
                parameter.copy_(value)
    return Calibrated(before, after, losses, kept)
