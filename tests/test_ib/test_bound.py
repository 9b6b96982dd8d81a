"""The bound and its parts: against the formulas."""

import math

import pytest
import torch

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
    one_hot,
    posterior_oracle,
)
from tests.test_ib.small import HALF, SIZES, close


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def some_counts(samples, classes, clusters, labels):
    """(Y, K) sums of assignments over the classes, and the assignments."""
    phi = torch.randn(samples, clusters).mul(2).softmax(-1)
    return torch.zeros(classes, clusters).index_add_(0, labels, phi), phi


def every_class(samples, classes):
    """(n,) labels in which each class is there, where there are enough samples."""
    labels = torch.arange(samples) % classes
    return labels[torch.randperm(samples)]


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
