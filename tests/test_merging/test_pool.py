"""Pool against counted points."""

import pytest
import torch

from ltm_det.merging import Pool
from tests.test_merging.oracle import pool_oracle


@pytest.mark.parametrize("window, tokens", [(7, 25), (7, 16), (7, 10), (4, 9), (5, 7), (12, 36)])
@pytest.mark.parametrize("padded", [False, True])
def test_pool_is_the_mean_over_each_cell(window, tokens, padded):
    n = window**2
    valid = None
    if padded:  # one real row and a half of the next
        valid = torch.arange(n) < window + window // 2
    x, y = torch.randn(3, n, 4).double(), torch.randn(3, tokens, 4).double()
    oracle = pool_oracle(window, tokens, valid.tolist() if padded else None)
    merging, state = Pool(4, window, tokens).double()(x, "passed on", valid)
    assert state == "passed on"
    # the buffer was made in float32
    torch.testing.assert_close(merging.merge(x), oracle.merge @ x, atol=1e-6, rtol=0)
    torch.testing.assert_close(merging.unmerge(y), oracle.restore @ y, atol=1e-6, rtol=0)
    shut = [False] * tokens if merging.key_bias is None else (merging.key_bias < 0).tolist()
    assert shut == [not fed for fed in oracle.fed]
    assert any(shut) == padded


def test_pool_learns_and_saves_nothing():
    pool = Pool(4, 7, 25)
    assert not list(pool.parameters()) and not pool.state_dict()


def test_two_by_two_cells_of_an_even_window():
    x = torch.arange(16.0).reshape(16, 1)
    merging, _ = Pool(1, 4, 4)(x)
    assert merging.merge(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    back = merging.unmerge(torch.tensor([[1.0], [2], [3], [4]])).reshape(4, 4)
    assert back.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
