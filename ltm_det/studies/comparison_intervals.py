"""How far the detectors of a comparison are apart, as intervals over seeds and pictures."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from ltm_det.studies.comparison import DENSE, TRAININGS, Backbone, Cell, folder_of
from ltm_det.studies.comparison_configs import FOUND, coco_metrics, model_config
from ltm_det.studies.runs import ROOT, commit, write_rows
from ltm_det.studies.significance import KINDS, difference, matches

COLUMNS = ("backbone", "mode", "setting", "first", "second", "metric", "seeds", "difference")
COLUMNS += ("low", "high", "draws", "commit")


def pairs(cells: Sequence[Cell]) -> Iterator[tuple[list[Cell], list[Cell]]]:
    """Trained detectors to compare, by seed: at each setting every merger with the dense one, and
    the first merger with every other."""
    trained = sorted((c for c in cells if c.mode in TRAININGS), key=lambda c: (c.backbone, c.mode))
    for _, group in groupby(trained, key=lambda c: (c.backbone, c.mode)):
        own = list(group)
        settings = dict.fromkeys(cell.setting for cell in own if cell.merger != DENSE)
        for setting in settings:
            there = [cell for cell in own if cell.setting == setting or cell.merger == DENSE]
            by_merger: dict[str, list[Cell]] = {}
            for cell in there:
                by_merger.setdefault(cell.merger, []).append(cell)
            dense = by_merger.pop(DENSE, [])
            first, *others = by_merger
            against = [(name, dense) for name in by_merger]
            against += [(first, by_merger[name]) for name in others]
            for name, second in against:
                of_seed = {cell.seed: cell for cell in second}
                both = [(c, of_seed[c.seed]) for c in by_merger[name] if c.seed in of_seed]
                if both:
                    yield tuple(map(list, zip(*both, strict=True)))


def intervals(
    cells: Sequence[Cell], backbones: Mapping[str, Backbone], work_dir: Path, draws: int
) -> Iterator[dict[str, Any]]:
    """A row for each of `pairs` whose detectors' objects are all in their folders."""

    @lru_cache(maxsize=16)
    def read(key: tuple[str, ...], kind: str) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return matches(truth(backbones[key[0]]), file_of(key, work_dir, kind), kind)

    for first, second in pairs(cells):
        for kind in KINDS:
            if not all(file_of(cell.key, work_dir, kind).exists() for cell in (*first, *second)):
                continue
            of = ([read(cell.key, kind) for cell in own] for own in (first, second))
            found, own, other = difference(*of, draws=draws), first[0], second[0]
            row = dict(backbone=own.backbone, mode=own.mode, setting=own.setting)
            row |= dict(first=own.merger, second=other.merger, metric=f"{kind}_mAP")
            row |= dict(seeds=len(first), difference=round(found.mean, 2), draws=draws)
            yield row | dict(low=round(found.low, 2), high=round(found.high, 2))


def write_intervals(
    table: Path,
    cells: Sequence[Cell],
    backbones: Mapping[str, Backbone],
    work_dir: Path,
    draws: int,
) -> None:
    """Prints `intervals`, and writes them if there are any."""
    found, at = [], commit()
    for row in intervals(cells, backbones, work_dir, draws):
        found.append(dict(row, commit=at))
        print(
            "{backbone}, {setting}: {first} - {second}, {metric}: {difference:+.2f} "
            "({low:+.2f} to {high:+.2f})".format(**row),
            flush=True,
        )
    if found:
        write_rows(table, COLUMNS, found)


def file_of(key: tuple[str, ...], work_dir: Path, kind: str) -> Path:
    """Of what a cell's detector found at its last evaluation."""
    return folder_of(key, work_dir) / f"{FOUND}.{kind}.json"


@lru_cache(maxsize=4)
def truth(backbone: Backbone) -> COCO:
    """The annotations that a detector is evaluated on."""
    (file,) = {metric.ann_file for metric in coco_metrics(model_config(backbone, None))}
    return COCO(str(ROOT / file))
