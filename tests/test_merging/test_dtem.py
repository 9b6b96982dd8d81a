"""DTEM: its head and hard matching against ToMe's oracle, its relaxation against one of its own."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from ltm_det.merging import DTEM, Cues
from tests.test_merging.matching_oracle import (
    SIZES,
    Groups,
    cosine,
    matching_oracle,
    some_sizes,
    tome_choice,
)

DIM = 5
SOFT = [(window, tokens) for window, tokens in SIZES if tokens < window**2]


def embedding(merger, window):
    """(N, D) of one window (N, C): the head on normalised tokens."""
    weight, bias = merger.head.weight.tolist(), merger.head.bias.tolist()
    rows = []
    for token in window.tolist():
        mean = sum(token) / len(token)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in token) / len(token) + 1e-5)
        z = [(v - mean) / deviation for v in token]
        rows.append([sum(w * v for w, v in zip(row, z)) + b for row, b in zip(weight, bias)])
    return torch.tensor(rows)


def soft_oracle(metric, size, tokens, temperature):
    """One window. A node is (embedding, mass by token, share of each token's restoring)."""
    n = len(size)
    nodes = [(row, {i: size[i]} if size[i] else {}, {i: 1.0}) for i, row in enumerate(metric)]
    while len(nodes) > tokens:
        count = min(len(nodes) - tokens, len(nodes) // 2)
        real = [k for k, node in enumerate(nodes) if node[1]]
        dead = [k for k, node in enumerate(nodes) if not node[1]]
        stay, sources = real[0::2], real[1::2]
        cos = {a: {b: cosine(nodes[a][0], nodes[b][0]) for b in stay} for a in sources}
        score = {a: max(cos[a].values()) for a in sources}
        gone = dead[:count] + sorted(sources, key=lambda a: -score[a])[: max(count - len(dead), 0)]
        scores = sorted([2.0] * len(dead) + list(score.values()) + [-2.0] * len(stay))[::-1]
        threshold = (scores[count - 1] + scores[count]) / 2
        takes = {k: {k: 1.0} for k in range(len(nodes))}  # by old node, its part in new ones
        for a in sources:
            part = 1 / (1 + math.exp((threshold - score[a]) / temperature))
            part = 1.0 if a in gone else part
            total = sum(math.exp(c / temperature) for c in cos[a].values())
            takes[a] = {b: part * math.exp(c / temperature) / total for b, c in cos[a].items()}
            takes[a][a] = 1 - part
        new = []
        for k in range(len(nodes)):
            if k in gone:
                continue
            feeds = [(nodes[a], part[k]) for a, part in takes.items() if part.get(k) and a in real]
            weights = [part * sum(node[1].values()) for node, part in feeds]
            row = [sum(w * node[0][d] for w, (node, _) in zip(weights, feeds)) for d in range(3)]
            row = [v / sum(weights) for v in row] if feeds else row
            mass, share = {}, {}
            for (_, own, restore), part in feeds:
                for i in range(n):
                    if i in own:
                        mass[i] = mass.get(i, 0.0) + part * own[i]
                    if i in restore:
                        share[i] = share.get(i, 0.0) + part * restore[i]
            new.append((row, mass, share))
        nodes = new
    merge, restore = torch.zeros(tokens, n), torch.zeros(n, tokens)
    for p, (_, mass, share) in enumerate(nodes):
        for i, value in mass.items():
            merge[p, i] = value / sum(mass.values())
        for i, value in share.items():
            restore[i, p] = value
    return Groups(merge, restore, torch.tensor([sum(node[1].values()) for node in nodes]))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("window, tokens", SIZES)
@pytest.mark.parametrize("padded, sized", [(False, False), (True, False), (True, True)])
def test_dtem_is_the_oracle(training, window, tokens, padded, sized):
    n, merger = window**2, DTEM(DIM, window, tokens, embed_dims=3, temperature=0.3).train(training)
    x = torch.randn(4, n, DIM)
    valid, size = some_sizes(4, n, padded, sized)
    merging, state = merger(x, "passed on", valid, Cues(size=size if sized else None))
    means, restore = merging.merge(torch.eye(n)), merging.unmerge(torch.eye(tokens))
    assert state == "passed on"
    for i in range(4):
        sizes = size[i] if valid is None else size[i] * valid[i]
        real, metric = sizes > 0, embedding(merger, x[i])
        if training:
            oracle = soft_oracle(metric.tolist(), sizes.tolist(), tokens, 0.3)
        else:
            oracle = matching_oracle(metric, sizes.tolist(), tokens, tome_choice)
        torch.testing.assert_close(means[i], oracle.merge, atol=1e-9, rtol=0)
        torch.testing.assert_close(restore[i][real], oracle.restore[real], atol=1e-9, rtol=0)
        torch.testing.assert_close(merging.size[i], oracle.size, atol=1e-9, rtol=0)
        torch.testing.assert_close(merging.size[i] @ means[i], sizes)  # all mass, where it was
        torch.testing.assert_close(restore[i].sum(-1), torch.ones(n))
        fed = oracle.size > 0
        assert fed.sum() == min(tokens, int(real.sum()))
        torch.testing.assert_close(merging.key_bias[i][fed], oracle.size[fed].log())
        assert (merging.key_bias[i][~fed].exp() == 0).all()


@pytest.mark.parametrize("window, tokens", SIZES)
@pytest.mark.parametrize("padded", [False, True])
def test_the_relaxation_tends_to_the_hard_matching(window, tokens, padded):
    x, (valid, _) = torch.randn(8, window**2, DIM), some_sizes(8, window**2, padded, False)
    merger = DTEM(DIM, window, tokens)
    hard, _ = merger.eval()(x, None, valid)
    y, real = torch.randn(8, tokens, DIM), slice(None) if valid is None else valid
    errors = []
    for temperature in (0.1, 1e-6):
        merger.temperature = temperature
        soft, _ = merger.train()(x, None, valid)
        error = (soft.merge(x) - hard.merge(x)).abs().max()
        errors.append(max(error, (soft.unmerge(y) - hard.unmerge(y))[real].abs().max()))
    assert errors[1] < 1e-9
    assert errors[0] > 0.01 or tokens in (1, window**2)


@pytest.mark.parametrize("window, tokens", SOFT)
@pytest.mark.parametrize("padded", [False, True])
def test_gradients_reach_the_head(window, tokens, padded):
    merger, x = DTEM(DIM, window, tokens).train(), torch.randn(3, window**2, DIM)
    valid, _ = some_sizes(3, window**2, padded, False)
    merging, _ = merger(x, None, valid)
    merging.unmerge(
        merging.merge(x).sin() + merging.key_bias.exp()[..., None]
    ).square().sum().backward()
    for parameter in merger.head.parameters():
        assert parameter.grad.isfinite().all()
        assert tokens == 1 or parameter.grad.abs().max() > 1e-6  # all are merged into one anyway


class ThereAndBack(torch.nn.Module):
    """All that gradients go through."""

    def __init__(self, merger, valid):
        super().__init__()
        self.merger, self.valid = merger, valid

    def forward(self, x):
        merging, _ = self.merger(x, None, self.valid)
        back = merging.unmerge(merging.merge(x).sin())
        return back[:, self.valid], merging.key_bias.masked_fill(merging.size == 0, 0)


@pytest.mark.parametrize("tokens, real", [(6, 9), (4, 9), (3, 9), (5, 7)])
def test_relaxed_merging_in_gradcheck(tokens, real):
    merger = DTEM(3, 3, tokens, embed_dims=2).train()
    whole, names = ThereAndBack(merger, torch.arange(9) < real), ("weight", "bias")

    def forward(x, *head):
        values = {f"merger.head.{name}": value for name, value in zip(names, head)}
        return torch.func.functional_call(whole, values, (x,))

    head = [getattr(merger.head, name).detach().requires_grad_() for name in names]
    assert gradcheck(forward, (torch.randn(2, 9, 3, requires_grad=True), *head))


def test_it_learns_what_to_match_by():
    """Tokens are of two kinds, told apart in one channel of many; only that one is asked for."""
    merger = DTEM(16, 5, 13, temperature=0.1)
    optimizer = torch.optim.Adam(merger.parameters(), 0.02)

    def error_of(merger):
        x = torch.randn(64, 25, 16)
        x[..., 0] = x[..., 0].sign()
        merging, _ = merger(x)
        return (merging.unmerge(merging.merge(x)) - x)[..., 0].square().mean()

    before = error_of(merger.eval())
    merger.train()
    for _ in range(60):
        optimizer.zero_grad()
        error_of(merger).backward()
        optimizer.step()
    after = error_of(merger.eval())
    assert before > 0.3 and after < 0.1 * before


def test_windows_and_padding_in_training():
    """What a window becomes depends neither on others nor on what lies in its padding."""
    merger, x, valid = DTEM(DIM, 7, 16).train(), torch.randn(3, 49, DIM), torch.arange(49) < 30
    garbage = torch.where(valid[:, None], x, 1e6 * torch.randn(3, 49, DIM))
    together, other = merger(x, None, valid)[0], merger(garbage, None, valid)[0]
    torch.testing.assert_close(together.merge(x), other.merge(garbage))
    alone, _ = merger(x[1], None, valid)
    torch.testing.assert_close(together.merge(x)[1], alone.merge(x[1]))
    y = torch.randn(3, 16, DIM)
    torch.testing.assert_close(together.unmerge(y)[1][valid], alone.unmerge(y[1])[valid])


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_training_in_half_precision(low):
    """The embedding is coarse then; shares and gradients are in float32."""
    merger, x = DTEM(DIM, 7, 16).float().train(), torch.randn(3, 49, DIM).float()
    with torch.autocast("cpu", low):
        merging, _ = merger(x, None, torch.arange(49) < 30)
        merged = merging.merge(x)
    merged.sin().sum().backward()
    assert merged.dtype == torch.float32
    assert (merging.size.sum(-1) - 30).abs().max() < 1e-4
    assert merger.head.weight.grad.isfinite().all() and merger.head.weight.grad.abs().max() > 0


def test_training_on_no_window_at_all():
    merger, x = DTEM(DIM, 7, 16).train(), torch.randn(0, 4, 49, DIM)
    merging, _ = merger(x)
    merging.unmerge(merging.merge(x)).sum().backward()
    assert (merger.head.weight.grad == 0).all()


def test_keys_are_not_read():
    merger, x = DTEM(DIM, 7, 25).eval(), torch.randn(3, 49, DIM)
    assert merger.reads == ()
    keys = Cues(torch.randn(3, 49, 4))
    assert torch.equal(merger(x)[0].merge(x), merger(x, cues=keys)[0].merge(x))


def test_the_head():
    assert DTEM(96, 7, 25).head.weight.shape == (64, 96)
    assert DTEM(48, 7, 25).head.weight.shape == (48, 48)
    assert DTEM(48, 7, 25, embed_dims=8).head.weight.shape == (8, 48)
    assert set(DTEM(48, 7, 25).state_dict()) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("embed_dims", [0, -1, 2.5, "64"])
def test_bad_width(embed_dims):
    with pytest.raises(ValueError, match=f"embed_dims must be .* from 1 on, got {embed_dims!r}"):
        DTEM(DIM, 7, 25, embed_dims=embed_dims)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match=f"must be finite and above 0, got {temperature}"):
        DTEM(DIM, 7, 25, temperature=temperature)


def test_repr():
    text = repr(DTEM(DIM, 7, 25, temperature=0.3, proportional=False))
    assert "temperature=0.3" in text and "proportional=False" in text
