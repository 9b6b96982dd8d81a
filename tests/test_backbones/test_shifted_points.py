"""Merge points of mergers that lose the grid: in Swin's stage scope every block merges the windows
that it attends in, shifted ones too.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ltm_det.backbones import MergePoint, MergeWatch
from tests.test_backbones import swin_cases
from tests.test_backbones.harness import MASKS, difference, merger_name
from tests.test_backbones.merge_cases import CASES, STAGES, build, gradients, paste, points_of, see


@pytest.fixture(params=CASES)
def case(request):
    return request.param


GRIDLESS = [dict(type="Random"), dict(type="ToMe")]


def gridless(merger: dict, **options) -> nn.Module:
    """One stage of five blocks, all but the first one merged; the second and the fourth shift."""
    return swin_cases.build(dict(dense_blocks=1, **merger), **{**STAGES, **options})


def gridless_blocks(model: nn.Module) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for name in model.mergers_by_point()}


@pytest.mark.parametrize("merger", GRIDLESS, ids=merger_name)
def test_points_of_gridless_mergers(merger):
    model = gridless(merger)
    names = [f"stages.0.blocks.{i}" for i in range(1, 5)]
    with MergeWatch(model) as watch:
        assert watch.names == names
        model(torch.randn(1, 3, 37, 50))
    seen = see(model, torch.randn(1, 3, 37, 50))
    assert [model.shift_at(name) for name in names] == [2, 0, 2, 0]
    assert [seen[name].shift for name in names] == [2, 0, 2, 0]
    # a window of 4 that covers the map does shift: mmdet's Swin shifts whatever the size
    assert [point.shift for point in see(model, torch.randn(1, 3, 9, 9)).values()] == [2, 0, 2, 0]


@pytest.mark.parametrize(
    "case, merger",
    [
        pytest.param(case, merger, id=f"{case}-{merger_name(merger)}")
        for case in CASES
        for merger in (*GRIDLESS, MASKS[0])
        if merger in MASKS or case not in ("stage", "spans", "sides")
    ],
)
def test_where_windows_do_not_shift(case, merger):
    """In a ViT, in block scope, where an MLP reads the map as it lies, and in an LTM's stage."""
    model = build(case, merger)
    assert list(model.mergers_by_point()) == points_of(case)
    assert {model.shift_at(name) for name in points_of(case)} == {0}
    assert all(point.shift == 0 for point in see(model, torch.randn(1, 3, 23, 37)).values())


@pytest.mark.parametrize("merger", GRIDLESS, ids=merger_name)
@pytest.mark.parametrize("hw", [(23, 37), (64, 96), (9, 50)])
def test_tokens_of_a_shifted_point_lie_where_its_block_reads_them(float64, merger, hw):
    model, read = gridless(merger), {}
    for name, block in gridless_blocks(model).items():
        block.register_forward_pre_hook(lambda m, args, name=name: read.update({name: args[0]}))
    for name, point in see(model, torch.randn(2, 3, *hw)).items():
        expected = paste(point, read[name])
        assert torch.equal(point.to_map(point.tokens), expected)
        as_it_is = paste(point, point.tokens)
        assert torch.equal(as_it_is, expected) == (point.shift == 0)


def shifted_groups(point: MergePoint, group: list[int]) -> dict:
    """By window of the rolled map and group in it, the places (y, x) of its real tokens."""
    height, width, m = point.grid
    rows, columns = -(-height // m) * m, -(-width // m) * m
    found = {}
    for y in range(height):
        for x in range(width):
            i, j = (y - point.shift) % rows, (x - point.shift) % columns
            key = i // m, j // m, group[i % m * m + j % m]
            found.setdefault(key, []).append((y, x))
    return found


@pytest.mark.parametrize("hw", [(23, 37), (64, 96), (9, 50)])
def test_merged_map_of_a_shifted_point_is_the_mean_of_its_groups(float64, hw):
    """Random's groups are known: a token shows the mean of its group, in its window of the map that
    is rolled."""
    model, read = gridless(GRIDLESS[0]), {}
    blocks = gridless_blocks(model)
    for name, block in blocks.items():
        block.register_forward_pre_hook(lambda m, args, name=name: read.update({name: args[0]}))
    for name, point in see(model, torch.randn(2, 3, *hw)).items():
        z = paste(point, F.layer_norm(read[name], (8,)))
        expected = torch.full_like(z, torch.nan)
        groups = shifted_groups(point, blocks[name].merger.groups.argmax(-1).tolist())
        for places in groups.values():
            mean = sum(z[:, :, y, x] for y, x in places) / len(places)
            for y, x in places:
                expected[:, :, y, x] = mean
        assert difference([point.merged_map()], [expected]) < 1e-12


@pytest.mark.parametrize("merger", GRIDLESS, ids=merger_name)
def test_gradients_of_shifted_maps_with_checkpointed_blocks(float64, merger):
    images, names = torch.randn(2, 3, 23, 37), [f"stages.0.blocks.{i}" for i in range(1, 5)]
    plain, checkpointed = (gridless(merger, with_cp=cp) for cp in (False, True))
    expected, without = gradients(plain, images, names), gradients(plain, images, [])
    for name, gradient in gradients(checkpointed, images, names).items():
        assert (gradient - expected[name]).abs().max() < 1e-9, name
    first = "patch_embed.projection.weight"
    assert (without[first] - expected[first]).abs().max() > 1e-6
