"""Pictures of merging: their points and targets, and every panel of the sheet."""

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

from ltm_det.backbones import LTMSwin, LTMViT
from ltm_det.pictures.merge_views import MergeView, principal_colours, view_of
from ltm_det.pictures.merging import (
    LEGEND,
    MergingPictureError,
    default_targets,
    merge_points_of,
    merging_figure,
    read_image,
)
from tests.test_backbones.swin_cases import MINI as SWIN
from tests.test_pictures.merge_points import CASES, VIT, pool_point, swin


def test_padding_decides_on_no_colour_and_is_not_shown() -> None:
    """An image of 30 x 22 pixels on a map of 40 x 60: 6 x 5 tokens, the last of them in part."""
    point = pool_point(8, 12)
    view = view_of("a", point, (1.0, 1.0), (30, 22))
    expected = principal_colours(point.merged_map()[0], (6, 5))
    np.testing.assert_allclose(view.features, expected)
    for axis in figure_of((30, 22), [view], [(3, 3)]).axes[3:]:
        assert axis.get_xlim() == (0, 22) and axis.get_ylim() == (30, 0)


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
    with pytest.raises(MergingPictureError, match="merges nothing.*\n.*backbone of ours"):
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
