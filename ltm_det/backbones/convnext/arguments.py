"""LTMConvNeXt's arguments: what they have to be, and the sizes of the published models."""

from collections.abc import Mapping
from typing import Any

from ltm_det.basics.arguments import many, named, whole
from ltm_det.basics.errors import InputError

STAGES = 4  # that timm's model has
# ConvNeXt's section 3 (arXiv 2201.03545), as in timm/models/convnext.py and under its names.
ARCHS: dict[str, dict[str, Any]] = dict(
    t=dict(dims=(96, 192, 384, 768), depths=(3, 3, 9, 3)),
    s=dict(dims=(96, 192, 384, 768), depths=(3, 3, 27, 3)),
    b=dict(dims=(128, 256, 512, 1024), depths=(3, 3, 27, 3)),
)
ARCH_RULES = dict(dims=many(whole(1)), depths=many(whole(1)))


def sizes_of(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a model, by their names in `ARCHS`.

    Raises:
        InputError: There is no such model, or its sizes do not go together.
    """
    owner = "LTMConvNeXt: arch"
    sizes = named(owner, arch, ARCHS, ARCH_RULES)
    dims, depths = sizes["dims"], sizes["depths"]
    if len(depths) != len(dims):
        raise InputError(
            f"{owner}: depths={depths!r} has {len(depths)} entries for the {len(dims)} stages of "
            f"dims={dims!r}: give one for each"
        )
    if len(dims) > STAGES:
        raise InputError(f"{owner}: dims={dims!r} are of {len(dims)} stages: give at most {STAGES}")
    return sizes


def timm_sizes(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of timm's model, the first stages of which are those of ``sizes``."""
    dims, depths = tuple(sizes["dims"]), tuple(sizes["depths"])
    lacking = STAGES - len(dims)
    return dict(dims=dims + dims[-1:] * lacking, depths=depths + (1,) * lacking)
