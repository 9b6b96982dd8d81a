"""What the pictures of merging show is what the backbone did, and lies where it did it."""

import math
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from ltm_det.backbones import LTMSwin, LTMViT, MergePoint, MergeWatch
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.merging import Pool
from ltm_det.merging.base import matrix_merging
from ltm_det.pictures.merge_views import (
    MergeView,
    borders,
    hues_apart,
    principal_colours,
    view_of,
    zoom,
)
from ltm_det.pictures.merging import (
    LEGEND,
    MergingPictureError,
    default_targets,
    merge_points_of,
    merging_figure,
    read_image,
)
from tests.test_backbones.swin_cases import MINI as SWIN

VIT = dict(
    embed_dims=8,
    depth=3,
    num_heads=2,
    patch_size=4,
    window_size=4,
    global_blocks=(),
    use_abs_pos=False,
)
POOL = dict(type="Pool", compression_ratio=0.5)


def swin(**options: object) -> LTMSwin:
    return LTMSwin(**SWIN, merger={**POOL, "dense_blocks": 0, **options}).eval()


def vit(**options: object) -> LTMViT:
    return LTMViT(**VIT, merger={**POOL, **options}).eval()


def pool_point(height: int, width: int, channels: int = 5) -> MergePoint:
    """Windows of 4 x 4 tokens, 5 pixels each, pooled into 2 x 2 cells."""
    grid = WindowGrid(height, width, 4)
    tokens = grid.partition(torch.randn(1, height * width, channels))
    merging, _ = Pool(channels, 4, 4)(tokens, None, grid.valid(tokens.device))
    return MergePoint(tokens, merging, grid, 5.0)


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


CASES = {
    "swin-stage": (swin(), "stages.0.blocks.0", "patch"),
    "swin-block": (swin(scope="block"), "stages.0.blocks.0.ffn", "window"),
    "vit": (vit(merge_at=0), "blocks.0", "patch"),
    "vit-twice": (vit(merge_at=[0, 2], compression_ratio=[0.5, 0.25]), "blocks.2", "window"),
}


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


def test_padding_decides_on_no_colour_and_is_not_shown() -> None:
    """An image of 30 x 22 pixels on a map of 40 x 60: 6 x 5 tokens, the last of them in part."""
    point = pool_point(8, 12)
    view = view_of("a", point, (1.0, 1.0), (30, 22))
    expected = principal_colours(point.merged_map()[0], (6, 5))
    np.testing.assert_allclose(view.features, expected)
    for axis in figure_of((30, 22), [view], [(3, 3)]).axes[3:]:
        assert axis.get_xlim() == (0, 22) and axis.get_ylim() == (30, 0)


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


def detected(*scores: float) -> DetDataSample:
    """Boxes centred at (10 i + 5, 20 i + 2)."""
    start = torch.arange(len(scores))[:, None] * torch.tensor([10.0, 20.0])
    boxes = torch.cat([start, start + torch.tensor([10.0, 4.0])], 1)
    sample = DetDataSample(metainfo=dict(ori_shape=(60, 80)))
    labels = torch.zeros(len(scores), dtype=torch.long)
    sample.pred_instances = InstanceData(
        bboxes=boxes, scores=torch.tensor(list(scores)), labels=labels
    )
    return sample


def test_targets_are_the_centres_of_the_best_boxes() -> None:
    sample = detected(0.6, 0.9, 0.1, 0.7)
    assert default_targets(sample, 2, 0.5) == [(15, 22), (35, 62)]
    assert default_targets(sample, 9, 0.5) == [(15, 22), (35, 62), (5, 2)]
    assert default_targets(sample, 9, 0.95) == [(40, 30)]
    assert default_targets(detected(), 3, 0.5) == [(40, 30)]


def test_default_merge_points() -> None:
    twice = swin(dense_blocks=([], [1]))
    assert merge_points_of(twice) == ["stages.0.blocks.0", "stages.1.blocks.2"]
    assert merge_points_of(swin(scope="block")) == [
        "stages.0.blocks.1.ffn",
        "stages.1.blocks.2.ffn",
    ]
    assert merge_points_of(CASES["vit-twice"][0]) == ["blocks.0", "blocks.2"]
    assert merge_points_of(twice, ["stages.1.blocks.0"]) == ["stages.1.blocks.0"]


@pytest.mark.parametrize(
    "backbone",
    [LTMSwin(**SWIN), LTMViT(**VIT), swin(compression_ratio=1.0), nn.Identity()],
    ids=["swin", "vit", "ratio 1", "foreign"],
)
def test_nothing_merged_is_an_error_with_a_remedy(backbone: nn.Module) -> None:
    with pytest.raises(MergingPictureError, match="merges nothing.*\n.*LTMSwin or LTMViT"):
        merge_points_of(backbone)


