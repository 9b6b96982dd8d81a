"""LTMPVTv2 and LTMConvNeXt against timm's models: the same maps, and weights by key; what merges.

Merged blocks are held against the words of their docstrings, written out.
"""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import nn

from ltm_det.backbones import LTMConvNeXt, LTMPVTv2
from ltm_det.backbones.common.weights import load_accounted
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.backbones.convnext.weights import CONVNEXT
from ltm_det.backbones.pvt.weights import PVTV2
from ltm_det.basics.errors import InputError
from tests.test_backbones.harness import difference, randomise

PVT = dict(embed_dims=(8, 16), depths=(2, 3), num_heads=(2, 4), sr_ratios=(4, 1), mlp_ratios=(4, 2))
NEXT = dict(dims=(8, 16, 24, 32), depths=(2, 2, 3, 1))
SIZES = [(64, 96), (37, 50), (61, 75), (33, 130)]
LTM = dict(type="LTM", compression_ratio=0.5)
# By family: the class, its small sizes, timm's classifier of these, the accounting, last stage.
CASES = {
    "pvt": (LTMPVTv2, PVT, lambda: PyramidVisionTransformerV2(num_classes=3, **PVT), PVTV2, 1),
    "convnext": (LTMConvNeXt, NEXT, lambda: ConvNeXt(num_classes=3, **NEXT), CONVNEXT, 3),
}
ARCHS = [(LTMPVTv2, f"pvt_v2_b{i}", f"b{i}") for i in range(6)]
ARCHS += [(LTMConvNeXt, f"convnext_{size}", size[0]) for size in ("tiny", "small", "base")]


@pytest.fixture(params=CASES)
def case(request):
    cls, sizes, classifier, family, last = CASES[request.param]

    def make(merger=None, **options):
        outs = dict(out_indices=range(last + 1))
        return randomise(cls(arch=sizes, merger=merger, **outs | options))

    return randomise(classifier()), make, family


