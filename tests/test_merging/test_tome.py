"""ToMe against the slow oracle."""

import pytest
import torch
from torch.autograd import gradcheck

from ltm_det.merging import Cues, ToMe
from tests.test_merging.matching_oracle import SIZES, assert_is_the_oracle, tome_choice

DIM = 5


@pytest.mark.parametrize("window, tokens", SIZES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("parted", [False, True])
def test_tome_is_the_oracle(window, tokens, padded, sized, parted):
    merger = ToMe(DIM, window, tokens)
    assert_is_the_oracle(merger, tome_choice, padded, sized, parted=parted)


def test_an_example_by_hand():
    """Directions in degrees. Sources 1, 3, 5 and 7, destinations 0, 2, 4, 6 and 8."""
    angle = torch.tensor([0.0, 100, 1, 0.4, 200, 210, 30, 330, 103]).deg2rad()
    keys = torch.stack([angle.cos(), angle.sin()], -1)
    merging, _ = ToMe(1, 3, 6)(torch.zeros(9, 1), cues=Cues(keys))
    x = torch.arange(9.0)[:, None]
    # 3 into 0, 1 into 8, 5 into 4; the nearest to 7 is 30 degrees away
    assert merging.merge(x).flatten().tolist() == [1.5, 2, 4.5, 6, 7, 4.5]
    assert merging.size.tolist() == [2, 1, 2, 1, 1, 2]
    back = merging.unmerge(torch.arange(6.0)[:, None]).flatten()
    assert back.tolist() == [0, 5, 1, 0, 2, 2, 3, 4, 5]


def test_without_keys_the_tokens_themselves_are_matched():
    x = torch.randn(3, 49, DIM)
    merger = ToMe(DIM, 7, 20)
    one, two = merger(x)[0], merger(x, cues=Cues(x))[0]
    assert torch.equal(one.merge(x), two.merge(x))
    other = merger(x, cues=Cues(torch.randn(3, 49, DIM)))[0]
    assert not torch.allclose(one.merge(x), other.merge(x))


def test_equals_are_resolved_by_order():
    merging, _ = ToMe(1, 3, 7)(torch.ones(2, 9, 1))
    assert merging.size.tolist() == [[3, 1, 1, 1, 1, 1, 1]] * 2  # 1 and 3 go into 0


def test_attention_may_be_left_as_it_is():
    x, valid = torch.randn(4, 49, DIM), torch.arange(49) < 20
    merging, _ = ToMe(DIM, 7, 25, proportional=False)(x, None, valid)
    assert ((merging.key_bias == 0) == (merging.size > 0)).all()
    assert (merging.size > 0).sum(-1).tolist() == [20] * 4  # all that are real


@pytest.mark.parametrize("tokens", [25, 6])
def test_gradients_of_merging_and_restoring(tokens):
    keys, merger = torch.randn(2, 49, 3), ToMe(2, 7, tokens)

    def there_and_back(x):
        merging, _ = merger(x, cues=Cues(keys))
        return merging.unmerge(merging.merge(x).sin())

    assert gradcheck(there_and_back, torch.randn(2, 49, 2, requires_grad=True))


def test_half_precision_chooses_in_full():
    """What autocast does to products does not touch the choice, nor the count of sizes."""
    keys, size = torch.randn(64, 49, 16).float(), torch.randint(1, 300, (64, 49))
    x, merger = torch.randn(64, 49, DIM).float(), ToMe(DIM, 7, 9)
    full, _ = merger(x, cues=Cues(keys, size=size))
    with torch.autocast("cpu", torch.bfloat16):
        auto, _ = merger(x, cues=Cues(keys, size=size))
    assert torch.equal(full.key_bias, auto.key_bias) and torch.equal(full.size, auto.size)
    assert full.size.sum(-1).tolist() == size.sum(-1).tolist()
    half, _ = merger(x.bfloat16(), cues=Cues(keys.bfloat16(), size=size))
    same, _ = merger(x, cues=Cues(keys.bfloat16().float(), size=size))
    assert torch.equal(half.size, same.size) and half.key_bias.dtype == torch.bfloat16


def test_keys_of_padding_may_be_anything():
    x, keys, valid = torch.randn(2, 49, DIM), torch.randn(2, 49, 3), torch.rand(2, 49) < 0.6
    one, _ = ToMe(DIM, 7, 8)(x, None, valid, Cues(keys))
    keys[~valid] = torch.tensor([float("inf"), float("nan"), 0])
    two, _ = ToMe(DIM, 7, 8)(x, None, valid, Cues(keys))
    assert torch.equal(one.merge(x), two.merge(x)) and torch.equal(one.size, two.size)


def test_a_window_of_padding_alone_is_shut_and_finite():
    x, valid = torch.randn(2, 49, DIM), torch.zeros(49, dtype=torch.bool)
    merging, _ = ToMe(DIM, 7, 10)(x, None, valid)
    assert (merging.merge(x) == 0).all() and (merging.key_bias.exp() == 0).all()
    rows = merging.unmerge(torch.eye(10)).sum(-1)
    assert (rows == 1).all()


def test_tome_learns_and_saves_nothing():
    merger = ToMe(DIM, 7, 25)
    assert not list(merger.parameters()) and not merger.state_dict()
