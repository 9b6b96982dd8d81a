"""LTMP against a slow oracle, its thresholds' gradients, and its budget."""

import copy
import math
import pickle

import pytest
import torch
from torch.autograd import gradcheck

from ltm_det.merging import LTMP, Cues, ToMe
from tests.test_merging.matching_oracle import (
    SIZES,
    Groups,
    Node,
    cosine,
    merge_into,
    some_sizes,
)

DIM = 5
FEWER = [(window, tokens) for window, tokens in SIZES if tokens < window**2]
ALWAYS, NEVER = -100.0, 100.0  # of merging; of pruning the other way round


def build(window, tokens, merge=0.4, prune=0.8, **options):
    """With both thresholds amid random scores."""
    merger = LTMP(DIM, window, tokens, **options)
    with torch.no_grad():
        merger.merge_threshold.fill_(merge)
        merger.prune_threshold.fill_(prune)
    return merger


def some_cues(batch, n, size=None, valid=None):
    received = torch.rand(batch, n) + 0.1
    if valid is not None:
        received = received * valid
    return Cues(torch.randn(batch, n, 3), received / received.sum(-1, keepdim=True), size)


def sigmoid(value):
    return (1 + math.tanh(value / 2)) / 2


def ltmp_oracle(keys, received, size, tokens, merge, prune, temperature=0.1):
    """One window; with the groups, for each round how many real tokens the thresholds keep (with
    sigmoids) and how many there are, and in which ways tokens were removed."""
    nodes = [
        Node([*key, r], {i: size[i]} if size[i] else {}, [i])
        for i, (key, r) in enumerate(zip(keys.tolist(), received.tolist()))
    ]
    n, rounds, ways = len(nodes), [], set()
    while len(nodes) > tokens:
        count = min(len(nodes) - tokens, len(nodes) // 2)
        gone = [node for node in nodes if not node.mass][:count]
        real = [node for node in nodes if node.mass]
        mean = sum(node.metric[-1] for node in real) / len(real)
        edges, kept = [], float(len(real[0::2]))
        for source in real[1::2]:
            cos = [cosine(source.metric[:-1], node.metric[:-1]) for node in real[0::2]]
            merges, prunes = max(cos) - merge, prune - source.metric[-1] / mean
            kept += (1 - sigmoid(merges / temperature)) * (1 - sigmoid(prunes / temperature))
            edges.append((source, real[0::2][cos.index(max(cos))], merges, prunes))
        rounds.append((kept, len(real)))
        edges.sort(key=lambda edge: -max(edge[2:]))
        for source, match, merges, prunes in edges[: count - len(gone)]:
            gone.append(source)
            match.rows += source.rows
            if merges >= prunes:
                merge_into(match, source)
            ways.add("merged" if merges >= prunes else "pruned")
        nodes = [node for node in nodes if not any(node is g for g in gone)]
    means, restore = torch.zeros(tokens, n), torch.zeros(n, tokens)
    for p, node in enumerate(nodes):
        for i, mass in node.mass.items():
            means[p, i] = mass / node.size
        restore[node.rows, p] = 1.0
    return Groups(means, restore, torch.tensor([float(node.size) for node in nodes])), rounds, ways


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


@pytest.mark.parametrize("prune", [0.3, 1.0])
def test_gradients_of_the_task_by_hand(prune):
    """Of the example above: d mean / d weight at a weight of 1 or 0, times the sigmoids' slopes."""
    keys = torch.tensor([[1.0, 0], [0.6, 0.8], [0, -1], [-1, 0]])
    received = torch.tensor([0.2, 0.15, 0.2, 0.45])
    merger = build(2, 3, merge=0.4, prune=prune, temperature=0.2)
    merging, _ = merger(torch.zeros(4, DIM), cues=Cues(keys, received))
    merging.merge(torch.arange(4.0)[:, None]).sum().backward()
    # the mean of 0 and w times 1 is w / (1 + w), with a slope of 1 / (1 + w)^2
    slope = 1 / 4 if merging.size[0] == 2 else 1.0
    merges, prunes = sigmoid((0.6 - 0.4) / 0.2), sigmoid((prune - 0.6) / 0.2)
    # a higher bar for merging, or for staying, lowers the weight
    expected = -slope * merges * (1 - merges) * (1 - prunes) / 0.2
    assert merger.merge_threshold.grad.item() == pytest.approx(expected)
    expected = -slope * merges * prunes * (1 - prunes) / 0.2
    assert merger.prune_threshold.grad.item() == pytest.approx(expected)


@pytest.mark.parametrize("window, tokens", FEWER)
@pytest.mark.parametrize("padded", [False, True])
def test_both_thresholds_learn_from_task_and_budget(window, tokens, padded):
    n, batch = window**2, 16
    merger, x = build(window, tokens).train(), torch.randn(batch, n, DIM)
    valid, _ = some_sizes(batch, n, padded, False)
    merging, _ = merger(x, None, valid, some_cues(batch, n, None, valid))
    task = merging.unmerge(merging.merge(x).sin()).square().sum() + merging.key_bias.exp().sum()
    for loss in (task, merger.auxiliary_loss):
        thresholds = [merger.merge_threshold, merger.prune_threshold]
        for gradient in torch.autograd.grad(loss, thresholds, retain_graph=True):
            assert gradient.isfinite() and gradient.abs() > 1e-9


def test_scores_learn_nothing():
    """Neither task nor budget bend keys and attention to the thresholds."""
    merger, x = build(5, 7).train(), torch.randn(4, 25, DIM)
    keys, received = (t.requires_grad_() for t in some_cues(4, 25)[:2])
    merging, _ = merger(x, cues=Cues(keys, received))
    loss = merging.merge(x).sin().sum() + merger.auxiliary_loss
    assert torch.autograd.grad(loss, (keys, received), allow_unused=True) == (None, None)


class Budget(torch.nn.Module):
    def __init__(self, merger, cues):
        super().__init__()
        self.merger, self.cues = merger, cues

    def forward(self, x):
        self.merger(x, cues=self.cues)
        return self.merger.auxiliary_loss


@pytest.mark.parametrize("tokens", [6, 5])
def test_budget_in_gradcheck(tokens):
    whole = Budget(build(3, tokens).train(), some_cues(3, 9))
    names, x = list(whole.state_dict()), torch.randn(3, 9, DIM)

    def budget(*thresholds):
        return torch.func.functional_call(whole, dict(zip(names, thresholds)), (x,))

    thresholds = [torch.tensor(value, requires_grad=True) for value in (0.5, 0.7)]
    assert gradcheck(budget, thresholds)


def test_gradients_of_merging_in_gradcheck():
    cues, merger = some_cues(2, 25), build(5, 9).train()

    def there_and_back(x):
        merging, _ = merger(x, cues=cues)
        return merging.unmerge(merging.merge(x).sin())

    assert gradcheck(there_and_back, torch.randn(2, 25, 2, requires_grad=True))


@pytest.mark.parametrize("tokens", [40, 30, 15])
@pytest.mark.parametrize("padded", [False, True])
def test_the_budget_brings_the_thresholds_to_it(tokens, padded):
    """From where they start, with the budget's loss alone; by sigmoids and as counted."""
    merger = LTMP(DIM, 7, tokens).train()
    optimizer = torch.optim.Adam(merger.parameters(), 0.05)
    valid, _ = some_sizes(64, 49, padded, False)
    for _ in range(80):
        cues = some_cues(64, 49, None, valid)
        merger(torch.zeros(64, 49, DIM), None, valid, cues)
        optimizer.zero_grad()
        merger.auxiliary_loss.backward()
        optimizer.step()
    assert abs(merger.auxiliary_loss.item()) < 1e-3
    if tokens == 15:
        return
    with torch.no_grad():
        merge, prune = merger.merge_threshold.item(), merger.prune_threshold.item()
    kept = real = 0
    for i in range(64):
        ones = [1.0] * 49 if valid is None else valid[i].double().tolist()
        _, rounds, _ = ltmp_oracle(
            cues.keys[i], cues.received[i], ones, tokens, merge, prune, temperature=1e-3
        )
        kept, real = kept + rounds[0][0], real + rounds[0][1]
    assert abs(kept / real - tokens / 49) < 0.1  # sigmoids are not steps


def test_padding_has_no_say_in_the_budget():
    merger, valid = build(7, 30).train(), torch.arange(49) < 30
    x, cues = torch.randn(4, 49, DIM), some_cues(4, 49, None, torch.arange(49) < 30)
    garbage = Cues(torch.where(valid[:, None], cues.keys, 1e6), cues.received)
    losses = []
    for c in (cues, garbage):
        merger(x, None, valid, c)
        losses.append(merger.auxiliary_loss.item())
    assert losses[0] == losses[1]


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


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_the_loss_is_in_float32(low):
    x, cues = torch.randn(4, 49, DIM).float(), Cues(*(t.float() for t in some_cues(4, 49)[:2]))
    merger = build(7, 16).float().train()
    merger(x, cues=cues)
    exact = merger.auxiliary_loss
    with torch.autocast("cpu", low):
        merger(x, cues=cues)
    assert merger.auxiliary_loss.dtype == torch.float32 and torch.equal(
        merger.auxiliary_loss, exact
    )
    merger.to(low)(x.to(low), cues=Cues(*(t.to(low) for t in cues[:2])))
    assert merger.auxiliary_loss.dtype == torch.float32
    assert (merger.auxiliary_loss - exact).abs() < 0.01


def test_the_loss_is_that_of_the_last_pass_in_training():
    merger, x = build(5, 13).train(), torch.randn(3, 25, DIM)
    assert merger.auxiliary_loss is None
    merger(x)
    one = merger.auxiliary_loss
    merger(torch.randn(3, 25, DIM))
    assert one.requires_grad and merger.auxiliary_loss != one
    merger.eval()(x)
    assert merger.auxiliary_loss is None


def test_training_on_no_window_at_all():
    merger, x = build(7, 16).train(), torch.randn(0, 4, 49, DIM)
    merging, _ = merger(x)
    (merging.unmerge(merging.merge(x)).sum() + merger.auxiliary_loss).backward()
    assert merger.merge_threshold.grad == merger.prune_threshold.grad == 0


def test_all_tokens_kept_meet_the_budget():
    merger = build(3, 9).train()
    merger(torch.randn(2, 9, DIM))
    assert merger.auxiliary_loss == 0


def test_it_can_be_copied_amid_training():
    """As EMA does, although no graph can be."""
    merger, x = build(5, 13).train(), torch.randn(3, 25, DIM)
    merger(x)
    loss = merger.auxiliary_loss
    for twin in (copy.deepcopy(merger), pickle.loads(pickle.dumps(merger))):
        assert twin.auxiliary_loss is None
        twin(x)
        assert torch.equal(twin.auxiliary_loss, loss)
    assert merger.auxiliary_loss is loss


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
