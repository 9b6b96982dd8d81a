"""What LTMP's thresholds learn: their gradients of the task, and the budget's loss."""

import copy
import pickle

import pytest
import torch
from torch.autograd import gradcheck

from ltm_det.merging import LTMP, Cues
from tests.test_merging.ltmp_cases import DIM, build, ltmp_oracle, sigmoid, some_cues
from tests.test_merging.matching_oracle import SIZES, some_sizes

FEWER = [(window, tokens) for window, tokens in SIZES if tokens < window**2]


@pytest.mark.parametrize("prune", [0.3, 1.0])
def test_gradients_of_the_task_by_hand(prune):
    """Of test_ltmp's example: d mean / d weight at a weight of 1 or 0, times sigmoids' slopes."""
    keys = torch.tensor([[1.0, 0], [0.6, 0.8], [0, -1], [-1, 0]])
    received = torch.tensor([0.2, 0.15, 0.2, 0.45])
    merger = build(2, 3, merge=0.4, prune=prune, temperature=0.2)
    merging, _ = merger(torch.zeros(4, DIM), cues=Cues(keys, received))
    merging.merge(torch.arange(4.0)[:, None]).sum().backward()
    # the mean of 0 and w times 1 is w / (1 + w), with a slope of 1 / (1 + w)^2
    slope = 1 / 4 if merging.size[0] == 2 else 1.0
    merges, prunes = sigmoid((0.6 - 0.4) / 0.2), sigmoid((prune - 0.6) / 0.2)
    # a higher bar for merging, or for staying, lowers the weight
    expected = -slope * merges * (1 - merges) * (1 - prunes) / 0.2
    assert merger.merge_threshold.grad.item() == pytest.approx(expected)
    expected = -slope * merges * prunes * (1 - prunes) / 0.2
    assert merger.prune_threshold.grad.item() == pytest.approx(expected)


@pytest.mark.parametrize("window, tokens", FEWER)
@pytest.mark.parametrize("padded", [False, True])
def test_both_thresholds_learn_from_task_and_budget(window, tokens, padded):
    n, batch = window**2, 16
    merger, x = build(window, tokens).train(), torch.randn(batch, n, DIM)
    valid, _ = some_sizes(batch, n, padded, False)
    merging, _ = merger(x, None, valid, some_cues(batch, n, None, valid))
    task = merging.unmerge(merging.merge(x).sin()).square().sum() + merging.key_bias.exp().sum()
    for loss in (task, merger.auxiliary_loss):
        thresholds = [merger.merge_threshold, merger.prune_threshold]
        for gradient in torch.autograd.grad(loss, thresholds, retain_graph=True):
            assert gradient.isfinite() and gradient.abs() > 1e-9


def test_scores_learn_nothing():
    """Neither task nor budget bend keys and attention to the thresholds."""
    merger, x = build(5, 7).train(), torch.randn(4, 25, DIM)
    keys, received = (t.requires_grad_() for t in some_cues(4, 25)[:2])
    merging, _ = merger(x, cues=Cues(keys, received))
    loss = merging.merge(x).sin().sum() + merger.auxiliary_loss
    assert torch.autograd.grad(loss, (keys, received), allow_unused=True) == (None, None)


class Budget(torch.nn.Module):
    def __init__(self, merger, cues):
        super().__init__()
        self.merger, self.cues = merger, cues

    def forward(self, x):
        self.merger(x, cues=self.cues)
        return self.merger.auxiliary_loss


@pytest.mark.parametrize("tokens", [6, 5])
def test_budget_in_gradcheck(tokens):
    whole = Budget(build(3, tokens).train(), some_cues(3, 9))
    names, x = list(whole.state_dict()), torch.randn(3, 9, DIM)

    def budget(*thresholds):
        return torch.func.functional_call(whole, dict(zip(names, thresholds)), (x,))

    thresholds = [torch.tensor(value, requires_grad=True) for value in (0.5, 0.7)]
    assert gradcheck(budget, thresholds)


def test_gradients_of_merging_in_gradcheck():
    cues, merger = some_cues(2, 25), build(5, 9).train()

    def there_and_back(x):
        merging, _ = merger(x, cues=cues)
        return merging.unmerge(merging.merge(x).sin())

    assert gradcheck(there_and_back, torch.randn(2, 25, 2, requires_grad=True))


