"""LTMEfficientViT's arguments: what they have to be, and the sizes of the published models."""

from collections.abc import Mapping
from typing import Any

from ltm_det.basics.arguments import many, named, number, whole
from ltm_det.basics.errors import InputError

# EfficientViT's B series (arXiv 2205.14756), as in timm/models/efficientvit_mit.py: channels and
# blocks of the stem and of each stage.
ARCHS: dict[str, dict[str, Any]] = dict(
    b0=dict(widths=(8, 16, 32, 64, 128), depths=(1, 2, 2, 2, 2), head_dim=16, expand_ratio=4),
    b1=dict(widths=(16, 32, 64, 128, 256), depths=(1, 2, 3, 3, 4), head_dim=16, expand_ratio=4),
    b2=dict(widths=(24, 48, 96, 192, 384), depths=(1, 3, 4, 4, 6), head_dim=32, expand_ratio=4),
    b3=dict(widths=(32, 64, 128, 256, 512), depths=(1, 4, 6, 6, 9), head_dim=32, expand_ratio=4),
)
PLAIN = 2  # stages before the first one with attention
ARCH_RULES = dict(
    widths=many(whole(1), PLAIN + 2),
    depths=many(whole(1), PLAIN + 2),
    head_dim=whole(1),
    expand_ratio=number(above=1, most=100),  # 1 is another block in timm
)


def sizes_of(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a model, by their names in `ARCHS`.

    Raises:
        InputError: There is no such model, or its sizes do not go together.
    """
    owner = "LTMEfficientViT: arch"
    sizes = named(owner, arch, ARCHS, ARCH_RULES)
    widths, depths = sizes["widths"], sizes["depths"]
    if len(depths) != len(widths):
        raise InputError(
            f"{owner}: depths={depths!r} has {len(depths)} entries for the stem and the "
            f"{len(widths) - 1} stages of widths={widths!r}: give one for each"
        )
    if odd := [width for width in widths[PLAIN + 1 :] if width % sizes["head_dim"]]:
        raise InputError(
            f"{owner}: head_dim={sizes['head_dim']} does not divide the {odd[0]} channels of a "
            "stage with attention"
        )
    return sizes
