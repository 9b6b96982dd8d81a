"""The picture's points are those of the summaries."""

from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ltm_det.studies import pareto
from ltm_det.studies.comparison_tables import Summary

TRAININGS = [("train",), ("finetune",)]


def summary(
    backbone: str, mode: str, merger: str, cost: float, less: list[float], time: float | None = None
) -> Summary:
    """``less``: AP of each seed, less the dense detector's."""
    ap = {"bbox_mAP": [50 + value for value in less]}
    return Summary(backbone, mode, merger, "s", ap, {"bbox_mAP": less}, 9.0, cost, time)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures = []
    savefig = Figure.savefig

    def draw(figure: Figure, *words: object, **options: object) -> None:
        figures.append(figure)
        savefig(figure, *words, **options)

    monkeypatch.setattr(Figure, "savefig", draw)
    return figures


def star(axes: Axes) -> list[float]:
    """Where the dense detector stands."""
    (line,) = [line for line in axes.lines if line.get_marker() == "*"]
    return line.get_xydata()[0].tolist()


FOUND = [
    summary("swin", "train", "dense", 1.0, [0.0, 0.0]),
    summary("swin", "finetune", "dense", 1.0, [0.0]),
    summary("swin", "finetune", "LTM", 0.7, [-4.0, 5.0, -1.0]),
    summary("swin", "finetune", "LTM", 0.5, [-3.0]),
    summary("vit", "finetune", "Pool", 0.6, [-2.0]),
    summary("swin", "finetune", "Pool", 0.6, []),  # its seeds have no dense detector
    summary("swin", "convert", "LTM", 0.7, [-10.0]),
    summary("swin", "calibrate", "LTM", 0.7, [-1.5]),
]


def test_there_is_a_row_for_each_backbone_and_training_that_merges(
    drawn: list[Figure], tmp_path: Path
) -> None:
    assert pareto.draw(FOUND, TRAININGS, tmp_path / "a.png")
    swin, vit = drawn[0].axes
    assert [axes.get_title() for axes in (swin, vit)] == ["swin: fine-tuned", "vit: fine-tuned"]
    ltm, pool = swin.containers
    assert star(swin) == [1.0, 0.0]
    assert ltm[0].get_xydata()[:, 1].tolist() == [0.0, -3.0]
    assert ltm[0].get_xydata()[:, 0] == pytest.approx([0.7, 0.5], abs=pareto.STEP)
    (bars,) = ltm[2]
    assert [bar[:, 1].tolist() for bar in bars.get_segments()] == [[-4.0, 5.0], [-3.0, -3.0]]
    assert not len(pool[0].get_xydata())
    colors = [panel.containers[-1][0].get_color() for panel in (swin, vit)]
    assert colors[0] == colors[1] != ltm[0].get_color()
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense", "LTM", "Pool"]


def test_what_is_calibrated_is_filled_and_dense_is_what_it_came_from(
    drawn: list[Figure], tmp_path: Path
) -> None:
    assert pareto.draw(FOUND, [("convert", "calibrate")], tmp_path / "a.png")
    (panel,) = drawn[0].axes
    before, after = panel.containers
    assert star(panel) == [1.0, 0.0]
    assert before[0].get_ydata() == -10.0 and before[0].get_markerfacecolor() == "white"
    assert after[0].get_ydata() == -1.5 and after[0].get_markerfacecolor() == "C0"


def test_times_have_a_panel_where_there_are_some(drawn: list[Figure], tmp_path: Path) -> None:
    timed = [*FOUND, summary("swin", "finetune", "ToMe", 0.7, [4.0], time=1.5)]
    assert pareto.draw(timed, TRAININGS, tmp_path / "a.png")
    assert len(drawn[0].axes) == 4
    tome = drawn[0].axes[1].containers[-1]
    assert tome[0].get_xydata()[0] == pytest.approx([1.5, 4.0], abs=2 * pareto.STEP)


def test_a_picture_is_written_unless_nothing_merges(tmp_path: Path) -> None:
    assert not pareto.draw(FOUND[:2], TRAININGS, tmp_path / "none.png")
    assert pareto.draw(FOUND, TRAININGS, tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "none.png").exists()
