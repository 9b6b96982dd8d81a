"""Pictures of a benchmark: time against multiply-accumulates, and against the size of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ltm_det.analysis.benchmark import name_of

MARKERS = "osD^vPX<>"


def draw(
    rows: Sequence[Mapping[str, Any]], exponents: Sequence[Mapping[str, Any]], title: str, out: Path
) -> bool:
    """Writes a picture with a row of panels for each mode and batch.

    Args:
        rows: See :func:`ltm_det.analysis.benchmark.rows_of`, each with shape, batch and mode.
        exponents: See :func:`ltm_det.analysis.benchmark.exponents`.
        title: Of the whole.
        out: Where to write it.

    Returns:
        Whether there was anything to draw.
    """
    timed = [row for row in rows if "seconds" in row]
    groups = list(dict.fromkeys((row["mode"], row["batch"]) for row in timed))
    if not groups:
        return False
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in timed))
    names = list(dict.fromkeys(name_of(row, timed) for row in timed))
    columns = len(shapes) + bool(exponents)
    figure = Figure((4.6 * columns, 4.4 * len(groups) + 0.6), layout="constrained")
    grid = figure.subplots(len(groups), columns, squeeze=False)
    for group, panels in zip(groups, grid, strict=True):
        own = [row for row in timed if (row["mode"], row["batch"]) == group]
        for shape, axes in zip(shapes, panels):
            at = [row for row in own if tuple(row["shape"]) == shape]
            against_macs(axes, at, names, [name_of(row, timed) for row in at])
            axes.set_title("{}, batch {}, {} x {}".format(*group, *shape))
        if exponents:
            fits = {name_of(e, timed): e for e in exponents if (e["mode"], e["batch"]) == group}
            for name, fit in fits.items():
                at = [row for row in own if name_of(row, timed) == name]
                against_pixels(panels[-1], at, names.index(name), f"{name}: {fit['exponent']:.2f}")
            panels[-1].set(title="exponent of time over pixels", xscale="log", yscale="log")
            panels[-1].set(xlabel="megapixels", ylabel="ms")
            panels[-1].legend(fontsize="small")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.suptitle(title, fontsize="medium")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    return True


def against_macs(
    axes: Axes, rows: Sequence[Mapping[str, Any]], names: Sequence[str], own: Sequence[str]
) -> None:
    """Ratios of time over ratios of GMACs, bars from quartile to quartile; on the line, the clock
    shows just what was saved."""
    for row, name in zip(rows, own, strict=True):
        index = names.index(name)
        style = dict(color=f"C{index % 10}", marker=MARKERS[index % len(MARKERS)])
        axes.plot(row["gmacs_ratio"], row["ratio"], linestyle="", label=name, **style)
        axes.vlines(row["gmacs_ratio"], *row["quartiles"], color=style["color"])
    most = max(1.0, *(row["gmacs_ratio"] for row in rows))
    axes.plot([0, most], [0, most], color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="GMACs, of the base", ylabel="time, of the base")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)


def against_pixels(axes: Axes, rows: Sequence[Mapping[str, Any]], index: int, label: str) -> None:
    points = sorted((row["shape"][0] * row["shape"][1] / 1e6, row["median_ms"]) for row in rows)
    style = dict(color=f"C{index % 10}", marker=MARKERS[index % len(MARKERS)])
    axes.plot(*zip(*points), label=label, **style)
    axes.grid(alpha=0.3, which="both")
