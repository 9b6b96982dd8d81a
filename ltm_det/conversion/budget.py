"""How much a backbone has to merge for a share of its dense twin's GMACs, found by counting."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict
from torch import nn

from ltm_det.backbones import LTMSwin, LTMViT
from ltm_det.backbones.common.convolutional import ConvolutionalBackbone
from ltm_det.basics.errors import InputError
from ltm_det.conversion.ratio_search import merging_depths
from ltm_det.measure.flops import build_backbone, count_backbone
from ltm_det.merging import ratio_schedule

# Of the dense backbone's GMACs.
CLOSE = 0.01  # from the budget: merging begins where it did
FAR = 0.05  # from the budget, which is out of reach then


class Setting(NamedTuple):
    """A merger's arguments and what they come to.

    Attributes:
        merger: Of the backbone's config.
        share: GMACs of the backbone by those of its dense twin.
        words: What was set.
    """

    merger: dict[str, Any]
    share: float
    words: str


def meet_share(cfg: Config, share: float, shape: tuple[int, int]) -> Setting:
    """The setting of a config's own merger that comes nearest to a share.

    All blocks that merge have one ratio: the mildest with which the share can be met. Where that
    merges more than is asked for, merging begins as late as the share allows: later blocks hold
    more that is alike. A search by what merging does to the maps is `ltm-det search`.

    Args:
        cfg: Its backbone has a merger, whose ratios and places are replaced.
        share: Of the dense backbone's GMACs, in (0, 1).
        shape: Height and width that are counted, in pixels.

    Raises:
        InputError: The backbone merges nowhere, or the share can't be met.
    """
    if not 0 < share < 1:
        raise InputError(f"--budget {share:g}: give a share of the dense backbone's GMACs, 0 to 1")
    own = cfg.model.backbone.get("merger")
    if own is None:
        raise InputError(
            f"--budget {share:g} is met by merging, and {cfg.model.backbone.type} has no merger: "
            "give --family, or a config with one, such as "
            "model.backbone=dict(type='LTMSwin', merger=dict(type='LTM', compression_ratio=0.51))"
        )
    dense = built(cfg, None)
    total = count_backbone(dense, shape).macs["backbone"]
    own = own.to_dict() if isinstance(own, ConfigDict) else dict(own)
    arguments, places = placement(dense, own)

    @cache
    def cost(side: int, place: int) -> float:
        merger = {**own, **arguments(side, place)}
        return count_backbone(built(cfg, merger), shape).macs["backbone"] / total

    window = dense.window if isinstance(dense, LTMViT) else merging_depths(dense)[1]
    steps = last_within(lambda step: cost(window - 1 - step, 0) > share + CLOSE, window - 2)
    side = window - 1 - steps
    if side > 1 and cost(side, 0) > share + CLOSE:
        side -= 1
    found = [(side, 0)]
    if cost(side, 0) < share - CLOSE:
        place = last_within(lambda place: cost(side, place) <= share, places)
        found += [(side, place), (side, min(place + 1, places))]
    shares = {setting: cost(*setting) for setting in found}
    side, place = min(shares, key=lambda setting: abs(shares[setting] - share))
    if abs(shares[side, place] - share) > FAR:
        below = [c for c in shares.values() if c < share]
        above = [c for c in shares.values() if share < c < 1]
        near = " and ".join(f"{c:.2f}" for c in (*below[-1:], *above[-1:]))
        raise InputError(
            f"--budget {share:g} is out of reach for this backbone on pictures of {shape[0]} x "
            f"{shape[1]}, where merging comes to {near} at the nearest, and none is 1: give such a "
            "share, or another --family or --merger"
        )
    merger = {**own, **arguments(side, place)}
    set_to = {k: v for k, v in merger.items() if own.get(k) != v}
    words = ", ".join(f"{k}={v}" for k, v in set_to.items()) or "the merger as it is"
    return Setting(merger, shares[side, place], words)


def placement(
    dense: nn.Module, own: dict[str, Any]
) -> tuple[Callable[[int, int], dict[str, Any]], int]:
    """The arguments for a side that merged windows keep and a place from which on to merge, place 0
    being the config's own; and the last place at which something is merged.

    Raises:
        InputError: Another backbone than ours.
    """
    if isinstance(dense, LTMViT):
        first = own.get("merge_at", 0)
        first = first if isinstance(first, int) else min(first)

        def of_vit(side: int, place: int) -> dict[str, Any]:
            return dict(compression_ratio=ratio_of(side, dense.window), merge_at=first + place)

        return of_vit, len(dense.blocks) - 1 - first
    if not isinstance(dense, (LTMSwin, ConvolutionalBackbone)):
        raise InputError(f"--budget is of our backbones, but this is {type(dense).__name__}")
    depths, window, dense_blocks = merging_depths(dense)
    given, dense_blocks = own.get("compression_ratio", 0.5), own.get("dense_blocks", dense_blocks)
    even = isinstance(given, (int, float)) and given < 1
    schedule = ratio_schedule(0.5 if even else given, depths, dense_blocks)

    def of_stages(side: int, place: int) -> dict[str, Any]:
        """Places are blocks over all stages; what the config leaves dense stays dense."""
        ratio = dict(compression_ratio=ratio_of(side, window))
        if even and not place:
            return ratio
        stages, start = [], 0
        for stage in schedule:
            left = [b for b, own in enumerate(stage) if own == 1 or start + b < place]
            stages.append(len(left) if left == [*range(len(left))] else left)
            start += len(stage)
        return dict(ratio, dense_blocks=stages)

    last = [i for i, own in enumerate(sum(schedule, [])) if own < 1]
    return of_stages, last[-1] if last else 0


def ratio_of(side: int, window: int) -> float:
    """A ratio that keeps so many tokens a side, also where it is rounded to three places."""
    return round(side**2 / window**2, 3)


def last_within(fits: Callable[[int], bool], last: int) -> int:
    """The last place that fits, where 0 does and all before one that fits do."""
    low, high = 0, last + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def built(cfg: Config, merger: dict[str, Any] | None) -> nn.Module:
    """A config's backbone with another merger, without weights of a file."""
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.merger = merger
    return build_backbone(cfg)
