"""Merge points: their names, what is seen there, where it lies, and what is left behind."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.backbones import SwinTransformer
from torch import Tensor, nn

from ltm_det.backbones import MergePoint, MergeWatch
from ltm_det.merging import Pool
from tests.test_backbones import swin_cases, vit_cases
from tests.test_backbones.harness import MASKS, MERGERS, difference, merger_name
from tests.test_backbones.oracle import decide
from tests.test_merging.oracle import _normalised

STAGES = dict(sizes=dict(swin_cases.ONE_STAGE, depths=(5,)))
# By name: module of the family, the merger's layout, options of the backbone, the points.
CASES = {
    "stage": (
        swin_cases,
        dict(dense_blocks=1),
        {},
        ["stages.0.blocks.1", "stages.1.blocks.1"],
    ),
    "spans": (
        swin_cases,
        dict(dense_blocks=[[0, 3]]),
        STAGES,
        ["stages.0.blocks.1", "stages.0.blocks.4"],
    ),
    "sides": (
        swin_cases,
        dict(dense_blocks=0, compression_ratio=[[0.5, 0.25, 0.25, 1.0, 0.5]]),
        STAGES,
        ["stages.0.blocks.0", "stages.0.blocks.1", "stages.0.blocks.4"],
    ),
    "block": (
        swin_cases,
        dict(dense_blocks=1, scope="block"),
        {},
        ["stages.0.blocks.1.ffn", "stages.1.blocks.1.ffn", "stages.1.blocks.2.ffn"],
    ),
    "block-spans": (
        swin_cases,
        dict(dense_blocks=[[0, 2]], scope="block"),
        STAGES,
        ["stages.0.blocks.1.ffn", "stages.0.blocks.3.ffn", "stages.0.blocks.4.ffn"],
    ),
    "vit": (vit_cases, dict(merge_at=1), {}, ["blocks.1"]),
    "vit-twice": (
        vit_cases,
        dict(merge_at=[2, 4], compression_ratio=[0.5, 0.25]),
        {},
        ["blocks.2", "blocks.4"],
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def build(case: str, merger: dict | None = MASKS[0], **more):
    cases, layout, options, _ = CASES[case]
    return cases.build(merger and {**layout, **merger}, **options, **more)


def dense_twin(case: str, model: nn.Module, **more) -> nn.Module:
    """Of the same weights, without mergers."""
    twin, weights = build(case, None, **more), model.state_dict()
    twin.load_state_dict({key: weights[key] for key in twin.state_dict()})
    return twin


def points_of(case: str) -> list[str]:
    return CASES[case][3]


def see(model: nn.Module, images: Tensor, names=None) -> dict[str, MergePoint]:
    with torch.no_grad(), MergeWatch(model, names) as watch:
        model(images)
        return dict(watch.seen)


def paste(point: MergePoint, windows: Tensor) -> Tensor:
    """(B, W, N, C) to (B, C, H, W), a token at a time."""
    height, width, m = point.grid
    out = windows.new_zeros(len(windows), windows.shape[-1], height, width)
    for y in range(height):
        for x in range(width):
            window = y // m * -(-width // m) + x // m
            out[:, :, y, x] = windows[:, window, y % m * m + x % m]
    return out


def test_points_are_named_by_what_reads_merged_tokens(case):
    model = build(case)
    with MergeWatch(model) as watch:
        assert watch.names == points_of(case) == list(model.mergers_by_point())
        model(torch.randn(1, 3, 37, 50))
        assert list(watch.seen) == watch.names
    for name, merger in model.mergers_by_point().items():
        stage, _, block = f".{name}".rpartition(".blocks.")  # '' for a ViT
        if name.endswith(".ffn"):
            assert merger is model.get_submodule(name.removesuffix(".ffn")).merger
        else:
            assert merger is model.get_submodule(stage[1:]).mergers[block]


@pytest.mark.parametrize("case", ["stage", "vit"])
def test_where_nothing_is_merged_there_are_no_points(case):
    for model in (build(case, None), build(case, dict(MASKS[0], compression_ratio=1.0))):
        assert model.mergers_by_point() == {} and see(model, torch.randn(1, 3, 37, 50)) == {}


@pytest.mark.parametrize("hw", [(64, 96), (97, 131)])
def test_the_dense_twin_has_the_same_points(float64, case, hw):
    """Before the first of them nothing has been merged: its tokens are the same ones."""
    model, images = build(case, dict(type="Pool")), torch.randn(2, 3, *hw)
    merged = see(model, images)
    dense = see(dense_twin(case, model), images, points_of(case))
    assert list(dense) == list(merged)
    for i, (name, point) in enumerate(merged.items()):
        twin = dense[name]
        if case == "vit-twice" and i:  # its tokens have stayed merged
            assert point.grid == twin.grid.shrunk(3) and twin.stride == 4
            assert point.stride == pytest.approx(4 * 4 / 3)
            continue
        assert (twin.grid, twin.stride) == (point.grid, point.stride)
        assert twin.tokens.shape == point.tokens.shape and twin.tokens.dtype == point.tokens.dtype
        maps = [p.to_map(p.tokens) for p in (point, twin)]
        assert (difference(maps[:1], maps[1:]) < 1e-12) == (i == 0)
        assert torch.equal(
            twin.merged_map(), twin.to_map(F.layer_norm(twin.tokens, (maps[0].shape[1],)))
        )


@pytest.mark.parametrize("hw", [(97, 131), (3, 64)])
def test_maps_lie_where_the_pixels_do(float64, case, hw):
    """In blocks that change nothing, a pixel shows in one token: at its place over the stride."""
    ratios = dict(compression_ratio=[0.25, 0.0625]) if case == "vit-twice" else {}
    model = build(case, dict(type="Pool", **ratios))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(last in name for last in ("attn.proj", "w_msa.proj", "mlp.fc2", "ffn.layers.1")):
                parameter.zero_()
    image = torch.randn(1, 3, *hw)
    before = see(model, image)
    strides = set()
    for y, x in [(0, 0), (2, 43), (hw[0] - 1, hw[1] - 1), (hw[0] // 2, 20)]:
        other = image.clone()
        other[..., y, x] += 5
        for name, point in see(model, other).items():
            assert len(point.tokens[0]) == point.grid.rows * point.grid.columns
            assert point.tokens.shape[2] == point.grid.window**2
            maps = point.to_map(point.tokens)
            assert maps.shape[2:] == (point.grid.height, point.grid.width)
            assert maps.shape == point.merged_map().shape
            old = before[name]
            changed = (maps - old.to_map(old.tokens)).abs().amax((0, 1)).nonzero().tolist()
            assert changed == [[y // point.stride, x // point.stride]]
            strides.add(point.stride)
    expected = {"stage": {4, 8}, "block": {4, 8}, "vit-twice": {4, 8}}
    assert strides == expected.get(case, {4})


@pytest.mark.parametrize("strides, patch", [((4, 2, 2), 4), ((2, 2, 3), 2), ((3, 1, 2), 3)])
@pytest.mark.parametrize("hw", [(97, 131), (48, 36)])
def test_swins_of_any_strides(strides, patch, hw):
    sizes = dict(swin_cases.CUSTOM, window_size=3, strides=strides, patch_size=patch)
    model = swin_cases.build(dict(type="Pool", dense_blocks=0), sizes=sizes, out_indices=(0, 1, 2))
    seen, stride = see(model, torch.randn(1, 3, *hw)), 1
    with torch.no_grad():
        outs = model(torch.randn(1, 3, *hw))
    for i, out in enumerate(outs):
        point = seen[f"stages.{i}.blocks.0"]
        stride *= strides[i]
        assert point.merged_map().shape == out.shape and point.stride == stride


def merged_map_oracle(point: MergePoint, merger, logits: dict) -> Tensor:
    """Layer norm, one matrix down and one up for each window, a window at a time.

    ``logits`` has those of the chain so far, by image and window, and is given the new ones.
    """
    height, width, m = point.grid
    columns = -(-width // m)
    out = torch.zeros_like(point.tokens)
    for b, windows in enumerate(point.tokens):
        for w, tokens in enumerate(windows):
            y, x = w // columns * m, w % columns * m
            real = [n for n in range(m * m) if y + n // m < height and x + n % m < width]
            matrices = decide(merger, tokens[real], real, logits.get((b, w)))
            logits[b, w] = matrices.logits
            z = torch.tensor([_normalised(row) for row in tokens[real].tolist()])
            out[b, w] = matrices.restore @ (matrices.merge[:, real] @ z)
    return paste(point, out)


# Cells that no token chose pad a ViT's second merge: the oracle has no part in that.
@pytest.mark.parametrize(
    "case, merger",
    [
        pytest.param(case, merger, id=f"{case}-{merger_name(merger)}")
        for case in CASES
        for merger in MERGERS
        if case != "vit-twice" or merger_name(merger) in ("soft", "Pool")
    ],
)
def test_merged_map_is_the_oracle(float64, case, merger):
    model = build(case, merger)
    mergers, logits = model.mergers_by_point(), {}
    for name, point in see(model, torch.randn(2, 3, 23, 37)).items():
        if not mergers[name].chained:
            logits.clear()
        assert point.grid.padded
        expected = merged_map_oracle(point, mergers[name], logits)
        assert difference([point.merged_map()], [expected]) < 1e-9


def test_tokens_are_those_that_the_merger_read(float64, case):
    """The prefix tokens of a ViT aside."""
    model, read = build(case), {}
    for name, merger in model.mergers_by_point().items():
        merger.register_forward_hook(lambda m, args, out, name=name: read.update({name: args[0]}))
    for name, point in see(model, torch.randn(1, 3, 23, 37)).items():
        assert torch.equal(point.tokens, read[name])


@pytest.mark.parametrize("case", ["stage", "vit"])
def test_tokens_of_a_dense_point_are_those_that_its_block_reads(float64, case):
    model, name = build(case, None), points_of(case)[-1]
    read = []
    model.get_submodule(name).register_forward_pre_hook(lambda m, args: read.append(args[0]))
    point = see(model, torch.randn(2, 3, 23, 37), [name])[name]
    expected = read[0]
    if case == "vit":
        expected = expected[:, model.num_prefix :].transpose(1, 2).unflatten(2, point.grid[:2])
    else:
        expected = paste(point, expected)
    assert torch.equal(point.to_map(point.tokens), expected)


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


def gradients(model: nn.Module, images: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Of a loss on the features and on every merged map; nothing is seen in the backward pass."""
    model.train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    with MergeWatch(model, names) as watch:
        loss = sum(out.square().mean() for out in model(images))
        loss = loss + sum((p.merged_map() ** 3).mean() for p in watch.seen.values())
        watch.seen.clear()
        loss.backward()
        assert watch.seen == {}
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "case, merger",
    [(case, merger) for case in CASES for merger in (MASKS[0], None)]
    + [("stage", MASKS[1]), ("block", MASKS[1])],
    ids=lambda value: value if isinstance(value, str) else merger_name(value or dict(type="dense")),
)
def test_gradients_of_merged_maps_with_checkpointed_blocks(float64, case, merger):
    images, names = torch.randn(2, 3, 23, 37), points_of(case)
    plain, checkpointed = (build(case, merger, with_cp=cp, drop_path_rate=0.2) for cp in (0, 1))
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


def test_under_autocast(case):
    model, images = build(case), torch.randn(1, 3, 23, 37)
    exact = see(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        for name, point in see(model, images).items():
            maps, reference = point.merged_map().float(), exact[name].merged_map()
            assert maps.isfinite().all()
            assert (maps - reference).square().mean() < 0.01 * reference.square().mean()


def test_pool_has_points_as_well(case):
    mergers = build(case, dict(type="Pool")).mergers_by_point()
    assert list(mergers) == points_of(case)
    assert all(isinstance(merger, Pool) for merger in mergers.values())


# Mergers that lose the grid: in Swin's stage scope every block merges the windows that it attends
# in, shifted ones too.

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
    plain, checkpointed = (gridless(merger, with_cp=cp) for cp in (0, 1))
    expected, without = gradients(plain, images, names), gradients(plain, images, [])
    for name, gradient in gradients(checkpointed, images, names).items():
        assert (gradient - expected[name]).abs().max() < 1e-9, name
    first = "patch_embed.projection.weight"
    assert (without[first] - expected[first]).abs().max() > 1e-6
