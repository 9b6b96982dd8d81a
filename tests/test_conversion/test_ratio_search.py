"""The choice of ratios against plain enumeration, and what it is based on against plain sums."""

import itertools
import random
import time
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from ltm_det.backbones import LTMSwin, LTMViT
from ltm_det.backbones.common.weights import share_weights
from ltm_det.conversion import ratio_search
from ltm_det.conversion.ratio_search import (
    BudgetError,
    Candidate,
    choose,
    latencies,
    meet_budget,
    sensitivities,
    space_of,
)
from tests.test_backbones import swin_cases, vit_cases

RATIOS = [0.75, 0.5, 0.3, 0.06]  # windows of 4 x 4 become 3 x 3, 3 x 3, 2 x 2, 1 x 1


def random_units(rng: random.Random) -> list[list[Candidate]]:
    """Few small numbers, so that costs and errors tie; costs also below zero, as savings are."""
    return [
        [Candidate(rng.randint(-9, 3), rng.randint(0, 6), (u, i)) for i in range(rng.randint(1, 4))]
        for u in range(rng.randint(1, 5))
    ]


def cost_of(picks: Sequence[Candidate]) -> float:
    return sum(pick.cost for pick in picks)


def error_of(picks: Sequence[Candidate]) -> float:
    return sum(pick.error for pick in picks)


def best_by_enumeration(
    units: list[list[Candidate]], budget: float, cost: Callable = cost_of
) -> tuple[float, float] | None:
    """(error, cost): the least error within the budget, then the least cost."""
    found = [(error_of(p), cost(p)) for p in itertools.product(*units) if cost(p) <= budget]
    return min(found, default=None)


@pytest.mark.parametrize("seed", range(200))
def test_choice_is_that_of_enumeration(seed: int) -> None:
    rng = random.Random(seed)
    units, budget = random_units(rng), rng.randint(-25, 10)
    expected = best_by_enumeration(units, budget)
    if expected is None:
        with pytest.raises(BudgetError) as caught:
            choose(units, budget)
        assert caught.value.least == min(map(cost_of, itertools.product(*units))) > budget
        return
    picks = choose(units, budget)
    assert all(pick in unit for pick, unit in zip(picks, units, strict=True))
    assert (error_of(picks), cost_of(picks)) == expected


def test_of_equal_candidates_the_first_is_taken() -> None:
    units = [[Candidate(1, 2, "a"), Candidate(1, 2, "b"), Candidate(0, 3, "c")]]
    assert [pick.label for pick in choose(units, 1)] == ["a"]
    assert [pick.label for pick in choose(units, 0.5)] == ["c"]


@pytest.mark.parametrize("grid", [False, True])
def test_error_never_rises_with_the_budget(grid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if grid:
        monkeypatch.setattr(ratio_search, "EXACT", 0)
        monkeypatch.setattr(ratio_search, "GRID", 50)
    rng = random.Random(1)
    units = [[Candidate(rng.random(), rng.random()) for _ in range(4)] for _ in range(5)]
    least = sum(min(c.cost for c in unit) for unit in units)
    found = [choose(units, least + step / 20) for step in range(80)]
    errors = [error_of(picks) for picks in found]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) > 5
    assert all(cost_of(p) <= least + step / 20 + 1e-9 for step, p in enumerate(found))


@pytest.mark.parametrize("seed", range(30))
def test_on_the_grid_the_budget_is_met_and_little_of_it_wasted(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratio_search, "EXACT", 0)
    monkeypatch.setattr(ratio_search, "GRID", 40)
    rng = random.Random(seed)
    units = [[Candidate(rng.random(), rng.random()) for _ in range(3)] for _ in range(4)]
    floors = [min(c.cost for c in unit) for unit in units]
    step = (sum(max(c.cost for c in unit) for unit in units) - sum(floors)) / 40
    budget = sum(floors) + rng.randint(0, 45) * step
    picks = choose(units, budget)
    assert cost_of(picks) <= budget + 1e-9
    # one step a unit, and one of the budget
    tighter = best_by_enumeration(units, max(budget - 5 * step, sum(floors) + 1e-9))
    assert error_of(picks) <= tighter[0] + 1e-9
    assert error_of(choose(units, sum(floors))) == pytest.approx(
        error_of([min(unit) for unit in units])
    )


def test_many_blocks_are_chosen_quickly() -> None:
    rng = random.Random(0)
    units = [[Candidate(-rng.random(), rng.random()) for _ in range(5)] for _ in range(24)]
    start = time.perf_counter()
    picks = choose(units, -10.0)
    assert time.perf_counter() - start < 20
    assert cost_of(picks) <= -10.0


