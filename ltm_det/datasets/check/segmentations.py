"""Masks of objects: polygons, and run lengths as COCO writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

FAR = 1e9  # beyond it a number is no place in a picture; NaN and infinities are beyond it too
NUMBERS = {int, float}
FIRST, LAST = 48, chr(48 + 32)  # of COCO's characters, and of those that end a run
LONGEST = 6  # characters of a run, of 30 bits
TOGETHER = 5000  # texts at a time


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and -FAR < value < FAR


def are_numbers(values: list[Any]) -> bool:
    """Of many, without a look at each in Python; a sum with a NaN is one."""
    if not values or not NUMBERS.issuperset(map(type, values)):
        return not values
    return -FAR < min(values) and max(values) < FAR and sum(values) == sum(values)


def wrong_mask(
    mask: Any, height: int | None, width: int | None, sums: Mapping[str, int]
) -> tuple[str, Any]:
    """What is wrong with a segmentation, '' for nothing, and what is left of it, or None.

    Args:
        height: Of the picture, and width; None: not known.
        sums: Of texts of run lengths, see :func:`run_sums`.
    """
    if isinstance(mask, dict):
        return wrong_runs(mask, height, width, sums), None
    if not isinstance(mask, list) or not mask:
        return ("no segmentation" if mask is None else f"segmentation is {_short(mask)}"), None
    if all(is_number(x) for x in mask):
        fault = wrong_polygon(mask)
        return "a polygon that is in no list", None if fault else [mask]
    faults = [wrong_polygon(polygon) for polygon in mask]
    if not any(faults):
        return "", None
    left = [polygon for polygon, fault in zip(mask, faults, strict=True) if not fault]
    return next(filter(None, faults)), left or None


def wrong_polygon(polygon: Any) -> str:
    if not isinstance(polygon, list):
        return f"a polygon is {_short(polygon)}"
    if not are_numbers(polygon):
        bad = next(x for x in polygon if not is_number(x))
        return f"a polygon has {_short(bad)} among its numbers"
    if len(polygon) % 2:
        return f"a polygon has {len(polygon)} numbers, an odd count"
    if len(polygon) < 6:
        return f"a polygon has {len(polygon) // 2} points"
    return ""


def wrong_runs(mask: dict, height: int | None, width: int | None, sums: Mapping[str, int]) -> str:
    """Of run lengths, whose sum is the picture's pixels; counted by columns."""
    size, counts = mask.get("size"), mask.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(x) is int for x in size)):
        return f"run lengths have the size {_short(size)}"
    if height is not None and size != [height, width]:
        return f"run lengths are of a picture {size[1]} x {size[0]}, not {width} x {height}"
    total = -1
    if isinstance(counts, str):
        total = sums[counts]
    elif isinstance(counts, list) and all(type(x) is int and 0 <= x < FAR for x in counts):
        total = sum(counts)
    if total < 0:
        return f"run lengths can't be read: {_short(counts)}"
    if total != size[0] * size[1]:
        return f"run lengths add up to {total}, not {size[1]} x {size[0]} pixels"
    return ""


def run_sums(texts: Sequence[str]) -> list[int]:
    """Pixels that COCO's texts of run lengths cover; -1 for what is no such text.

    Five bits in a character, from 48 on, lowest first, with a sixth bit where more follow; the
    last one's highest is the sign. From the fourth run on they are differences to the run before
    the last.
    """
    sums = [-1] * len(texts)
    right = [
        index for index, text in enumerate(texts) if text and text.isascii() and text[-1] < LAST
    ]
    for start in range(0, len(right), TOGETHER):
        some = right[start : start + TOGETHER]
        for index, total in zip(some, _sums([texts[index] for index in some]).tolist()):
            sums[index] = total
    return sums


def _sums(texts: Sequence[str]) -> np.ndarray:
    bits = np.frombuffer("".join(texts).encode(), np.uint8).astype(np.int64) - FIRST
    text = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    last = np.flatnonzero((bits & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    length = np.minimum(last - first + 1, LONGEST + 1)
    place = np.minimum(np.arange(len(bits)) - np.repeat(first, last - first + 1), LONGEST)
    runs = np.add.reduceat((bits & 31) << (5 * place), first)
    runs -= np.where(bits[last] & 16, 1 << (5 * length), 0)
    owner = text[first]
    nth = np.arange(len(runs)) - np.searchsorted(owner, np.arange(len(texts)))[owner]
    for chain in (nth % 2 == 1, (nth % 2 == 0) & (nth > 0)):
        total = np.cumsum(runs[chain])
        starts = np.searchsorted(owner[chain], np.arange(len(texts)))
        before = np.concatenate([[0], total])[starts]
        runs[chain] = total - before[owner[chain]]
    wrong = np.bincount(owner, (runs < 0) | (length > LONGEST), len(texts)) > 0
    wrong |= np.bincount(text, (bits < 0) | (bits > 63), len(texts)) > 0
    return np.where(wrong, -1, np.bincount(owner, runs, len(texts))).astype(np.int64)


def area(mask: Any, height: int, width: int) -> float:
    """Pixels of a right mask."""
    if isinstance(mask, list) or isinstance(mask["counts"], list):
        mask = coco.frPyObjects(mask, height, width)
    return float(coco.area(coco.merge(mask) if isinstance(mask, list) else mask))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
