"""Samples, clusters, Q and the bound of the bottleneck."""

import copy
import math

import pytest
import torch
from torch import Tensor

from ltm_det.engine.bottleneck import fit_centroids
from ltm_det.ib import IBStatistics, assign, bound, class_cost
from tests.test_engine.bottleneck_samples import (
    BETA,
    CLASSES,
    CLUSTERS,
    WIDTHS,
    assert_equal,
    draw,
    filled,
    new,
)


@pytest.mark.parametrize("clusters", [1, 3, 20])
def test_centroids_have_unit_length_and_repeat(clusters):
    features = 100 * torch.randn(20, 6)
    centroids = fit_centroids(features, clusters)
    assert centroids.shape == (clusters, 6) and centroids.dtype == torch.float32
    assert (centroids.norm(dim=1) - 1).abs().max() < 1e-6
    torch.manual_seed(5)
    assert torch.equal(fit_centroids(features, clusters), centroids)
    assert fit_centroids(features.double(), clusters).dtype == torch.float32


def test_centroids_are_those_of_directions():
    """Four of them, of whatever length."""
    angles = torch.arange(4) * math.pi / 2 + 0.3
    directions = torch.stack([angles.cos(), angles.sin()], 1)
    lengths = torch.logspace(-3, 3, 100)
    features = (lengths[:, None, None] * directions).flatten(0, 1)
    centroids = fit_centroids(features, 4)
    assert ((centroids @ directions.T).amax(0) > 1 - 1e-5).all()


def test_equal_samples_leave_no_warning(recwarn):
    centroids = fit_centroids(torch.ones(10, 3), 4)
    assert centroids.isfinite().all() and not recwarn.list


def test_the_random_numbers_of_training_are_left_alone():
    import random

    import numpy as np

    def states() -> tuple:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[2]  # noqa: NPY002

    before = states()
    filled(60).refresh()
    assert states() == before


def test_too_few_samples_for_centroids():
    with pytest.raises(ValueError, match="5 clusters need as many samples, but there are 4: .*low"):
        fit_centroids(torch.randn(4, 3), 5)


def test_samples_add_up():
    bottleneck = filled(4, 0, 3)
    parts = [draw(4, 0), draw(3, 2)]
    assert torch.equal(bottleneck.labels, torch.cat([p[0] for p in parts]))
    assert torch.equal(bottleneck.inputs, torch.cat([p[1] for p in parts]))
    assert list(bottleneck.features) == list(WIDTHS)
    for name in WIDTHS:
        assert torch.equal(bottleneck.features[name], torch.cat([p[2][name] for p in parts]))


@pytest.mark.parametrize("numbers", [(12,), (4, 12), (4, 3), (4, 3, 2, 1, 5), (3, 0, 9)])
def test_the_oldest_samples_go(numbers):
    """Also those of a first batch that is larger than what is kept."""
    everything, kept = filled(*numbers), filled(*numbers, capacity=6)
    assert len(kept.labels) == min(6, sum(numbers))
    assert torch.equal(kept.labels, everything.labels[-6:])
    assert torch.equal(kept.inputs, everything.inputs[-6:])
    for name in WIDTHS:
        assert torch.equal(kept.features[name], everything.features[name][-6:])


def test_samples_are_kept_in_float32_and_without_gradient():
    labels, inputs, features = draw(6)
    bottleneck = new()
    for x in features.values():
        x.requires_grad_()
    half = {name: (2 * x).to(torch.bfloat16) for name, x in features.items()}
    bottleneck.add(labels, inputs.half(), half)
    for kept in (bottleneck.inputs, *bottleneck.features.values()):
        assert kept.dtype == torch.float32 and not kept.requires_grad


def by_hand(
    features: Tensor, inputs: Tensor, labels: Tensor, centroids: Tensor
) -> tuple[IBStatistics, Tensor, Tensor]:
    statistics = IBStatistics(CLUSTERS, CLUSTERS, CLASSES)
    phi_in = assign(inputs, fit_centroids(inputs, CLUSTERS), BETA)
    statistics.update(assign(features, centroids, BETA), phi_in, labels)
    return statistics, statistics.class_conditional(), statistics.prior()


