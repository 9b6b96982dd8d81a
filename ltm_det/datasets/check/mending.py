"""A copy of an annotation file without what is wrong: entries left out, values set."""

import json
import os.path as osp
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltm_det.basics.errors import InputError
from ltm_det.basics.files import write_text
from ltm_det.datasets.check.dataset import recheck
from ltm_det.datasets.check.findings import Finding, as_text, errors
from ltm_det.datasets.check.source import Source

LISTS = ("images", "annotations", "categories")


def write_mended(
    source: Source, data: dict[str, Any] | None, found: Sequence[Finding], out: Path
) -> str:
    """Writes a copy where every error is mended; warnings stay.

    Args:
        source: Whose.
        data: Its lists, which stay as they are.
        found: What is wrong with them.
        out: The copy, which is whole or not there.

    Returns:
        How many entries of which lists were left out, and repaired.

    Raises:
        InputError: The copy would replace the file; an error can't be mended; what is left can't
            be used.
    """
    if osp.realpath(out) == osp.realpath(source.ann_file):
        raise InputError(f"{out} is the annotation file itself: name another for the mended copy")
    wrong = errors(found)
    hopeless = [finding for finding in wrong if finding.mend is None]
    if data is None or hopeless:
        raise InputError(f"this can't be mended by leaving things out:\n{as_text(hopeless, 5)}")
    copy = mended(data, wrong)
    left = errors(recheck(source, copy))
    if left:
        raise InputError(
            f"{source.ann_file} can't be used without what is wrong with it: what is left has\n"
            + as_text(left, 5)
        )
    write_text(out, json.dumps(copy))
    return told(data, copy, wrong)


def mended(data: dict[str, Any], wrong: Sequence[Finding]) -> dict[str, Any]:
    """The lists with the mends of errors, and without what belongs to entries left out."""
    rows: dict[str, list[Any]] = {name: list(data.get(name, ())) for name in LISTS}
    gone: dict[str, set[int]] = {name: set() for name in LISTS}
    same = {}  # category ids of one name
    for name, index, values in (finding.mend for finding in wrong if finding.mend):
        if values is None:
            gone[name].add(index)
        elif name == "categories":
            same[rows[name][index]["id"]] = values["id"]
            gone[name].add(index)
        else:
            rows[name][index] = {**rows[name][index], **values}
    kept = {
        name: [row for index, row in enumerate(rows[name]) if index not in gone[name]]
        for name in LISTS
    }
    images = {row["id"] for row in kept["images"]}
    categories = {row["id"] for row in kept["categories"]}
    annotations = [
        {**row, "category_id": same[row["category_id"]]} if row["category_id"] in same else row
        for row in kept["annotations"]
    ]
    kept["annotations"] = [
        row for row in annotations if row["image_id"] in images and row["category_id"] in categories
    ]
    return {**data, **{name: kept[name] for name in LISTS if name in data}}


def told(data: dict[str, Any], copy: dict[str, Any], wrong: Sequence[Finding]) -> str:
    words = [
        f"{count} of {len(data[name])} {name} left out"
        for name in LISTS
        if name in data and (count := len(data[name]) - len(copy[name]))
    ]
    repaired = {mend[:2] for finding in wrong if (mend := finding.mend) and mend[2] is not None}
    return ", ".join([*words, *([f"{len(repaired)} repaired"] if repaired else [])])
