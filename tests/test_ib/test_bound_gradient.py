"""Gradients of the bound: against the formulas, autograd and finite differences."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from ltm_det.ib import assign, bound, bound_gradient, class_conditional, class_cost, mask_gradient
from tests.test_ib.oracle import gradient_oracle
from tests.test_ib.small import HALF, SIZES, close

DRAWS = 120


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def differences(f, x: Tensor, h: float) -> Tensor:
    """df/dx of a scalar f by central differences, entry by entry."""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        e = torch.zeros(x.numel())
        e[i] = h
        e = e.view_as(x)
        gradient.view(-1)[i] = (f(x + e) - f(x - e)) / (2 * h)
    return gradient


@pytest.mark.parametrize("n, channels, clusters, classes", SIZES)
@pytest.mark.parametrize("beta", [0.5, 10.0])
def test_bound_gradient_is_the_chain_rule_autograd_and_finite_differences(
    n, channels, clusters, classes, beta
):
    x, centroids = torch.randn(n, channels), torch.randn(clusters, channels)
    log_q, labels = torch.randn(classes, clusters).log_softmax(-1), torch.randint(classes, (n,))
    x = x + x.sign() * 0.3  # the third derivative, by which differences err, grows as ||x||^-3
    cost = class_cost(log_q, labels)
    ours = bound_gradient(x, centroids, cost, beta)

    def total(x):
        return (assign(x, centroids, beta) * cost).sum()

    leaf = x.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(total(leaf), leaf)
    close(ours, gradient_oracle(x, centroids, cost, beta))
    close(ours, by_autograd, 1e-12 * max(1.0, by_autograd.abs().max().item()))
    close(ours, differences(total, x, 3e-6), 1e-8 * max(1.0, ours.abs().max().item()))


def test_bound_gradient_over_the_number_of_samples_is_the_gradient_of_the_mean():
    x, centroids, cost = torch.randn(2, 3, 5), torch.randn(4, 5), torch.rand(2, 3, 4)
    leaf = x.clone().requires_grad_()
    bound(assign(leaf, centroids, 4.0), cost).backward()
    close(bound_gradient(x, centroids, cost, 4.0) / 6, leaf.grad, 1e-14)


def test_bound_gradient_is_across_x_and_falls_with_its_length():
    x, centroids, cost = torch.randn(9, 5), torch.randn(4, 5), torch.rand(9, 4)
    gradient = bound_gradient(x, centroids, cost, 10.0)
    close((gradient * x).sum(-1), torch.zeros(9))
    close(bound_gradient(x * 8, centroids, cost, 10.0) * 8, gradient)


def test_costs_that_are_equal_pull_nowhere():
    cost = torch.full((9, 4), 3.0)
    close(bound_gradient(torch.randn(9, 5), torch.randn(4, 5), cost, 10.0), torch.zeros(9, 5))


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
def test_no_direction_no_gradient(dtype):
    x = torch.randn(3, 5)
    x[0], x[1] = 0, 1e-8
    x = x.to(dtype).requires_grad_()
    centroids, cost = torch.randn(4, 5).requires_grad_(), torch.rand(3, 4).requires_grad_()
    gradient = bound_gradient(x, centroids, cost, 50.0)
    assert (gradient[:2] == 0).all() and (gradient[2] != 0).any()
    gradient.square().sum().backward()
    for leaf in (x, centroids, cost):
        assert leaf.grad.isfinite().all()
    assert (x.grad[:2] == 0).all()


@pytest.mark.parametrize("scale", [1e-4, 1e15])
def test_bound_gradient_of_huge_and_tiny_features(scale):
    x, centroids, cost = torch.randn(6, 5), torch.randn(4, 5), torch.rand(6, 4)
    expected = bound_gradient(x, centroids, cost, 10.0)
    gradient = bound_gradient((x * scale).float(), centroids.float(), cost.float(), 10.0)
    close(gradient.double() * scale, expected, 1e-4)


def test_bound_gradient_can_be_differentiated_itself():
    """Its centroids and costs are learned where it makes a step."""
    x, centroids, cost = torch.randn(3, 4), torch.randn(5, 4), torch.rand(3, 5)
    leaves = [leaf.requires_grad_() for leaf in (x, centroids, cost)]
    assert gradcheck(lambda *leaves: bound_gradient(*leaves, 4.0), leaves)


def merged_by(mask: Tensor, z: Tensor, normalised: bool) -> Tensor:
    """X~: (*, N, P), (*, N, C) -> (*, P, C)."""
    if normalised:
        mask = mask / mask.sum(-2, keepdim=True)
    return torch.einsum("...np,...nc->...pc", mask, z)


@pytest.mark.parametrize("normalised", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("batch, n, p, channels", [((), 6, 3, 4), ((2, 3), 4, 2, 3)])
def test_mask_gradient_of_any_function_of_the_merged_tokens(batch, n, p, channels, normalised):
    """Not of the bound alone: one that depends on length too."""
    z, mask = torch.randn(*batch, n, channels), torch.rand(*batch, n, p) + 0.1
    weight = torch.randn(*batch, p, channels)

    def f(mask):
        return (merged_by(mask, z, normalised).sin() * weight).sum()

    gradient = merged_by(mask, z, normalised).cos() * weight
    ours = mask_gradient(z, gradient, mask if normalised else None)
    leaf = mask.clone().requires_grad_()
    f(leaf).backward()
    close(ours, leaf.grad, 1e-12)
    close(ours, differences(f, mask, 3e-6), 1e-8)


@pytest.mark.parametrize("normalised", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_mask_gradient_of_the_bound(batch, normalised):
    z, mask = torch.randn(*batch, 5, 4), torch.randn(*batch, 5, 3).softmax(-1)
    centroids, log_q = torch.randn(6, 4), torch.randn(3, 6).log_softmax(-1)
    cost = class_cost(log_q, torch.randint(3, (*batch, 3)))

    def f(mask):
        return bound(assign(merged_by(mask, z, normalised), centroids, 3.0), cost)

    merged = merged_by(mask, z, normalised)
    gradient = bound_gradient(merged, centroids, cost, 3.0) / merged[..., 0].numel()
    ours = mask_gradient(z, gradient, mask if normalised else None)
    leaf = mask.clone().requires_grad_()
    f(leaf).backward()
    close(ours, leaf.grad, 1e-12)
    close(ours, differences(f, mask, 3e-6), 1e-8)


def test_both_forms_of_the_mask_gradient_agree_on_the_bound():
    """Which looks at directions alone, the same for sums and means."""
    z, mask = torch.randn(2, 5, 4), torch.rand(2, 5, 3)
    centroids, cost = torch.randn(6, 4), torch.rand(2, 3, 6)
    of = [
        mask_gradient(
            z,
            bound_gradient(merged_by(mask, z, normalised), centroids, cost, 3.0),
            mask if normalised else None,
        )
        for normalised in (False, True)
    ]
    close(of[0], of[1], 1e-12)


class Problem(NamedTuple):
    """Windows whose merged tokens have known labels, and the cost of those."""

    z: Tensor  # (W, N, C)
    centroids: Tensor
    beta: float
    cost: Tensor  # (W, P, K)

    def bound(self, logits: Tensor) -> Tensor:
        """Of G = softmax(S)."""
        merged = merged_by(logits.softmax(-1), self.z, True)
        return bound(assign(merged, self.centroids, self.beta), self.cost)

    def step(self, logits: Tensor) -> Tensor:
        """dIBB/dG."""
        mask = logits.softmax(-1)
        merged = merged_by(mask, self.z, True)
        gradient = bound_gradient(merged, self.centroids, self.cost, self.beta)
        return mask_gradient(self.z, gradient / merged[..., 0].numel(), mask)


def random_problem() -> tuple[Problem, Tensor]:
    """With sizes, beta, labels and logits drawn at random, and Q of these labels."""

    def size(low, high):
        return torch.randint(low, high + 1, ()).item()

    windows, n, p = size(1, 4), size(3, 12), size(2, 8)
    channels, clusters, classes = size(2, 8), size(2, 12), size(2, 5)
    z, logits = torch.randn(windows, n, channels), 2 * torch.randn(windows, n, p)
    centroids, beta = torch.randn(clusters, channels), 0.5 * 40 ** torch.rand(()).item()
    labels = torch.randint(classes, (windows, p))
    phi = assign(merged_by(logits.softmax(-1), z, True), centroids, beta)
    counts = torch.zeros(classes, clusters).index_add_(0, labels.flatten(), phi.flatten(0, 1))
    cost = class_cost(class_conditional(counts).log(), labels)
    return Problem(z, centroids, beta, cost), logits


def test_one_step_of_the_mask_lowers_the_bound():
    """S' = S - eta dIBB/dG; and with the sign turned it rises, both as far as the slope says."""
    for _ in range(DRAWS):
        problem, logits = random_problem()
        before = problem.bound(logits.requires_grad_())
        (slope,) = torch.autograd.grad(before, logits)
        with torch.no_grad():
            step = problem.step(logits)
            for sign in (-1, 1):
                change = sign * 1e-6 / step.abs().max() * step
                predicted, actual = (slope * change).sum(), problem.bound(logits + change) - before
                assert sign * predicted > 0 and sign * actual > 0
                assert abs(actual - predicted) < 0.01 * abs(predicted)
