"""Linear layers by either way, and the choice between them."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from ltm_det.cpu import products

pytestmark = pytest.mark.skipif(not products.HAS_ONEDNN, reason="torch was built without oneDNN")


@pytest.fixture(params=products.WAYS)
def way(request, monkeypatch):
    monkeypatch.setenv(products.VARIABLE, request.param)
    return request.param


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", [True, False])
def test_linear(way, bias, gelu):
    x, weight, bias = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3) if bias else None
    expected = F.linear(x, weight, bias)
    with torch.no_grad():
        found = products.linear(x, weight, bias, gelu)
    assert (found - (F.gelu(expected) if gelu else expected)).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 3, 7)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients(way, shape, bias):
    """And those of gradients, in the direction of each argument."""
    t, c, d = shape
    inputs = [torch.randn(t, c, requires_grad=True), torch.randn(d, c, requires_grad=True)]
    inputs += [torch.randn(d, requires_grad=True)] * bias

    def both(run):
        loss = run(*inputs, *([] if bias else [None])).square().sum()
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        return [*first, *second]

    for ours, theirs in zip(both(products.product), both(F.linear), strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_only_what_is_asked_for_has_a_gradient(way):
    x, weight = torch.randn(5, 7), torch.randn(3, 7, requires_grad=True)
    bias = torch.randn(3)
    products.product(x, weight, bias).sum().backward()
    assert weight.grad is not None and x.grad is None and bias.grad is None


@pytest.mark.parametrize("slow, fast", [("onednn", "blas"), ("blas", "onednn")])
def test_the_faster_way_is_found(monkeypatch, slow, fast):
    """Each way in turn is held up."""
    monkeypatch.delenv(products.VARIABLE, raising=False)
    monkeypatch.setattr(products, "_settled", None)  # a test's training may have settled it
    products._faster.cache_clear()
    run = getattr(products, slow)

    def held_up(*args):
        for _ in range(20):
            run(*args)
        return run(*args)

    monkeypatch.setattr(products, slow, held_up)
    try:
        assert products.way(torch.float32) == fast
    finally:
        products._faster.cache_clear()
    assert products.way(torch.bfloat16) == products.INFERENCE


def test_about_equal_ways_differ_in_training_alone(monkeypatch):
    monkeypatch.delenv(products.VARIABLE, raising=False)
    clock = itertools.count()
    monkeypatch.setattr(products.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(products, "_settled", None)
    products._faster.cache_clear()
    try:
        assert products.way(torch.float32) == products.INFERENCE
    finally:
        products._faster.cache_clear()


def test_an_unknown_way_is_refused(monkeypatch):
    monkeypatch.setenv(products.VARIABLE, "cublas")
    with pytest.raises(ValueError, match="LTM_DET_CPU_PRODUCT=cublas"):
        products.way(torch.float32)
