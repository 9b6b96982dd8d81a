"""Times of several models, measured in turns, so that noise of the machine hits all alike."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from statistics import median, quantiles
from typing import NamedTuple, TypeVar

import torch
from torch import nn

WARM_UP = 5  # rounds
Name = TypeVar("Name", bound=Hashable)


class Ratio(NamedTuple):
    """Time against that of a base: of the medians, and the quartiles of the rounds' ratios."""

    median: float
    lower: float
    upper: float


def wall_seconds(function: Callable[[], object]) -> float:
    """Seconds of a call, which has to wait for what it starts elsewhere, as on a GPU."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def cuda_seconds(function: Callable[[], object]) -> float:
    """Seconds of the present CUDA stream between start and end of what a call puts on it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()  # so that nothing from before is in it
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def interleaved(
    models: Mapping[Name, Callable[[], object]],
    rounds: int,
    warmup: int,
    clock: Callable[[Callable[[], object]], float] = wall_seconds,
) -> dict[Name, list[float]]:
    """Seconds that each model takes, in each round; a round runs every model once, in turn.

    Each second round goes backwards, so that no model always follows the same other one.

    Args:
        models: Functions by name.
        rounds: That are measured, at least 1.
        warmup: That come before, and are not.
        clock: Calls a function and tells its seconds: `wall_seconds` or `cuda_seconds`.

    Raises:
        ValueError: Fewer rounds than that.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds={rounds} and warmup={warmup} must be at least 1 and 0")
    times = {name: [] for name in models}
    for number in range(-warmup, rounds):
        order = list(models)
        for name in order if number % 2 else reversed(order):
            seconds = clock(models[name])
            if number >= 0:
                times[name].append(seconds)
    return times


def ratios(times: Mapping[Name, Sequence[float]], base: Name) -> dict[Name, Ratio]:
    """The times of each model against those of the model ``base``, from :func:`interleaved`."""
    found = {}
    for name, own in times.items():
        paired = [a / b for a, b in zip(own, times[base], strict=True)]
        lower, _, upper = quantiles(paired, n=4, method="inclusive") if len(own) > 1 else paired * 3
        found[name] = Ratio(median(own) / median(times[base]), lower, upper)
    return found


def time_models(
    models: Mapping[str, nn.Module],
    shape: tuple[int, int],
    rounds: int,
    threads: int | None = None,
    warm_up: int = WARM_UP,
) -> dict[str, list[float]]:
    """Seconds of each model on one image of noise, as :func:`interleaved` has them.

    Args:
        models: By name, on one device. They are put into evaluation mode.
        shape: Height and width of the image, in pixels.
        rounds: That are measured, after ``warm_up`` more.
        threads: That torch may use meanwhile; None: as many as it may use now.
    """
    parameters = (p for model in models.values() for p in model.parameters())
    device = next(parameters, torch.empty(0)).device
    image = torch.rand(1, 3, *shape, device=device)

    def run(model: nn.Module) -> None:
        model(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for model in models.values():
        model.eval()  # not chained: on mmdet's Swin it returns None
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with torch.no_grad():
            runs = {name: partial(run, model) for name, model in models.items()}
            return interleaved(runs, rounds, warm_up)
    finally:
        torch.set_num_threads(before)
