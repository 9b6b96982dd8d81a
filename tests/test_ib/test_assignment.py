"""Soft assignment to clusters against the formula, and at its limits."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from ltm_det.ib import assign, full_precision, unit
from ltm_det.ib.assignment import NO_DIRECTION
from tests.test_ib.oracle import assign_oracle

HALF = [torch.float16, torch.bfloat16]


def features(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("beta", [0.3, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("n, channels, clusters", [(7, 5, 3), (1, 1, 4), (2, 3, 1), (3, 8, 20)])
def test_assignment_is_the_formula(n, channels, clusters, beta):
    x, centroids = features(n, channels), features(clusters, channels)
    phi = assign(x, centroids, beta)
    torch.testing.assert_close(phi, assign_oracle(x, centroids, beta), atol=1e-10, rtol=0)
    torch.testing.assert_close(phi.sum(-1), torch.ones(n).double())


def test_every_sample_is_assigned_for_itself():
    x, centroids = features(2, 3, 4, 5), features(6, 5)
    phi = assign(x, centroids, 3.0)
    assert phi.shape == (2, 3, 4, 6)
    torch.testing.assert_close(phi[1, 2, 3], assign(x[1, 2, 3], centroids, 3.0))


def test_lengths_count_for_nothing():
    x, centroids = features(9, 5), features(4, 5)
    longer = assign(x * 3.0, centroids * torch.tensor([[0.1], [1.0], [7.0], [300.0]]), 10.0)
    torch.testing.assert_close(longer, assign(x, centroids, 10.0))


def test_what_beta_does():
    """The docstring's words, for features at one of 32 centroids that are far from each other."""
    favourite = {beta: assign(torch.eye(32), torch.eye(32), beta).diagonal() for beta in (1, 10)}
    assert (favourite[1] < 0.2).all() and (favourite[10] > 0.99).all()
    x, centroids = features(50, 8), features(32, 8)
    softness = []
    for beta in (1e-6, 1.0, 10.0, 100.0, 1e6):
        phi = assign(x, centroids, beta)
        softness.append((-torch.xlogy(phi, phi).sum(-1).mean() / math.log(32)).item())
    assert softness == sorted(softness, reverse=True)
    assert softness[0] > 1 - 1e-6 and softness[1] > 0.9 and softness[3] < 0.3
    assert softness[-1] < 1e-3


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
def test_no_direction_belongs_to_all_clusters_alike(dtype):
    x = torch.zeros(2, 5, dtype=dtype)
    x[1] = NO_DIRECTION / 10
    centroids = features(4, 5)
    phi = assign(x.requires_grad_(), centroids.requires_grad_(), 50.0)
    assert (phi == 0.25).all()
    phi.square().sum().backward()
    assert (x.grad == 0).all() and (centroids.grad == 0).all()


def test_a_centroid_without_direction_is_as_far_from_every_feature():
    x, centroids = features(6, 5), features(3, 5)
    centroids[1] = 0
    centroids.requires_grad_()
    phi = assign(x, centroids, 2.0)
    others = torch.tensor([0, 2])
    cosine = torch.cosine_similarity(x[:, None], centroids[others], dim=-1)
    ratio = phi[:, others] / phi[:, 1:2]
    torch.testing.assert_close(ratio, (4.0 * cosine).exp())
    phi.square().sum().backward()
    assert centroids.grad.isfinite().all() and (centroids.grad[1] == 0).all()


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1e6, 1e18])
def test_huge_and_tiny_features(scale):
    x, centroids = features(9, 5, dtype=torch.float32), features(4, 5, dtype=torch.float32)
    scaled = (x * scale).requires_grad_()
    phi = assign(scaled, centroids, 10.0)
    torch.testing.assert_close(phi, assign(x, centroids, 10.0), atol=1e-5, rtol=1e-5)
    phi.square().sum().backward()
    assert scaled.grad.isfinite().all() and (scaled.grad != 0).any()


def test_features_longer_than_float32_can_square_stay_finite():
    x = (torch.randn(9, 5) * 1e30).requires_grad_()
    phi = assign(x, torch.randn(4, 5), 10.0)
    phi.square().sum().backward()
    assert phi.isfinite().all() and x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("length", [1.0, 60000.0])
def test_half_precision_is_computed_in_float32(dtype, length):
    x = features(40, 16) * 4
    x = (x.clamp(-1, 1) * length).to(dtype)
    centroids = features(8, 16, dtype=dtype)
    phi = assign(x, centroids, 10.0)
    assert phi.dtype == torch.float32
    assert torch.equal(phi, assign(x.float(), centroids.float(), 10.0))
    torch.testing.assert_close(
        phi.double(), assign_oracle(x, centroids, 10.0), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_changes_nothing(dtype):
    x, centroids = features(40, 16, dtype=torch.float32), features(8, 16, dtype=torch.float32)
    expected = assign(x, centroids, 10.0)
    with torch.autocast("cpu", dtype):
        phi = assign(x, centroids, 10.0)
    assert phi.dtype == torch.float32 and torch.equal(phi, expected)


def test_the_wider_dtype_wins():
    assert assign(features(3, 4, dtype=torch.float16), features(2, 4), 1.0).dtype == torch.float64
    assert unit(features(3, 4, dtype=torch.float16)).dtype == torch.float32


def test_gradients():
    x, centroids = features(4, 3).requires_grad_(), features(5, 3).requires_grad_()
    assert gradcheck(lambda x, c: assign(x, c, 4.0), (x, centroids))


def test_no_samples():
    x, centroids = features(0, 5).requires_grad_(), features(4, 5).requires_grad_()
    phi = assign(x, centroids, 1.0)
    assert phi.shape == (0, 4)
    phi.sum().backward()
    assert (centroids.grad == 0).all() and x.grad.shape == x.shape


def test_shapes_without_numbers():
    """Multiply-adds are counted on the meta device, which knows no autocast."""
    x = torch.empty(2, 7, 5, device="meta")
    with full_precision(x):
        assert assign(x, torch.empty(4, 5, device="meta"), 1.0).shape == (2, 7, 4)
