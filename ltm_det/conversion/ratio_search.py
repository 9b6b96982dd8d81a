"""Ratios from a budget: what merging each unit of a backbone does to its maps and costs, and which
units to merge how far.

A unit is what gets its ratio in one piece: a stage (of MobileViT: a transformer), or a block of it,
or a whole ViT with its one merge point. Each unit is measured alone, all others dense, and their
errors and savings are taken to add up, which turns the choice into a multiple-choice knapsack. What
the whole choice then really costs is counted, see :func:`meet_budget`.

Shapes: B images, C channels, H x W grid.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ltm_det.backbones import LTMConvNeXt, LTMSwin, LTMViT
from ltm_det.backbones.common.convolutional import ConvolutionalBackbone
from ltm_det.measure.timing import time_models
from ltm_det.merging import check_ratio, kept_side, kept_tokens, ratio_schedule
from ltm_det.merging.schedule import DenseBlocks

EXACT = 100_000  # combinations up to which costs are taken as they are, not on a grid
GRID = 10_000  # steps of the grid, between the least and the most that all units cost
DENSE = "dense"

Ratios = dict[Any, float]  # of the merged blocks: by (stage, block), or by block in a ViT
Label = tuple[str, str]  # of a unit and of one of its choices


class BudgetError(ValueError):
    """No choice meets the budget; ``least`` is the least cost that can be reached."""

    def __init__(self, least: float) -> None:
        super().__init__(f"the budget cannot be met: the least cost within reach is {least:g}")
        self.least = least


class Candidate(NamedTuple):
    """A choice for one unit. Costs may be below zero, so they may be counted from dense."""

    cost: float
    error: float
    label: Any = None


class Space(NamedTuple):
    """What can be chosen for a backbone.

    Attributes:
        units: By the name of a unit its choices, by their labels; the first one is dense, {}.
        merger: The backbone's merger argument that has the given ratios.
    """

    units: dict[str, dict[str, Ratios]]
    merger: Callable[[Ratios], dict[str, Any] | None]


def choose(units: Sequence[Sequence[Candidate]], budget: float) -> list[Candidate]:
    """One candidate of each unit: of least summed error among those of summed cost <= budget.

    Of equal errors the lower cost wins. The choice is exact for up to 100,000 combinations.
    Beyond, costs are rounded up to a grid of 10,000 steps, so that the budget is still met and at
    most one step for each unit of it is wasted.

    Raises:
        BudgetError: Even the cheapest candidates cost more.
    """
    floors = [min(c.cost for c in unit) for unit in units]
    least = sum(floors)
    if least > budget:
        raise BudgetError(least)
    spread = sum(max(c.cost for c in unit) for unit in units) - least
    step = spread / GRID if math.prod(map(len, units)) > EXACT else 0.0

    def above(cost: float) -> float:
        """A difference of costs, in steps of the grid where there is one."""
        return math.ceil(cost / step - 1e-9) if step else cost

    slack = (budget - least) / step if step else budget - least
    front = [(0.0, 0.0, ())]  # (cost, error, picks): the higher the cost, the lower the error
    for unit, floor in zip(units, floors):
        states = [
            (cost + above(c.cost - floor), error + c.error, (*picks, c))
            for cost, error, picks in front
            for c in unit
        ]
        states.sort(key=lambda state: state[:2])
        front, best = [], math.inf
        for state in states:
            if state[0] <= slack and state[1] < best:
                front.append(state)
                best = state[1]
    return list(front[-1][2])


def meet_budget(
    units: Sequence[Sequence[Candidate]],
    dense: float,
    limit: float,
    count: Callable[[list[Candidate]], float],
) -> tuple[list[Candidate], float]:
    """:func:`choose`, repeated with a tighter budget until what the whole really costs is in limit.

    Args:
        units: Costs are counted from the dense unit's, so savings are below zero.
        dense: Cost of the dense backbone.
        limit: What the whole may cost.
        count: The real cost of a choice.

    Returns:
        The choice and its real cost.

    Raises:
        BudgetError: No choice gets there; with the least real cost that was found.
    """
    budget, found = limit - dense, []
    cheapest = [min(unit, key=lambda candidate: candidate.cost) for unit in units]
    while True:
        try:
            picks = choose(units, budget)
        except BudgetError:
            picks, budget = cheapest, None
        cost = count(picks)
        if cost <= limit:
            return picks, cost
        found.append(cost)
        if budget is None:
            raise BudgetError(min(found))
        budget = sum(c.cost for c in picks) - max(cost - limit, 1e-6 * dense)


def space_of(
    dense: nn.Module, merger: Mapping[str, Any], ratios: Sequence[float], unit: str = "stage"
) -> Space:
    """The choices of a dense backbone of ours.

    - Stages, unit 'stage': a stage is dense, or has one of the ratios in the blocks that the
      merger's ``dense_blocks`` leaves to merging.
    - Stages, unit 'block': in stage scope, a stage merges from some block to its end, so there are
      no refresh points; in block scope, a ConvNeXt's only one, every block has its own ratio.
      ``dense_blocks`` has no say.
    - ViT: one merge point, before any block.

    Ratios at which a window keeps as many tokens as at an earlier one, or all, are left out.

    Args:
        dense: The backbone.
        merger: Its type and options; ratios and merge points in it are replaced.
        ratios: Kept fractions to choose from.
        unit: 'stage' or 'block'.

    Raises:
        TypeError: On another backbone.
        ValueError: On a ratio outside (0, 1], or if nothing can be merged.
    """
    own = {k: v for k, v in merger.items() if k not in ("compression_ratio", "merge_at")}
    if isinstance(dense, (LTMSwin, ConvolutionalBackbone)):
        space = _staged_space(dense, own, [check_ratio(r) for r in ratios], unit)
    elif isinstance(dense, LTMViT):
        space = _vit_space(dense, own, [check_ratio(r) for r in ratios])
    else:
        raise TypeError(f"the backbone is a {type(dense).__name__}: give one of ours")
    units = {name: choices for name, choices in space.units.items() if len(choices) > 1}
    if not units:
        raise ValueError(
            f"the ratios {list(ratios)} merge nothing: a window keeps all its tokens, or all "
            "blocks are dense"
        )
    return space._replace(units=units)


def _staged_space(dense: Any, own: dict[str, Any], ratios: list[float], unit: str) -> Space:
    depths, window, dense_blocks = merging_depths(dense)
    by_stage = own.get("scope", "stage") == "stage" and not isinstance(dense, LTMConvNeXt)
    dense_blocks = own.pop("dense_blocks", dense_blocks)
    if by_stage:
        ratios = _distinct(ratios, window, lambda ratio: kept_side(ratio, window))
    else:
        ratios = _distinct(ratios, window**2, lambda ratio: kept_tokens(ratio, window**2))
    schedule = ratio_schedule(0.5, depths, dense_blocks)
    units: dict[str, dict[str, Ratios]] = {}
    for s, depth in enumerate(depths):
        if unit == "stage":
            merged = [b for b in range(depth) if schedule[s][b] < 1]
            units[f"stages.{s}"] = {DENSE: {}} | {
                f"{r:g}": {(s, b): r for b in merged} for r in ratios if merged
            }
        elif by_stage:
            units[f"stages.{s}"] = {DENSE: {}} | {
                f"{r:g} from block {start}": {(s, b): r for b in range(start, depth)}
                for start in range(depth)
                for r in ratios
            }
        else:
            for b in range(depth):
                units[f"stages.{s}.blocks.{b}"] = {DENSE: {}} | {
                    f"{r:g}": {(s, b): r} for r in ratios
                }

    def merger(chosen: Ratios) -> dict[str, Any] | None:
        if not chosen:
            return None
        stages = [[chosen.get((s, b), 1.0) for b in range(depth)] for s, depth in enumerate(depths)]
        stages = [stage[0] if len(set(stage)) == 1 else stage for stage in stages]
        return dict(own, compression_ratio=stages, dense_blocks=0)

    return Space(units, merger)


def merging_depths(dense: nn.Module) -> tuple[list[int], int, DenseBlocks]:
    """Of a backbone of stages: blocks of each one that merges, the window, and which blocks stay
    dense where the merger says nothing of it."""
    if isinstance(dense, LTMSwin):
        return [len(stage.blocks) for stage in dense.stages], dense.stages[0].window, None
    return dense.depths, dense.window, getattr(dense, "dense_by_default", 0)


def _vit_space(dense: LTMViT, own: dict[str, Any], ratios: list[float]) -> Space:
    ratios = _distinct(ratios, dense.window, lambda ratio: kept_side(ratio, dense.window))
    choices: dict[str, Ratios] = {DENSE: {}}
    for block in range(len(dense.blocks)):
        choices |= {f"{r:g} from block {block}": {block: r} for r in ratios}

    def merger(chosen: Ratios) -> dict[str, Any] | None:
        if not chosen:
            return None
        ((block, ratio),) = chosen.items()
        return dict(own, merge_at=block, compression_ratio=ratio)

    return Space({"blocks": choices}, merger)


def _distinct(ratios: list[float], full: int, kept: Callable[[float], int]) -> list[float]:
    """The first ratio for each number kept that is below ``full``."""
    first: dict[int, float] = {}
    for ratio in ratios:
        first.setdefault(kept(ratio), ratio)
    return [ratio for number, ratio in first.items() if number < full]


@torch.no_grad()
def sensitivities(
    dense: nn.Module,
    models: Sequence[nn.Module],
    batches: Iterable[Tensor],
    progress: Callable[[], Any] = lambda: None,
) -> list[float]:
    """For each model, how far its maps are from those of the dense one.

    It is the mean over the maps of ||merged - dense||^2 / ||dense - its channel means||^2, norms
    and means over all images and positions: 0 for the same maps, 1 for maps of constant channels.

    Args:
        dense: Backbone that yields a list of maps (B, C, H, W); in evaluation mode, as the others.
        models: Merged backbones, on the same device.
        batches: Images (B, 3, H, W).
        progress: Called after each pass of a model.
    """
    device = next(dense.parameters()).device
    errors: list[Any] = [0.0] * len(models)  # each (maps,)
    power, totals, counts = 0.0, None, 0.0
    for images in batches:
        maps = dense(images.to(device))
        totals = [0.0] * len(maps) if totals is None else totals
        totals = [t + x.double().sum((0, 2, 3)) for t, x in zip(totals, maps, strict=True)]  # (C,)
        counts = counts + torch.tensor([x.numel() / x.shape[1] for x in maps], dtype=torch.double)
        power = power + torch.stack([x.double().square().sum() for x in maps]).cpu()
        for i, model in enumerate(models):
            pairs = zip(model(images.to(device)), maps, strict=True)
            squares = torch.stack([(y.double() - x.double()).square().sum() for y, x in pairs])
            errors[i] = errors[i] + squares.cpu()
            progress()
    if totals is None:
        raise ValueError("no images to measure on")
    means = torch.stack([t.square().sum() for t in totals]).cpu() / counts
    variance = (power - means).clamp(min=torch.finfo(torch.double).tiny)
    return [(error / variance).mean().item() for error in errors]


def latencies(
    models: Sequence[nn.Module], shape: tuple[int, int], runs: int = 15, warm_up: int = 2
) -> list[float]:
    """Seconds that each model takes for one image: the fastest of runs in which all take turns.

    Choices differ by a few percent, and other processes can only make a run slower.

    Args:
        models: On one device.
        shape: Height and width of the image.
        runs: Of each model, after ``warm_up`` more.
    """
    named = {str(i): model for i, model in enumerate(models)}
    return [min(times) for times in time_models(named, shape, runs, warm_up=warm_up).values()]
