"""Configs of all families at random, good values and bad ones mixed, each from its seed."""

import math
from random import Random
from typing import Any

from mmdet.registry import MODELS
from torch import Tensor, nn

from ltm_det.merging import MERGERS

SHAPES = [(1, 1), (1, 37), (41, 1), (3, 5), (17, 33), (32, 32), (2, 64), (63, 20), (40, 56)]
# Of a wrong type or size for nearly all fields; none asks for much memory.
ODD = [None, True, False, "3", "no", -1, 0, 0.5, 2.5, 12, 1e3, 1e-9, 1e-30, 1e30, 10**400]
ODD += [math.nan, math.inf, -math.inf, object, "LTM", [], (), {}, [None], [0], (1, 1), (2, 1, 1)]
ODD += [[-1, 0], [True, 1], ["1", 2], [0.5, "a"]]
ODD += [dict(type=kind) for kind in ("LN", "BN", "GELUU", "Pretrained")]
NORMS = [dict(type="LN"), dict(type="LN", eps=1e-6), dict(type="LN", requires_grad=False)]
# By merger, what its own options may be; a merger that is missing here fails the fuzz.
OPTIONS: dict[str, dict[str, list]] = dict(
    DTEM=dict(embed_dims=[1, 8, 64], temperature=[0.1, 1, 10.0], proportional=[True, False]),
    LTM=dict(
        mask=["soft", "hard", "hard_soft"],
        temperature=[0.1, 1, 10.0],
        update=["learned", "gradient"],
        affinity=[0, 1, 100.0],
        rounds=[1, 2, 3],
        detail=[0, 0.25, 1],
        proportional=[True, False],
        clusters=[2, 8],
        beta=[1, 10.0],
    ),
    LTMP=dict(temperature=[0.1, 1.0], proportional=[True, False]),
    PiToMe=dict(proportional=[True, False]),
    Pool=dict(),
    Random=dict(seed=[0, 1, -5]),
    ToFu=dict(mode=["auto", "prune", "merge"], switch=[0, 0.5, 1], proportional=[True, False]),
    ToMe=dict(proportional=[True, False]),
)
assert OPTIONS.keys() == MERGERS.keys()


def some(rng: Random, pools: dict[str, list], share: float = 0.4) -> dict[str, Any]:
    """A value of its pool for each of some fields."""
    return {name: rng.choice(pool) for name, pool in pools.items() if rng.random() < share}


def merger_of(rng: Random, own: dict[str, list]) -> dict[str, Any] | None:
    kind = rng.choice([None, *MERGERS, *MERGERS])
    if kind is None:
        return None
    found = dict(type=kind) | some(rng, own | OPTIONS[kind])
    if found.get("update") != "gradient" and rng.random() < 0.9:
        found = {k: v for k, v in found.items() if k not in ("clusters", "beta")}
    return dict(compression_ratio=rng.choice([0.51, 0.3, 1, 0.05, 0.999])) | found


def swin(rng: Random) -> dict[str, Any]:
    stages = rng.choice([1, 2, 3])
    depths = [rng.choice([1, 2, 3]) for _ in range(stages)]
    patch = rng.choice([1, 2, 4])
    outs = sorted(rng.sample(range(stages), rng.randint(1, stages)))
    whole = dict(
        embed_dims=rng.choice([4, 8, 12]),
        depths=depths,
        num_heads=[rng.choice([1, 2, 4]) for _ in depths],
        strides=[patch, *(rng.choice([2, 2, 1, 3]) for _ in depths[1:])],
        patch_size=patch,
        out_indices=tuple(outs),
        window_size=rng.choice([1, 2, 3, 4, 7]),
    )
    ratios = [[0.5, 0.2, [1, 0.5, 0.5][:depth] + [0.5] * (depth - 3)] for depth in depths]
    own = dict(
        scope=["stage", "block"],
        dense_blocks=[None, 0, 1, [[0] for _ in depths]],
        compression_ratio=[[rng.choice(pool) for pool in ratios], 0.4],
    )
    rest = dict(
        in_channels=[1, 3, 4],
        pretrain_img_size=[8, 24, (16, 24), [9]],
        mlp_ratio=[1, 2, 4],
        qkv_bias=[True, False],
        qk_scale=[None, 0.5, 1],
        patch_norm=[True, False],
        drop_rate=[0, 0.1, 1],
        attn_drop_rate=[0.0, 0.5],
        drop_path_rate=[0, 0.2, 0.9],
        use_abs_pos_embed=[True, False],
        act_cfg=[dict(type="ReLU"), dict(type="GELU")],
        norm_cfg=NORMS,
        with_cp=[True, False],
        frozen_stages=[-1, 0, 1],
        init_cfg=[None],
    )
    return dict(type="LTMSwin", merger=merger_of(rng, own), **whole, **some(rng, rest))


