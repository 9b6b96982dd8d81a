"""Table and picture of a measured bottleneck."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib.figure
import numpy as np
import pytest

from ltm_det.studies import bottleneck
from ltm_det.studies.bottleneck import as_table, draw

SUMMARY = dict(ib=-1.25, information_x=1.5, information_y=2.75, bound=3.125, input_term=-4.0)
SUMMARY |= dict(label_entropy=2.9, softness=0.875, samples=7)


def test_a_table_has_a_line_for_each_row_and_point() -> None:
    other = {key: 10 * value for key, value in SUMMARY.items()}
    table = as_table({"dense": {"a": SUMMARY, "b": other}, "dense, untrained": {"a": other}})
    header, *lines = table.splitlines()
    assert header.split() == "merge point IB I(X~;X) I(X~;Y) bound constant softness".split()
    numbers = ["-1.250", "1.500", "2.750", "3.125", "-4.000", "0.875"]
    tens = ["-12.500", "15.000", "27.500", "31.250", "-40.000", "8.750"]
    assert [line.split() for line in lines] == [
        ["dense", "a", *numbers],
        ["dense", "b", *tens],
        ["dense,", "untrained", "a", *tens],
    ]
    assert len({len(line) for line in (header, *lines)}) == 1


def rows_of(*names: str, points: Sequence[str] = ("stages.1.blocks.1", "p")) -> dict:
    rows = {}
    for i, name in enumerate(names):
        rows[name] = {
            point: {k: v + i + 10 * j for k, v in SUMMARY.items()} for j, point in enumerate(points)
        }
    return rows


@pytest.mark.parametrize("betas", [["10"], ["1", "inf"]])
@pytest.mark.parametrize(
    "names", [["pool"], ["dense, untrained", "dense", "merged, untrained", "merged"]]
)
def test_the_picture_shows_every_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, betas: list[str], names: list[str]
) -> None:
    figures = []

    class Figure(matplotlib.figure.Figure):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            figures.append(self)

    monkeypatch.setattr(bottleneck, "Figure", Figure)
    measured = {beta: rows_of(*names) for beta in betas}
    measured[betas[-1]] = rows_of(*names, points=("stages.1.blocks.1", "p"))
    measured[betas[-1]][names[0]]["p"]["ib"] = -3.5
    out = tmp_path / "new" / "a.png"
    draw(measured, "of a test", out)
    picture = cv2.imread(str(out))
    assert picture.std() > 10 and picture.shape[0] > 500

    (figure,) = figures
    assert figure.get_suptitle() == "of a test"
    axes = np.array(figure.axes).reshape(3, len(betas))
    for column, beta in zip(axes.T, betas, strict=True):
        title = column[0].get_title()
        assert title == ("hard clusters" if beta == "inf" else f"beta {beta}")
        for axis, key in zip(column, ("ib", "information_x", "information_y"), strict=True):
            assert len(axis.containers) == len(names)
            for name, bars in zip(names, axis.containers, strict=True):
                heights = [bar.get_height() for bar in bars]
                points = measured[beta][name].values()
                assert bars.get_label() == name
                assert heights == [point[key] for point in points]
                assert {bar.get_alpha() for bar in bars} == {0.4 if "untrained" in name else 1.0}
                low, high = axis.get_ylim()
                assert low < min(heights) and high > max(heights)
        ticks = [text.get_text() for text in column[-1].get_xticklabels()]
        assert ticks == ["stages.1.blocks.1", "p"]
        entropy = [line for line in column[2].lines if line.get_label() == "H(Y)"]
        assert [line.get_ydata()[0] for line in entropy] == [SUMMARY["label_entropy"]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["H(Y)", *names]
    colours = {}
    for bars in axes[0, 0].containers:
        kind = bars.get_label().partition(",")[0]
        assert colours.setdefault(kind, bars[0].get_facecolor()[:3]) == bars[0].get_facecolor()[:3]
    assert len(set(colours.values())) == len(colours)