def test_an_unknown_merge_point_is_named_beside_those_there() -> None:
    with pytest.raises(MergingPictureError, match="'blocks.1': choose of blocks.0, blocks.2"):
        merge_points_of(CASES["vit-twice"][0], ["blocks.0", "blocks.1"])


def test_images_and_points_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(MergingPictureError, match=f"no readable image at {path}"):
        read_image(path)
    path.write_text("no image")
    with pytest.raises(MergingPictureError, match=f"no readable image at {path}"):
        read_image(path)
    cv2.imwrite(str(path), np.full((6, 9, 3), (1, 2, 3), np.uint8))
    assert read_image(path, [(0, 0), (8.9, 5.9)])[0, 0].tolist() == [3, 2, 1]
    for x, y in ((9, 3), (3, 6), (-0.5, 3), (3, -1), (math.nan, 3)):
        with pytest.raises(MergingPictureError, match=f"{x:g} {y:g} lies outside .* 9 x 6 pixels"):
            read_image(path, [(1, 1), (x, y)])


def figure_of(size: tuple[int, int], views: list[MergeView], targets: list):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    return merging_figure(image, image, views, targets, ("name", "none"))


@pytest.mark.parametrize(
    ("size", "names"), [((30, 55), "ab"), ((500, 60), "a"), ((800, 1333), "a")], ids=str
)
def test_a_sheet_has_every_panel_and_no_blank_one(
    size: tuple[int, int], names: str, tmp_path: Path
) -> None:
    stride = 55 / size[1], 30 / size[0]
    views = [view_of(name, pool_point(6, 11), stride, size) for name in names]
    targets = [(size[1] / 2, size[0] / 2), (1, 1)]
    figure = figure_of(size, views, targets)
    figure.savefig(tmp_path / "a.png")
    sheet = cv2.imread(str(tmp_path / "a.png"))
    width, height = figure.get_size_inches() * figure.dpi
    assert sheet.shape == (int(height), int(width), 3)
    assert len(figure.axes) == 4 * (1 + len(names))
    longest = min(max(*size, 400), 800)
    panels = [axis for axis in figure.axes if axis.images]
    assert len(panels) == len(figure.axes) - 2
    boxes = []
    for axis in panels:
        box = axis.get_window_extent()
        assert max(box.width, box.height) == pytest.approx(longest, rel=0.25)
        assert box.width / box.height == pytest.approx(size[1] / size[0], rel=0.01)
        inside = sheet[int(height - box.y1) : int(height - box.y0), int(box.x0) : int(box.x1)]
        assert inside.std() > 5
        boxes.append(box)
    for one, other in product(boxes, boxes):
        assert one is other or not one.overlaps(other)
    texts = figure.axes[2].texts[0].get_text()
    assert texts.split() == " ".join(LEGEND).split()


def test_heat_maps_show_the_targets_window_alone() -> None:
    view = view_of("a", pool_point(8, 12), (0.5, 0.5), (80, 120))  # windows of 40 pixels
    target = (85, 47)  # window 5, token (0, 0)
    figure = figure_of((80, 120), [view], [(1, 1), target])
    axis = figure.axes[-1]
    assert tuple(axis.images[1].get_extent()) == (80, 120, 80, 40)
    shares = np.asarray(axis.images[1].get_array())
    expected = np.zeros((4, 4))
    expected[:2, :2] = 0.25
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    assert axis.get_xlim() == (0, 120) and axis.get_ylim() == (80, 0)
    assert axis.lines[0].get_xydata().tolist() == [list(map(float, target))]
    assert [text.get_text() for text in axis.texts] == ["2"]


def test_large_maps_are_shown_in_part_and_small_ones_whole() -> None:
    view = view_of("a", pool_point(40, 64), (1.0, 1.0), (200, 320))  # windows of 20 pixels
    axis = figure_of((200, 320), [view], [(107, 91)]).axes[3]  # window (100, 80) to (120, 100)
    assert "around target 1" in axis.get_title()
    assert axis.get_ylim() == pytest.approx((90 + 60, 90 - 60))
    assert axis.get_xlim() == pytest.approx((110 - 96, 110 + 96))
    small = view_of("a", pool_point(8, 12), (1.0, 1.0), (40, 60))
    axis = figure_of((40, 60), [small], [(30, 20)]).axes[3]
    assert "around" not in axis.get_title() and axis.get_xlim() == (0, 60)


def test_a_merged_token_that_nothing_feeds_is_drawn() -> None:
    view = view_of("a", pool_point(8, 12), (1.0, 1.0), (40, 60))
    view = view._replace(weights=np.zeros_like(view.weights))
    figure = figure_of((40, 60), [view], [(30, 20)])
    assert np.isfinite(figure.axes[-1].images[1].get_alpha()).all()
