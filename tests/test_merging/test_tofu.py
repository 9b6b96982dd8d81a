"""ToFu against the slow oracle."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from ltm_det.merging import Cues, ToFu, ToMe
from tests.test_merging.matching_oracle import (
    SIZES,
    assert_is_the_oracle,
    matching_oracle,
    some_sizes,
    tome_choice,
)

DIM = 5


@pytest.mark.parametrize("window, tokens", SIZES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("mode", ["prune", "merge"])
def test_tofu_is_the_oracle(window, tokens, padded, sized, mode):
    merger = ToFu(DIM, window, tokens, mode=mode)
    assert_is_the_oracle(merger, tome_choice, padded, sized, prune=mode == "prune")


def mlerp_oracle(x, means, mass):
    """(P, C): every merged token's mean (P, N) of x, at the largest norm of those with mass."""
    rows = []
    for shares in means.tolist():
        members = [i for i, share in enumerate(shares) if share and mass[i]]
        mean = [sum(shares[i] * x[i][c] for i in members) for c in range(len(x[0]))]
        largest = max((math.hypot(*x[i]) for i in members), default=0.0)
        rows.append([value * largest / (math.hypot(*mean) or 1.0) for value in mean])
    return torch.tensor(rows)


@pytest.mark.parametrize("window, tokens", SIZES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("sized", [False, True])
def test_late_tokens_are_merged_by_mlerp(window, tokens, padded, sized):
    n = window**2
    x, keys = torch.randn(4, n, DIM), torch.randn(4, n, 3)
    valid, size = some_sizes(4, n, padded, sized)
    if padded:
        x[~valid] *= 1e3  # of no account
    merger = ToFu(DIM, window, tokens, mode="merge")
    merging, _ = merger(x, None, valid, Cues(keys, size=size if sized else None))
    merged = merging.merge(x)
    for i in range(4):
        sizes = (size[i] if valid is None else size[i] * valid[i]).tolist()
        means = matching_oracle(keys[i], sizes, tokens, tome_choice).merge
        oracle = mlerp_oracle(x[i].tolist(), means, sizes)
        torch.testing.assert_close(merged[i], oracle, atol=1e-9, rtol=0)


def test_opposite_tokens_have_no_direction():
    """Their mean is zero, and stays so; nothing divides by its norm."""
    x = torch.tensor([[1.0, 2], [-1, -2], [3, 0], [3, 0.1]]).requires_grad_()
    keys = torch.tensor([[1.0, 0], [1, 0], [0, 1], [-1, 0]])
    merged = ToFu(2, 2, 3, mode="merge")(x, cues=Cues(keys))[0].merge(x)
    assert merged.tolist() == [[0, 0], [3, 0], [3, 0.1]]
    merged.sum().backward()
    assert x.grad.isfinite().all()


def test_early_mergers_prune_and_late_ones_merge():
    x = torch.randn(2, 49, DIM)
    early, late = (ToFu(DIM, 7, 25, depth=depth)(x)[0] for depth in (0.4, 0.5))
    assert (early.size == 1).all() and early.average is None
    assert torch.equal(late.size.sum(-1), torch.full((2,), 49.0))
    assert not torch.equal(late.merge(x), late.average(x))
    assert torch.equal(late.average(x), ToMe(DIM, 7, 25)(x)[0].merge(x))
    same = torch.randn(2, 25, DIM)
    assert torch.equal(early.unmerge(same), late.unmerge(same))
    assert ToFu(DIM, 7, 25, depth=0.4, switch=0.3).prunes is False
    assert ToFu(DIM, 7, 25, depth=0.4, switch=0.3, mode="prune").prunes is True
    assert ToFu(DIM, 7, 25, switch=0).prunes is False


@pytest.mark.parametrize("mode", ["prune", "merge"])
@pytest.mark.parametrize("tokens", [25, 6])
def test_gradients_of_merging_and_restoring(mode, tokens):
    keys, merger = torch.randn(2, 49, 3), ToFu(2, 7, tokens, mode=mode)

    def there_and_back(x):
        merging, _ = merger(x, cues=Cues(keys))
        return merging.unmerge(merging.merge(x).sin())

    assert gradcheck(there_and_back, torch.randn(2, 49, 2, requires_grad=True))


def test_unknown_mode():
    with pytest.raises(ValueError, match="unknown mode 'both': choose one of"):
        ToFu(DIM, 7, 25, mode="both")


@pytest.mark.parametrize("switch", [-0.1, 1.5, math.nan])
def test_impossible_switch(switch):
    with pytest.raises(ValueError, match=rf"switch must lie in \[0, 1\].* got {switch}"):
        ToFu(DIM, 7, 25, switch=switch)


def test_repr_tells_what_it_does():
    assert "mode=auto (prunes)" in repr(ToFu(DIM, 7, 25, depth=0.2))
    assert "mode=auto (merges)" in repr(ToFu(DIM, 7, 25, depth=0.7))
