"""What a merging does to pairs of tokens, and to tokens: against sums written out."""

import pytest
import torch
from torch import Tensor

from ltm_det.merging import NO_MERGING, Merging, build_merger
from ltm_det.merging.base import matrix_merging

HEADS, N, P, C = 3, 16, 5, 6
# Of a merger whose means are its merging, and of one whose are not; some of both feed no token.
KINDS = [dict(type="LTM", mask="hard"), dict(type="ToFu", mode="merge")]


def some_merging(*leading: int, **more) -> tuple[Merging, Tensor, Tensor]:
    """A merging, the (*, N, P) of its means and the (*, N, P) that restores."""
    means = torch.rand(*leading, N, P)
    means = means / means.sum(-2, keepdim=True)
    restore = torch.rand(*leading, N, P).softmax(-1)
    merging = matrix_merging(means, restore, torch.float64, shut_empty=False)
    return merging._replace(**more), means, restore


def pairs(means: Tensor, bias: Tensor) -> Tensor:
    """Mean over the sources n of p and m of q of what the pair n, m has."""
    return torch.einsum("...np,...hnm,...mq->...hpq", means, bias, means)


@pytest.mark.parametrize(
    "leading, own",
    [((), ()), ((4,), (4,)), ((2, 4), (2, 4)), ((2, 4), (4,)), ((2, 4), ())],
    ids=str,
)
def test_bias_of_pairs_is_the_mean_over_their_sources(leading, own):
    """Of each window's own bias, of one that images share, and of one that all windows do."""
    merging, means, _ = some_merging(*leading)
    bias = torch.randn(*own, HEADS, N, N)  # not symmetric: rows are queries
    found = merging.pair_bias(bias)
    assert found.shape == (*leading, HEADS, P, P)
    torch.testing.assert_close(found, pairs(means, bias))
    assert (found - found.transpose(-1, -2)).abs().max() > 0.1


def test_bias_of_pairs_takes_means_where_merging_is_none():
    """As MLERP is, which keeps norms."""
    merging, means, _ = some_merging(2)
    bias = torch.randn(2, HEADS, N, N)
    other = merging._replace(merge=lambda x: 2 * merging.merge(x), average=merging.merge)
    torch.testing.assert_close(other.pair_bias(bias), pairs(means, bias))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["type"])
def test_bias_of_pairs_under_mergers(kind):
    """Padding counts for nothing, and a merged token of no source has none."""
    merger = build_merger(dim=C, window=4, tokens=P, **kind).eval()
    valid = torch.arange(N) < 4
    merging, _ = merger(torch.randn(2, 3, N, C), None, valid)
    means = (merging.average or merging.merge)(torch.eye(N)).transpose(-1, -2)
    bias = torch.randn(3, HEADS, N, N)
    found = merging.pair_bias(bias)
    torch.testing.assert_close(found, pairs(means, bias))
    bias[..., ~valid, :], bias[..., ~valid] = 1e3, 1e3
    torch.testing.assert_close(merging.pair_bias(bias), found)
    empty = means.sum(-2) == 0  # (B, W, P)
    assert empty.any() and not empty.all()
    assert (found.transpose(-3, -2)[empty] == 0).all()  # as queries
    assert (found.movedim(-1, -3)[empty] == 0).all()  # as keys


def test_no_merging_leaves_pairs_and_adds_changes():
    bias, x, change = torch.randn(2, HEADS, N, N), *torch.randn(2, 2, N, C)
    assert torch.equal(NO_MERGING.pair_bias(bias), bias)
    assert torch.equal(NO_MERGING.update(x, change), x + change)


@pytest.mark.parametrize("leading", [(), (2, 4)], ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_tokens_gain_the_change(leading, shared):
    """By matrices of each window, and by one of all windows."""
    merging, _, restore = some_merging(*(() if shared else leading))
    x, change = torch.randn(*leading, N, C), torch.randn(*leading, P, C)
    expected = x + torch.einsum("...np,...pc->...nc", restore, change)
    before = x.clone()
    torch.testing.assert_close(merging.update(x, change), expected)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_under_autocast_the_change_adds_up_in_the_tokens_dtype(dtype):
    """A change too small for bfloat16 beside its token is not lost."""
    merging = matrix_merging(torch.ones(2, 1, 1), torch.ones(2, 1, 1), torch.float32, False)
    x, change = torch.ones(2, 1, 8, dtype=torch.float32), torch.full((2, 1, 8), 2.0**-12)
    with torch.autocast("cpu", torch.bfloat16):
        out = merging.update(x, change.to(dtype))
    assert out.dtype == torch.float32 and (out == 1 + 2.0**-12).all()


def test_a_hard_mask_hands_a_token_one_change_and_its_own_detail():
    merger = build_merger("LTM", dim=C, window=4, tokens=P, mask="hard").eval()
    torch.nn.init.normal_(merger.detail_out)
    x = torch.randn(2, N, C)
    merging, logits = merger(x)
    change = torch.randn(2, P, C)
    taken = torch.stack([change[b, logits[b].argmax(-1)] for b in range(2)])
    own = merging.update(x, torch.zeros_like(change)) - x
    assert own.abs().max() > 0.01
    torch.testing.assert_close(merging.update(x, change), x + taken + own)
