"""Pictures of a comparison: AP, held against the dense detector's, and what a backbone costs."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ltm_det.basics.files import whole
from ltm_det.studies.comparison import DENSE
from ltm_det.studies.comparison_tables import REFERENCES, Summary

COSTS = {"of_dense": "backbone GMACs, of dense", "time_ratio": "backbone's time, of dense"}
NAMES = {
    "train": "from scratch",
    "finetune": "fine-tuned",
    "convert": "off the shelf",
    "calibrate": "calibrated",
}
METRIC, METRIC_NAME = "bbox_mAP", "box AP, less dense of the same seed"
MARKERS = "osD^vPX<"
STEP = 0.003  # between the points of mergers that cost the same, to tell them apart


def draw(found: Sequence[Summary], panels: Sequence[tuple[str, ...]], out: Path) -> bool:
    """Writes a picture with a row of panels for each backbone and way of making detectors.

    Args:
        found: See :func:`ltm_det.studies.comparison_tables.summaries`.
        panels: The modes whose points go into one panel; of two, the first is hollow. They share
            a dense reference, which lies at zero. Panels without a merged detector are left out.
        out: Where to write it.

    Returns:
        Whether there was anything to draw.
    """
    chosen = [s for s in found if s.merger != DENSE and any(s.mode in modes for modes in panels)]
    if not chosen:
        return False
    pairs = {s.backbone: None for s in chosen}
    pairs = [
        (backbone, modes)
        for backbone in pairs
        for modes in panels
        if any(s.backbone == backbone and s.mode in modes for s in chosen)
    ]
    costs = ["of_dense"]
    if any(s.time_ratio is not None for s in chosen):
        costs.append("time_ratio")
    mergers = list(dict.fromkeys(s.merger for s in chosen))
    figure = Figure((5.2 * len(costs) + 1.5, 4.2 * len(pairs)), layout="constrained")
    grid = figure.subplots(len(pairs), len(costs), squeeze=False)
    for (backbone, modes), row in zip(pairs, grid, strict=True):
        dense = [s for s in found if s.merger == DENSE and s.backbone == backbone]
        dense = [s for s in dense if s.mode == REFERENCES[modes[0]]]
        for cost, axes in zip(costs, row, strict=True):
            if dense:
                axes.axhline(0, color="black", linewidth=0.8, linestyle=":", zorder=1)
                axes.plot(1.0, 0, color="black", marker="*", markersize=12, ls="", label=DENSE)
            for index, merger in enumerate(mergers):
                for mode in modes:
                    own = [s for s in chosen if (s.backbone, s.mode) == (backbone, mode)]
                    own = [s for s in own if s.merger == merger and getattr(s, cost) is not None]
                    own = [s for s in own if s.against_dense[METRIC]]
                    shift = (index - (len(mergers) - 1) / 2) * STEP
                    hollow = len(modes) > 1 and mode == modes[0]
                    points(
                        axes,
                        [getattr(s, cost) + shift for s in own],
                        own,
                        color=f"C{index}",
                        marker=MARKERS[index % len(MARKERS)],
                        markerfacecolor="white" if hollow else f"C{index}",
                        linestyle="",
                        label=None if hollow else merger,
                    )
            title = f"{backbone}: {NAMES[modes[-1]]}"
            if len(modes) > 1:
                title = f"{backbone}: {NAMES[modes[0]]} (hollow), {NAMES[modes[1]]} (filled)"
            axes.set(xlabel=COSTS[cost], ylabel=METRIC_NAME, title=title)
            axes.grid(alpha=0.3)
    handles = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4)
    title = "Means over seeds, bars from least to most; points of equal cost lie side by side"
    figure.suptitle(title, fontsize="medium")
    with whole(out) as part:
        figure.savefig(part, dpi=120)
    return True


def points(axes: Axes, xs: list[float], summaries: Sequence[Summary], **style: object) -> None:
    """Mean differences to dense over seeds, with bars from least to most."""
    values = [s.against_dense[METRIC] for s in summaries]
    means = [mean(v) for v in values]
    below = [m - min(v) for m, v in zip(means, values, strict=True)]
    above = [max(v) - m for m, v in zip(means, values, strict=True)]
    axes.errorbar(xs, means, [below, above], elinewidth=0.8, capsize=2, linewidth=1.2, **style)
