"""LTM's hard and hard-soft masks, drawn in training and fixed in evaluation."""

import pytest
import torch

from ltm_det.merging import LTM
from ltm_det.merging.masks import hard_mask, hard_soft_mask
from tests.test_merging.ltm_cases import DIM, build
from tests.test_merging.oracle import area_shares


@pytest.mark.parametrize("mask", ["hard", "hard_soft"])
def test_hard_masks_start_at_the_nearest_cell(mask):
    """Each token goes to a cell that has the largest share of it."""
    merging, _ = LTM(DIM, 7, 25, mask=mask, affinity=0).eval()(torch.randn(49, DIM))
    area = area_shares(7, 25)
    chosen = merging.unmerge(torch.eye(25)).argmax(-1)
    torch.testing.assert_close(area[range(49), chosen], area.max(-1).values)


@pytest.mark.parametrize("mask", ["hard", "hard_soft"])
def test_hard_masks_are_one_hot_and_deterministic_in_evaluation(mask):
    ltm, x = build(7, 25, mask=mask), torch.randn(6, 49, DIM)
    restore = ltm(x)[0].unmerge(torch.eye(25))
    assert ((restore == 0) | (restore == 1)).all() and (restore.sum(-1) == 1).all()
    assert torch.equal(restore, ltm(x)[0].unmerge(torch.eye(25)))
    torch.manual_seed(5)
    assert torch.equal(restore, ltm(x)[0].unmerge(torch.eye(25)))


@pytest.mark.parametrize("mask", ["hard", "hard_soft"])
def test_hard_masks_are_one_hot_and_stochastic_in_training(mask):
    ltm, x = build(7, 25, mask=mask).train(), torch.randn(6, 49, DIM)
    one, two = (ltm(x)[0].unmerge(torch.eye(25)) for _ in range(2))
    for restore in (one, two):
        assert torch.allclose(restore, restore.round(), atol=1e-12)
        assert torch.allclose(restore.sum(-1), torch.ones(6, 49))
    assert not torch.allclose(one, two)


def test_soft_mask_is_the_same_in_training():
    ltm, x = build(7, 25), torch.randn(6, 49, DIM)
    assert torch.equal(ltm(x)[0].merge(x), ltm.train()(x)[0].merge(x))


def test_hard_mask_samples_the_soft_one():
    """Gumbel noise makes the choice a draw from softmax(S / temperature)."""
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0])
    draws = 20_000
    frequency = hard_mask(logits.expand(draws, -1), True)[0].mean(0)
    p = logits.softmax(-1)
    assert ((frequency - p).abs() < 5 * (p * (1 - p) / draws).sqrt()).all()


def test_hard_mask_passes_the_soft_gradient_through():
    logits, weight = torch.randn(9, 4, requires_grad=True), torch.randn(9, 4)
    torch.manual_seed(3)
    (hard_mask(logits, True)[0] * weight).sum().backward()
    torch.manual_seed(3)
    noise = -torch.empty(9, 4).exponential_().log()
    soft = (logits + noise).softmax(-1)
    (expected,) = torch.autograd.grad((soft * weight).sum(), logits)
    torch.testing.assert_close(logits.grad, expected)
    assert expected.abs().min() > 0


@pytest.mark.parametrize("training", [False, True])
def test_hard_soft_is_hard_times_soft_and_restores_by_hard(training):
    logits = torch.randn(9, 4)
    torch.manual_seed(3)
    weights, restore = hard_soft_mask(logits, training)
    torch.manual_seed(3)
    hard, _ = hard_mask(logits, training)
    assert torch.equal(restore, hard)
    torch.testing.assert_close(weights, hard * logits.softmax(-1))


def test_unknown_mask():
    with pytest.raises(ValueError, match=r"unknown mask 'fuzzy'.*'hard', 'hard_soft', 'soft'"):
        LTM(DIM, 7, 25, mask="fuzzy")
