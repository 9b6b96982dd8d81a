"""3 x 3 convolutions by Winograd's filtering: those of torch in float64, at any size."""

import pytest
import torch
import torch.nn.functional as F

from ltm_det.cpu import convolutions, pieces

SIZES = [(1, 37, 50), (3, 14, 14), (2, 4, 4), (1, 1, 70), (5, 7, 3), (1, 64, 1)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_it_is_the_convolution(size, last, bias, monkeypatch, two_threads) -> None:
    monkeypatch.setattr(pieces, "PIECE", 1 << 15)  # several pieces
    images, height, width = size
    x, weight = torch.randn(images, 24, height, width), torch.randn(32, 24, 3, 3)
    bias = torch.randn(32) if bias else None
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        found = convolutions.conv3x3(x, weight, bias)
    exact = F.conv2d(
        x.double(), weight.double(), None if bias is None else bias.double(), padding=1
    )
    assert found.shape == exact.shape
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


def test_rounding_is_that_of_a_direct_convolution() -> None:
    """Of as many channels as a detector's pyramid has, after a ReLU."""
    x, weight = torch.randn(1, 256, 40, 40).relu(), 0.02 * torch.randn(256, 256, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    with torch.no_grad():
        own = (convolutions.conv3x3(x, weight, None) - exact).abs().mean()
    direct = (F.conv2d(x, weight, padding=1) - exact).abs().mean()
    assert own < 20 * direct and own < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("images, rows, columns", [(1, 50, 80), (100, 4, 4), (2, 1, 1), (3, 9, 2)])
@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_pieces_cover_every_tile_once(images, rows, columns, size) -> None:
    seen = torch.zeros(images, rows, columns)
    for own, span in convolutions.cuts(images, rows, columns, size):
        seen[own, slice(*span)] += 1
    assert (seen == 1).all()
