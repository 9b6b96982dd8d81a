"""What convolutions ask of maps: room for a kernel, and no gaps where merged tokens lie."""

import pytest
import torch

from ltm_det.backbones.common.kernels import at_least, filled, merge_map, to_map, to_tokens
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.merging import SHUT, build_merger


@pytest.mark.parametrize("size, wanted", [((1, 9), (4, 9)), ((3, 2), (4, 4)), ((4, 5), (4, 5))])
def test_small_maps_are_filled_up_with_zeros(size, wanted):
    x = torch.randn(2, 3, *size)
    out = at_least(x, 4)
    assert out.shape[2:] == wanted and torch.equal(out[:, :, : size[0], : size[1]], x)
    assert out.abs().sum() == x.abs().sum()


def test_gaps_hold_the_mean_of_the_other_tokens_of_their_map():
    y = torch.randn(2, 4, 3)
    key_bias = torch.tensor([[0.0, SHUT, 1.5, -2.0], [SHUT, SHUT, SHUT, 0.0]])
    out = filled(y, key_bias)
    assert torch.equal(out[0, [0, 2, 3]], y[0, [0, 2, 3]]) and torch.equal(out[1, 3], y[1, 3])
    torch.testing.assert_close(out[0, 1], y[0, [0, 2, 3]].mean(0))
    torch.testing.assert_close(out[1, :3], y[1, 3].expand(3, -1))
    assert filled(y, None) is y


def test_the_mean_of_a_large_map_is_finite_in_half_precision():
    y = torch.full((1, 100_000, 2), 30.0, dtype=torch.float16)
    key_bias = torch.zeros(1, 100_000).index_fill(1, torch.tensor([5]), SHUT)
    assert (filled(y, key_bias) == 30).all()


@pytest.mark.parametrize("kind", [dict(type="Pool"), dict(type="LTM", mask="hard")], ids=str)
def test_maps_are_merged_onto_smaller_ones(kind):
    """Of 5 x 7 tokens in windows of 4: 3 x 4, without cells of padding alone; equal ones stay."""
    here = WindowGrid(5, 7, 4)
    merger = build_merger(dim=3, window=4, tokens=4, **kind).eval()
    x = torch.tensor([1.0, 2.0, 3.0]).expand(2, 35, 3)
    with torch.no_grad():
        merging, there, _ = merge_map(merger, x, here, None)
        y = merging.merge(x)
        assert (there.height, there.width, there.window) == (3, 4, 2)
        torch.testing.assert_close(y, x[:, :12])
        torch.testing.assert_close(merging.update(x, y), 2 * x)


def test_tokens_and_maps_are_each_others_way_back():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(to_map(to_tokens(x), WindowGrid(4, 5, 4)), x)
    assert torch.equal(to_tokens(x)[:, 7], x[:, :, 1, 2])
