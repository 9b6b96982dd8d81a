"""Watching merge points: what is left behind, what is not there, and gradients of what is seen."""

import pytest
import torch
from mmdet.models.backbones import SwinTransformer
from torch import Tensor, nn

from ltm_det.backbones import MergeWatch
from tests.test_backbones import swin_cases
from tests.test_backbones.harness import MASKS, difference, merger_name
from tests.test_backbones.merge_cases import CASES, build, gradients, points_of


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_nothing_is_left_behind(case):
    model = build(case)
    images = torch.randn(1, 3, 23, 37)
    expected = model(images)
    with MergeWatch(model) as watch:
        assert hooks_of(model) > 0
        assert difference(model(images), expected) == 0
    assert hooks_of(model) == 0 and watch.seen == {}
    model(images)
    assert watch.seen == {}
    with pytest.raises(RuntimeError, match="stop"), MergeWatch(model) as watch:
        raise RuntimeError("stop")
    assert hooks_of(model) == 0
    with watch:  # a second time
        model(images)
        assert list(watch.seen) == points_of(case)
    assert hooks_of(model) == 0


def test_each_pass_is_seen_for_itself(case):
    model, left = build(case), []
    with torch.no_grad(), MergeWatch(model) as watch:
        model.patch_embed.register_forward_hook(lambda *_: left.append(len(watch.seen)))
        for hw in ((23, 37), (40, 16)):
            model(torch.randn(1, 3, *hw))
            grid = watch.seen[points_of(case)[0]].grid
            assert (grid.height, grid.width) == (-(-hw[0] // 4), -(-hw[1] // 4))
    assert left == [0, 0]


@pytest.mark.parametrize(
    "case, name",
    [
        ("stage", "stages.0.blocks.0"),  # a dense block, whose tokens belong to no merge
        ("stage", "stages.0.blocks.1.ffn"),
        ("block", "stages.0.blocks.1"),
        ("vit", "blocks.2"),
        ("vit", "stages.0.blocks.1"),
    ],
)
def test_a_point_that_is_not_there(case, name):
    with pytest.raises(ValueError) as error:
        MergeWatch(build(case), [points_of(case)[0], name])
    assert f"no merge point {name!r}" in str(error.value)
    assert all(point in str(error.value) for point in points_of(case))


@pytest.mark.parametrize(
    "case, names",
    [
        ("stage", ["stages.0", "stages.0.blocks", "stages.0.blocks.2", "stages.2.blocks.0"]),
        ("stage", ["stages.0.blocks.1.attn", "stages.0.blocks.1.ffn.layers", "blocks.0", "", "s"]),
        ("stage", ["stages.0.blocks.1.ffn.ffn", "stages.0.blocks.1.norm2"]),
        ("vit", ["blocks.5", "blocks.1.ffn", "blocks.1.mlp", "blocks.-1", "patch_embed"]),
    ],
)
def test_a_dense_point_that_is_not_there(case, names):
    model = build(case, None)
    for name in names:
        with pytest.raises(ValueError) as error:
            MergeWatch(model, [name])
        assert f"no merge point {name!r}: choose of" in str(error.value)
        assert points_of(case)[0] in str(error.value)


def test_a_backbone_without_merge_points():
    with pytest.raises(TypeError, match="SwinTransformer has no merge points.* merger=None"):
        MergeWatch(SwinTransformer(**swin_cases.MINI), ["stages.0.blocks.0"])


@pytest.mark.parametrize(
    "case, merger",
    [(case, merger) for case in CASES for merger in (MASKS[0], None)]
    + [("stage", MASKS[1]), ("block", MASKS[1])],
    ids=lambda value: value if isinstance(value, str) else merger_name(value or dict(type="dense")),
)
def test_gradients_of_merged_maps_with_checkpointed_blocks(float64, case, merger):
    images, names = torch.randn(2, 3, 23, 37), points_of(case)
    plain, checkpointed = (
        build(case, merger, with_cp=cp, drop_path_rate=0.2) for cp in (False, True)
    )
    expected, without = gradients(plain, images, names), gradients(plain, images, [])
    for name, gradient in gradients(checkpointed, images, names).items():
        assert (gradient is None) == (expected[name] is None), name
        assert gradient is None or (gradient - expected[name]).abs().max() < 1e-9, name
    first = "patch_embed.projection.weight" if "vit" not in case else "patch_embed.proj.weight"
    assert (without[first] - expected[first]).abs().max() > 1e-6


def test_the_gradient_of_a_merged_map_is_numerically_right(float64):
    model = build("block", with_cp=True)
    weight = model.mergers_by_point()["stages.1.blocks.1.ffn"].step
    images = torch.randn(1, 3, 23, 37)

    def loss() -> Tensor:
        with MergeWatch(model) as watch:
            model(images)
            return (watch.seen["stages.1.blocks.2.ffn"].merged_map() ** 3).mean()

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction, eps = torch.randn_like(weight), 1e-5
    with torch.no_grad():
        weight += eps * direction
        above = loss()
        weight -= 2 * eps * direction
        below = loss()
    assert ((above - below) / (2 * eps)).item() == pytest.approx(
        (gradient * direction).sum().item(), rel=1e-5
    )
    assert gradient.abs().max() > 0
