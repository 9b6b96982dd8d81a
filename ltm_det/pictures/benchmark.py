"""Pictures of a benchmark: time against multiply-accumulates, and against the size of images."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ltm_det.basics.files import whole
from ltm_det.measure.benchmark import Entry
from ltm_det.measure.benchmark_tables import name_of

MARKERS = "osD^vPX<>"
Style = Callable[[Mapping[str, Any]], dict[str, Any]]


def draw(
    rows: Sequence[Mapping[str, Any]], exponents: Sequence[Mapping[str, Any]], title: str, out: Path
) -> bool:
    """Writes a picture with a row of panels for each mode, batch and load.

    Args:
        rows: See :func:`ltm_det.measure.benchmark_tables.rows_of`, each with shape, batch, mode
            and load.
        exponents: See :func:`ltm_det.measure.benchmark_tables.exponents`.
        title: Of the whole.
        out: Where to write it.

    Returns:
        Whether there was anything to draw.
    """
    timed = [row for row in rows if "seconds" in row]
    groups = list(dict.fromkeys(map(group_of, timed)))
    if not groups:
        return False
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in timed))
    models = list(dict.fromkeys(row["model"] for row in timed))
    ways = list(dict.fromkeys((row["how"], row["dtype"]) for row in timed))

    def style(row: Mapping[str, Any]) -> dict[str, Any]:
        """A colour for each model, a marker for each way to run it."""
        way = ways.index((row["how"], row["dtype"]))
        color = f"C{models.index(row['model']) % 10}"
        return dict(color=color, marker=MARKERS[way % len(MARKERS)], label=name_of(row, timed))

    columns = len(shapes) + bool(exponents)
    figure = Figure((4.6 * columns + 1, 4.4 * len(groups) + 0.6), layout="constrained")
    grid = figure.subplots(len(groups), columns, squeeze=False)
    for group, panels in zip(groups, grid, strict=True):
        own = [row for row in timed if group_of(row) == group]
        for shape, axes in zip(shapes, panels):
            against_macs(axes, [row for row in own if tuple(row["shape"]) == shape], style)
            axes.set_title("{}, batch {}, load {}, {} x {}".format(*group, *shape))
        fits = [fit for fit in exponents if group_of(fit) == group]
        if fits:
            against_pixels(panels[-1], own, fits, style)
    handles = {}
    for axes in grid[:, : len(shapes)].flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2 * columns)
    lines = textwrap.wrap(title, width=60 * columns)  # characters of this size on a panel
    figure.suptitle("\n".join(lines), fontsize="small")
    with whole(out) as part:
        figure.savefig(part, dpi=120)
    return True


def group_of(row: Mapping[str, Any]) -> tuple[str, int, int]:
    """What a row of panels shares."""
    return row["mode"], row["batch"], row["load"]


def against_macs(axes: Axes, rows: Sequence[Mapping[str, Any]], style: Style) -> None:
    """Ratios of time over ratios of GMACs, bars from quartile to quartile; on the line, the clock
    shows just what was saved."""
    for row in rows:
        looks = style(row)
        axes.plot(row["gmacs_ratio"], row["ratio"], linestyle="", **looks)
        axes.vlines(row["gmacs_ratio"], *row["quartiles"], color=looks["color"])
    most = max([1.0, *(row["gmacs_ratio"] for row in rows)])
    axes.plot([0, most], [0, most], color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="GMACs, of the base", ylabel="time, of the base")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)


def against_pixels(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    fits: Sequence[Mapping[str, Any]],
    style: Style,
) -> None:
    """Times over sizes, the fitted exponent of each in the legend."""
    for fit in fits:
        entry = [row for row in rows if all(row[key] == fit[key] for key in Entry._fields)]
        points = sorted((math.prod(row["shape"]) / 1e6, row["median_ms"]) for row in entry)
        looks = style(fit)
        looks["label"] += f": {fit['exponent']:.2f}"
        axes.plot(*zip(*points), **looks)
    axes.set(title="exponent of time over pixels", xscale="log", yscale="log")
    axes.set(xlabel="megapixels", ylabel="ms")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="x-small")


WHOLE = "all of it"  # of a form whose parts are not timed


def draw_parts(rows: Sequence[Mapping[str, Any]], title: str, out: Path) -> None:
    """Writes a picture of detectors' times as bars stacked of their parts, a panel a place.

    Args:
        rows: See :func:`ltm_det.measure.benchmark_tables.detector_rows`, each with shape, batch,
            dtype and load.
        title: Of the whole.
        out: Where to write it.
    """
    places = list(dict.fromkeys(place_of(row) for row in rows))
    rows = [dict(row, parts=row.get("parts") or {WHOLE: row["median_ms"] / 1e3}) for row in rows]
    parts = list(dict.fromkeys(part for row in rows for part in row["parts"]))
    figure = Figure((9, 1.2 + len(rows) * 0.5 + len(places) * 0.8), layout="constrained")
    for axes, place in zip(figure.subplots(len(places), squeeze=False)[:, 0], places):
        own = [row for row in rows if place_of(row) == place][::-1]
        names, start = [row["model"] for row in own], [0.0] * len(own)
        for number, part in enumerate(parts):
            widths = [1e3 * row["parts"].get(part, 0.0) for row in own]
            axes.barh(
                names,
                widths,
                left=start,
                label=part,
                color=f"C{number % 10}",
                hatch="//" if number >= 10 else None,
            )
            start = [a + b for a, b in zip(start, widths)]
        for name, end, row in zip(names, start, own):
            axes.text(end, name, f" {row['ratio']:.2f}", va="center")
        axes.set_xlim(right=1.1 * max(start))
        axes.set_xlabel(f"ms; {place}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    figure.suptitle("\n".join(textwrap.wrap(title, 70)), fontsize=9)
    with whole(out) as part:
        figure.savefig(part, dpi=150)


def place_of(row: Mapping[str, Any]) -> str:
    return "{} x {}, batch {}, {}, load {}".format(
        *row["shape"], row["batch"], row["dtype"], row["load"]
    )
