"""Curves of a run: values stand where they were found, and the picture is drawn."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.logging import HistoryBuffer, MessageHub

from ltm_det.pictures.curves import draw_curves, losses_of, metrics_of, smooth


def runner(name: str, iterations: int, interval: int, begin: int = 1) -> SimpleNamespace:
    """As a run leaves it, each value being the iteration that it is of."""
    hub = MessageHub(name)
    for i in range(1, iterations + 1):
        hub.update_scalars(dict([("train/loss", 2.0 * i), ("train/loss_cls", float(i))]))
        hub.update_scalar("train/lr", 0.1)
        if i >= begin and (i % interval == 0 or i == iterations):
            hub.update_scalar("val/coco/bbox_mAP", float(i))
            hub.update_scalar("val/coco/bbox_mAP_50", 1.0)
    loop = SimpleNamespace(val_interval=interval)
    return SimpleNamespace(message_hub=hub, iter=iterations, train_loop=loop)


@pytest.mark.parametrize(
    ("iterations", "interval", "begin"),
    [(20, 5, 1), (23, 5, 1), (23, 5, 14), (3, 10, 1), (7, 1, 3)],
)
def test_values_stand_at_their_iterations(iterations: int, interval: int, begin: int) -> None:
    run = runner(f"curves-{iterations}-{interval}-{begin}", iterations, interval, begin)
    losses, metrics = losses_of(run), metrics_of(run)
    assert list(losses) == ["loss", "loss_cls"] and list(metrics) == ["bbox_mAP"]
    places, values = losses["loss_cls"]
    assert list(places) == list(values) == list(range(1, iterations + 1))
    places, values = metrics["bbox_mAP"]
    assert list(places) == list(values) and places[-1] == iterations


def test_smooth_is_a_mean_of_the_past() -> None:
    values = np.random.default_rng(0).normal(size=230)
    width = 4
    expected = [values[max(0, i + 1 - width) : i + 1].mean() for i in range(len(values))]
    assert np.allclose(smooth(values), expected)
    assert list(smooth([3.0, 5.0])) == [3, 5]


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    run = runner("curves-drawn", 40, 10)
    draw_curves(losses_of(run), metrics_of(run), tmp_path / "curves.png")
    full = cv2.imread(str(tmp_path / "curves.png"))
    draw_curves({}, {}, tmp_path / "none.png")
    empty = cv2.imread(str(tmp_path / "none.png"))
    assert full.shape == (450, 1200, 3) and empty.shape == full.shape
    for half in (slice(0, 600), slice(600, 1200)):  # colours of curves, on both sides
        colours = [np.ptp(image[:, half], axis=2).max() for image in (full, empty)]
        assert colours[0] > 100 > colours[1]
    assert isinstance(run.message_hub.get_scalar("train/loss"), HistoryBuffer)
