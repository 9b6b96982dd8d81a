"""Curves of a training run: its losses and its AP, over iterations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from mmengine.runner import Runner

from ltm_det.basics.files import whole

MASTER = "loss"  # mmengine's name of the sum
WINDOWS = 50  # of a run, over which losses are averaged

Curve = tuple[Sequence[float], Sequence[float]]  # iterations, values


def losses_of(runner: Runner) -> dict[str, Curve]:
    """Losses by name, their sum first, of all iterations, those before a resumption too."""
    found = {}
    for name, buffer in runner.message_hub.log_scalars.items():
        part, _, own = name.partition("/")
        if part == "train" and "loss" in own:
            values, _ = buffer.data
            end = runner.iter
            found[own] = (range(end - len(values) + 1, end + 1), values)
    return dict(sorted(found.items(), key=lambda item: item[0] != MASTER))


def metrics_of(runner: Runner) -> dict[str, Curve]:
    """AP by name, such as 'bbox_mAP'; the last one is of the last iteration, those before of
    multiples of the validation's interval."""
    loop = runner.train_loop
    found = {}
    for name, buffer in runner.message_hub.log_scalars.items():
        if name.startswith("val/") and name.endswith("_mAP"):
            values, _ = buffer.data
            every = loop.val_interval
            past = -(-runner.iter // every) * every
            places = [min(past - every * i, runner.iter) for i in reversed(range(len(values)))]
            found[name.rpartition("/")[2]] = (places, values)
    return found


def smooth(values: Sequence[float]) -> np.ndarray:
    """Means over a window that ends at each value, shorter at the start."""
    width = max(1, len(values) // WINDOWS)
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=float))])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw_curves(losses: Mapping[str, Curve], metrics: Mapping[str, Curve], out: Path) -> None:
    """Writes a picture: losses on the left, AP on the right.

    Args:
        losses: By name, see :func:`losses_of`; averaged a little when they are drawn.
        metrics: By name, see :func:`metrics_of`.
        out: Its suffix chooses the format.
    """
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (places, values) in losses.items():
        main = name == MASTER
        left.plot(
            places,
            smooth(values),
            label="sum" if main else name.removeprefix("loss_"),
            color="black" if main else None,
            linewidth=2 if main else 1,
        )
    names = dict(bbox_mAP="box AP", segm_mAP="mask AP")
    for name, (places, values) in metrics.items():
        right.plot(places, values, marker="o", markersize=4, label=names.get(name, name))
        right.annotate(
            f"{values[-1]:.3f}",
            (places[-1], values[-1]),
            textcoords="offset points",
            xytext=(-4, 6),
            ha="right",
            fontsize=9,
        )
    left.set(title="losses", xlabel="iterations", yscale="log")
    right.set(title="AP on the validation pictures", xlabel="iterations")
    right.set_ylim(bottom=0)
    for axis, curves in ((left, losses), (right, metrics)):
        axis.grid(alpha=0.3)
        if curves:
            axis.legend(fontsize=8)
    with whole(out) as part:
        figure.savefig(part, dpi=100)
