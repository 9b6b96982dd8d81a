"""The step that LTM computes from the bound: against the formulas, and that it lowers the bound."""

from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from ltm_det.ib import assign, bound, bound_gradient, class_cost, class_posterior
from ltm_det.merging import BottleneckStep, Pool
from ltm_det.merging.ltm import MASKS, SHARE_FLOOR
from tests.test_ib.oracle import assign_oracle, cost_oracle, gradient_oracle, posterior_oracle
from tests.test_merging.bottleneck_cases import DIM, PaperLTM, build, randomise
from tests.test_merging.ltm_cases import cut
from tests.test_merging.oracle import area_shares, ltm_oracle

DRAWS = 120


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def step_oracle(step: BottleneckStep, z: Tensor, mask: Tensor) -> Tensor:
    """U (C, P) of one window from z (N, C) and G (N, P), whose padded rows are zero."""
    n, p = mask.shape
    size = [sum(mask[i, j].item() for i in range(n)) for j in range(p)]
    u = torch.zeros(z.shape[1], p)
    q, prior = step.log_q.softmax(-1), step.log_prior.softmax(-1)
    for j in range(p):
        if size[j] == 0:
            continue
        merged = sum(mask[i, j] * z[i] for i in range(n))[None] / size[j]
        phi = assign_oracle(merged, step.centroids, step.beta)
        cost = cost_oracle(q, posterior_oracle(phi, q, prior))
        gradient = gradient_oracle(merged, step.centroids, cost, step.beta)
        u[:, j] = step.rate.item() * gradient[0] / size[j]
    return u


@pytest.mark.parametrize("beta", [1.0, 10.0])
@pytest.mark.parametrize("n, p, channels, clusters, classes", [(9, 4, 5, 6, 3), (4, 1, 3, 2, 2)])
def test_step_is_the_formulas(n, p, channels, clusters, classes, beta):
    step = randomise(BottleneckStep(channels, clusters, classes, beta), 0.7)
    z, mask = torch.randn(2, 3, n, channels), torch.rand(2, 3, n, p)
    mask[0, 1, -2:] = 0  # padded tokens
    mask[1, 2, :, 0] = 0  # a merged token of padding alone
    u = step(z, mask)
    for b in range(2):
        for w in range(3):
            expected = step_oracle(step, z[b, w], mask[b, w])
            torch.testing.assert_close(u[b, w], expected, atol=1e-10, rtol=0)
    assert (u[1, 2, :, 0] == 0).all()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("window, tokens, real", [(4, 9, None), (5, 7, (2, 4)), (3, 4, (3, 1))])
def test_ltm_takes_that_step(mask, temperature, window, tokens, real):
    """From the soft mask so far, whatever the mask that merges in the end."""
    valid = None if real is None else cut(window, *real)
    flags = [True] * window**2 if valid is None else valid.tolist()
    ltm = build(window, tokens, mask=mask, temperature=temperature)
    x, y = torch.randn(2, window**2, DIM), torch.randn(2, tokens, DIM)
    merging, logits = ltm(x, None, valid)
    merged, back = merging.merge(x), merging.unmerge(y)
    for i in range(2):
        still = torch.zeros(DIM, tokens)
        start = ltm_oracle(x[i], still, ltm.initial_logits, window, "soft", temperature, flags)
        so_far = start.restore * torch.tensor(flags)[:, None]
        u = step_oracle(ltm.step, layer_norm(x[i]), so_far)
        oracle = ltm_oracle(x[i], u, ltm.initial_logits, window, mask, temperature, flags)
        torch.testing.assert_close(logits[i], oracle.logits, atol=1e-9, rtol=0)
        torch.testing.assert_close(merged[i], oracle.merge @ x[i], atol=1e-9, rtol=0)
        rows = torch.tensor(flags)
        torch.testing.assert_close(back[i][rows], (oracle.restore @ y[i])[rows], atol=1e-9, rtol=0)


