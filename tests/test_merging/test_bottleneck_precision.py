"""The step that LTM computes from the bound, under autocast and in half precision."""

import copy

import pytest
import torch

from ltm_det.merging import BottleneckStep
from tests.test_merging.bottleneck_cases import DIM, PaperLTM, build, randomise


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_autocast_leaves_the_step_alone(low):
    step = randomise(BottleneckStep(16, clusters=8, classes=3)).float()
    z, mask = torch.randn(2, 9, 16).float(), torch.rand(2, 9, 4).float()
    expected = step(z, mask)
    with torch.autocast("cpu", low):
        u = step(z, mask)
    assert u.dtype == torch.float32 and torch.equal(u, expected)


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(low):
    step = randomise(BottleneckStep(16, clusters=8, classes=3)).to(low)
    wide = copy.deepcopy(step).float()
    z, mask = torch.randn(2, 9, 16).to(low), torch.rand(2, 9, 4).float()
    u = step(z, mask)
    assert u.dtype == low
    torch.testing.assert_close(u, wide(z.float(), mask).to(low))


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_ltm_under_autocast_is_close_to_float32(low):
    ltm = build(7, 25, rate=0.1).float()
    x = torch.randn(4, 49, DIM).float()
    one, expected = ltm(x)
    with torch.autocast("cpu", low):
        two, logits = ltm(x)
        merged = two.merge(x)
    assert logits.dtype == merged.dtype == torch.float32
    error = (logits - expected).abs().max() / (expected - ltm.initial_logits).abs().max()
    assert error < 0.02
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in ltm.parameters())


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16, None])
@pytest.mark.parametrize("below", [11.0, 14.0, 40.0, 100.0])
def test_a_merged_token_of_next_to_nothing(low, below):
    """Its gradient goes with 1 / m; the step and what comes back through it stay finite."""
    ltm = PaperLTM(DIM, 7, 25, update="gradient", clusters=8, classes=4).float()
    ltm.step.rate.data.fill_(1.0)
    ltm.initial_logits.data[:, 3] = ltm.initial_logits.data.min() - below
    x = torch.randn(4, 49, DIM, dtype=torch.float32, requires_grad=True)
    with torch.autocast("cpu", low or torch.bfloat16, enabled=low is not None):
        merging, logits = ltm(x)
        back = merging.unmerge(merging.merge(x))
    back.square().sum().backward()
    assert logits.isfinite().all() and back.isfinite().all()
    assert all(p.grad.isfinite().all() for p in [x, *ltm.parameters()])
