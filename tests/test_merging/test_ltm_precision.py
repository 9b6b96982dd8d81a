"""LTM's mask module under autocast and in half precision: it chooses as in float32."""

import math

import pytest
import torch

from ltm_det.merging.ltm import MASKS
from tests.test_merging.ltm_cases import DIM, build, cut


def test_autocast_keeps_the_mask_in_float32():
    """Sums over small shares would be wrong in half precision."""
    ltm, x = build(7, 25).float(), torch.randn(4, 49, DIM).float()
    with torch.autocast("cpu", torch.bfloat16):
        merging, logits = ltm(x)
    assert logits.dtype == torch.float32
    merge = merging.merge(torch.eye(49).float())
    torch.testing.assert_close(merge.sum(-1), torch.ones(4, 25).float())


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("bottleneck", [{}, dict(update="gradient", clusters=6)], ids=str)
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_under_autocast_it_chooses_as_in_float32(mask, bottleneck, low):
    """Attraction of strength 100 turns half precision's errors into other choices."""
    ltm, x = build(7, 25, mask=mask, **bottleneck).float(), torch.randn(4, 49, DIM).float()
    ltm.log_affinity.data.fill_(math.log(100))
    for valid in (None, cut(7, 3, 6)):
        expected, logits = ltm(x, None, valid)
        with torch.autocast("cpu", low):
            merging, low_logits = ltm(x, None, valid)
        assert torch.equal(low_logits, logits)
        for one, other, eye in [
            (merging.merge, expected.merge, torch.eye(49)),
            (merging.unmerge, expected.unmerge, torch.eye(25)),
        ]:
            assert torch.equal(one(eye.float()), other(eye.float()))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_chooses_in_float32(mask, low):
    """A whole model cast, features and all: as float32 does for the same rounded values."""
    ltm, x = build(7, 25, mask=mask).to(low), torch.randn(4, 49, DIM).to(low)
    ltm.log_affinity.data.fill_(math.log(100))
    merging, logits = ltm(x)
    assert merging.unmerge(torch.randn(25, DIM).to(low)).dtype == low
    expected, full_logits = ltm.float()(x.float())
    assert torch.equal(logits, full_logits)
    restore, full = (
        m.unmerge(torch.eye(25, dtype=d)) for m, d in [(merging, low), (expected, torch.float32)]
    )
    # half precision's product takes what is below its normal numbers for nothing
    torch.testing.assert_close(restore, full.to(low), rtol=0, atol=torch.finfo(low).tiny)
