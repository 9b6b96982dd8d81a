"""Whether one detector is ahead of another: the difference of their AP, as an interval.

Seeds and pictures are drawn anew, with replacement, and AP is computed of each draw: the percentile
bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Detectors are
compared on the same draws, so that what makes pictures hard for both is no part of the interval.

Shapes: I pictures, D objects found of a class, T overlaps (0.5 to 0.95), R points of recall.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ltm_det.basics.errors import InputError

KINDS = ("bbox", "segm")


@dataclass(frozen=True)
class Matches:
    """What COCO's evaluation makes of the objects of one class, the surest first.

    Attributes:
        picture: (D,), index of the picture in which each was found.
        hit: (T, D), whether it lies on an object that nothing surer lies on.
        counts: (T, D), whether it counts at all: not on a crowd.
        objects: (I,), the annotated objects of each picture, crowds left out.
    """

    picture: np.ndarray
    hit: np.ndarray
    counts: np.ndarray
    objects: np.ndarray


class Difference(NamedTuple):
    """In points of AP, with the ends of the interval that holds the given share of all draws."""

    mean: float
    low: float
    high: float


def matches(
    annotations: COCO, results: Path | list, kind: str, most: int = 100
) -> tuple[list[Matches], np.ndarray]:
    """Of a detector, by class, and the points of recall (R,) at which precision is read.

    Args:
        annotations: All their pictures are evaluated.
        results: What was found, as COCO's list or a file of it.
        kind: 'bbox' or 'segm'.
        most: Objects of a picture and class that count, the surest.

    Raises:
        InputError: Another kind, or results of pictures that are not annotated.
    """
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: give one of {KINDS}")
    if not isinstance(results, list):
        results = json.loads(results.read_text())
    if kind == "segm":  # else COCO takes them for boxes
        results = [{key: own[key] for key in own if key != "bbox"} for own in results]
    strange = {own["image_id"] for own in results} - set(annotations.getImgIds())
    if strange:
        raise InputError(f"found on {len(strange)} pictures that are not annotated: {min(strange)}")
    found = annotations.loadRes(results) if results else nothing_on(annotations)
    run = COCOeval(annotations, found, kind)
    run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
    run.params.maxDets = [most]
    run.evaluate()
    pictures, overlaps = len(run.params.imgIds), len(run.params.iouThrs)
    by_class = np.array(run.evalImgs, dtype=object).reshape(len(run.params.catIds), pictures)
    return [of_class(own, overlaps) for own in by_class], run.params.recThrs


def nothing_on(annotations: COCO) -> COCO:
    """Results without an object, which COCO does not read."""
    found = COCO()
    found.dataset = dict(annotations.dataset, annotations=[])
    found.createIndex()
    return found


def of_class(evaluated: np.ndarray, overlaps: int) -> Matches:
    """From what COCO's evaluation keeps of a class for each picture, None for nothing."""
    scores, picture = [np.zeros(0)], [np.zeros(0, int)]
    hit, counts = ([np.zeros((overlaps, 0), bool)] for _ in range(2))
    objects = np.zeros(len(evaluated), int)
    for i, one in enumerate(evaluated):
        if one is not None:
            scores.append(np.asarray(one["dtScores"], float))
            picture.append(np.full(len(one["dtScores"]), i))
            hit.append(one["dtMatches"] > 0)
            counts.append(one["dtIgnore"] == 0)
            objects[i] = np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")  # as COCO's: stable
    joined = (np.concatenate(parts, -1)[..., order] for parts in (picture, hit, counts))
    return Matches(*joined, objects)


def average_precision(classes: Sequence[Matches], recalls: np.ndarray, times: np.ndarray) -> float:
    """COCO's AP, in points, where each picture is there so many times (I,); NaN without objects."""
    found = [precision(own, recalls, times) for own in classes if own.objects @ times > 0]
    return 100 * float(np.mean(found)) if found else float("nan")


def precision(own: Matches, recalls: np.ndarray, times: np.ndarray) -> float:
    """Mean over T and R of the best precision at a recall or above it."""
    weight = times[own.picture]
    right = np.cumsum(weight * (own.hit & own.counts), axis=1)
    wrong = np.cumsum(weight * (~own.hit & own.counts), axis=1)
    share = right / np.maximum(right + wrong, np.finfo(float).tiny)
    best = np.maximum.accumulate(share[:, ::-1], axis=1)[:, ::-1]
    best = np.pad(best, ((0, 0), (0, 1)))  # beyond what is reached: none
    recall = right / (own.objects @ times)
    at = [np.searchsorted(line, recalls, side="left") for line in recall]
    return float(np.mean([line[i] for line, i in zip(best, at, strict=True)]))


def difference(
    first: Sequence[tuple[list[Matches], np.ndarray]],
    second: Sequence[tuple[list[Matches], np.ndarray]],
    draws: int = 1000,
    share: float = 0.95,
) -> Difference:
    """By how much AP of the first detectors is above that of the second ones.

    Args:
        first: What :func:`matches` makes of each seed's detector.
        second: The same, of the same seeds in the same order.
        draws: Of seeds and pictures.
        share: Of the draws that the interval holds.

    Raises:
        InputError: Other numbers of seeds, or other pictures.
    """
    if len(first) != len(second) or not first:
        raise InputError(f"{len(first)} and {len(second)} detectors: give one of each seed")
    pictures = {len(own[0].objects) for own, _ in (*first, *second)}
    if len(pictures) != 1:
        raise InputError(f"evaluated on {sorted(pictures)} pictures: they have to be the same")
    (count,), random = pictures, np.random.default_rng(0)

    def apart(seeds: np.ndarray, times: np.ndarray) -> float:
        one, other = (
            [average_precision(*of[seed], times) for seed in seeds] for of in (first, second)
        )
        return float(np.mean(one) - np.mean(other))

    drawn = []
    for _ in range(draws):
        seeds = random.integers(len(first), size=len(first))
        times = np.bincount(random.integers(count, size=count), minlength=count)
        drawn.append(apart(seeds, times))
    low, high = np.nanquantile(drawn, [(1 - share) / 2, (1 + share) / 2])
    mean = apart(np.arange(len(first)), np.ones(count, int))
    return Difference(mean, float(low), float(high))
