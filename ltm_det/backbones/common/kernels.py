"""What convolutions ask of maps: that a kernel fits on them, and that merged ones have no gaps.

Shapes: B images, C channels, H x W grid of tokens, H' x W' grid of merged tokens.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltm_det.backbones.common.maps import merged_grid, on_maps
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.basics.errors import InputError
from ltm_det.cpu import Call, plain
from ltm_det.merging import MERGERS, SHUT, Merger, Merging


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, grid: WindowGrid) -> Tensor:
    """(B, H * W, C) to (B, C, H, W)."""
    return x.transpose(1, 2).unflatten(2, (grid.height, grid.width))


def at_least(x: Tensor, side: int) -> Tensor:
    """A map (B, C, H, W) with zeros at the bottom and the right as far as it takes a kernel of
    ``side`` to fit. In a graph for any size it is taken to fit."""
    height, width = x.shape[2:]
    known = isinstance(height, int) and isinstance(width, int)
    if not known or min(height, width) >= side:
        return x
    return F.pad(x, (0, max(0, side - width), 0, max(0, side - height)))


def merge_map(
    merger: Merger, x: Tensor, here: WindowGrid, state: Any, call: Call = plain
) -> tuple[Merging, WindowGrid, Any]:
    """How a merger that keeps the grid merges the tokens of a map onto a smaller map.

    Args:
        merger: Of windows of ``here``.
        x: (B, H * W, C).
        here: The map's windows.
        state: Of the merger's chain.
        call: How it is called, see :mod:`ltm_det.cpu.door`.

    Returns:
        The merging, of (B, H * W, C) to (B, H' * W', C) and back; the merged map's windows; the
        chain's state. Merged tokens are :func:`filled`.
    """
    windows, state = call(merger, here.partition(x), state, here.valid(x.device))
    there = merged_grid(here, merger)
    merging = on_maps(windows, here, there)
    gapless = merging._replace(merge=lambda x: filled(merging.merge(x), merging.key_bias))
    return gapless, there, state


def filled(y: Tensor, key_bias: Tensor | None) -> Tensor:
    """Merged tokens y (B, L, C), those that no token feeds, as hard masks leave some, set to the
    mean of the others of their map: what a convolution reads there.

    Args:
        y: All tokens of a map.
        key_bias: (B, L) or (1, L), which shuts out tokens that nothing feeds. None: there are none.
    """
    if key_bias is None:
        return y
    fed = (key_bias > SHUT / 2)[..., None]  # (B, L, 1)
    full = torch.promote_types(y.dtype, torch.float32)  # a sum over a map overflows float16
    total = (y.to(full) * fed).sum(1, keepdim=True)
    mean = total / fed.sum(1, keepdim=True).clamp(min=1)
    return torch.where(fed, y, mean.to(y.dtype))


def check_keeps_grid(owner: str, merger: Mapping[str, Any] | None) -> None:
    """That the merged tokens of a backbone's ``merger`` lie on a grid, which convolutions read.

    Args:
        owner: The backbone's class.
        merger: Its argument, whose options have been checked.

    Raises:
        InputError: They do not.
    """
    if merger is None or MERGERS[merger["type"]].grid_with(merger):
        return
    kind, fit = merger["type"], [name for name, own in MERGERS.items() if own.grid_with({})]
    options = " with these options" if kind in fit else ""
    raise InputError(
        f"{owner}: tokens merged by type {kind!r}{options} lie on no grid, which the convolutions "
        f"in its blocks read: choose one of {fit}, as it is by default"
    )