def vit(rng: Random) -> dict[str, Any]:
    depth = rng.choice([1, 2, 4])
    heads = rng.choice([1, 2, 4])
    whole = dict(
        embed_dims=heads * rng.choice([2, 3, 4]),
        depth=depth,
        num_heads=heads,
        patch_size=rng.choice([1, 4, 8]),
        pretrain_img_size=rng.choice([8, 24, (16, 24), [9]]),
        img_size=rng.choice([16, (24, 40)]),
        window_size=rng.choice([1, 2, 3, 4, 7]),
    )
    own = dict(merge_at=[0, [0], depth - 1, [*range(depth)]])
    rest = dict(
        mlp_ratio=[0.5, 1, 4.0],
        in_channels=[1, 3, 4],
        qkv_bias=[True, False],
        global_blocks=[None, (), [0], range(depth)],
        use_abs_pos=[True, False],
        use_rel_pos=[True, False],
        prefix_tokens=[0, 1, 2],
        final_norm=[True, False],
        init_values=[None, 1e-5, 0],
        drop_rate=[0, 0.1, 1],
        attn_drop_rate=[0.0, 0.5],
        drop_path_rate=[0, 0.2, 0.9],
        with_cp=[True, False],
        frozen_stages=[-1, 0, 1],
        init_cfg=[None],
    )
    return dict(type="LTMViT", merger=merger_of(rng, own), **whole, **some(rng, rest))


def convolutional(rng: Random, kind: str, arch: dict[str, Any], stages: int) -> dict[str, Any]:
    own = dict(scope=["stage", "block"], dense_blocks=[None, 0, 1, [[0]]])
    rest = dict(
        in_channels=[1, 3, 4],
        drop_path_rate=[0, 0.2, 0.9],
        with_cp=[True, False],
        frozen_stages=[-1, 0, 1],
        norm_eval=[True, True, False],
        init_cfg=[None],
    )
    outs = sorted(rng.sample(range(stages), rng.randint(1, stages)))
    whole = dict(arch=arch, out_indices=tuple(outs), window_size=rng.choice([1, 2, 3, 4, 7]))
    return dict(type=kind, merger=merger_of(rng, own), **whole, **some(rng, rest))


def mobilevit(rng: Random) -> dict[str, Any]:
    arch = dict(
        stem_channels=rng.choice([4, 8]),
        expand_ratio=rng.choice([1, 2]),
        channels=(8, rng.choice([8, 16])),
        strides=(1, rng.choice([1, 2])),
        residuals=(1, rng.choice([1, 2])),
        dims=(0, rng.choice([4, 8])),
        depths=(0, rng.choice([1, 2])),
    )
    return convolutional(rng, "LTMMobileViT", arch, 2)


def efficientvit(rng: Random) -> dict[str, Any]:
    depths = (1, 1, 1, rng.choice([1, 2]))
    arch = dict(widths=(8, 8, 8, rng.choice([8, 16])), depths=depths, head_dim=4, expand_ratio=2)
    return convolutional(rng, "LTMEfficientViT", arch, 3)


def pvt(rng: Random) -> dict[str, Any]:
    stages = rng.choice([1, 2])
    arch = dict(
        embed_dims=(8, 16)[:stages],
        depths=tuple(rng.choice([1, 2]) for _ in range(stages)),
        num_heads=tuple(rng.choice([1, 2]) for _ in range(stages)),
        sr_ratios=(rng.choice([1, 2, 8]), 1)[:stages],
        mlp_ratios=(rng.choice([1, 2]), 1)[:stages],
    )
    return pyramid(rng, "LTMPVTv2", arch, stages)


