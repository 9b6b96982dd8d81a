"""Merge points: their names, what is seen there, and where it lies."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltm_det.backbones import MergePoint, MergeWatch
from ltm_det.merging import Pool
from tests.test_backbones import swin_cases
from tests.test_backbones.harness import MASKS, MERGERS, difference, merger_name
from tests.test_backbones.merge_cases import CASES, build, paste, points_of, see
from tests.test_backbones.oracle import decide
from tests.test_merging.oracle import _normalised


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def dense_twin(case: str, model: nn.Module, **more) -> nn.Module:
    """Of the same weights, without mergers."""
    twin, weights = build(case, None, **more), model.state_dict()
    twin.load_state_dict({key: weights[key] for key in twin.state_dict()})
    return twin


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
