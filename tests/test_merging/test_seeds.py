"""Merged tokens that start from the tokens of an image that are least alike."""

import pytest
import torch

from ltm_det.backbones.common.kernels import check_keeps_grid
from ltm_det.basics.errors import InputError
from ltm_det.merging import LTM
from ltm_det.merging.seeds import farthest_points


def by_hand(z: torch.Tensor, count: int, real: list[int]) -> list[int]:
    """Of tokens (N, C)."""
    middle = z[real].mean(0)
    seeds = [min(real, key=lambda n: float((z[n] - middle).norm()))]
    while len(seeds) < count:
        seeds.append(max(real, key=lambda n: min(float((z[n] - z[s]).norm()) for s in seeds)))
    return seeds


@pytest.mark.parametrize("count", [1, 4, 9, 16])
@pytest.mark.parametrize("padded", [False, True])
def test_seeds_are_farthest_points(count: int, padded: bool) -> None:
    z, valid = torch.randn(5, 16, 3), None
    real = list(range(16))
    if padded:
        valid = torch.arange(16) % 4 < 3
        real = valid.nonzero().flatten().tolist()
    seeds = farthest_points(z, count, valid)
    assert seeds.shape == (5, 16, count) and (seeds.sum(-2) == 1).all()
    distinct = min(count, len(real))
    for tokens, found in zip(z, seeds.argmax(-2).tolist()):
        assert found[:distinct] == by_hand(tokens, distinct, real) and {*found} <= {*real}


def test_busy_parts_get_more_tokens() -> None:
    """Half of the window is plain: one merged token is enough for it."""
    x = torch.zeros(1, 16, 8)
    x[:, 8:] = 3 * torch.randn(1, 8, 8)
    merging, _ = LTM(8, 4, 9, seeds="farthest").eval()(x)
    restored = merging.unmerge(merging.merge(x))
    assert (restored - x).abs().max() < 1e-6
    on_grid, _ = LTM(8, 4, 9).eval()(x)
    assert (on_grid.unmerge(on_grid.merge(x)) - x).abs().max() > 0.1


def test_columns_are_no_places() -> None:
    """No table, by places, is learned, and the order of tokens says nothing."""
    merger = LTM(8, 4, 5, seeds="farthest").eval()
    assert not merger.keeps_grid and LTM(8, 4, 4).keeps_grid
    assert {name for name, _ in merger.named_parameters()} == {
        *("log_affinity", "metric", "detail_in", "detail_out")
    }
    x, order = torch.randn(3, 16, 8), torch.randperm(16)
    merging, _ = merger(x)
    other, _ = merger(x[:, order])
    torch.testing.assert_close(other.merge(x[:, order]), merging.merge(x))


def test_the_metric_learns() -> None:
    merger = LTM(8, 4, 5, seeds="farthest", affinity=1.0)
    x = torch.randn(3, 16, 8)
    merging, _ = merger(x)
    merging.update(x, merging.merge(x).sin()).square().sum().backward()
    assert merger.metric.grad.abs().min() > 0


def test_seeds_that_do_not_go() -> None:
    with pytest.raises(InputError, match=r"seeds='farthest' takes an affinity above 0"):
        LTM(8, 4, 5, seeds="farthest", affinity=0)
    with pytest.raises(InputError, match="seeds"):
        LTM(8, 4, 5, seeds="nearest")
    with pytest.raises(InputError, match="lie on no grid"):
        check_keeps_grid(
            "LTMEfficientViT", dict(type="LTM", seeds="farthest", compression_ratio=0.5)
        )
    check_keeps_grid("LTMEfficientViT", dict(type="LTM", seeds="grid", compression_ratio=0.5))
