"""Random against means over its groups, and its draw against the odds."""

import pytest
import torch

from ltm_det.merging import SHUT, Random


def groups_of(merger):
    """Lists of tokens, one for each merged token, as restoring shows them."""
    n = merger.window**2
    rows = merger(torch.zeros(n, merger.dim))[0].unmerge(torch.eye(merger.tokens)).tolist()
    assert all(sorted(row) == [0.0] * (merger.tokens - 1) + [1.0] for row in rows)
    return [[i for i in range(n) if rows[i][j] == 1] for j in range(merger.tokens)]


@pytest.mark.parametrize("window, tokens", [(7, 25), (7, 49), (4, 5), (5, 1), (12, 36)])
@pytest.mark.parametrize("padded", [False, True])
def test_random_is_the_mean_over_its_groups(window, tokens, padded):
    n = window**2
    valid = torch.arange(n) < window + window // 2 if padded else torch.ones(n, dtype=torch.bool)
    random = Random(4, window, tokens)
    x, y = torch.randn(3, n, 4), torch.randn(3, tokens, 4)
    merging, state = random(x, "passed on", valid if padded else None)
    assert state == "passed on"
    merged, back, groups = merging.merge(x), merging.unmerge(y), groups_of(random)
    for j, group in enumerate(groups):
        real = [i for i in group if valid[i]]
        mean = sum(x[:, i] for i in real) / len(real) if real else torch.zeros(3, 4)
        torch.testing.assert_close(merged[:, j], mean)
        for i in group:
            assert torch.equal(back[:, i], y[:, j])
        if padded:
            assert merging.key_bias[..., j].unique().tolist() == [0.0 if real else SHUT]
    assert (merging.key_bias is None) == (not padded)


@pytest.mark.parametrize("window, tokens", [(7, 25), (4, 5), (5, 1), (3, 9)])
def test_every_group_has_a_token_and_every_token_a_group(window, tokens):
    groups = groups_of(Random(4, window, tokens, seed=3))
    assert all(groups) and sorted(sum(groups, [])) == list(range(window**2))


def test_the_draw_is_the_seed_s_alone():
    one = groups_of(Random(4, 7, 25))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert groups_of(Random(6, 7, 25)) == one  # whatever C, and whatever was drawn before
    assert torch.equal(torch.get_rng_state(), state)
    assert groups_of(Random(4, 7, 25, seed=1)) != one
    assert groups_of(Random(4, 7, 16)) != one


def test_any_two_tokens_share_a_group_as_often():
    """Unless both found groups, which P (P - 1) of N (N - 1) pairs do, they do in one case of P."""
    n, p, draws = 9, 3, 3000
    together = torch.zeros(n, n)
    for seed in range(draws):
        groups = Random(1, 3, p, seed=seed).groups
        together += groups @ groups.T
    expected = (1 - p * (p - 1) / (n * (n - 1))) / p
    spread = (expected * (1 - expected) / draws) ** 0.5
    off = ~torch.eye(n, dtype=torch.bool)
    assert ((together[off] / draws - expected).abs() < 5 * spread).all()
    assert (together[~off] == draws).all()


def test_random_learns_and_saves_nothing():
    random = Random(4, 7, 25)
    assert not list(random.parameters()) and not random.state_dict()
