"""Arguments of what we register: each bad one is refused as it is built, by name and value."""

import math
from typing import Any

import pytest
from mmdet.registry import HOOKS, MODELS

from ltm_det.backbones.common.arguments import PLACE
from ltm_det.basics.arguments import arguments_of
from ltm_det.basics.errors import InputError
from ltm_det.measure.benchmark_models import ON_GRIDS
from ltm_det.merging import MERGERS
from tests.test_backbones import convnext_cases, efficientvit_cases, mobilevit_cases, pvt_cases
from tests.test_backbones.fuzz_cases import FAMILIES

SMALL: dict[str, dict[str, Any]] = dict(
    LTMSwin=dict(embed_dims=8, depths=[2, 1], num_heads=[1, 2], strides=[4, 2], out_indices=[0, 1]),
    LTMViT=dict(embed_dims=8, depth=4, num_heads=2, patch_size=4),
    LTMMobileViT=dict(mobilevit_cases.MINI),
    LTMEfficientViT=dict(efficientvit_cases.MINI),
    LTMPVTv2=dict(pvt_cases.MINI),
    LTMConvNeXt=dict(convnext_cases.MINI),
)
# What else we register, and what it cannot do without.
OTHERS: dict[str, dict[str, Any]] = dict(SimpleFPN=dict(in_channels=8))
IN_HOOKS = ("IBHook", "MergerLossHook")
# By family, values of arguments and what the message has to say.
BAD: list[tuple[str, str, Any, str]] = [
    ("LTMSwin", "num_heads", [3, 2], r"num_heads\[0\]=3 does not divide the 8 channels of stage 0"),
    ("LTMSwin", "num_heads", [1], r"num_heads=\[1\] has 1 entries for the 2 stages"),
    ("LTMSwin", "num_heads", [1, 2, 4], "has 3 entries for the 2 stages.*one for each"),
    ("LTMSwin", "strides", [4], r"strides=\[4\] has 1 entries"),
    ("LTMSwin", "strides", [2, 2], r"strides=\[2, 2\] must start with patch_size=4"),
    ("LTMSwin", "depths", [], r"depths must have 1 or more entries, got \[\]"),
    ("LTMSwin", "depths", [2, 0], r"depths\[1\] must be a whole number from 1 on, got 0"),
    ("LTMSwin", "depths", [2, "1"], r"depths\[1\] must be a whole number .* got '1'"),
    ("LTMSwin", "out_indices", (9,), r"out_indices=\(9,\) must name stages of 0 to 1"),
    ("LTMSwin", "out_indices", (-1,), r"out_indices\[0\] must be .* from 0 on, got -1"),
    ("LTMSwin", "out_indices", (1, 0), "in ascending order, each once"),
    ("LTMSwin", "out_indices", (1, 1), "in ascending order, each once"),
    ("LTMSwin", "mlp_ratio", 0, "mlp_ratio must be a whole number from 1 to 1000, got 0"),
    ("LTMSwin", "frozen_stages", 3, "frozen_stages=3 must be a whole number from -1 to 2"),
    ("LTMSwin", "norm_cfg", dict(type="LNN"), "norm_cfg.type='LNN' is unknown: did you mean"),
    ("LTMSwin", "norm_cfg", dict(type="BN"), "norm_cfg=.*'BN'.* does not fit"),
    ("LTMSwin", "norm_cfg", None, "norm_cfg=None: give a dict with type"),
    ("LTMSwin", "act_cfg", dict(type="GELUU"), "act_cfg.type='GELUU' is unknown: .*'GELU'"),
    ("LTMSwin", "pretrained", 3, "pretrained must be a string, got 3"),
    ("LTMViT", "num_heads", 3, "embed_dims=8 must be a multiple of num_heads=3"),
    ("LTMViT", "depth", 0, "depth must be a whole number from 1 on, got 0"),
    ("LTMViT", "mlp_ratio", 0, r"mlp_ratio must lie in \(0, 1000\], got 0"),
    ("LTMViT", "mlp_ratio", 0.01, "mlp_ratio=0.01 leaves no channel of embed_dims=8"),
    ("LTMViT", "pretrain_img_size", 3, "pretrain_img_size=3: 3x3 pixels hold no patch of 4x4"),
    ("LTMViT", "pretrain_img_size", (8, 8, 8), r"must be a side, or \(height, width\)"),
    ("LTMViT", "frozen_stages", 5, "frozen_stages=5: give -1 to 4"),
    ("LTMViT", "out_indices", (0,), "LTMViT has no argument 'out_indices'"),
    ("SimpleFPN", "norm_cfg", dict(type="LN"), "norm_cfg=.*'LN'.* does not fit"),
    ("SimpleFPN", "init_cfg", dict(type="Xavierr"), "init_cfg.type='Xavierr' is unknown: did you"),
    ("SimpleFPN", "num_out", 5, "SimpleFPN has no argument 'num_out': did you mean 'num_outs'"),
]
# Of all families that have the argument.
BAD += [
    (family, name, value, told)
    for family in SMALL
    for name, value, told in [
        ("window_size", 0, "window_size must be a whole number from 1 on, got 0"),
        ("window_size", -7, "window_size must be .* got -7"),
        ("window_size", True, "window_size must be .* got True"),
        ("window_size", 200, r"window_size=200: .* 200\^4 logits: give at most 128"),
        ("in_channels", 0, "in_channels must be a whole number from 1 on, got 0"),
        ("embed_dims", 8.0, "embed_dims must be a whole number from 1 on, got 8.0"),
        ("embed_dims", "8", "embed_dims must be a whole number from 1 on, got '8'"),
        ("drop_path_rate", 2, r"drop_path_rate must lie in \[0, 1\), got 2"),
        ("drop_rate", 1.5, r"drop_rate must lie in \[0, 1\], got 1.5"),
        ("attn_drop_rate", math.nan, r"attn_drop_rate must lie in \[0, 1\], got nan"),
        ("drop_rate", "0.1", r"drop_rate must lie in \[0, 1\], got '0.1', which is no number"),
        ("with_cp", "no", "with_cp must be True or False, got 'no'"),
        ("qkv_bias", 1, "qkv_bias must be True or False, got 1"),
        ("init_cfg", dict(type="Normal"), "init_cfg=.*takes type='Pretrained' or None"),
        ("init_cfg", dict(type="Pretrained"), "init_cfg: checkpoint must be a string, got None"),
        ("windowsize", 7, "has no argument 'windowsize': did you mean 'window_size'"),
    ]
    if name in arguments_of(MODELS.get(family)) or name == "windowsize"
]
# Of mergers in both families: the option that only the other family has, and flags.
OTHERS_OPTIONS = dict.fromkeys(SMALL, ("merge_at", 1, "LTMViT"))
OTHERS_OPTIONS["LTMViT"] = ("scope", "block", "LTMSwin")