def test_refresh_takes_all_from_one_assignment():
    """Q belongs to the centroids that come with it, at the first refresh and at later ones."""
    bottleneck = new()
    for seed in (0, 1):
        labels, inputs, features = draw(80, seed)
        bottleneck.add(labels, inputs, features)
        assert bottleneck.ready == (seed > 0)
        before = dict(bottleneck.centroids)
        summaries = bottleneck.refresh()
        assert bottleneck.ready and list(summaries) == list(WIDTHS)
        for name, x in features.items():
            centroids = fit_centroids(x, CLUSTERS)
            assert torch.equal(bottleneck.centroids[name], centroids)
            statistics, q, prior = by_hand(x, inputs, labels, centroids)
            assert_equal(summaries[name], statistics.summary())
            assert summaries[name]["samples"] == 80
            assert_equal(bottleneck.q[name], q)
            assert_equal(bottleneck.prior, prior, 1e-7)  # from any point, up to rounding
            if before:  # the ids of clusters have changed
                _, other, _ = by_hand(x, inputs, labels, before[name])
                assert (bottleneck.q[name] - other).abs().max() > 0.01
        assert len(bottleneck.labels) == 0 and bottleneck.inputs is None
        assert bottleneck.features == {}


def test_the_prior_is_the_share_of_each_class():
    bottleneck = filled(90)
    shares = torch.bincount(bottleneck.labels, minlength=CLASSES) / 90
    assert (bottleneck.prior - 1 / CLASSES).abs().max() < 1e-7
    bottleneck.refresh()
    assert (bottleneck.prior - shares).abs().max() < 1e-6


def test_the_loss_is_the_bound_by_hand():
    bottleneck = filled(70)
    bottleneck.refresh()
    labels, _, features = draw(9, seed=5)
    for name, x in features.items():
        x.requires_grad_()
        loss = bottleneck.loss(name, x, labels)
        phi = assign(x, bottleneck.centroids[name], BETA)
        log_q = bottleneck.q[name].log().float()
        assert loss.item() == pytest.approx(bound(phi, class_cost(log_q, labels)).item())
        slow = 0.0
        for feature, label in zip(x.tolist(), labels.tolist()):
            length = math.sqrt(sum(v * v for v in feature))
            far = [
                sum((v / length - c) ** 2 for v, c in zip(feature, centroid))
                for centroid in bottleneck.centroids[name].tolist()
            ]
            e = [math.exp(-BETA * d) for d in far]
            q = bottleneck.q[name][label].tolist()
            slow -= sum(e[a] / sum(e) * math.log(q[a]) for a in range(CLUSTERS)) / len(labels)
        assert loss.item() == pytest.approx(slow, rel=1e-5)
        loss.backward()
        assert x.grad.abs().max() > 0
    assert len(bottleneck.labels) == 0  # it gathers nothing


def test_the_loss_goes_down_along_its_gradient():
    bottleneck = filled(70)
    bottleneck.refresh()
    labels, _, features = draw(30, seed=5)
    x = features["one"].requires_grad_()
    first = bottleneck.loss("one", x, labels)
    (gradient,) = torch.autograd.grad(first, x)
    assert bottleneck.loss("one", x - 5 * gradient, labels) < first - 0.01


def test_the_loss_without_samples_is_zero():
    bottleneck = filled(70)
    bottleneck.refresh()
    x = torch.zeros(0, 7, requires_grad=True)
    loss = bottleneck.loss("one", x, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and x.grad.shape == (0, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_is_in_float32(dtype):
    bottleneck = filled(70)
    bottleneck.refresh()
    labels, _, features = draw(9, seed=5)
    x = features["one"].to(dtype)
    exact = bottleneck.loss("one", x.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = bottleneck.loss("one", x, labels)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_a_class_that_was_never_seen_has_a_finite_loss():
    labels, inputs, features = draw(50)
    bottleneck = new(classes=CLASSES + 1)
    bottleneck.add(labels, inputs, features)
    bottleneck.refresh()
    unseen = torch.full((50,), CLASSES)
    loss = bottleneck.loss("one", features["one"], unseen)
    assert loss.item() == pytest.approx(math.log(CLUSTERS), rel=1e-4)


@pytest.mark.parametrize("numbers", [(), (0,), (2, 2)])
def test_too_few_samples_change_nothing(numbers):
    bottleneck = filled(40)
    bottleneck.refresh()
    for seed, number in enumerate(numbers):
        bottleneck.add(*draw(number, seed))
    before = copy.deepcopy(bottleneck.state_dict())
    assert bottleneck.refresh() == {}
    assert_equal(bottleneck.state_dict(), before)
    assert len(bottleneck.labels) == sum(numbers)
    bottleneck.add(*draw(10, 7))  # they count with those that follow
    assert bottleneck.refresh()["one"]["samples"] == sum(numbers) + 10


def test_before_the_first_refresh_too_few_samples_leave_it_unready():
    bottleneck = filled(2)
    assert bottleneck.refresh() == {} and not bottleneck.ready
