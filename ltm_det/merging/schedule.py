"""How much each block keeps: ratios per stage or per block, and which blocks stay dense."""

import math
from collections.abc import Sequence
from typing import Any

from ltm_det.basics.arguments import is_number
from ltm_det.basics.errors import InputError

Ratios = float | Sequence[float | Sequence[float]]
DenseBlocks = int | Sequence[int | Sequence[int]] | None


def kept_tokens(ratio: float, tokens: int) -> int:
    """P = ceil(ratio * N); a product that only rounding lifts above an integer stays there."""
    return max(1, math.ceil(ratio * tokens - 1e-9))


def kept_side(ratio: float, window: int) -> int:
    """Side k of the merged square window: round(window * sqrt(ratio)), at least 1."""
    return max(1, math.floor(window * math.sqrt(ratio) + 0.5))


def check_ratio(ratio: float, where: str = "") -> float:
    """The ratio itself; InputError where it is no number in (0, 1]."""
    if not (is_number(ratio) and 0 < ratio <= 1):
        raise InputError(
            f"compression_ratio must lie in (0, 1] (it is the kept fraction), got {ratio!r}{where}"
        )
    return ratio


def ratio_schedule(
    compression_ratio: Ratios, depths: Sequence[int], dense_blocks: DenseBlocks = None
) -> list[list[float]]:
    """The compression ratio (kept fraction) of every block of every stage; 1.0 is a dense block.

    Args:
        compression_ratio: In (0, 1]: one for all, one per stage, or for any stage one per block.
        depths: Number of blocks of each stage.
        dense_blocks: Blocks that stay dense whatever their ratio: an int for the first so many of
            each stage (all of a shorter one); or per stage such an int or the list of block
            indices (a dense block amid merged ones is a refresh point: tokens are restored before
            it and merged anew after it). None: the first block, or the first two in stages of six
            blocks and more.

    Raises:
        InputError: On a ratio outside (0, 1], a schedule of the wrong length, a block that is not
            there.
    """
    per_stage = _per_stage("compression_ratio", compression_ratio, depths)
    ratios = [
        _block_ratios(r, d, i) for i, (r, d) in enumerate(zip(per_stage, depths, strict=True))
    ]
    if dense_blocks is None:
        dense_blocks = [2 if depth >= 6 else 1 for depth in depths]
    for i, dense in enumerate(_per_stage("dense_blocks", dense_blocks, depths)):
        for block in _dense_indices(dense, depths[i], i):
            ratios[i][block] = 1.0
    return ratios


def _per_stage(name: str, value: Any, depths: Sequence[int]) -> list:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * len(depths)  # whether it is a good one is checked block by block
    if len(value) != len(depths):
        raise InputError(
            f"{name}={value} has {len(value)} entries for {len(depths)} stages: "
            "give one number, or one entry per stage"
        )
    return list(value)


def _block_ratios(ratio: float | Sequence[float], depth: int, stage: int) -> list[float]:
    if isinstance(ratio, Sequence) and not isinstance(ratio, str):
        ratios = list(ratio)
    else:
        ratios = [ratio] * depth
    if len(ratios) != depth:
        raise InputError(
            f"compression_ratio of stage {stage} has {len(ratios)} entries for {depth} blocks: "
            "give one number, or one entry per block"
        )
    return [check_ratio(r, f" in stage {stage}") for r in ratios]


def _dense_indices(dense: int | Sequence[int], depth: int, stage: int) -> Sequence[int]:
    if not isinstance(dense, Sequence):
        if not isinstance(dense, int) or isinstance(dense, bool) or dense < 0:
            raise InputError(f"dense_blocks must be 0 or more, got {dense!r} for stage {stage}")
        return range(min(dense, depth))
    for block in dense:
        if type(block) is not int or not 0 <= block < depth:
            raise InputError(
                f"dense_blocks names block {block!r} of stage {stage}, "
                f"which has blocks 0 to {depth - 1}"
            )
    return dense
