"""PiToMe against the slow oracle."""

import pytest
import torch
from torch.autograd import gradcheck

from ltm_det.merging import Cues, PiToMe, ToMe
from tests.test_merging.matching_oracle import (
    SIZES,
    assert_is_the_oracle,
    matching_oracle,
    pitome_choice,
)

DIM = 5


@pytest.mark.parametrize("window, tokens", SIZES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("depth, margin", [(0.0, 0.9), (0.5, 0.45)])
@pytest.mark.parametrize("parted", [False, True])
def test_pitome_is_the_oracle(window, tokens, padded, sized, depth, margin, parted):
    merger = PiToMe(DIM, window, tokens, depth=depth)
    assert_is_the_oracle(merger, pitome_choice(margin), padded, sized, parted=parted)


def test_tokens_that_stand_alone_are_protected():
    """A crowd of five in one direction, and four apart from it and from each other. ToMe's
    alternate split takes what comes."""
    keys = torch.eye(5)[[0, 1, 0, 2, 0, 3, 0, 4, 0]] + 0.01 * torch.randn(9, 5)
    merging, _ = PiToMe(1, 3, 7)(torch.zeros(9, 1), cues=Cues(keys))
    group = merging.unmerge(torch.eye(7)).argmax(-1)
    assert [(group == group[i]).sum() for i in (1, 3, 5, 7)] == [1, 1, 1, 1]
    assert sorted(merging.size.tolist()) in ([1, 1, 1, 1, 1, 1, 3], [1, 1, 1, 1, 1, 2, 2])
    other, _ = ToMe(1, 3, 7)(torch.zeros(9, 1), cues=Cues(keys))
    group = other.unmerge(torch.eye(7)).argmax(-1)
    assert sum((group == group[i]).sum() for i in (1, 3, 5, 7)) > 4


def test_a_dead_token_ranks_below_tokens_that_are_against_the_rest():
    """Four of 24 point away from the others: their energy is below that of cosines of zero."""
    side = torch.ones(25, 1)
    side[[3, 8, 9, 20]] = -1
    keys = torch.cat([side, 0.05 * torch.randn(25, 2)], -1)
    valid = torch.arange(25) != 5
    merging, _ = PiToMe(1, 5, 13)(torch.zeros(25, 1), None, valid, Cues(keys))
    oracle = matching_oracle(keys, valid.double().tolist(), 13, pitome_choice(0.9))
    torch.testing.assert_close(merging.merge(torch.eye(25)), oracle.merge)


def test_gradients_of_merging_and_restoring():
    keys, merger = torch.randn(2, 49, 3), PiToMe(2, 7, 10)

    def there_and_back(x):
        merging, _ = merger(x, cues=Cues(keys))
        return merging.unmerge(merging.merge(x).sin())

    assert gradcheck(there_and_back, torch.randn(2, 49, 2, requires_grad=True))
