"""Gradients through LTM's mask module, and those of nearly empty merged tokens."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from ltm_det.merging import LTM
from ltm_det.merging.ltm import MASKS
from tests.test_merging.ltm_cases import DIM, PLAIN, build, cut
from tests.test_merging.oracle import area_shares


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("padded", [False, True])
def test_gradients_reach_step_and_start(mask, padded):
    ltm, x = build(5, 7, mask=mask).train(), torch.randn(3, 25, DIM)
    merging, _ = ltm(x, None, cut(5, 3, 4) if padded else None)
    merging.update(x, torch.sin(merging.merge(x))).square().sum().backward()
    for name, parameter in ltm.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
    for gradient in (ltm.step.grad, ltm.initial_logits.grad):
        dead = gradient.abs().sum(0) == 0  # (P,): cells of padding alone learn nothing
        assert dead.any() == (padded and ltm.tokens > 1) and not dead.all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("chained", [False, True])
def test_soft_merging_in_gradcheck(temperature, padded, chained):
    check_gradients(build(3, 4, chained=chained, temperature=temperature), padded)


@pytest.mark.parametrize("padded, chained", [(False, True), (True, False)])
def test_soft_merging_by_the_bound_s_gradient_in_gradcheck(padded, chained):
    bottleneck = dict(update="gradient", clusters=3, classes=2, beta=2.0)
    check_gradients(build(3, 4, chained=chained, temperature=0.5, **bottleneck), padded)


def check_gradients(ltm, padded):
    valid = cut(3, 1, 3) if padded else None
    names = [name for name, _ in ltm.named_parameters()]

    def forward(x, previous, *parameters):
        state = dict(zip(names, parameters))
        merge_then_restore = torch.func.functional_call(
            Whole(ltm, valid), {f"ltm.{k}": v for k, v in state.items()}, (x, previous)
        )
        return merge_then_restore

    x = torch.randn(2, 9, DIM, requires_grad=True)
    previous = torch.randn(2, 9, 4, requires_grad=ltm.chained)
    parameters = [parameter.detach().requires_grad_() for parameter in ltm.parameters()]
    assert gradcheck(forward, (x, previous, *parameters))


class Whole(torch.nn.Module):
    """What a merger can hand gradients through: merging, restoring, and the logits."""

    def __init__(self, ltm, valid):
        super().__init__()
        self.ltm, self.valid = ltm, valid

    def forward(self, x, previous):
        merging, logits = self.ltm(x, previous if self.ltm.chained else None, self.valid)
        back = merging.update(x, torch.sin(merging.merge(x)))
        return back if self.valid is None else back[:, self.valid], logits


def nearly_empty(below, **options):
    """A mask module of which one merged token has shares of exp(-below) and less, in float32."""
    ltm = build(7, 25, **options).float()
    ltm.initial_logits.data[:, 3] = ltm.initial_logits.data.min() - below
    return ltm, torch.randn(4, 49, DIM).float().requires_grad_()


@pytest.mark.parametrize("below", [40.0, 70.0, 76.0, 80.0, 84.0, 88.0, 100.0, 300.0, 1000.0])
@pytest.mark.parametrize("affinity", [0, 100.0])
@pytest.mark.parametrize("padded", [False, True])
def test_nearly_empty_merged_tokens_have_finite_gradients(below, affinity, padded):
    """Shares of exp(-100) vanish in float32, and with them all that is divided by their sum."""
    ltm, x = nearly_empty(below, affinity=affinity)
    if affinity:
        ltm.log_affinity.data.fill_(math.log(affinity))
    valid = cut(7, 4, 7) if padded else None  # cell 3, in the first row, is among the real ones
    merging, _ = ltm(x, None, valid)
    merge = merging.merge(torch.eye(49).float())
    torch.testing.assert_close(merge[:, 3].sum(-1), torch.ones(4).float())
    merged = merging.merge(x)
    loss = merging.update(x, torch.sin(merged)).square().sum() + merged[:, 3].sum()
    (2**16 * (loss + merging.key_bias[:, 3].sum())).backward()  # scaled as under AMP
    for name, parameter in [("x", x), *ltm.named_parameters()]:
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
    assert ltm.initial_logits.grad[:, 3].abs().max() > 0  # they can grow again


@pytest.mark.parametrize("below", [100.0, 300.0])
@pytest.mark.parametrize("padded", [False, True])
def test_gradients_of_nearly_empty_merged_tokens_are_float64s(below, padded):
    """Of G and its columns computed as they are written, which float64's exponents bear."""
    ltm, x = nearly_empty(below, **PLAIN)
    valid = cut(7, 4, 7) if padded else torch.ones(49, dtype=torch.bool)
    merging, _ = ltm(x, None, valid if padded else None)
    merging.merge(x).square().sum().backward()

    twin = x.detach().double().requires_grad_()
    step, start = (p.detach().double().requires_grad_() for p in (ltm.step, ltm.initial_logits))
    alive = area_shares(7, 25)[valid].sum(0) > 0
    logits = start - torch.nn.functional.layer_norm(twin, (DIM,)) @ step
    mask = logits.masked_fill(~alive, -math.inf).softmax(-1) * valid[:, None]
    merge = (mask / mask.sum(-2, keepdim=True).masked_fill(~alive, 1)).transpose(-1, -2)
    (merge @ twin).square().sum().backward()
    for one, other in [(x, twin), (ltm.step, step), (ltm.initial_logits, start)]:
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=1e-4)
    assert start.grad[:, 3].abs().max() > 0.01


def test_extreme_logits_stay_finite():
    ltm = build(7, 25, temperature=1e-3)
    x = torch.randn(4, 49, DIM, requires_grad=True)
    merging, _ = ltm(x)
    out = merging.unmerge(merging.merge(x))
    out.sum().backward()
    assert out.isfinite().all() and ltm.step.grad.isfinite().all() and x.grad.isfinite().all()


class Products(TorchDispatchMode):
    """Keeps what each product of matrices is of."""

    def __init__(self):
        super().__init__()
        self.factors = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.factors += args[:2]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("window, tokens, dim", [(7, 25, 192), (14, 25, 16)])
def test_no_product_of_the_backward_pass_is_of_denormal_numbers(window, tokens, dim):
    """With them it takes an Intel CPU seven times as long."""
    ltm = LTM(dim, window, tokens).float()
    x = torch.randn(8, window**2, dim).float().requires_grad_()
    merging, _ = ltm(x)
    out = merging.restore(x, merging.merge(x))
    with Products() as products:
        out.backward(1e-4 * torch.randn(out.shape).float())
    tiny = torch.finfo(torch.float32).tiny
    assert len(products.factors) > 20
    for factor in products.factors:
        assert factor.dtype == torch.float32
        assert not ((factor != 0) & (factor.abs() < tiny)).any()


@pytest.mark.parametrize("window, tokens, dim", [(7, 25, 192), (14, 25, 16)])
def test_gradients_lose_nothing_that_counts(window, tokens, dim, monkeypatch):
    def gradients():
        torch.manual_seed(0)
        ltm, x = LTM(dim, window, tokens).float(), torch.randn(8, window**2, dim).float()
        merging, _ = ltm(x.requires_grad_())
        merging.restore(x, merging.merge(x)).sin().mean().backward()
        return [x.grad, *(parameter.grad for parameter in ltm.parameters())]

    cleared = gradients()
    monkeypatch.setattr("ltm_det.merging.masks.LEAST_GRADIENT", 0.0)
    for got, want in zip(cleared, gradients(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-9)
