"""LTMMobileViT and LTMEfficientViT against timm's models: the same maps, and its weights by key."""

import pytest
import timm
import torch
from timm.models.byobnet import ByobNet
from timm.models.efficientvit_mit import EfficientVit
from torch import nn

from ltm_det.backbones import LTMEfficientViT, LTMMobileViT
from ltm_det.backbones.common.weights import load_accounted
from ltm_det.backbones.efficientvit.weights import EFFICIENTVIT
from ltm_det.backbones.mobilevit.arguments import timm_config
from ltm_det.backbones.mobilevit.weights import MOBILEVIT
from ltm_det.basics.errors import InputError
from tests.test_backbones import efficientvit_cases, mobilevit_cases
from tests.test_backbones.harness import difference, randomise

SIZES = [(64, 96), (37, 50), (61, 75), (1, 9)]
LTM = dict(type="LTM", compression_ratio=0.5)
ARCHS = [(LTMMobileViT, f"mobilevit_{size}", size) for size in ("xxs", "xs", "s")]
ARCHS += [(LTMEfficientViT, f"efficientvit_b{i}", f"b{i}") for i in range(4)]


def mobilevit():
    cfg = timm_config(mobilevit_cases.SIZES)
    cfg.num_features = 16  # a classifier's last convolution
    return randomise(ByobNet(cfg, num_classes=3))


def efficientvit():
    return randomise(EfficientVit(head_widths=(16, 16), num_classes=3, **efficientvit_cases.SIZES))


CASES = {
    "mobilevit": (mobilevit, mobilevit_cases.make, MOBILEVIT),
    "efficientvit": (efficientvit, efficientvit_cases.make, EFFICIENTVIT),
}


@pytest.fixture(params=CASES)
def case(request):
    make_timm, make, family = CASES[request.param]
    return make_timm(), make, family


def maps(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return model(x)


def timm_map(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Of the last stage."""
    with torch.no_grad():
        return [model.stages(model.stem(x))]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_classifiers_weights_give_timms_maps(case, size):
    """Without a merger, and with one that keeps all."""
    source, make, family = case
    for merger in (None, dict(LTM, compression_ratio=1.0)):
        model = make(merger).eval()
        note = load_accounted(family, model, source.state_dict())
        assert "not needed" in note and "left as initialised" not in note  # of the head
        x = torch.randn(2, 3, *size)
        assert difference(maps(model, x), timm_map(source, x)) < 1e-4


def test_dense_weights_in_a_merged_model(case):
    source, make, family = case
    model = make(LTM).eval()
    assert ".step" in load_accounted(family, model, source.state_dict())
    own, given = model.state_dict(), source.state_dict()
    shared = [key for key in own if ".merger" not in key]
    assert len(shared) > 50 and all(torch.equal(own[key], given[key]) for key in shared)


def test_a_key_too_few_or_too_many_is_an_error(case):
    source, make, family = case
    state = source.state_dict()
    key = next(key for key in reversed(state) if key.startswith("stages."))
    with pytest.raises(ValueError, match=f"missing: {key}"):
        load_accounted(family, make(None), {k: v for k, v in state.items() if k != key})
    with pytest.raises(ValueError, match=r"unexpected: stages\.9\.weight"):
        load_accounted(family, make(None), state | {"stages.9.weight": torch.zeros(1)})
    merged = make(LTM).state_dict()
    with pytest.raises(ValueError, match="(?s)unexpected.*drop_mergers=True"):
        load_accounted(family, make(None), merged)
    assert load_accounted(family, make(None), merged, drop_mergers=True) == ""


def test_relatives_are_refused():
    with pytest.raises(ValueError, match="MobileViT V2.*only the first version"):
        key = "stages.2.1.transformer.0.attn.qkv_proj.weight"
        load_accounted(MOBILEVIT, mobilevit_cases.make(None), {key: torch.zeros(1)})
    with pytest.raises(ValueError, match="L series.*only B0 to B3"):
        key = "stages.0.blocks.0.main.spatial_conv.conv.weight"
        load_accounted(EFFICIENTVIT, efficientvit_cases.make(None), {key: torch.zeros(1)})


@pytest.mark.parametrize("cls, name, arch", ARCHS, ids=lambda x: x if "_" in str(x) else "")
def test_published_sizes_have_timms_parameters(cls, name, arch):
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    own = {k: v.shape for k, v in cls(arch=arch).state_dict().items()}
    head = ("head.", "final_conv.")
    assert own == {k: v.shape for k, v in state.items() if not k.startswith(head)}


def test_stages_are_frozen_and_batch_norms_keep_still(case):
    _, make, _ = case
    model = make(LTM, frozen_stages=1).train()
    frozen = [model.stem, model.stages[0]]
    assert not any(p.requires_grad for m in frozen for p in m.parameters())
    assert all(p.requires_grad for p in model.stages[-1].parameters())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    learning = make(LTM, norm_eval=False).train()
    assert all(m.training for m in learning.modules() if isinstance(m, nn.BatchNorm2d))


def test_block_scope_merges_for_each_block_and_stage_scope_once(case):
    _, make, _ = case
    assert len(make(LTM, scope="block").mergers_by_point()) == 3
    assert len(make(LTM, scope="stage").mergers_by_point()) == 1


BAD = [
    (LTMMobileViT, dict(arch="m"), r"arch='m': choose one of \['xxs', 'xs', 's'\]"),
    (LTMMobileViT, dict(arch=dict(channels=[8, 8])), "lacks .*stem_channels"),
    (
        LTMMobileViT,
        dict(arch=dict(mobilevit_cases.SIZES, dims=(0, 6))),
        "dims must be multiples of 4, got 6",
    ),
    (
        LTMMobileViT,
        dict(arch=dict(mobilevit_cases.SIZES, depths=(0, 0))),
        r"must be 0 in the same stages",
    ),
    (LTMMobileViT, dict(out_indices=(5,)), "must name stages of 0 to 4"),
    (LTMMobileViT, dict(merger=dict(LTM, merge_at=1)), "merge_at=1 is of LTMViT"),
    (LTMEfficientViT, dict(arch="b9"), r"arch='b9': choose one of \['b0'"),
    (
        LTMEfficientViT,
        dict(arch=dict(efficientvit_cases.SIZES, head_dim=5)),
        "head_dim=5 does not divide the 8 channels",
    ),
    (LTMEfficientViT, dict(frozen_stages=5), "frozen_stages=5: give -1 to 4"),
    (LTMEfficientViT, dict(with_cp=True, norm_eval=False), "with_cp=True needs norm_eval=True"),
    (
        LTMEfficientViT,
        dict(merger=dict(LTM, type="ToMe")),
        r"'ToMe' lie on no grid.*choose one of \['LTM', 'Pool'\]",
    ),
]


@pytest.mark.parametrize("cls, options, message", BAD, ids=lambda x: str(x)[:30])
def test_bad_arguments_are_named_with_a_remedy(cls, options, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        cls(**options)