@pytest.mark.parametrize("seed", range(40))
def test_the_real_cost_of_the_whole_meets_the_limit(seed: int) -> None:
    """Real costs exceed the sums by what depends on the choice."""
    rng = random.Random(seed)
    units, dense = random_units(rng), 40

    def real(picks: Sequence[Candidate]) -> float:
        return dense + cost_of(picks) + sum(7 * u + 3 * i for u, i in (p.label for p in picks)) % 5

    limit = dense + rng.randint(-15, 5)
    costs = [real(picks) for picks in itertools.product(*units)]
    try:
        picks, cost = meet_budget(units, dense, limit, real)
    except BudgetError as error:
        assert limit < error.least
        assert error.least in costs
        assert min(costs) + 4 > limit  # no choice was clear of the limit
    else:
        assert cost == real(picks) <= limit
        best = best_by_enumeration(units, limit, real)
        clear = best_by_enumeration(units, limit - dense - 4)  # whatever the excess
        assert error_of(picks) >= best[0]
        assert clear is None or error_of(picks) <= clear[0]


def test_an_even_excess_is_allowed_for_exactly() -> None:
    rng = random.Random(3)
    units = [[Candidate(-rng.random(), rng.random(), i) for i in range(4)] for _ in range(4)]
    for excess in (-0.5, 0.0, 0.3):
        picks, cost = meet_budget(units, 10.0, 8.5, lambda p, e=excess: 10.0 + cost_of(p) + e)
        assert cost == 10.0 + cost_of(picks) + excess
        tight = choose(units, 8.5 - 10.0 - max(excess, 0) + 1e-12)
        assert error_of(picks) == error_of(tight)


