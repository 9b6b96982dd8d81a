"""From budgets of whole detectors to limits of the search, and the search for a loss of AP."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ltm_det.basics.errors import InputError
from ltm_det.compression import choice as choices
from ltm_det.compression.choice import Choice, for_budget
from ltm_det.compression.settings import (
    EPOCHS,
    GMACS,
    LATENCY,
    LEAST,
    MOST,
    Budget,
    Settings,
    iterations_of,
)
from ltm_det.compression.trials import bisect
from ltm_det.conversion.ratio_search import BudgetError

# mmdet's detector takes 100 ms, ours 80, of which the backbone 50; of 10 GMACs it has 6.
DENSE = dict(
    gmacs=dict(detector=10.0, backbone=6.0),
    times=dict(
        models={"mmdet's": dict(ms=100.0), "dense": dict(ms=80.0, parts=dict(backbone=50.0))}
    ),
)


def choice_of(cost: str, whole: bool, budget: str = "latency=0.5") -> Choice:
    given: Any = SimpleNamespace(whole=whole, why_not="no fast heads")
    settings = Settings(Budget.of(budget), cost=cost)
    return Choice(given, settings, (64, 64), DENSE, True)


@pytest.mark.parametrize(
    ("cost", "whole", "share"),
    [
        (LATENCY, True, 0.5 / 0.8),
        (GMACS, True, 0.5),
        (LATENCY, False, (0.5 - 0.3) / 0.5),  # 30 ms are not the backbone's
        (GMACS, False, (0.5 - 0.4) / 0.6),
    ],
)
def test_a_part_of_mmdets_as_a_part_of_ours(cost: str, whole: bool, share: float) -> None:
    assert choice_of(cost, whole).share(0.5) == pytest.approx(share)


def test_of_a_whole_detector_its_file_is_counted() -> None:
    choice = choice_of(LATENCY, True)
    models = {**DENSE["times"]["models"], "dense file": dict(ms=60.0)}
    choice.dense = DENSE | dict(times=dict(models=models))
    assert choice.share(0.5) == pytest.approx(0.5 / 0.6)


def test_what_the_backbone_alone_cannot_save_is_said() -> None:
    with pytest.raises(InputError, match="all but the backbone takes 0.30 .*no fast heads"):
        choice_of(LATENCY, False, "latency=0.2").share(0.2)


def clocked(
    monkeypatch: pytest.MonkeyPatch, optimism: float, least: float = 0.0
) -> tuple[Choice, Callable[[], dict[str, Any]]]:
    """A choice whose clock says so many times what the search expects."""
    choice = choice_of(LATENCY, True)
    tried: list[float] = []

    def picked(kept: Any, limit: float) -> dict[str, Any]:
        if limit < least:
            raise BudgetError(least * kept["dense"])
        tried.append(limit)
        return dict(cost_ratio=limit, measured_error=1 - limit, chosen=dict(a="b"))

    monkeypatch.setattr(choice, "picked", picked)

    def times(models: dict[str, Any], batches: Any, seconds: float) -> dict[str, Any]:
        ratio = optimism * 0.8 * models["merged"]["cost_ratio"]
        return dict(models=dict(merged=dict(ratio=ratio)))

    monkeypatch.setattr(choices, "times", times)
    base: Any = ("mmdet's", None)

    def run() -> dict[str, Any]:
        return for_budget(choice, dict(dense=80.0), base, [], lambda own: own, lambda words: None)

    return choice, run


def test_the_clock_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = clocked(monkeypatch, 1.0)
    assert found()["cost_ratio"] == pytest.approx(0.5 / 0.8)
    _, found = clocked(monkeypatch, 1.2)
    assert found()["reached"] <= 0.5 and found()["cost_ratio"] < 0.5 / 0.8 / 1.2 + 1e-9
    _, found = clocked(monkeypatch, 0.8)  # it takes less than the search expects
    assert 0.48 < found()["reached"] <= 0.5 and found()["cost_ratio"] > 0.5 / 0.8 / 0.8 * 0.98


def test_a_budget_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = clocked(monkeypatch, 1.0, least=0.9)
    with pytest.raises(BudgetError) as error:
        found()
    assert error.value.least == pytest.approx(0.72)
    _, found = clocked(monkeypatch, 1.2, least=0.6)  # the nearest there is, which misses it
    assert found()["reached"] == pytest.approx(0.6)


def losing(limit: float, steep: float, least: float = 0.1) -> dict[str, Any]:
    if limit < least:
        return dict(cost_ratio=least, loss=None)
    return dict(cost_ratio=limit, loss=steep * (1 - limit), chosen=dict(a="b"))


@pytest.mark.parametrize(("steep", "best"), [(2.0, 0.5), (1.25, 0.2), (10.0, 0.9), (0.1, 0.1)])
def test_the_cheapest_within_a_loss(steep: float, best: float) -> None:
    found = bisect(lambda number, limit: losing(limit, steep), 1.0, 8, 1.0)
    assert found["loss"] <= 1.0 and best <= found["cost_ratio"] <= best + 0.05
    assert len(found["tried"]) <= 8


def test_where_nothing_suffices_nothing_is_merged() -> None:
    found = bisect(lambda number, limit: losing(limit, 1000.0), 0.5, 4, 80.0)
    assert found["merger"] is None and found["chosen"] == {} and found["loss"] == 0
    assert len(found["tried"]) == 4 and all(row["loss"] > 0.5 for row in found["tried"])


@pytest.mark.parametrize("text", ["latency", "speed=0.5", "latency=fast", "latency=1.5", "gmacs=0"])
def test_bad_budgets_are_named(text: str) -> None:
    with pytest.raises(InputError, match="--budget"):
        Budget.of(text)


def test_budgets() -> None:
    assert Budget.of("max-ap-loss=1.5") == Budget("max-ap-loss", 1.5)
    assert str(Budget.of("latency=0.50")) == "latency=0.5"


def test_iterations() -> None:
    budget = Budget.of("gmacs=0.5")
    assert iterations_of(Settings(budget, finetune=7), 100, 2) == 7
    assert iterations_of(Settings(budget, finetune=None), 800, 2) == 400 * EPOCHS
    assert iterations_of(Settings(budget, finetune=None), 10, 2) == LEAST
    assert iterations_of(Settings(budget, finetune=None), 10**6, 2) == MOST