def build(name: str, **options: Any) -> Any:
    registry = HOOKS if name in IN_HOOKS else MODELS
    return registry.build(dict(type=name, **(SMALL | OTHERS).get(name, {}) | options))


def test_every_family_is_here() -> None:
    assert SMALL.keys() == FAMILIES.keys()
    for name in (*SMALL, *OTHERS, *IN_HOOKS):
        build(name)


@pytest.mark.parametrize("family, name, value, told", BAD, ids=str)
def test_bad_values(family: str, name: str, value: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        build(family, **{name: value})


@pytest.mark.parametrize("name", [*SMALL, *OTHERS, *IN_HOOKS])
def test_no_argument_takes_anything(name: str) -> None:
    """A new argument without a rule fails here."""
    registry = HOOKS if name in IN_HOOKS else MODELS
    for argument in arguments_of(registry.get(name)):
        with pytest.raises(InputError, match=rf"\b{argument}\b.*object"):
            build(name, **{argument: object()})


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("kind", MERGERS)
def test_mergers_in_families(family: str, kind: str) -> None:
    own = arguments_of(MERGERS[kind]).keys() - {*PLACE}
    merger = dict(type=kind, compression_ratio=0.5)
    if family in ON_GRIDS and not MERGERS[kind].keeps_grid:
        with pytest.raises(InputError, match="lie on no grid"):
            build(family, merger=merger)
        return
    build(family, merger=merger)
    for option in own:
        for value in (object(), [object()], math.nan):
            with pytest.raises(InputError, match=option):
                build(family, merger=merger | {option: value})
    if "proportional" in own:
        with pytest.raises(InputError, match="proportional must be True or False, got 'no'"):
            build(family, merger=merger | dict(proportional="no"))
    option, value, other = OTHERS_OPTIONS[family]
    with pytest.raises(InputError, match=f"merger.{option}={value!r} is of {other}.* leave it out"):
        build(family, merger=merger | {option: value})
    with pytest.raises(InputError, match="merger.window is what"):
        build(family, merger=merger | dict(window=3))
    with pytest.raises(InputError, match="no argument 'compresion': did you mean 'compression_rat"):
        build(family, merger=merger | dict(compresion=1))