class Maps(nn.Module):
    """Stands in for a backbone: gives what a function makes of the images."""

    def __init__(self, function: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.function(images)


def test_sensitivity_is_the_plain_sum_over_all_images() -> None:
    batches = [torch.randn(3, 4, 6, 5), torch.randn(2, 4, 8, 7), torch.randn(1, 4, 2, 3)]
    dense = Maps(lambda x: [x + 3, x[:, :2].square()])
    noisy = Maps(lambda x: [x + 3 + 0.1 * x.sin(), x[:, :2].square() * 1.2])
    calls = []
    found = sensitivities(dense, [noisy, dense], batches, lambda: calls.append(1))
    expected = []
    for which in range(2):
        maps, others = (
            torch.cat([m(b)[which].double().transpose(0, 1).flatten(1) for b in batches], 1)
            for m in (dense, noisy)
        )
        variance = (maps - maps.mean(1, keepdim=True)).square().sum()
        expected.append((others - maps).square().sum() / variance)
    assert found == pytest.approx([sum(expected).item() / 2, 0.0])
    assert len(calls) == 6


def test_maps_of_constant_channels_have_sensitivity_one() -> None:
    images = torch.randn(4, 3, 8, 8)
    means = images.mean((0, 2, 3), keepdim=True)
    constant = Maps(lambda x: [means.expand_as(x)])
    assert sensitivities(Maps(lambda x: [x]), [constant], [images]) == pytest.approx([1.0])
    with pytest.raises(ValueError, match="no images"):
        sensitivities(constant, [constant], [])


@pytest.mark.parametrize("make", [swin_cases.build, vit_cases.build])
def test_merging_nothing_has_sensitivity_zero_and_merging_more_a_larger_one(make) -> None:
    dense = make(None).eval()
    models = [make(dict(type="Pool"), ratio=ratio).eval() for ratio in (1.0, 0.5, 0.06)]
    for model in models:
        share_weights(dense, model)
    none, some, much = sensitivities(dense, models, [torch.randn(2, 3, 32, 40)])
    assert none < 1e-9 < some < much


def test_weights_are_shared_and_mask_modules_left() -> None:
    dense, model = swin_cases.build(None), swin_cases.build(dict(type="LTM"))
    masks = {k: v.clone() for k, v in model.state_dict().items() if "mergers" in k}
    share_weights(dense, model)
    own = model.state_dict()
    assert masks and all(torch.equal(own[key], value) for key, value in masks.items())
    assert all(own[k].data_ptr() == v.data_ptr() for k, v in dense.state_dict().items())
    assert own.keys() == masks.keys() | dense.state_dict().keys()


def test_latency_is_a_median_of_turns() -> None:
    turns = []

    def sleeper(name: str, seconds: float) -> Maps:
        def run(x: Tensor) -> list[Tensor]:
            turns.append(name)
            time.sleep(0.5 if len(turns) == 5 else seconds)  # one is an outlier
            return [x]

        return Maps(run)

    found = latencies([sleeper("a", 0.001), sleeper("b", 0.06)], (4, 4), runs=3, warm_up=1)
    assert turns.count("a") == turns.count("b") == 4
    assert 0.001 <= found[0] < 0.06 <= found[1] < 0.5


def swin(merger: dict | None = None) -> LTMSwin:
    sizes = dict(depths=(1, 2, 6), num_heads=(1, 1, 1), strides=(4, 2, 2), out_indices=(0, 1, 2))
    return swin_cases.make(merger, **sizes)


def kept(merger: dict) -> list[list[int]]:
    return [stage.kept for stage in swin(merger).stages]


def test_units_of_a_swin_by_stage() -> None:
    space = space_of(swin(), dict(type="LTM", mask="hard"), RATIOS)
    assert list(space.units) == ["stages.1", "stages.2"]  # stage 0 is one block, that stays dense
    assert list(space.units["stages.1"]) == ["dense", "0.75", "0.3", "0.06"]
    merger = space.merger(space.units["stages.1"]["0.3"] | space.units["stages.2"]["0.75"])
    assert merger == dict(
        type="LTM",
        mask="hard",
        compression_ratio=[1.0, [1.0, 0.3], [1.0, 1.0, 0.75, 0.75, 0.75, 0.75]],
        dense_blocks=0,
    )
    assert kept(merger) == [[16], [16, 4], [16, 16, 9, 9, 9, 9]]
    assert space.merger(space.units["stages.1"]["dense"]) is None


def test_own_dense_blocks_and_scope_are_heeded() -> None:
    options = dict(type="Pool", scope="block", dense_blocks=[0, 2, [1, 4]], compression_ratio=0.1)
    space = space_of(swin(), options, [0.5, 0.5001, 1.0])
    assert list(space.units) == ["stages.0", "stages.2"]
    assert list(space.units["stages.0"]) == ["dense", "0.5", "0.5001"]  # 8 and 9 of 16 tokens
    merger = space.merger(space.units["stages.0"]["0.5"] | space.units["stages.2"]["0.5001"])
    assert kept(merger) == [[8], [16, 16], [9, 16, 9, 9, 16, 9]]


def test_units_of_a_swin_by_block() -> None:
    space = space_of(swin(), dict(type="Pool", dense_blocks=3), [0.5, 0.06], "block")
    assert list(space.units) == ["stages.0", "stages.1", "stages.2"]
    assert [len(choices) for choices in space.units.values()] == [3, 5, 13]
    merger = space.merger(
        space.units["stages.0"]["0.5 from block 0"] | space.units["stages.2"]["0.06 from block 4"]
    )
    assert kept(merger) == [[9], [16, 16], [16, 16, 16, 16, 1, 1]]
    space = space_of(swin(), dict(type="Pool", scope="block"), [0.5, 0.06], "block")
    assert len(space.units) == 9
    assert all(list(c) == ["dense", "0.5", "0.06"] for c in space.units.values())
    merger = space.merger(
        space.units["stages.2.blocks.1"]["0.5"] | space.units["stages.2.blocks.3"]["0.06"]
    )
    assert kept(merger) == [[16], [16, 16], [16, 8, 16, 1, 16, 16]]


def test_choices_of_a_vit() -> None:
    space = space_of(vit_cases.make(None), dict(type="LTM", merge_at=[1, 2]), RATIOS)
    ((name, choices),) = space.units.items()
    assert name == "blocks" and len(choices) == 1 + 5 * 3
    merger = space.merger(choices["0.3 from block 3"])
    assert merger == dict(type="LTM", merge_at=3, compression_ratio=0.3)
    assert LTMViT(**vit_cases.MINI, merger=merger).sides == {3: 2}
    assert space.merger({}) is None


def test_what_cannot_be_chosen_from_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\].* got 1.5"):
        space_of(swin(), dict(type="Pool"), [0.5, 1.5])
    with pytest.raises(ValueError, match=r"\[1.0, 0.99\] merge nothing"):
        space_of(vit_cases.make(None), dict(type="Pool"), [1.0, 0.99])
    with pytest.raises(ValueError, match="merge nothing"):
        space_of(swin(), dict(type="Pool", dense_blocks=9), [0.5])
    with pytest.raises(TypeError, match="Linear: give one of ours"):
        space_of(nn.Linear(1, 1), dict(type="Pool"), [0.5])