def convnext(rng: Random) -> dict[str, Any]:
    stages = rng.choice([1, 2])
    arch = dict(dims=(8, 16)[:stages], depths=tuple(rng.choice([1, 2]) for _ in range(stages)))
    return pyramid(rng, "LTMConvNeXt", arch, stages)


def pyramid(rng: Random, kind: str, arch: dict[str, Any], stages: int) -> dict[str, Any]:
    """As `convolutional`, without batch norms, of stages that all merge."""
    cfg = convolutional(rng, kind, arch, stages)
    cfg.pop("norm_eval", None)
    merger = cfg["merger"] or {}
    if merger.get("dense_blocks") == [[0]]:
        merger["dense_blocks"] = [[0]] * stages
    if kind == "LTMPVTv2" and merger and not MERGERS[merger["type"]].keeps_grid:
        if rng.random() < 0.8:
            cfg["merger"] = dict(type="Pool", compression_ratio=merger["compression_ratio"])
    if kind == "LTMConvNeXt" and rng.random() < 0.9:
        merger.pop("scope", None)
    return cfg


FIRST = dict(LTMSwin=swin, LTMViT=vit)
SECOND = dict(LTMEfficientViT=efficientvit, LTMMobileViT=mobilevit)
THIRD = dict(LTMConvNeXt=convnext, LTMPVTv2=pvt)
UNTIL = {500: FIRST, 600: SECOND, 700: THIRD}  # seeds, which families keep
FAMILIES = FIRST | SECOND | THIRD


def spoil(rng: Random, cfg: dict[str, Any]) -> None:
    """Gives one field of a config, or of its merger, another value, or another name."""
    part = cfg["merger"] if isinstance(cfg.get("merger"), dict) and rng.random() < 0.5 else cfg
    name = rng.choice([key for key in part if key != "type"] or ["merger"])
    if rng.random() < 0.1:
        part[name + "s"] = part.pop(name, 1)
    elif rng.random() < 0.1:
        part[rng.choice(["scope", "merge_at", "dim", "tokens", "depth", "embed_dims"])] = 1
    else:
        part[name] = rng.choice(ODD)


def case(seed: int) -> tuple[dict[str, Any], tuple[int, int], bool]:
    """A config, the size of an image, and whether to train on it."""
    rng = Random(seed)
    families = next(own for end, own in UNTIL.items() if seed < end)
    cfg = families[rng.choice(sorted(families))](rng)
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        spoil(rng, cfg)
    return cfg, rng.choice(SHAPES), rng.random() < 0.4


def build(cfg: dict[str, Any]) -> nn.Module:
    return MODELS.build(dict(cfg))


def sizes(cfg: dict[str, Any], shape: tuple[int, int]) -> list[tuple[int, ...]]:
    """(C, H, W) of the maps of a config that can be built."""
    if cfg["type"] == "LTMViT":
        return [(cfg["embed_dims"], *(math.ceil(side / cfg["patch_size"]) for side in shape))]
    found = []
    if cfg["type"] in SECOND:
        arch = cfg["arch"]
        widths = arch["channels"] if "channels" in arch else arch["widths"][1:]
        shape = tuple(math.ceil(side / 2) for side in shape)
        for i, width in enumerate(widths):
            stride = arch["strides"][i] if "strides" in arch else 2
            shape = tuple(math.ceil(side / stride) for side in shape)
            if i in cfg.get("out_indices", range(1, 9)):
                found.append((width, *shape))
        return found
    if cfg["type"] in THIRD:
        arch = cfg["arch"]
        whole = cfg["type"] == "LTMConvNeXt"  # squares alone
        for i, width in enumerate(arch["dims"] if whole else arch["embed_dims"]):
            stride = 4 * 2**i
            if i in cfg.get("out_indices", range(4)):
                sides = [max(1, s // stride) if whole else math.ceil(s / stride) for s in shape]
                found.append((width, *sides))
        return found
    for i, _ in enumerate(cfg["depths"]):
        shape = tuple(math.ceil(side / cfg["strides"][i]) for side in shape)
        if i in cfg["out_indices"]:
            found.append((cfg["embed_dims"] * 2**i, *shape))
    return found


def channels(cfg: dict[str, Any]) -> int:
    """Of the image."""
    return cfg.get("in_channels", 3)


def finite(maps: list[Tensor]) -> bool:
    return all(bool(x.isfinite().all()) for x in maps)
