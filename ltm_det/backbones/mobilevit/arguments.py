"""LTMMobileViT's arguments: what they have to be, and the sizes of the published models."""

from collections.abc import Mapping
from typing import Any

from timm.models.byobnet import ByoBlockCfg, ByoModelCfg

from ltm_det.basics.arguments import many, named, number, whole
from ltm_det.basics.errors import InputError

HEADS = 4  # of every block's attention
PATCH = 2  # pixels of a patch's side
EIGHT = 8  # timm rounds channels to its multiples

# MobileViT's Table 4 (arXiv 2110.02178), as in timm/models/mobilevit.py. One entry a stage:
# channels, stride, inverted residuals; then channels and number of its transformer's blocks, 0 for
# none.
_STAGES = dict(
    stem_channels=16,
    strides=(1, 2, 2, 2, 2),
    residuals=(1, 3, 1, 1, 1),
    depths=(0, 0, 2, 4, 3),
)
ARCHS: dict[str, dict[str, Any]] = dict(
    xxs=dict(
        _STAGES,
        expand_ratio=2,
        channels=(16, 24, 48, 64, 80),
        dims=(0, 0, 64, 80, 96),
    ),
    xs=dict(
        _STAGES,
        expand_ratio=4,
        channels=(32, 48, 64, 80, 96),
        dims=(0, 0, 96, 120, 144),
    ),
    s=dict(
        _STAGES,
        expand_ratio=4,
        channels=(32, 64, 96, 128, 160),
        dims=(0, 0, 144, 192, 240),
    ),
)
ARCH_RULES = dict(
    stem_channels=whole(1),
    expand_ratio=number(above=0, most=100),
    channels=many(whole(1), 2),  # stages, of which timm wants two
    strides=many(whole(1, 2)),
    residuals=many(whole(1)),
    dims=many(whole()),
    depths=many(whole()),
)


def sizes_of(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a model, by their names in `ARCHS`.

    Raises:
        InputError: There is no such model, or its sizes do not go together.
    """
    owner = "LTMMobileViT: arch"
    sizes = named(owner, arch, ARCHS, ARCH_RULES)
    stages = len(sizes["channels"])
    for name in ("strides", "residuals", "dims", "depths"):
        if len(sizes[name]) != stages:
            raise InputError(
                f"{owner}: {name}={sizes[name]!r} has {len(sizes[name])} entries for the {stages} "
                f"stages of channels={sizes['channels']!r}: give one for each"
            )
    for name, by in (("channels", EIGHT), ("dims", HEADS)):
        if odd := [size for size in sizes[name] if size % by]:
            raise InputError(f"{owner}: {name} must be multiples of {by}, got {odd[0]}")
    for dim, depth in zip(sizes["dims"], sizes["depths"], strict=True):
        if bool(dim) != bool(depth):
            raise InputError(
                f"{owner}: dims={sizes['dims']!r} and depths={sizes['depths']!r} must be 0 in the "
                "same stages, those without a transformer"
            )
    if sum(stride == 2 for stride in sizes["strides"]) > 4:
        raise InputError(
            f"{owner}: strides={sizes['strides']!r} lead beyond 32: at most four are 2"
        )
    return sizes


def timm_config(sizes: Mapping[str, Any]) -> ByoModelCfg:
    """The model in timm's words, without its head."""
    names = ("channels", "strides", "residuals", "dims", "depths")
    stages: list[Any] = []
    for c, stride, residuals, dim, depth in zip(*(sizes[n] for n in names), strict=True):
        ratio = sizes["expand_ratio"]
        own = dict(bottle_in=True, linear_out=True)
        blocks = [
            ByoBlockCfg("bottle", d=residuals, c=c, s=stride, gs=1, br=ratio, block_kwargs=own)
        ]
        if depth:
            own = dict(transformer_dim=dim, transformer_depth=depth, patch_size=PATCH)
            blocks.append(ByoBlockCfg("mobilevit", d=1, c=c, s=1, block_kwargs=own))
        stages.append(tuple(blocks))
    return ByoModelCfg(
        blocks=tuple(stages),
        stem_chs=sizes["stem_channels"],
        stem_type="3x3",
        stem_pool="",
        downsample="",
        act_layer="silu",
    )