def test_a_chained_module_steps_from_the_logits_it_is_given():
    first, second = build(5, 9), build(5, 9, chained=True)
    assert second.initial_logits is None
    x, y = torch.randn(2, 25, DIM), torch.randn(2, 25, DIM)
    _, state = first(x)
    merging, after = second(y, state)
    for i in range(2):
        u = step_oracle(second.step, layer_norm(y[i]), state[i].softmax(-1))
        expected = ltm_oracle(y[i], u, state[i], 5)
        torch.testing.assert_close(after[i], expected.logits, atol=1e-9, rtol=0)
        torch.testing.assert_close(merging.merge(y)[i], expected.merge @ y[i], atol=1e-9, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("padded", [False, True])
def test_it_starts_as_pooling(temperature, padded):
    """As the learned update does: with a rate of zero no centroid matters."""
    valid = cut(7, 2, 6) if padded else None
    ltm = PaperLTM(DIM, 7, 25, temperature=temperature, update="gradient")
    table = PaperLTM(DIM, 7, 25, temperature=temperature)
    assert ltm.step.rate.item() == 0
    x, y = torch.randn(3, 49, DIM), torch.randn(3, 25, DIM)
    (one, logits), (other, expected) = ltm(x, None, valid), table(x, None, valid)
    assert torch.equal(logits, expected.expand_as(logits))
    torch.testing.assert_close(one.merge(x), other.merge(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(one.unmerge(y), other.unmerge(y).expand(3, -1, -1))
    if not padded:
        pooled = Pool(DIM, 7, 25)(x)[0].merge(x)
        assert (one.merge(x) - pooled).abs().max() < 200 * SHARE_FLOOR * x.abs().max()


def test_garbage_in_padded_tokens_does_not_move_the_step():
    ltm, valid = build(5, 7, rate=3.0), cut(5, 3, 4)
    x = torch.randn(2, 25, DIM)
    garbage = torch.where(valid[:, None], x, 1e6 * torch.randn(2, 25, DIM))
    (_, one), (_, two) = ltm(x, None, valid), ltm(garbage, None, valid)
    torch.testing.assert_close(one[:, valid], two[:, valid], atol=1e-12, rtol=0)


class Window(NamedTuple):
    """One window: its tokens, which are real, which cells live, and how its mask is sharpened."""

    z: Tensor  # (N, C)
    valid: Tensor
    alive: Tensor
    temperature: float

    def merged(self, logits: Tensor) -> Tensor:
        """X~ of G = softmax(S / temperature), of the living cells."""
        shares = (logits[:, self.alive] / self.temperature).softmax(-1) * self.valid[:, None]
        return (shares / shares.sum(0)).T @ self.z

    def bound(self, logits: Tensor, centroids: Tensor, beta: float, cost: Tensor) -> Tensor:
        return bound(assign(self.merged(logits), centroids, beta), cost)


def follows_its_slope(value, before: Tensor, after: Tensor, sign: int) -> bool:
    """Checks that the bound of the logits goes down (-1) or up (1), and as far as its slope says.

    False where the bound is at rest, so that what it does drowns in rounding.
    """
    before = before.detach().clone().requires_grad_()
    start = value(before)
    (slope,) = torch.autograd.grad(start, before)
    with torch.no_grad():
        predicted, actual = (slope * (after - before)).sum(), value(after) - start
    assert sign * predicted >= 0
    if abs(predicted) < 1e-11:
        return False
    assert sign * actual > 0 and abs(actual - predicted) < 0.01 * abs(predicted)
    return True


def some(low: int, high: int) -> int:
    return torch.randint(low, high + 1, ()).item()


def some_beta() -> float:
    return 0.5 * 40 ** torch.rand(()).item()


def some_sizes() -> dict:
    """Not fewer than three channels: layer norm leaves one direction of two."""
    window = some(2, 4)
    sizes = dict(dim=some(3, 8), window=window, tokens=some(2, window**2))
    return sizes | dict(temperature=0.5 + torch.rand(()).item())


def test_a_learned_update_that_is_the_gradient_lowers_the_bound():
    """U is one table for all windows, so this is the bound of one window, of known labels."""
    followed = []
    for _ in range(DRAWS):
        ltm = PaperLTM(**some_sizes())
        torch.nn.init.normal_(ltm.initial_logits)
        clusters, classes, beta = some(2, 12), some(2, 5), some_beta()
        centroids, log_q = torch.randn(clusters, ltm.dim), torch.randn(classes, clusters)
        cost = class_cost(log_q.log_softmax(-1), torch.randint(classes, (ltm.tokens,)))
        x = 3 * torch.randn(ltm.window**2, ltm.dim)
        every = torch.ones(max(x.shape[0], ltm.tokens), dtype=torch.bool)
        w = Window(layer_norm(x), every[: len(x)], every[: ltm.tokens], ltm.temperature)
        value = partial(w.bound, centroids=centroids, beta=beta, cost=cost)

        start = ltm.initial_logits.detach()
        size = (start / ltm.temperature).softmax(-1).sum(0)
        gradient = bound_gradient(w.merged(start), centroids, cost, beta) / ltm.tokens
        u = (gradient / size[:, None]).T
        for sign in (1, -1):
            ltm.step.data = sign * 1e-6 / (w.z @ u).abs().max() * u
            merging, logits = ltm(x)
            followed.append(follows_its_slope(value, start, logits, -sign))
            reached = bound(assign(merging.merge(w.z), centroids, beta), cost)
            torch.testing.assert_close(reached, value(logits), atol=1e-12, rtol=0)
    assert sum(followed) >= max(200, 0.9 * len(followed))


@pytest.mark.parametrize("padded", [False, True])
def test_the_gradient_update_lowers_the_bound_of_every_window(padded):
    """With the posterior of the merged tokens so far in the place of their labels."""
    followed = []
    while len(followed) < 2 * DRAWS:
        sizes = dict(clusters=some(2, 12), classes=some(2, 5), beta=some_beta())
        ltm = build(**some_sizes(), **sizes, rate=1.0)
        real = (some(1, ltm.window), some(1, ltm.window)) if padded else (ltm.window, ltm.window)
        valid = cut(ltm.window, *real)
        alive = area_shares(ltm.window, ltm.tokens)[valid].sum(0) > 0
        if valid.sum() < 2 or alive.sum() < 2:
            continue  # nothing to choose from
        start, step = ltm.initial_logits.detach(), ltm.step.requires_grad_(False)
        x = 3 * torch.randn(some(1, 3), ltm.window**2, ltm.dim)
        rate = 1e-6 / (ltm(x, None, valid)[1] - start).abs().max().item()
        for sign in (1, -1):
            step.rate.fill_(sign * rate)
            merging, logits = ltm(x, None, valid)
            merged = merging.merge(layer_norm(x))[:, alive]
            for i, z in enumerate(layer_norm(x)):
                w = Window(z, valid, alive, ltm.temperature)
                log_q = step.log_q.log_softmax(-1)
                phi = assign(w.merged(start), step.centroids, step.beta)
                cost = class_cost(log_q, class_posterior(phi, log_q, step.log_prior))
                value = partial(w.bound, centroids=step.centroids, beta=step.beta, cost=cost)
                followed.append(follows_its_slope(value, start, logits[i], -sign))
                reached = bound(assign(merged[i], step.centroids, step.beta), cost)
                torch.testing.assert_close(reached, value(logits[i]), atol=1e-12, rtol=0)
    assert sum(followed) >= max(200, 0.9 * len(followed))


@pytest.mark.parametrize("mask", MASKS)
def test_at_the_start_only_the_rate_and_the_logits_learn(mask):
    """A rate of zero hides the centroids; from the first step of the optimiser on, all learn."""
    ltm = PaperLTM(DIM, 5, 7, mask=mask, update="gradient").train()
    for rate in (0.0, 0.1):
        ltm.step.rate.data.fill_(rate)
        ltm.zero_grad()
        merging, _ = ltm(torch.randn(3, 25, DIM))
        merging.unmerge(torch.sin(merging.merge(torch.randn(3, 25, DIM)))).square().sum().backward()
        assert ltm.step.rate.grad != 0 and (ltm.initial_logits.grad != 0).any()
        for name in ("centroids", "log_q", "log_prior"):
            gradient = getattr(ltm.step, name).grad
            assert gradient.isfinite().all() and (gradient != 0).any() == (rate != 0), name


@pytest.mark.parametrize("wrt", ["z", "mask", "centroids", "log_q", "log_prior", "rate"])
def test_gradients_of_the_step(wrt):
    step = randomise(BottleneckStep(4, clusters=3, classes=2, beta=2.0))
    inputs = dict(z=torch.randn(2, 6, 4), mask=torch.rand(2, 6, 3))
    inputs["mask"][:, -1] = 0

    def u(value):
        if wrt in inputs:
            return step(**inputs | {wrt: value})
        return torch.func.functional_call(step, {wrt: value}, (), inputs)

    value = inputs[wrt] if wrt in inputs else getattr(step, wrt).detach()
    assert gradcheck(u, value.clone().requires_grad_())


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_tokens_without_direction_take_no_step(rate):
    """Layer norm makes zero of a token whose channels are equal."""
    ltm = build(5, 7, rate).float()
    x = torch.randn(2, 25, 1).float().expand(-1, -1, DIM).clone().requires_grad_()
    merging, logits = ltm(x)
    assert torch.equal(logits, ltm.initial_logits.expand_as(logits))
    (merging.unmerge(merging.merge(x)).square().sum() + logits.square().sum()).backward()
    assert all(p.grad.isfinite().all() for p in [x, *ltm.parameters()])


def test_shapes_without_numbers():
    """Multiply-adds are counted on the meta device, which knows no autocast."""
    x = torch.empty(2, 49, DIM, device="meta")
    merging, logits = PaperLTM(DIM, 7, 25, update="gradient").to("meta")(x)
    assert logits.shape == (2, 49, 25) and merging.merge(x).shape == (2, 25, DIM)


def test_a_large_step_keeps_its_direction():
    step = BottleneckStep(DIM, clusters=8, classes=4)
    z, mask = torch.randn(2, 49, DIM), torch.rand(2, 49, 25)
    step.rate.data.fill_(1e-3)
    small = step(z, mask)
    step.rate.data.fill_(1e6)
    large = step(z, mask)
    torch.testing.assert_close(large.abs().amax((1, 2)), torch.full((2,), 10.0))
    scale = small.abs().amax((1, 2), keepdim=True)
    torch.testing.assert_close(large / 10, small / scale)
