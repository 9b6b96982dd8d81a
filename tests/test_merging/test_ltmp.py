"""LTMP against a slow oracle."""

import math

import pytest
import torch

from ltm_det.merging import LTMP, Cues, ToMe
from tests.test_merging.ltmp_cases import DIM, build, ltmp_oracle, some_cues
from tests.test_merging.matching_oracle import SIZES, some_sizes

ALWAYS, NEVER = -100.0, 100.0  # of merging; of pruning the other way round


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("window, tokens", SIZES)
@pytest.mark.parametrize("padded, sized", [(False, False), (True, False), (True, True)])
def test_ltmp_is_the_oracle(training, window, tokens, padded, sized):
    batch, n = 6, window**2
    merger, x = build(window, tokens).train(training), torch.randn(batch, n, DIM)
    valid, size = some_sizes(batch, n, padded, sized)
    cues = some_cues(batch, n, size if sized else None, valid)
    merging, state = merger(x, "passed on", valid, cues)
    assert state == "passed on"
    means, restore = merging.merge(torch.eye(n)), merging.unmerge(torch.eye(tokens))
    every, both = [], set()
    for i in range(batch):
        sizes = size[i] if valid is None else size[i] * valid[i]
        real = sizes > 0
        oracle, rounds, ways = ltmp_oracle(
            cues.keys[i], cues.received[i], sizes.tolist(), tokens, 0.4, 0.8
        )
        every.append(rounds)
        both |= ways
        torch.testing.assert_close(means[i], oracle.merge, atol=1e-9, rtol=0)
        torch.testing.assert_close(restore[i][real], oracle.restore[real], atol=0, rtol=0)
        torch.testing.assert_close(restore[i].sum(-1), torch.ones(n))
        torch.testing.assert_close(merging.size[i], oracle.size, atol=1e-9, rtol=0)
        fed = oracle.size > 0
        assert fed.sum() == min(tokens, int(real.sum()))  # pruned are not those that stay
        torch.testing.assert_close(merging.key_bias[i][fed], oracle.size[fed].log())
        assert (merging.key_bias[i][~fed].exp() == 0).all()
        # what is not lost is where it was, and in one place
        held = merging.size[i] @ means[i]
        lost = held < 0.5
        torch.testing.assert_close(held[~lost], sizes[~lost])
        assert (held[lost] == 0).all()
    assert both == {"merged", "pruned"} or padded or tokens == n or window == 3
    if not training:
        assert merger.auxiliary_loss is None
        return
    fraction = 1.0
    for rounds in zip(*every):
        fraction *= sum(kept for kept, _ in rounds) / sum(real for _, real in rounds)
    loss = torch.tensor((fraction - tokens / n) ** 2)
    torch.testing.assert_close(merger.auxiliary_loss.detach(), loss)


@pytest.mark.parametrize("window, tokens", SIZES)
@pytest.mark.parametrize("padded", [False, True])
def test_without_pruning_it_is_tome(window, tokens, padded):
    n = window**2
    x, (valid, _) = torch.randn(4, n, DIM), some_sizes(4, n, padded, False)
    cues = some_cues(4, n, None, valid)
    merger = build(window, tokens, merge=0.4, prune=ALWAYS)
    (one, _), (two, _) = (
        merger(x, None, valid, cues),
        ToMe(DIM, window, tokens)(x, None, valid, cues),
    )
    assert torch.equal(one.merge(x), two.merge(x)) and torch.equal(one.size, two.size)
    y = torch.randn(4, tokens, DIM)
    assert torch.equal(one.unmerge(y), two.unmerge(y))


def test_without_merging_the_least_important_are_pruned():
    x, cues = torch.randn(4, 49, DIM), some_cues(4, 49)
    merging, _ = build(7, 40, merge=NEVER, prune=0.0)(x, cues=cues)
    assert (merging.size == 1).all()
    held = merging.merge(torch.eye(49)).sum(-2)
    odd = cues.received[:, 1::2]
    lost = 2 * odd.argsort(-1)[:, :9] + 1
    assert (held.gather(-1, lost) == 0).all() and held.sum(-1).tolist() == [40.0] * 4


@pytest.mark.parametrize("prune, sizes, means", [(0.0, [2, 1, 1], 0.5), (1.0, [1, 1, 1], 0.0)])
def test_an_example_by_hand(prune, sizes, means):
    """Only 1 can go (3 is important, and like none): into 0, or with a higher bar, out."""
    keys = torch.tensor([[1.0, 0], [0.6, 0.8], [0, -1], [-1, 0]])
    received = torch.tensor([0.2, 0.15, 0.2, 0.45])  # a mean of 0.25
    merging, _ = build(2, 3, merge=0.4, prune=prune)(
        torch.zeros(4, DIM), cues=Cues(keys, received)
    )  # margins of 1: 0.6 - 0.4, and prune - 0.6
    x = torch.arange(4.0)[:, None]
    assert merging.size.tolist() == sizes
    assert merging.merge(x).flatten().tolist() == [means, 2.0, 3.0]
    assert merging.unmerge(torch.arange(3.0)[:, None]).flatten().tolist() == [0, 0, 1, 2]


def test_without_cues_the_tokens_stand_in():
    x, valid = torch.randn(3, 25, DIM), torch.arange(25) < 19
    received = torch.zeros(3, 25)
    for b in range(3):
        for i in range(19):
            logits = [float(x[b, i] @ x[b, j]) / math.sqrt(DIM) for j in range(19)]
            total = sum(map(math.exp, logits))
            for j, logit in enumerate(logits):
                received[b, j] += math.exp(logit) / total / 19
    merger = build(5, 13)
    (one, _), (two, _) = merger(x, None, valid), merger(x, None, valid, Cues(x, received))
    torch.testing.assert_close(one.merge(x), two.merge(x))
    torch.testing.assert_close(one.size, two.size)
    (other, _) = merger(x, None, valid, Cues(x, 1 / (0.01 + received)))
    assert not torch.equal(one.size, other.size)


def test_garbage_in_padding_of_low_precision():
    """Whose products would overflow."""
    merger, valid = build(5, 13).half(), torch.arange(25) < 19
    x = torch.where(valid[:, None], torch.randn(3, 25, DIM), 6e4).half()
    merging, _ = merger(x, None, valid)
    assert merging.merge(x).isfinite().all() and merging.key_bias.isfinite().all()


def test_what_is_learned_and_read():
    merger = LTMP(DIM, 7, 25)
    assert merger.reads == ("keys", "received")
    start = {name: round(value.item(), 6) for name, value in merger.state_dict().items()}
    assert start == dict(merge_threshold=0.9, prune_threshold=0.0)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match=f"must be finite and above 0, got {temperature}"):
        LTMP(DIM, 7, 25, temperature=temperature)


def test_repr():
    text = repr(LTMP(DIM, 7, 25, temperature=0.3, proportional=False))
    assert "temperature=0.3" in text and "proportional=False" in text
