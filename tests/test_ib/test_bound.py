"""The bound, its parts and its gradients: against the formulas, autograd and finite differences."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from ltm_det.ib import (
    assign,
    bound,
    bound_gradient,
    class_conditional,
    class_cost,
    class_posterior,
    input_term,
    mask_gradient,
)
from ltm_det.ib.bound import EPS
from tests.test_ib.oracle import (
    assign_oracle,
    bound_oracle,
    conditional_oracle,
    cost_oracle,
    gradient_oracle,
    one_hot,
    posterior_oracle,
)

HALF = [torch.float16, torch.bfloat16]
SIZES = [(9, 5, 4, 3), (1, 3, 4, 2), (6, 2, 1, 3), (7, 4, 3, 1), (3, 5, 11, 4)]  # n, C, K, Y
DRAWS = 120


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(actual, expected, atol=1e-10):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def some_counts(samples, classes, clusters, labels):
    """(Y, K) sums of assignments over the classes, and the assignments."""
    phi = torch.randn(samples, clusters).mul(2).softmax(-1)
    return torch.zeros(classes, clusters).index_add_(0, labels, phi), phi


def every_class(samples, classes):
    """(n,) labels in which each class is there, where there are enough samples."""
    labels = torch.arange(samples) % classes
    return labels[torch.randperm(samples)]


def differences(f, x: Tensor, h: float) -> Tensor:
    """df/dx of a scalar f by central differences, entry by entry."""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        e = torch.zeros(x.numel())
        e[i] = h
        e = e.view_as(x)
        gradient.view(-1)[i] = (f(x + e) - f(x - e)) / (2 * h)
    return gradient


@pytest.mark.parametrize("eps", [EPS, 0.5])
@pytest.mark.parametrize("n, channels, clusters, classes", SIZES)
def test_class_conditional_is_the_formula(n, channels, clusters, classes, eps):
    labels = torch.randint(classes, (n,))
    counts, phi = some_counts(n, classes, clusters, labels)
    q = class_conditional(counts, eps)
    close(q, conditional_oracle(phi, labels.tolist(), classes, eps))
    close(q.sum(-1), torch.ones(classes))


def test_an_absent_class_is_spread_evenly_and_costs_no_infinity():
    counts = torch.tensor([[0.0, 0, 0, 0], [5, 0, 3, 0]])
    q = class_conditional(counts)
    close(q[0], torch.full((4,), 0.25))
    cost = class_cost(q.log(), torch.tensor([0, 1]))
    assert cost.isfinite().all()
    close(cost[0], torch.full((4,), math.log(4)))


@pytest.mark.parametrize("n, channels, clusters, classes", SIZES)
def test_cost_of_labels_and_of_probabilities(n, channels, clusters, classes):
    q = torch.randn(classes, clusters).softmax(-1)
    labels, p = torch.randint(classes, (n,)), torch.randn(n, classes).softmax(-1)
    known = one_hot(labels.tolist(), classes)
    close(class_cost(q.log(), labels), cost_oracle(q, known))
    close(class_cost(q.log(), known), cost_oracle(q, known))
    close(class_cost(q.log(), p), cost_oracle(q, p))


def test_cost_keeps_leading_dimensions():
    log_q = torch.randn(3, 5).log_softmax(-1)
    labels = torch.randint(3, (2, 4))
    assert class_cost(log_q, labels).shape == (2, 4, 5)
    p = torch.randn(2, 4, 3).softmax(-1)
    close(class_cost(log_q, p)[1, 2], class_cost(log_q, p[1, 2]))
    close(class_cost(log_q, labels)[1, 2], -log_q[labels[1, 2]])


@pytest.mark.parametrize("n, channels, clusters, classes", SIZES)
def test_posterior_is_bayes(n, channels, clusters, classes):
    phi = torch.randn(n, clusters).softmax(-1)
    q, prior = torch.randn(classes, clusters).softmax(-1), torch.rand(classes) + 0.1
    p = class_posterior(phi, q.log(), prior.log())
    close(p, posterior_oracle(phi, q, prior))
    close(p.sum(-1), torch.ones(n))
    close(class_posterior(phi[None, :, None], q.log(), prior.log() + 3.0)[0, :, 0], p)


def test_posterior_is_certain_where_the_clusters_are_the_classes():
    labels = [2, 0, 1]
    p = class_posterior(one_hot(labels, 3), (torch.eye(3) + 1e-12).log(), torch.zeros(3))
    close(p, one_hot(labels, 3))


@pytest.mark.parametrize("n, channels, clusters, classes", SIZES)
@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_the_bound_is_the_published_one(n, channels, clusters, classes, beta):
    """All from features: assignments of both, Q of the same samples, the double sum."""
    labels = every_class(n, classes)
    x_out, x_in = torch.randn(n, channels), torch.randn(n, channels + 3)
    c_out, c_in = torch.randn(clusters, channels), torch.randn(clusters + 2, channels + 3)
    phi_out, phi_in = assign(x_out, c_out, beta), assign(x_in, c_in, beta)
    counts = torch.zeros(classes, clusters).index_add_(0, labels, phi_out)
    ys = labels.tolist()
    theirs_out = assign_oracle(x_out, c_out, beta)
    theirs_in = assign_oracle(x_in, c_in, beta)
    present = max(ys) + 1  # with fewer samples than classes, their Q is undefined beyond
    published = bound_oracle(theirs_out, theirs_in, conditional_oracle(theirs_out, ys, present), ys)
    for eps, tolerance in [(EPS, 1e-5), (1e-13, 1e-10)]:
        cost = class_cost(class_conditional(counts, eps).log(), labels)
        ours = bound(phi_out, cost) + input_term(phi_in)
        assert abs(ours.item() - published) < tolerance


def test_the_bound_is_the_published_one_for_a_given_q():
    labels = torch.randint(3, (8,))
    q = torch.randn(3, 4).softmax(-1)
    phi_out, phi_in = torch.randn(8, 4).softmax(-1), torch.randn(8, 6).softmax(-1)
    ours = bound(phi_out, class_cost(q.log(), labels)) + input_term(phi_in)
    assert abs(ours.item() - bound_oracle(phi_out, phi_in, q, labels.tolist())) < 1e-10


def test_each_sample_weighs_the_same_over_all_leading_dimensions():
    phi, cost = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    close(bound(phi, cost), (phi * cost).sum(-1).mean())
    close(input_term(phi), (phi * phi.log()).sum(-1).mean())


def test_the_input_term_is_between_hard_and_uniform():
    assert input_term(torch.eye(5)).item() == 0
    close(input_term(torch.full((3, 5), 0.2)), torch.tensor(-math.log(5)))


@pytest.mark.parametrize("shape", [(0,), (0, 7), (3, 0)])
def test_no_samples_cost_nothing(shape):
    x = torch.randn(*shape, 5).requires_grad_()
    centroids = torch.randn(4, 5).requires_grad_()
    labels = torch.zeros(shape, dtype=torch.long)
    phi = assign(x, centroids, 10.0)
    value = bound(phi, class_cost(torch.randn(3, 4).log_softmax(-1), labels))
    assert value.item() == 0 and value.shape == () and input_term(phi).item() == 0
    value.backward()
    assert (centroids.grad == 0).all() and x.grad.shape == x.shape
    assert bound_gradient(x, centroids, phi, 10.0).shape == x.shape


@pytest.mark.parametrize("n, classes, clusters", [(1, 1, 1), (1, 4, 9), (5, 1, 9), (2, 6, 40)])
def test_few_samples_few_classes_many_clusters(n, classes, clusters):
    labels = torch.randint(classes, (n,))
    x = torch.randn(n, 3).requires_grad_()
    centroids = torch.randn(clusters, 3).requires_grad_()
    phi = assign(x, centroids, 100.0)
    counts = torch.zeros(classes, clusters).index_add_(0, labels, phi.detach())
    value = bound(phi, class_cost(class_conditional(counts).log(), labels))
    value.backward()
    assert value.isfinite() and value >= 0
    assert x.grad.isfinite().all() and centroids.grad.isfinite().all()
    if clusters == 1:
        assert value.item() == 0 and (x.grad == 0).all()


@pytest.mark.parametrize("low", HALF)
def test_half_precision_gives_float32(low):
    x, centroids = torch.randn(40, 16).to(low), torch.randn(8, 16).to(low)
    log_q, labels = torch.randn(3, 8).log_softmax(-1).float(), torch.randint(3, (40,))
    z = torch.randn(50, 16).to(low)
    for labels_or_p in (labels, torch.rand(40, 3).softmax(-1).to(low)):
        cost = class_cost(log_q, labels_or_p)
        value = bound(assign(x, centroids, 10.0), cost)
        gradient = bound_gradient(x, centroids, cost, 10.0)
        to_mask = mask_gradient(z, gradient)
        assert {t.dtype for t in (value, gradient, cost, to_mask)} == {torch.float32}
        x64, c64 = x.double(), centroids.double()
        cost = class_cost(log_q.double(), labels_or_p)
        close(value.double(), bound(assign(x64, c64, 10.0), cost), 1e-5)
        close(gradient.double(), bound_gradient(x64, c64, cost, 10.0), 1e-4)
        close(to_mask.double(), z.double() @ gradient.double().T, 1e-4)


@pytest.mark.parametrize("low", HALF)
def test_autocast_changes_nothing(low):
    x, centroids = torch.randn(2, 6, 16).float(), torch.randn(8, 16).float()
    log_q, z = torch.randn(3, 8).log_softmax(-1).float(), torch.randn(2, 9, 16).float()
    mask = torch.randn(2, 9, 6).softmax(-1).float()

    def everything():
        phi = assign(x, centroids, 10.0)
        posterior = class_posterior(phi, log_q, torch.zeros(3).float())
        cost = class_cost(log_q, posterior)
        gradient = bound_gradient(x, centroids, cost, 10.0)
        to_mask = mask_gradient(z, gradient), mask_gradient(z, gradient, mask)
        return phi, posterior, cost, gradient, *to_mask, bound(phi, cost), input_term(phi)

    expected = everything()
    with torch.autocast("cpu", low):
        actual = everything()
    for one, other in zip(actual, expected):
        assert one.dtype == torch.float32 and torch.equal(one, other)


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