def maps(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return model(x)


def timm_maps(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return model.forward_intermediates(x, intermediates_only=True)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_classifiers_weights_give_timms_maps(case, size):
    """Without a merger, and with one that keeps all."""
    source, make, family = case
    for merger in (None, dict(LTM, compression_ratio=1.0)):
        model = make(merger)
        note = load_accounted(family, model, source.state_dict())
        assert "not needed" in note and "left as initialised" not in note  # of the head
        x = torch.randn(2, 3, *size)
        assert difference(maps(model, x), timm_maps(source, x)) < 1e-4


def test_dense_weights_in_a_merged_model(case):
    source, make, family = case
    model = make(LTM)
    assert ".step" in load_accounted(family, model, source.state_dict())
    own, given = model.state_dict(), source.state_dict()
    shared = [key for key in own if ".merger" not in key]
    assert len(shared) > 50 and all(torch.equal(own[key], given[key]) for key in shared)


def test_a_key_too_few_or_too_many_is_an_error(case):
    source, make, family = case
    state = source.state_dict()
    key = next(key for key in reversed(state) if key.startswith("stages."))
    with pytest.raises(ValueError, match=f"missing: {key}"):
        load_accounted(family, make(), {k: v for k, v in state.items() if k != key})
    with pytest.raises(ValueError, match=r"unexpected: stages\.9\.weight"):
        load_accounted(family, make(), state | {"stages.9.weight": torch.zeros(1)})
    merged = make(LTM).state_dict()
    with pytest.raises(ValueError, match="(?s)unexpected.*drop_mergers=True"):
        load_accounted(family, make(), merged)
    assert load_accounted(family, make(), merged, drop_mergers=True) == ""


def test_the_authors_names_are_known():
    """Of PVTv2's and ConvNeXt's own repositories."""
    theirs = {}
    for key, value in (
        randomise(PyramidVisionTransformerV2(num_classes=3, **PVT)).state_dict().items()
    ):
        for stage in range(2):
            key = key.replace(f"stages.{stage}.downsample", f"patch_embed{stage + 1}")
            key = key.replace(f"stages.{stage}.blocks", f"block{stage + 1}")
            key = key.replace(f"stages.{stage}.norm", f"norm{stage + 1}")
        key = key.replace("patch_embed.", "patch_embed1.").replace(".dwconv.", ".dwconv.dwconv.")
        theirs[key] = value
    assert {"patch_embed2.norm.bias", "block1.1.mlp.dwconv.dwconv.weight", "norm2.bias"} <= {
        *theirs
    }
    note = load_accounted(PVTV2, LTMPVTv2(arch=PVT, out_indices=(1,)), theirs)
    assert note == "in the checkpoint, not needed: head.weight, head.bias"
    theirs = {}
    for key, value in randomise(ConvNeXt(num_classes=3, **NEXT)).state_dict().items():
        key = key.replace("stem.", "downsample_layers.0.").replace(".blocks.", ".")
        for stage in range(1, 4):
            key = key.replace(f"stages.{stage}.downsample", f"downsample_layers.{stage}")
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        theirs[key.replace("head.norm", "norm").replace("head.fc", "head")] = value
    assert {"downsample_layers.0.1.bias", "stages.2.1.pwconv2.bias", "head.bias"} <= {*theirs}
    note = load_accounted(CONVNEXT, LTMConvNeXt(arch=NEXT), theirs)
    assert note.startswith("in the checkpoint, not needed: norm.weight")


def test_relatives_are_refused():
    linear = PyramidVisionTransformerV2(num_classes=0, linear=True, **PVT).state_dict()
    with pytest.raises(ValueError, match="linear attention, '-Li'.*only those"):
        load_accounted(PVTV2, LTMPVTv2(arch=PVT, out_indices=(1,)), linear)
    second = ConvNeXt(num_classes=0, use_grn=True, ls_init_value=None, **NEXT).state_dict()
    with pytest.raises(ValueError, match="ConvNeXt V2.*only the first version"):
        load_accounted(CONVNEXT, LTMConvNeXt(arch=NEXT), second)


@pytest.mark.parametrize("cls, name, arch", ARCHS, ids=lambda x: x if "_" in str(x) else "")
def test_published_sizes_have_timms_parameters(cls, name, arch):
    with torch.device("meta"):
        state, model = timm.create_model(name).state_dict(), cls(arch=arch)
    own = {k: v.shape for k, v in model.state_dict().items()}
    assert own == {k: v.shape for k, v in state.items() if not k.startswith("head.")}


def test_stages_are_frozen(case):
    _, make, _ = case
    model = make(LTM, frozen_stages=1).train()
    frozen = [model.stem, model.stages[0]]
    assert not any(p.requires_grad for m in frozen for p in m.parameters())
    assert all(p.requires_grad for p in model.stages[-1].parameters())


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (9, 9)], ids=str)
def test_what_timm_refuses_is_filled_up(case, size):
    """Zeros make no difference to where they would lie outside of the map."""
    source, make, _ = case
    with pytest.raises(RuntimeError, match="Kernel size"):
        timm_maps(source, torch.zeros(1, 3, *size))
    found = maps(make(), torch.randn(1, 3, *size))
    assert all(m.isfinite().all() and m.numel() for m in found)


def test_first_blocks_stay_dense(case):
    """One of a stage, two of one of six."""
    _, make, _ = case
    sizes = dict(LTMPVTv2=dict(PVT, depths=(2, 6)), LTMConvNeXt=dict(NEXT, depths=(2, 6, 1, 3)))
    model = make(LTM)
    model = type(model)(arch=sizes[type(model).__name__], out_indices=(0,), merger=LTM)
    kept = [[kept == 16 for kept in stage.kept] for stage in model.stages]
    assert kept[:2] == [[True, False], [True, True, False, False, False, False]]


