"""What is timed is a row; exponents of known numbers; a picture keeps loads apart."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from ltm_det.measure import benchmark_tables
from ltm_det.measure.benchmark import Entry
from ltm_det.pictures.benchmark import draw


def test_rows_have_ratios_to_the_base_and_to_it_the_same_way() -> None:
    a, b = Entry("a", "eager", "float32"), Entry("b", "eager", "float32")
    a2, b2, b3 = (x._replace(how=how) for x, how in ((a, "frozen"), (b, "frozen"), (b, "exported")))
    times = {a: [4.0, 4.0, 8.0], b: [2.0, 1.0, 2.0], a2: [3.0] * 3, b2: [1.5] * 3}
    macs = dict(a=4 * 10**9, b=10**9)
    rows = benchmark_tables.rows_of([a, b, b3, a2, b2], times, {b3: "why"}, macs, a)
    assert [row["model"] + row["how"] for row in rows] == [
        *("aeager", "beager", "bexported", "afrozen", "bfrozen")
    ]
    assert rows[1]["median_ms"] == 2000 and rows[1]["ratio"] == 0.5
    assert rows[1]["quartiles"] == (0.25, 0.375)  # of 0.5, 0.25, 0.25
    assert rows[1]["gmacs"] == 1 and rows[1]["gmacs_ratio"] == 0.25
    assert rows[4]["ratio"] == 0.375 and rows[4]["same_way"] == 0.5
    assert rows[2]["failure"] == "why" and "seconds" not in rows[2]
    table = benchmark_tables.as_table(rows).splitlines()
    assert len(table) == 7 and table[-1] == "b exported float32 does not run: why"
    assert (
        table[2].split() == "b eager float32 1.00 0.250 2000.0 0.500 0.250 to 0.375 0.500".split()
    )
    assert table[3].split()[-4:] == ["-"] * 4
    with pytest.raises(ValueError, match="b exported float32, the base of all ratios.*why"):
        benchmark_tables.rows_of([b3], times, {b3: "why"}, macs, b3)


def test_exponents_of_known_numbers() -> None:
    pixels = np.array([1e4, 5e4, 2e6])
    assert benchmark_tables.exponent(pixels, 3 * pixels**1.25) == pytest.approx(1.25)
    with pytest.raises(ValueError, match="two sizes"):
        benchmark_tables.exponent([100, 100], [1, 2])
    rows = [
        dict(model=m, how="eager", dtype="amp", batch=b, mode="training", shape=s, seconds=[1])
        | dict(load=n, median_ms=b * (s[0] * s[1]) ** (power + n))
        for m, power in dict(a=1.0, b=2.0).items()
        for b in (1, 4)
        for n in (0, 2)
        for s in ((4, 9), (8, 8), (3, 3))
    ]
    alone = [dict(rows[0], model="c"), dict(model="d", failure="x")]
    found = benchmark_tables.exponents([*rows, *alone])
    groups = [(m, b, n) for m in "ab" for b in (1, 4) for n in (0, 2)]
    assert [(f["model"], f["batch"], f["load"]) for f in found] == groups
    assert [f["exponent"] for f in found] == pytest.approx([1, 3, 1, 3, 2, 4, 2, 4])


def test_picture_has_a_row_of_panels_for_each_load(tmp_path: Path, monkeypatch) -> None:
    figures = []

    class Kept(Figure):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            figures.append(self)

    monkeypatch.setattr("ltm_det.pictures.benchmark.Figure", Kept)
    base, rows = Entry("a", "eager", "float32"), []
    for shape, load in product([(64, 64), (128, 96)], (0, 2)):
        times = {Entry(m, "eager", "float32"): [load + 1.0, load + 2.0] for m in "ab"}
        own = benchmark_tables.rows_of(times, times, {}, dict(a=2, b=1), base)
        rows += [row | dict(shape=shape, batch=1, mode="inference", load=load) for row in own]
    out = tmp_path / "new" / "plot.svg"
    assert draw(rows, benchmark_tables.exponents(rows), "a title", out)
    assert "<svg" in out.read_text()[:1000]
    axes = figures[0].axes
    assert [ax.get_title() for ax in axes[:2]] == [
        f"inference, batch 1, load 0, {size}" for size in ("64 x 64", "128 x 96")
    ]
    assert axes[3].get_title() == "inference, batch 1, load 2, 64 x 64"
    fits = [{y for line in ax.get_lines() for y in line.get_ydata()} for ax in (axes[2], axes[5])]
    assert fits == [{1500}, {3500}]  # medians of ms, of one load each
    assert not draw([], [], "", tmp_path / "none.png") and not (tmp_path / "none.png").exists()
