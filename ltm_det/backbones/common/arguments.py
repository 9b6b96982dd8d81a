"""What all families check of their arguments: the merger's options, and where weights start."""

from collections.abc import Mapping, Sequence
from typing import Any

from ltm_det.basics.arguments import (
    arguments_of,
    check,
    check_names,
    choice,
    flag,
    optional,
    text,
    whole,
)
from ltm_det.basics.errors import InputError
from ltm_det.merging import MERGERS, build_merger, merger_options, ratio_schedule
from ltm_det.merging.schedule import DenseBlocks

# Options of ``merger`` that are a family's own, and none of the merger's.
OWN = dict(
    LTMSwin=("scope", "dense_blocks"),
    LTMViT=("merge_at",),
    LTMMobileViT=("scope", "dense_blocks"),
    LTMEfficientViT=("scope", "dense_blocks"),
    LTMPVTv2=("scope", "dense_blocks"),
    LTMConvNeXt=("dense_blocks",),
)
# Those that a backbone sets for each of its mergers.
PLACE = ("dim", "window", "tokens", "chained", "depth")

SCOPES = ("block", "stage")
LARGEST_WINDOW = 128


def window(name: str, value: Any) -> None:
    """The side of a window, in tokens."""
    whole(1)(name, value)
    if value > LARGEST_WINDOW:
        raise InputError(
            f"{name}={value}: attention in a window of {value} x {value} tokens has {value}^4 "
            f"logits: give at most {LARGEST_WINDOW}"
        )


def options_of(merger: Mapping[str, Any], family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A backbone's ``merger`` argument: ratio and options of the family, those of the merger.

    Raises:
        InputError: There is no such merger, or it has no such option, whatever the ratio.
    """
    options = merger_options(merger)
    for other, names in OWN.items():
        if taken := [name for name in names if name in options and name not in OWN[family]]:
            raise InputError(
                f"merger.{taken[0]}={options[taken[0]]!r} is of {other}, not of {family}: "
                f"leave it out; {family} has {' and '.join(OWN[family])}"
            )
    if taken := [name for name in PLACE if name in options]:
        raise InputError(f"merger.{taken[0]} is what {family} sets itself: leave it out")
    kind = options["type"]
    choice(MERGERS)("merger type", kind)
    known = {*OWN[family], "compression_ratio", "type", *arguments_of(MERGERS[kind])}
    check_names(f"merger of type {kind!r}", options, known - {*PLACE})
    own = {key: options.pop(key) for key in ("compression_ratio", *OWN[family]) if key in options}
    build_merger(dim=1, window=1, tokens=1, **options)
    return own, options


def parse_stages(
    family: str,
    merger: Mapping[str, Any] | None,
    depths: Sequence[int],
    dense_blocks: DenseBlocks = None,
) -> tuple[list[list[float]], str, dict[str, Any]]:
    """Ratios of all blocks, the scope, and the options left for the mergers themselves.

    Args:
        family: Whose merger it is.
        merger: The backbone's argument.
        depths: Blocks of each stage that may merge.
        dense_blocks: Where the merger names none, see :func:`ltm_det.merging.ratio_schedule`.
    """
    if merger is None:
        return [[1.0] * depth for depth in depths], "stage", {}
    own, options = options_of(merger, family)
    scope = own.get("scope", "stage")
    choice(SCOPES)("scope", scope)
    dense = own.get("dense_blocks")
    dense = dense_blocks if dense is None else dense
    return ratio_schedule(own["compression_ratio"], depths, dense), scope, options


def check_start(owner: str, init_cfg: Any) -> None:
    """That ``init_cfg`` is None, or names a checkpoint.

    Raises:
        InputError: It is something else.
    """
    if init_cfg is None:
        return
    if not isinstance(init_cfg, Mapping) or init_cfg.get("type") != "Pretrained":
        raise InputError(f"init_cfg={init_cfg}: {owner} takes type='Pretrained' or None")
    given = {key: value for key, value in init_cfg.items() if key != "type"}
    check_names(f"{owner}: init_cfg", given, ("checkpoint", "prefix", "drop_mergers"))
    rules = dict(checkpoint=text, prefix=optional(text), drop_mergers=flag)
    check(f"{owner}: init_cfg", dict(checkpoint=None) | given, rules)