def test_merged_queries_ask_the_whole_map():
    """x + unmerge(y - y0), two blocks on the same merged tokens; keys and values are of x."""
    merger = dict(type="Pool", compression_ratio=0.25, dense_blocks=[2, 1])
    model = randomise(LTMPVTv2(arch=PVT, out_indices=(0, 1), merger=merger))
    x = torch.randn(1, 3, 37, 50)
    with torch.no_grad():
        first, found = model(x)
        stage = model.stages[1]
        t = stage.blocks[0](*[stage.downsample(first).flatten(1, 2), WindowGrid(5, 7, 4)] * 2)[0]
        merge, there = _pooling(5, 7), (3, 4)  # 4 x 4 keep 2 x 2, none of padding alone
        share = merge / merge.sum(1, keepdim=True)
        y = y0 = share @ t
        for block in stage.blocks[1:]:
            keys = block.norm1(t + merge.T @ (y - y0))
            q = block.attn.q(block.norm1(y)).unflatten(2, (4, -1))
            k, v = block.attn.kv(keys).unflatten(2, (2, 4, -1)).unbind(2)
            weights = torch.einsum("bqhd,bkhd->bhqk", q, k).mul(4**-0.5).softmax(-1)
            y = y + block.attn.proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))
            y = y + block.mlp(block.norm2(y), list(there))
        out = stage.norm(t + merge.T @ (y - y0)).transpose(1, 2).unflatten(2, (5, 7))
    assert difference([found], [out]) < 1e-5


def test_merged_mlps_are_of_the_convolutions_output():
    """Of windows of 4 x 4 tokens the quarters' means, each of four; the way back copies."""
    merger = dict(type="Pool", compression_ratio=0.25)
    model = randomise(
        LTMConvNeXt(arch=dict(dims=(8,), depths=(2,)), out_indices=(0,), merger=merger)
    )
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        (found,) = model(x)
        stage = model.stages[0]
        dense, block = stage.blocks
        t, _ = dense(model.stem(x))
        z = F.avg_pool2d(block.conv_dw(t), 2).permute(0, 2, 3, 1)
        change = (block.gamma * block.mlp(block.norm(z))).permute(0, 3, 1, 2)
        out = t + F.interpolate(change, scale_factor=2, mode="nearest")
    assert difference([found], [out]) < 1e-5


def _pooling(height: int, width: int) -> torch.Tensor:
    """(L', L), which of the tokens of a map lie in each square of 2 x 2."""
    rows, columns = -(-height // 2), -(-width // 2)
    squares = torch.zeros(rows * columns, height * width)
    for i in range(height):
        for j in range(width):
            squares[i // 2 * columns + j // 2, i * width + j] = 1
    return squares


BAD = [
    (LTMPVTv2, dict(arch="b9"), r"arch='b9': choose one of \['b0'"),
    (LTMPVTv2, dict(arch=dict(PVT, num_heads=(2, 3))), r"num_heads\[1\]=3 does not divide .*16"),
    (LTMPVTv2, dict(arch=dict(PVT, depths=(1,))), r"depths=\(1,\) has 1 entries for the 2 stages"),
    (LTMPVTv2, dict(arch=dict(PVT, sr_ratios=(0, 1))), r"sr_ratios\[0\] must be .* got 0"),
    (LTMPVTv2, dict(out_indices=(4,)), "must name stages of 0 to 3"),
    (LTMPVTv2, dict(norm_eval=True), "has no argument 'norm_eval'"),
    (LTMPVTv2, dict(merger=dict(LTM, type="ToMe")), r"LTMPVTv2: .*'ToMe' lie on no grid.*'Pool'"),
    (LTMPVTv2, dict(merger=dict(LTM, seeds="farthest")), "type 'LTM' with these options lie on no"),
    (LTMConvNeXt, dict(arch="x"), r"arch='x': choose one of \['t', 's', 'b'\]"),
    (LTMConvNeXt, dict(arch=dict(NEXT, depths=(1,))), r"depths=\(1,\) has 1 entries"),
    (LTMConvNeXt, dict(arch=dict(dims=[8] * 5, depths=[1] * 5)), "5 stages: give at most 4"),
    (LTMConvNeXt, dict(frozen_stages=5), "frozen_stages=5: give -1 to 4"),
    (LTMConvNeXt, dict(merger=dict(LTM, scope="block")), "scope='block' is of .*has dense_blocks"),
]


@pytest.mark.parametrize("cls, options, message", BAD, ids=lambda x: str(x)[:30])
def test_bad_arguments_are_named_with_a_remedy(cls, options, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        cls(**options)
