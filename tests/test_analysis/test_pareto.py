"""The picture's points are those of the summaries."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from ltm_det.analysis import pareto
from ltm_det.analysis.comparison_tables import Summary

TRAININGS = [("train",), ("finetune",)]


def summary(
    backbone: str, mode: str, merger: str, cost: float, ap: list[float], time: float | None = None
) -> Summary:
    return Summary(backbone, mode, merger, "s", {"bbox_mAP": ap}, {}, 9.0, cost, time)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    return figures


FOUND = [
    summary("swin", "train", "dense", 1.0, [50.0, 52.0]),
    summary("swin", "finetune", "dense", 1.0, [53.0]),
    summary("swin", "finetune", "LTM", 0.7, [40.0, 50.0, 42.0]),
    summary("swin", "finetune", "LTM", 0.5, [30.0]),
    summary("vit", "finetune", "Pool", 0.6, [20.0]),
    summary("swin", "convert", "LTM", 0.7, [10.0]),
    summary("swin", "calibrate", "LTM", 0.7, [15.0]),
]


def test_there_is_a_row_for_each_backbone_and_training_that_merges(
    drawn: list[Figure], tmp_path: Path
) -> None:
    assert pareto.draw(FOUND, TRAININGS, tmp_path / "a.png")
    swin, vit = drawn[0].axes
    assert [axes.get_title() for axes in (swin, vit)] == ["swin: fine-tuned", "vit: fine-tuned"]
    dense, ltm, pool = swin.containers
    assert dense[0].get_xydata().tolist() == [[1.0, 53.0]]
    assert ltm[0].get_xydata()[:, 1].tolist() == [30.0, 44.0]
    assert ltm[0].get_xydata()[:, 0] == pytest.approx([0.5, 0.7], abs=pareto.STEP)
    (bars,) = ltm[2]
    assert [bar[:, 1].tolist() for bar in bars.get_segments()] == [[30.0, 30.0], [40.0, 50.0]]
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
    dense, before, after = panel.containers
    assert dense[0].get_xydata().tolist() == [[1.0, 51.0]]
    assert before[0].get_ydata() == 10.0 and before[0].get_markerfacecolor() == "white"
    assert after[0].get_ydata() == 15.0 and after[0].get_markerfacecolor() == "C0"


def test_times_have_a_panel_where_there_are_some(drawn: list[Figure], tmp_path: Path) -> None:
    timed = [*FOUND, summary("swin", "finetune", "ToMe", 0.7, [41.0], time=1.5)]
    assert pareto.draw(timed, TRAININGS, tmp_path / "a.png")
    assert len(drawn[0].axes) == 4
    tome = drawn[0].axes[1].containers[-1]
    assert tome[0].get_xydata()[0] == pytest.approx([1.5, 41.0], abs=2 * pareto.STEP)


def test_a_picture_is_written_unless_nothing_merges(tmp_path: Path) -> None:
    assert not pareto.draw(FOUND[:2], TRAININGS, tmp_path / "none.png")
    assert pareto.draw(FOUND, TRAININGS, tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "none.png").exists()
