"""What a benchmark found: rows, their ratios to a base, exponents of size, and tables of them.

A row is a model in one form and format at one place: size, batch, mode and load.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from statistics import median
from typing import Any

import numpy as np

from ltm_det.measure.benchmark import Entry
from ltm_det.measure.flops import aligned
from ltm_det.measure.timing import ratios


def exponent(pixels: Sequence[float], seconds: Sequence[float]) -> float:
    """b of seconds = a * pixels ** b, by least squares of logarithms: 1 where cost is linear.

    Raises:
        ValueError: There are not two different numbers of pixels.
    """
    if len(set(pixels)) < 2:
        raise ValueError(f"an exponent takes two sizes or more, not {sorted(set(pixels))} pixels")
    return float(np.polyfit(np.log(pixels), np.log(seconds), 1)[0])


def rows_of(
    entries: Iterable[Entry],
    times: Mapping[Entry, Sequence[float]],
    failures: Mapping[Entry, str],
    macs: Mapping[str, int],
    base: Entry,
) -> list[dict[str, Any]]:
    """What was found of a place by :func:`ltm_det.measure.benchmark.time_entries`, a row an entry.

    ``ratio`` is that of medians to the base entry, ``same_way`` that to the base's model in the
    same form and format; None where there is none.

    Raises:
        ValueError: The base does not run.
    """
    if base in failures:
        raise ValueError(
            f"{' '.join(base)}, the base of all ratios, does not run: {failures[base]}\n"
            "Choose another one with --base, or put another --how or --dtype first"
        )
    found, rows = ratios(times, base), []
    for entry in entries:
        row = dict(entry._asdict(), gmacs=macs[entry.model] / 1e9)
        row["gmacs_ratio"] = macs[entry.model] / macs[base.model]
        if entry in failures:
            row["failure"] = failures[entry]
        else:
            beside = times.get(entry._replace(model=base.model))
            row |= dict(seconds=times[entry], median_ms=1e3 * median(times[entry]))
            row |= dict(ratio=found[entry].median, quartiles=found[entry][1:])
            row["same_way"] = median(times[entry]) / median(beside) if beside else None
        rows.append(row)
    return rows


def exponents(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How times grow with pixels, for each entry, batch, mode and load of two sizes or more."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    keys = (*Entry._fields, "batch", "mode", "load")
    for row in rows:
        if "seconds" in row:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    found = []
    for group, own in groups.items():
        pixels = [math.prod(row["shape"]) for row in own]
        if len(set(pixels)) > 1:
            value = exponent(pixels, [row["median_ms"] for row in own])
            found.append(dict(zip(keys, group), pixels=pixels, exponent=value))
    return found


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """An aligned table of rows of one place; '-' where nothing was measured."""
    timed = any("seconds" in row or "failure" in row for row in rows)
    ways = len({(row["how"], row["dtype"]) for row in rows}) > 1
    weighed = any("peak_bytes" in row for row in rows)
    header = ["model", "how", "dtype", "GMACs", "of base"]
    header += ["median ms", "of base", "quartiles"] * timed + ["same way"] * (timed and ways)
    table = [header + ["peak MiB", "of base"] * weighed]
    for row in rows:
        cells = [row["model"], row["how"], row["dtype"]]
        cells += [f"{row['gmacs']:.2f}", f"{row['gmacs_ratio']:.3f}"]
        if timed and "seconds" in row:
            cells += [f"{row['median_ms']:.1f}", f"{row['ratio']:.3f}"]
            cells.append("{:.3f} to {:.3f}".format(*row["quartiles"]))
            cells += [f"{row['same_way']:.3f}" if row["same_way"] else "-"] * ways
        elif timed:
            cells += ["-"] * (4 if ways else 3)
        if weighed and "peak_bytes" in row:
            cells += [f"{row['peak_bytes'] / 2**20:.1f}", f"{row['peak_ratio']:.3f}"]
        elif weighed:
            cells += ["-"] * 2
        table.append(cells)
    notes = [
        f"{row['model']} {row['how']} {row['dtype']} does not run: {row[key]}"
        for row in rows
        for key in ("failure", "peak_failure")
        if key in row
    ]
    return "\n".join([aligned(table), *notes])


def with_peaks(
    rows: list[dict[str, Any]],
    peaks: Mapping[tuple[str, str], int | str],
    macs: Mapping[str, int],
    models: Sequence[str],
    dtypes: Sequence[str],
    base: Entry,
) -> list[dict[str, Any]]:
    """The rows with the peak memory of those in eager form, which are added where they lack.

    ``peaks`` has bytes by model and format, or why there are none.
    """
    eager = {(row["model"], row["dtype"]): row for row in rows if row["how"] == "eager"}
    for name, dtype in product(models, dtypes):
        row = eager.get((name, dtype))
        if row is None:
            row = dict(Entry(name, "eager", dtype)._asdict(), gmacs=macs[name] / 1e9)
            row["gmacs_ratio"] = macs[name] / macs[base.model]
            rows.append(row)
        peak = peaks[name, dtype]
        if isinstance(peak, str):
            row["peak_failure"] = peak
        else:
            row |= dict(peak_bytes=peak, peak_ratio=peak / max(peaks[base.model, base.dtype], 1))
    return rows


def detector_rows(found: Mapping[str, Mapping[str, Any]], base: str) -> list[dict[str, Any]]:
    """Of one place, by :func:`ltm_det.measure.detectors.time_detectors`, a row a detector."""
    times = ratios({name: own["seconds"] for name, own in found.items()}, base)
    rows = []
    for name, own in found.items():
        row = dict(model=name, median_ms=1e3 * median(own["seconds"]))
        row |= dict(ratio=times[name].median, quartiles=times[name][1:])
        rows.append(row | dict(own))
    return rows


def detector_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Detectors side by side: the whole, its ratio to the base, and the milliseconds of parts."""
    parts = list(dict.fromkeys(part for row in rows for part in row.get("parts", ())))
    table = [["", *(row["model"] for row in rows)]]
    table.append(["median ms", *(f"{row['median_ms']:.1f}" for row in rows)])
    table.append(["of base", *(f"{row['ratio']:.3f}" for row in rows)])
    table.append(["quartiles", *("{:.3f} to {:.3f}".format(*row["quartiles"]) for row in rows)])
    for part in parts:
        cells = (row.get("parts", {}).get(part) for row in rows)
        table.append([part, *("-" if cell is None else f"{1e3 * cell:.1f}" for cell in cells)])
    for count in ("proposals", "objects"):
        table.append([count, *(str(row.get(count, "-")) for row in rows)])
    return aligned(table)


def name_of(entry: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> str:
    """A row's name, with its form and format only where the rows differ in them."""
    ways = [key for key in ("how", "dtype") if len({row[key] for row in rows}) > 1]
    return " ".join([entry["model"], *(entry[key] for key in ways)])
