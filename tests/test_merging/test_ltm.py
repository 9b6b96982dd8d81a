"""LTM's mask module against the equations."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ltm_det.basics.errors import InputError
from ltm_det.merging import LTM, SHUT, Cues, Pool
from ltm_det.merging.ltm import MASKS, SHARE_FLOOR, by_gram, by_merged
from tests.test_merging.ltm_cases import DIM, PLAIN, build, cut, own_path
from tests.test_merging.oracle import area_shares, ltm_oracle


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize(
    "window, tokens, real", [(7, 25, None), (7, 25, (3, 1)), (5, 7, (2, 4)), (4, 9, None)]
)
def test_ltm_is_the_equations(mask, temperature, window, tokens, real):
    valid = None if real is None else cut(window, *real)
    ltm = build(window, tokens, mask=mask, temperature=temperature)
    x, y = torch.randn(2, window**2, DIM), torch.randn(2, tokens, DIM)
    merging, logits = ltm(x, None, valid)
    merged, back = merging.merge(x), merging.unmerge(y)
    for i in range(2):
        oracle = ltm_oracle(
            x[i],
            ltm.step,
            ltm.initial_logits,
            window,
            mask,
            temperature,
            None if valid is None else valid.tolist(),
            ltm.log_affinity.exp(),
            ltm.rounds,
            (ltm.detail_in, ltm.detail_out),
        )
        rows = slice(None) if valid is None else valid
        torch.testing.assert_close(logits[i], oracle.logits, atol=1e-9, rtol=0)
        torch.testing.assert_close(merged[i], oracle.merge @ x[i], atol=1e-9, rtol=0)
        torch.testing.assert_close(back[i][rows], (oracle.restore @ y[i])[rows], atol=1e-9, rtol=0)
        own = own_path(merging, x, y)[i]
        torch.testing.assert_close(own[rows], oracle.detail[rows], atol=1e-9, rtol=0)
        fed = torch.tensor(oracle.fed)
        size = torch.tensor(oracle.size)
        torch.testing.assert_close(merging.size[i], size, atol=1e-9, rtol=0)
        torch.testing.assert_close(merging.key_bias[i][fed], size[fed].log(), atol=1e-6, rtol=0)
        assert (merging.key_bias[i][~fed] == SHUT).all()


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("mask", ["soft", "hard_soft"])
@pytest.mark.parametrize("padded", [False, True])
def test_distances_by_the_gram_matrix_are_those_to_merged_tokens(chained, mask, padded):
    """Logits, what is merged and all gradients; of one mask for all windows, and of their own."""
    window, tokens = 5, 7
    ltm = build(window, tokens, mask=mask, chained=chained, rounds=3)
    start = torch.randn(2, 3, window**2, tokens, requires_grad=True) if chained else None
    x = torch.randn(2, 3, window**2, DIM, requires_grad=True)
    valid = torch.stack([cut(window, *real) for real in [(5, 5), (1, 3), (4, 2)]])
    results = []
    for ltm.distances in (by_merged, by_gram):
        merging, logits = ltm(x, start, valid if padded else None)
        merged = merging.merge(x)
        loss = logits.sin().sum() + merging.update(x, merged.sin()).square().sum()
        inputs = [x, *([start] if chained else []), *ltm.parameters()]
        results.append([logits, merged, *torch.autograd.grad(loss, inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        assert one.abs().max() > 0


@pytest.mark.parametrize(
    "window, tokens, dim, rounds, cheaper",
    [
        (14, 100, 768, 2, by_gram),  # of LTMViT-B
        (7, 25, 96, 2, by_gram),  # of LTMSwin-T
        (14, 25, 768, 2, by_merged),  # merged tokens are few
        (14, 100, 768, 1, by_merged),  # rounds are few
        (14, 100, 48, 2, by_merged),  # channels are few
    ],
)
def test_it_takes_the_cheaper_distances(window, tokens, dim, rounds, cheaper):
    ltm = LTM(dim, window, tokens, rounds=rounds)
    assert ltm.distances is cheaper
    macs = {}
    z, mask = torch.empty(window**2, dim), torch.empty(window**2, tokens)
    for way in (by_gram, by_merged):
        counter = FlopCounterMode(display=False)
        with counter:
            distances = way(z)
            for _ in range(rounds):
                distances(mask)
        macs[way] = counter.get_total_flops()
    assert min(macs, key=macs.get) is cheaper
    assert LTM(dim, window, tokens, affinity=0).distances is by_merged  # computes nothing


def test_the_chain_starts_from_what_the_previous_module_returned():
    first, second = build(5, 9, **PLAIN), build(5, 9, chained=True, **PLAIN)
    assert second.initial_logits is None and set(second.state_dict()) == {"step"}
    assert set(first.state_dict()) == {"step", "initial_logits"}
    x, z = torch.randn(2, 25, DIM)
    _, state = first(x)
    merging, state = second(z, state)
    between = ltm_oracle(x, first.step, first.initial_logits, 5)
    after = ltm_oracle(z, second.step, between.logits, 5)
    torch.testing.assert_close(state, after.logits, atol=1e-9, rtol=0)
    torch.testing.assert_close(merging.merge(z), after.merge @ z, atol=1e-9, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 10.0])
@pytest.mark.parametrize("window, tokens", [(7, 25), (7, 10), (4, 4)])
@pytest.mark.parametrize("padded", [False, True])
def test_it_starts_as_pooling(temperature, window, tokens, padded):
    valid = cut(window, 2, window - 1) if padded else torch.ones(window**2, dtype=torch.bool)
    ltm = LTM(DIM, window, tokens, temperature=temperature, affinity=0)
    x = torch.randn(3, window**2, DIM)
    given = valid if padded else None
    (merging, _), (expected, _) = ltm(x, None, given), Pool(DIM, window, tokens)(x, None, given)
    assert (ltm.step == 0).all()
    # restoring: each of the cells takes a floor at most
    every = torch.eye(tokens)
    restore, pooled = merging.unmerge(every)[..., valid, :], expected.unmerge(every)[valid]
    assert (restore - pooled).abs().sum(-1).max() < 2 * tokens * SHARE_FLOOR
    # merging: a cell takes a floor of each real token, beside the area of real tokens it holds
    every, area = torch.eye(window**2), area_shares(window, tokens)[valid].sum(0)
    fed = area > 0
    difference = (merging.merge(every) - expected.merge(every)).abs().sum(-1)
    assert (difference[:, fed] < 4 * valid.sum() * SHARE_FLOOR / area[fed]).all()
    assert (difference[:, ~fed] == 0).all()
    if padded:
        assert torch.equal(merging.key_bias == SHUT, (~fed).expand(3, -1))
        assert torch.equal(expected.key_bias < 0, ~fed) and not fed.all()


def test_every_merged_token_can_learn_to_draw_on_every_token():
    ltm = LTM(DIM, 7, 25)
    merge = ltm(torch.randn(49, DIM))[0].merge(torch.eye(49))
    assert (merge > 0).all()


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_bad_temperature(temperature):
    with pytest.raises(
        ValueError, match=f"temperature must be finite and above 0, got {temperature}"
    ):
        LTM(DIM, 7, 25, temperature=temperature)


@pytest.mark.parametrize(
    "name, allowed", [("affinity", "be finite and from 0 on"), ("detail", r"lie in \[0, 100\]")]
)
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_bad_strengths(name, allowed, value):
    with pytest.raises(ValueError, match=f"{name} must {allowed}, got {value}"):
        LTM(DIM, 7, 25, **{name: value})


def test_tokens_join_the_cells_that_they_resemble():
    """A window whose first row is unlike the rest, and four cells, of which two lie astride: unlike
    pooling, no merged token mixes the two where the attraction is strong."""
    x = torch.randn(2, DIM)[[0] * 4 + [1] * 12]
    half = torch.arange(16) < 4
    mixed = []
    for affinity in (0.0, 100.0):
        ltm = LTM(DIM, 4, 4, affinity=affinity).eval()
        merge = ltm(x)[0].merge(torch.eye(16))
        mixed.append((merge[:, half].sum(-1) * merge[:, ~half].sum(-1)).max())
    assert mixed[0] > 0.2 and mixed[1] < 1e-3


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("padded", [False, True])
def test_no_share_is_a_denormal_number(mask, padded):
    """They are nothing, and their products take an Intel CPU twenty times as long."""
    valid = (torch.arange(49) < 30) if padded else None
    merger = LTM(16, 7, 25, mask=mask).float().eval()
    merging, _ = merger(torch.randn(64, 49, 16).float(), None, valid)
    eye, kept = torch.eye(49).float(), torch.eye(25).float()
    for shares in (merging.merge(eye.expand(64, -1, -1)), merging.unmerge(kept.expand(64, -1, -1))):
        assert shares.dtype == torch.float32
        assert not ((shares > 0) & (shares < torch.finfo(torch.float32).tiny)).any()


def test_the_tokens_own_path_starts_at_nothing():
    x = torch.randn(3, 49, DIM)
    ltm = LTM(DIM, 7, 25, detail=0.3)
    y = torch.randn(3, 25, DIM)
    assert ltm.width == 2 and own_path(ltm(x)[0], x, y).abs().max() < 1e-12
    without = LTM(DIM, 7, 25, detail=0)
    assert own_path(without(x)[0], x, y).abs().max() < 1e-12
    assert not any("detail" in name for name, _ in without.named_parameters())


@pytest.mark.parametrize("padded", [False, True])
def test_the_tokens_own_path_is_nothing_where_all_are_alike(padded):
    ltm, valid = build(7, 25), cut(7, 3, 5)
    x = torch.randn(3, 1, DIM).expand(-1, 49, -1)
    y = torch.randn(3, 25, DIM)
    merging, _ = ltm(x, None, valid if padded else None)
    real = valid if padded else slice(None)
    assert own_path(merging, x, y)[:, real].abs().max() < 1e-12
    x = torch.randn(3, 49, DIM)
    merging, _ = ltm(x, None, valid if padded else None)
    assert own_path(merging, x, y)[:, real].abs().max() > 0.1


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("padded", [False, True])
def test_merged_tokens_count_as_often_as_they_have_sources(mask, padded):
    """Of tokens that count for several each, as those that are merged already; and no more than
    there are."""
    ltm, valid = build(7, 25, mask=mask), cut(7, 3, 5) if padded else None
    real = torch.ones(49) if valid is None else valid.double()
    x, sizes = torch.randn(3, 49, DIM), torch.rand(3, 49) + 0.5
    for given in (None, sizes):
        merging, _ = ltm(x, None, valid, Cues(size=given))
        each = real if given is None else real * given
        restore = merging.unmerge(torch.eye(25))
        expected = torch.einsum("bnp,bn->bp", restore, each.expand(3, -1))
        torch.testing.assert_close(merging.size, expected)
        torch.testing.assert_close(merging.size.sum(-1), each.sum(-1).expand(3))
        fed = merging.merge(torch.eye(49)).sum(-1) > 0.5
        torch.testing.assert_close(merging.key_bias[fed], expected[fed].log())
        assert (merging.key_bias[~fed] == SHUT).all() and (merging.size[~fed] == 0).all()


@pytest.mark.parametrize("padded", [False, True])
def test_without_proportional_attention_all_fed_ones_count_alike(padded):
    merging, _ = build(7, 25, proportional=False)(
        torch.randn(49, DIM), None, cut(7, 3, 5) if padded else None
    )
    assert merging.size is None
    assert (set(merging.key_bias.tolist()) == {0, SHUT}) if padded else (merging.key_bias is None)


def test_the_papers_mask_alone():
    torch.manual_seed(0)
    x = torch.randn(3, 16, DIM)
    paper, by_hand = (LTM(DIM, 4, 9, **o) for o in (dict(paper=True), PLAIN))
    assert [n for n, _ in paper.named_parameters()] == ["step", "initial_logits"]
    for merger in (paper, by_hand):
        torch.nn.init.constant_(merger.step, 0.3)
    merging, other = paper(x)[0], by_hand(x)[0]
    assert torch.equal(merging.merge(x), other.merge(x)) and merging.key_bias is None
    for options in (dict(affinity=3.0), dict(detail=1.0), dict(seeds="farthest")):
        with pytest.raises(InputError, match="leaves out what is not the paper's"):
            LTM(DIM, 4, 9, paper=True, **options)


def test_unknown_update():
    message = r"unknown update 'newton': choose one of \['gradient', 'learned'\]"
    with pytest.raises(ValueError, match=message):
        LTM(DIM, 7, 25, update="newton", clusters=4)


@pytest.mark.parametrize("given", [{}, dict(update="learned")])
def test_a_learned_update_has_no_bottleneck(given):
    message = r"update='learned' has no options \['beta', 'clusters'\]: .*'gradient'"
    with pytest.raises(InputError, match=message):
        LTM(DIM, 7, 25, clusters=4, beta=1.0, **given)


def test_repr():
    text = repr(LTM(DIM, 7, 25, chained=True, mask="hard", temperature=0.5))
    assert "mask=hard, temperature=0.5, update=learned, rounds=2" in text
    assert "detail=2, proportional=True, chained" in text
    assert "chained" not in repr(LTM(DIM, 7, 25))