@pytest.mark.parametrize("tokens", [40, 30, 15])
@pytest.mark.parametrize("padded", [False, True])
def test_the_budget_brings_the_thresholds_to_it(tokens, padded):
    """From where they start, with the budget's loss alone; by sigmoids and as counted."""
    merger = LTMP(DIM, 7, tokens).train()
    optimizer = torch.optim.Adam(merger.parameters(), 0.05)
    valid, _ = some_sizes(64, 49, padded, False)
    for _ in range(80):
        cues = some_cues(64, 49, None, valid)
        merger(torch.zeros(64, 49, DIM), None, valid, cues)
        optimizer.zero_grad()
        merger.auxiliary_loss.backward()
        optimizer.step()
    assert abs(merger.auxiliary_loss.item()) < 1e-3
    if tokens == 15:
        return
    with torch.no_grad():
        merge, prune = merger.merge_threshold.item(), merger.prune_threshold.item()
    kept = real = 0
    for i in range(64):
        ones = [1.0] * 49 if valid is None else valid[i].double().tolist()
        _, rounds, _ = ltmp_oracle(
            cues.keys[i], cues.received[i], ones, tokens, merge, prune, temperature=1e-3
        )
        kept, real = kept + rounds[0][0], real + rounds[0][1]
    assert abs(kept / real - tokens / 49) < 0.1  # sigmoids are not steps


def test_padding_has_no_say_in_the_budget():
    merger, valid = build(7, 30).train(), torch.arange(49) < 30
    x, cues = torch.randn(4, 49, DIM), some_cues(4, 49, None, torch.arange(49) < 30)
    garbage = Cues(torch.where(valid[:, None], cues.keys, 1e6), cues.received)
    losses = []
    for c in (cues, garbage):
        merger(x, None, valid, c)
        losses.append(merger.auxiliary_loss.item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_the_loss_is_in_float32(low):
    x, cues = torch.randn(4, 49, DIM).float(), Cues(*(t.float() for t in some_cues(4, 49)[:2]))
    merger = build(7, 16).float().train()
    merger(x, cues=cues)
    exact = merger.auxiliary_loss
    with torch.autocast("cpu", low):
        merger(x, cues=cues)
    assert merger.auxiliary_loss.dtype == torch.float32 and torch.equal(
        merger.auxiliary_loss, exact
    )
    merger.to(low)(x.to(low), cues=Cues(*(t.to(low) for t in cues[:2])))
    assert merger.auxiliary_loss.dtype == torch.float32
    assert (merger.auxiliary_loss - exact).abs() < 0.01


def test_the_loss_is_that_of_the_last_pass_in_training():
    merger, x = build(5, 13).train(), torch.randn(3, 25, DIM)
    assert merger.auxiliary_loss is None
    merger(x)
    one = merger.auxiliary_loss
    merger(torch.randn(3, 25, DIM))
    assert one.requires_grad and merger.auxiliary_loss != one
    merger.eval()(x)
    assert merger.auxiliary_loss is None


def test_training_on_no_window_at_all():
    merger, x = build(7, 16).train(), torch.randn(0, 4, 49, DIM)
    merging, _ = merger(x)
    (merging.unmerge(merging.merge(x)).sum() + merger.auxiliary_loss).backward()
    assert merger.merge_threshold.grad == merger.prune_threshold.grad == 0


def test_all_tokens_kept_meet_the_budget():
    merger = build(3, 9).train()
    merger(torch.randn(2, 9, DIM))
    assert merger.auxiliary_loss == 0


def test_it_can_be_copied_amid_training():
    """As EMA does, although no graph can be."""
    merger, x = build(5, 13).train(), torch.randn(3, 25, DIM)
    merger(x)
    loss = merger.auxiliary_loss
    for twin in (copy.deepcopy(merger), pickle.loads(pickle.dumps(merger))):
        assert twin.auxiliary_loss is None
        twin(x)
        assert torch.equal(twin.auxiliary_loss, loss)
    assert merger.auxiliary_loss is loss
