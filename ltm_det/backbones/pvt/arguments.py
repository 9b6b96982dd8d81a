"""LTMPVTv2's arguments: what they have to be, and the sizes of the published models."""

from collections.abc import Mapping
from typing import Any

from ltm_det.basics.arguments import many, named, whole
from ltm_det.basics.errors import InputError

# PVTv2's Table 1 (arXiv 2106.13797), as in timm/models/pvt_v2.py and under its names. One entry a
# stage; sr_ratios are the sides of the squares of tokens that make one key and one value.
_SIZES = dict(
    embed_dims=(64, 128, 320, 512),
    num_heads=(1, 2, 5, 8),
    sr_ratios=(8, 4, 2, 1),
    mlp_ratios=(8, 8, 4, 4),
)
ARCHS: dict[str, dict[str, Any]] = dict(
    b0=dict(_SIZES, depths=(2, 2, 2, 2), embed_dims=(32, 64, 160, 256)),
    b1=dict(_SIZES, depths=(2, 2, 2, 2)),
    b2=dict(_SIZES, depths=(3, 4, 6, 3)),
    b3=dict(_SIZES, depths=(3, 4, 18, 3)),
    b4=dict(_SIZES, depths=(3, 8, 27, 3)),
    b5=dict(_SIZES, depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
)
ARCH_RULES = dict(
    embed_dims=many(whole(1)),
    depths=many(whole(1)),
    num_heads=many(whole(1)),
    sr_ratios=many(whole(1, 128)),
    mlp_ratios=many(whole(1, 1000)),
)


def sizes_of(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a model, by their names in `ARCHS`.

    Raises:
        InputError: There is no such model, or its sizes do not go together.
    """
    owner = "LTMPVTv2: arch"
    sizes = named(owner, arch, ARCHS, ARCH_RULES)
    dims = sizes["embed_dims"]
    for name, values in sizes.items():
        if len(values) != len(dims):
            raise InputError(
                f"{owner}: {name}={values!r} has {len(values)} entries for the {len(dims)} stages "
                f"of embed_dims={dims!r}: give one for each"
            )
    for i, (dim, heads) in enumerate(zip(dims, sizes["num_heads"], strict=True)):
        if dim % heads:
            raise InputError(
                f"{owner}: num_heads[{i}]={heads} does not divide embed_dims[{i}]={dim}: give a "
                "divisor of it"
            )
    return sizes
