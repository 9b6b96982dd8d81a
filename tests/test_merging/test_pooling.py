"""The area-pooling matrix against counted points."""

import pytest
import torch

from ltm_det.merging.pooling import alive_cells, pooling_matrix
from tests.test_merging.oracle import area_shares

SIZES = [(1, 1), (2, 3), (3, 5), (4, 9), (5, 7), (7, 1), (7, 2), (7, 4), (7, 16), (7, 24)]
SIZES += [(7, 25), (7, 26), (7, 48), (7, 49), (8, 33), (12, 64), (12, 73)]


@pytest.mark.parametrize("window, tokens", SIZES)
def test_shares_are_those_of_counted_points(window, tokens):
    area = pooling_matrix(window, tokens)
    assert area.shape == (window**2, tokens) and area.dtype == torch.float64
    torch.testing.assert_close(area, area_shares(window, tokens), atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", range(1, 9))
def test_every_number_of_cells_tiles_the_window(window):
    for tokens in range(1, window**2 + 1):
        area = pooling_matrix(window, tokens)
        torch.testing.assert_close(area.sum(1), torch.ones(window**2).double())
        assert (area >= 0).all() and (area.sum(0) > 0).all()
        if int(tokens**0.5) ** 2 == tokens:  # cells of one size
            size = torch.full((tokens,), window**2 / tokens).double()
            torch.testing.assert_close(area.sum(0), size)


def test_all_tokens_kept_is_the_identity():
    assert torch.equal(pooling_matrix(7, 49), torch.eye(49).double())


def test_a_cell_lives_where_a_real_token_overlaps_it():
    area = pooling_matrix(7, 16)
    valid = torch.rand(30, 49) < 0.05
    expected = [
        [any(v[n] and area[n, p] > 0 for n in range(49)) for p in range(16)] for v in valid.tolist()
    ]
    assert alive_cells(area, valid).tolist() == expected
    assert not all(map(all, expected)) and any(map(any, expected))
