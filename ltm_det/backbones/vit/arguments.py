"""LTMViT's arguments: what they have to be, and what they say of merging."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.utils import to_2tuple

from ltm_det.merging import build_merger, check_ratio, kept_side, merger_options


def parse_merger(
    merger: Mapping[str, Any] | None, depth: int, window: int
) -> tuple[dict[int, int], dict[str, Any]]:
    """For each block before which is merged, the side k; and the options left for the mergers."""
    if merger is None:
        return {}, {}
    options = merger_options(merger)
    ratios, blocks = options.pop("compression_ratio"), options.pop("merge_at", None)
    if blocks is None:
        blocks = max(depth // 4 - 1, 0)
    build_merger(dim=1, window=1, tokens=1, **options)  # bad options raise at any ratio
    blocks = list(blocks) if isinstance(blocks, Sequence) else [blocks]
    one = isinstance(ratios, str) or not isinstance(ratios, Sequence)
    ratios = [ratios] * len(blocks) if one else list(ratios)
    check_blocks("merge_at", blocks, depth)
    if not blocks or blocks != sorted(set(blocks)):
        raise ValueError(f"merge_at={blocks} must name blocks in ascending order, each once")
    if len(ratios) != len(blocks):
        raise ValueError(
            f"compression_ratio={ratios} has {len(ratios)} entries for merge_at={blocks}: "
            "give one for each block"
        )
    sides, side = {}, window
    for block, ratio in zip(blocks, ratios, strict=True):
        kept = kept_side(check_ratio(ratio), window)
        if kept > side:
            raise ValueError(
                f"compression_ratio={ratios} rises: merged tokens stay merged to the exit, so "
                "each ratio must be at most the one before"
            )
        if kept < side:
            sides[block] = side = kept
    return sides, options


def check_blocks(name: str, blocks: Sequence[int], depth: int) -> None:
    if isinstance(blocks, int):
        raise ValueError(f"{name} must be a list of blocks, got {blocks}")
    for block in blocks:
        if not isinstance(block, int) or isinstance(block, bool) or not 0 <= block < depth:
            raise ValueError(f"{name} names block {block!r}, but there are blocks 0 to {depth - 1}")


def check_whole(least: int, **values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number from {least} on, got {value!r}")


def grid_of(img_size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    height, width = to_2tuple(img_size)
    if min(height, width) < patch_size:
        raise ValueError(f"{height}x{width} pixels hold no patch of {patch_size}x{patch_size}")
    return height // patch_size, width // patch_size
