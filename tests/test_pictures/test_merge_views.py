"""What a view of a merge point shows is what the backbone did, and lies where it did it."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from ltm_det.backbones import MergePoint, MergeWatch
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.merging.base import matrix_merging
from ltm_det.pictures.merge_views import borders, hues_apart, principal_colours, view_of, zoom
from tests.test_pictures.merge_points import CASES, pool_point


def random_point(height: int, width: int) -> tuple[MergePoint, torch.Tensor, torch.Tensor]:
    """Windows of 3 x 3 tokens merged into 4 at random, with weights and restore (1, W, N, P)."""
    grid = WindowGrid(height, width, 3)
    tokens = grid.partition(torch.randn(1, height * width, 6))
    shape = (1, grid.rows * grid.columns, 9, 4)
    weights, restore = torch.rand(shape), torch.rand(shape).softmax(-1)
    weights = weights / weights.sum(-2, keepdim=True)
    merging = matrix_merging(weights, restore, tokens.dtype, shut_empty=False)
    return MergePoint(tokens, merging, grid, 8.0), weights, restore


@pytest.mark.parametrize("hw", [(8, 12), (6, 11)], ids=["whole windows", "padded"])
def test_each_cell_of_pooling_is_a_region_of_equal_shares(hw: tuple[int, int]) -> None:
    """At (6, 11) Pool's matrices have a window dimension, at (8, 12) they have none."""
    view = view_of("a", pool_point(*hw), (1.0, 1.0), (30, 55))
    columns = math.ceil(hw[1] / 4)
    cells: dict[int, list[tuple[int, int]]] = {}
    for i, j in product(range(hw[0]), range(hw[1])):
        cell = 2 * (i % 4 // 2) + j % 4 // 2
        assert view.regions[i, j] == 4 * (i // 4 * columns + j // 4) + cell
        cells.setdefault(int(view.regions[i, j]), []).append((i % 4, j % 4))
    for region, tokens in cells.items():
        expected = np.zeros((4, 4))
        for token in tokens:
            expected[token] = 1 / len(tokens)
        np.testing.assert_allclose(view.shares_in(region), expected, atol=1e-6)


def test_regions_and_shares_of_any_matrices() -> None:
    point, weights, restore = random_point(7, 8)
    view = view_of("a", point, (1.0, 1.0), (56, 64))
    for i, j in product(range(7), range(8)):
        window, token = i // 3 * 3 + j // 3, i % 3 * 3 + j % 3
        best = max(range(4), key=lambda p: restore[0, window, token, p].item())
        region = view.region_at(8 * j + 4, 8 * i + 4)
        assert region == view.regions[i, j] == 4 * window + best
        shares = view.shares_in(region)
        assert shares.sum() == pytest.approx(1, abs=1e-5)
        merged = np.einsum("hw,hwc->c", shares, point.tokens[0, window].unflatten(0, (3, 3)))
        expected = point.merging.merge(point.tokens)[0, window, best]
        np.testing.assert_allclose(merged, expected, atol=1e-5)


def footprint(tokens: torch.Tensor, image: torch.Tensor) -> list[int]:
    """Left, right, bottom, top of the pixels on which tokens depend, found by the gradient."""
    (gradient,) = torch.autograd.grad(tokens.square().sum(), image, retain_graph=True)
    rows, columns = gradient[0].abs().sum(0).nonzero(as_tuple=True)
    edges = [columns.min(), columns.max() + 1, rows.max() + 1, rows.min()]
    return [int(edge) for edge in edges]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_regions_lie_over_the_pixels_that_their_tokens_come_from(case: tuple) -> None:
    """Image of 39 x 22 pixels, read as 52 x 55 and padded to 64 x 64.

    Where nothing has been mixed yet, a token sees its patch; after attention, its window.
    """
    backbone, name, sees = case
    for parameter in backbone.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    factor, size = (2.5, 4 / 3), (39, 22)
    image = torch.zeros(1, 3, 64, 64)
    image[:, :, :52, :55] = torch.randn(1, 3, 52, 55)
    image.requires_grad_()
    with MergeWatch(backbone) as watch:
        backbone(image)
        point = watch.seen[name]
    view = view_of(name, point, factor, size)
    m, kept = point.grid.window, view.weights.shape[1]
    stretch = np.array([factor[0], factor[0], factor[1], factor[1]])
    for window, token in product(range(point.tokens.shape[1]), range(0, m * m, 3)):
        tokens = point.tokens[0, window, token]
        found = footprint(tokens, image) / stretch
        if sees == "window":
            np.testing.assert_allclose(found, view.window_of(window * kept), rtol=1e-6)
            continue
        best = int(
            point.merging.unmerge(torch.eye(kept)).expand(16, -1, -1)[window, token].argmax()
        )
        left, right, bottom, top = found
        for x, y in product((left + 0.01, right - 0.01), (top + 0.01, bottom - 0.01)):
            assert view.region_at(x, y) == kept * window + best
    right, bottom = view.extent[1:3]
    assert (right, bottom) == pytest.approx((64 / factor[0], 64 / factor[1]))


def test_twice_merged_tokens_of_a_vit_lie_on_their_own_wider_map() -> None:
    """Windows of 4 x 4 tokens of 4 pixels keep 3 x 3: then a token has 16 / 3 pixels."""
    backbone, name, _ = CASES["vit-twice"]
    with MergeWatch(backbone) as watch, torch.no_grad():
        backbone(torch.randn(1, 3, 40, 64))
        view = view_of(name, watch.seen[name], (2.0, 2.0), (20, 32))
    assert view.grid == WindowGrid(8, 12, 3)  # the last windows hold 2 rows of 4: 3 / 2 cells
    assert view.pitch == pytest.approx((8 / 3, 8 / 3))
    assert "3 x 3 tokens become 4" in view.caption()
    assert "2.67 x 2.67 pixels" in view.caption()


@pytest.mark.parametrize("at", [(0, 0), (54.9, 29.9), (55, 30)])
def test_points_up_to_the_images_edge_have_a_region(at: tuple[float, float]) -> None:
    view = view_of("a", pool_point(6, 11), (1.0, 1.0), (30, 55))
    corner = view.regions[0, 0] if at == (0, 0) else view.regions[-1, -1]
    assert view.region_at(*at) == corner


def test_touching_regions_have_unlike_hues() -> None:
    regions = np.random.default_rng(0).integers(0, 40, (17, 23)) * 3
    hues = hues_apart(regions)
    for i, j in product(range(17), range(23)):
        for a, b in ((0, 1), (1, 0), (1, 1), (1, -1)):
            if i + a < 17 and 0 <= j + b < 23:
                same = regions[i, j] == regions[i + a, j + b]
                assert same == (hues[i, j] == hues[i + a, j + b])
    assert len({(r, h) for r, h in zip(regions.flat, hues.flat)}) == len(set(regions.flat))
    assert hues_apart(pool_regions := np.arange(12).reshape(3, 4)).max() == 3, pool_regions


def test_borders_are_the_edges_between_unlike_tokens() -> None:
    values = np.array([[1, 1, 2], [1, 3, 2]])
    found = {tuple(map(tuple, line)) for line in borders(values, (10.0, 2.0)).tolist()}
    upright = {((20, 0), (20, 2)), ((10, 2), (10, 4)), ((20, 2), (20, 4))}
    assert found == upright | {((10, 2), (20, 2))}
    assert borders(np.ones((2, 2)), (1.0, 1.0)).shape == (0, 2, 2)


def test_colours_are_the_principal_components_whatever_the_padding() -> None:
    features = torch.randn(6, 9, 11, dtype=torch.float64) * torch.arange(6.0, 0, -1)[:, None, None]
    colours = principal_colours(features, (7, 8))
    assert colours.shape == (9, 11, 3)
    assert colours.min() >= 0 and colours.max() <= 1
    inside = features[:, :7, :8].flatten(1).T.numpy()
    left, _, right = np.linalg.svd(inside - inside.mean(0), full_matrices=False)
    left *= [np.sign(max(axis, key=abs)) for axis in right]  # the largest loading is positive
    for channel in range(3):
        shown = colours[:7, :8, channel].flatten().numpy()
        middle = (shown > 0) & (shown < 1)  # the strongest and weakest 2 % are clipped
        assert middle.sum() >= 50
        assert np.corrcoef(shown[middle], left[middle, channel])[0, 1] > 1 - 1e-9
    features[:, 7:], features[:, :, 8:] = 1e6, -1e6
    assert torch.allclose(principal_colours(features, (7, 8))[:7, :8], colours[:7, :8])


def test_features_without_contrast_have_a_colour() -> None:
    assert principal_colours(torch.ones(4, 3, 3), (3, 3)).isfinite().all()
    assert principal_colours(torch.randn(4, 1, 1), (1, 1)).isfinite().all()


@pytest.mark.parametrize("window", [(0, 28, 28, 0), (84, 112, 56, 28), (140, 168, 112, 84)])
def test_zoom_keeps_the_images_shape_and_the_window(window: tuple) -> None:
    """The last window is half padding: the image ends at 154."""
    left, right, bottom, top = zoom(window, (112, 154), 2)
    assert 0 <= left < right <= 154 and 0 <= top < bottom <= 112
    assert right - left == pytest.approx(154 / 112 * (bottom - top))
    assert bottom - top == pytest.approx(56)
    assert left <= window[0] and min(window[1], 154) <= right
    assert top <= window[3] and window[2] <= bottom
    assert zoom(window, (112, 154), 6) == (0, 154, 112, 0)
