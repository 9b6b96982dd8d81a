"""Timing in turns, and ratios of times."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ltm_det.measure import timing


def test_models_run_in_turns_and_the_warm_up_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, called = [0.0], []
    costs = {"a": 1.0, "b": 5.0}

    def run(name: str) -> None:
        called.append(name)
        now[0] += costs[name] + (100 if len(called) <= 4 else 0)  # cold in two rounds of two

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    times = timing.interleaved({name: partial(run, name) for name in costs}, rounds=3, warmup=2)
    assert times == {"a": [1.0] * 3, "b": [5.0] * 3}
    rounds = [called[i : i + 2] for i in range(0, 10, 2)]
    assert all(sorted(order) == ["a", "b"] for order in rounds)
    assert all(first != second for first, second in zip(rounds, rounds[1:]))


def test_ratios_are_of_medians_with_quartiles_of_pairs() -> None:
    rng = np.random.default_rng(0)
    times = {"dense": rng.uniform(1, 2, 9).tolist(), "merged": rng.uniform(1, 2, 9).tolist()}
    dense, merged = map(np.array, times.values())
    found = timing.ratios(times, "dense")
    assert found["dense"] == (1.0, 1.0, 1.0)
    assert found["merged"].median == pytest.approx(np.median(merged) / np.median(dense))
    assert found["merged"][1:] == pytest.approx(np.percentile(merged / dense, [25, 75]))
    assert timing.ratios({"dense": [2.0], "merged": [1.0]}, "dense")["merged"] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("rounds, warmup", [(0, 1), (1, -1)])
def test_nothing_is_measured_in_no_rounds(rounds: int, warmup: int) -> None:
    with pytest.raises(ValueError, match=f"rounds={rounds} and warmup={warmup}"):
        timing.interleaved({"a": int}, rounds, warmup)


def test_models_see_one_image_in_evaluation_mode_with_so_many_threads() -> None:
    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> None:
            seen.append((x.shape, self.training, torch.is_grad_enabled(), torch.get_num_threads()))

    seen, before = [], torch.get_num_threads()
    times = timing.time_models({"spy": Spy()}, (6, 4), rounds=2, threads=2)
    assert set(seen) == {((1, 3, 6, 4), False, False, 2)}
    assert len(times["spy"]) == 2 and len(seen) == 2 + timing.WARM_UP
    assert torch.get_num_threads() == before
