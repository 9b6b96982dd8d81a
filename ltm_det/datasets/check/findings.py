"""One thing that is wrong with a data set, and reports of many."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

# What a problem is called, and what to do about it. Errors come first in reports, in this order.
REMEDIES = {
    "annotation file unusable": "write it again, or name another one: a COCO json has the lists "
    "images, annotations and categories",
    "class names": "give metainfo.classes as a tuple of names, each of them once",
    "no category matches": "name the file's categories in metainfo.classes, letter for letter, or "
    "rename them in the file",
    "category unusable": "each category needs an id and a name of its own",
    "image unusable": "each image needs an id of its own, file_name, and width and height in "
    "pixels",
    "file name outside the folder": "put the picture into the image folder, and name it from there",
    "picture too thin": "cut the picture, or leave it out",
    "annotation unusable": "each annotation needs an id of its own, and image_id and category_id "
    "that are in the file",
    "box unusable": "give bbox=[x, y, width, height] in pixels, inside the picture",
    "area or iscrowd missing": "give area in pixels, and iscrowd=0",
    "mask unusable": "give segmentation as polygons of at least three points, or as run lengths of "
    "the picture's size; a detector of boxes alone needs none (with_mask=False)",
    "nothing to learn from": "annotate objects of these classes, or loosen filter_cfg",
    "image ids differ": "give the metric's ann_file and the data set's the same images",
    "names of objects differ": "give the metric the annotation file of the data set, or mend its "
    "categories",
    "image folder unusable": "name it in data_prefix, and let it be read (chmod)",
    "picture file unusable": "copy the picture again, or leave it out",
    "picture of another size": "write the picture's own size into the file, and see that its "
    "boxes were drawn at that size",
    "picture turned by EXIF": "turn the pixels themselves and annotate those, or load with "
    "LoadImageFromFile(color_type='color_ignore_orientation')",
    "not looked at": "mmdet reads this data set by other code than that of COCO",
    "classes without a category": "none, if the file is to have no such objects",
    "categories that are no class": "none, if objects of them are to be background",
    "box of no size": "none: mmdet leaves it out of training; evaluation can't find it",
    "box reaches out": "none: it is cut at the picture's edge",
    "polygon left out": "none: the object's other polygons are taken",
    "masks ignored": "set poly2mask=True in LoadAnnotations, for run lengths",
    "the same picture twice": "none, if both images are to be there",
    "no annotations": "none, if nothing is to be found: AP will be -1",
}
ORDER = {kind: place for place, kind in enumerate(REMEDIES)}

# Of a list of the json an index, and what to write there; None: the entry is left out.
Mend = tuple[str, int, dict[str, Any] | None]


@dataclass
class Finding:
    """A problem.

    Attributes:
        kind: Of REMEDIES.
        file: The annotation file or the picture.
        where: The entry, such as 'annotation 7 of image 3'; empty for the whole file.
        text: What is wrong, with the value.
        mend: How a copy is mended; None: it can't be, or need not.
        error: Whether training or testing fails by it, or goes wrong; else it is a warning.
    """

    kind: str
    file: str
    where: str
    text: str
    mend: Mend | None = None
    error: bool = True

    def __post_init__(self) -> None:
        assert self.kind in REMEDIES, self.kind

    def line(self) -> str:
        mended = ""
        if self.error and self.mend:
            mended = " [left out]" if self.mend[2] is None else " [repaired]"
        return ": ".join(filter(None, (self.file, self.where, self.text))) + mended


def errors(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.error]


def grouped(findings: Iterable[Finding]) -> list[tuple[bool, str, list[Finding]]]:
    """Whether they are errors, their kind, and they; errors first."""

    def key(finding: Finding) -> tuple[bool, int]:
        return not finding.error, ORDER[finding.kind]

    return [
        (not warned, list(REMEDIES)[place], list(group))
        for (warned, place), group in groupby(sorted(findings, key=key), key)
    ]


def as_text(findings: Sequence[Finding], most: int | None = None) -> str:
    """A report.

    Args:
        most: How many of each kind are shown; None: all.
    """
    lines = []
    for error, kind, group in grouped(findings):
        lines.append(f"{'error' if error else 'warning'}: {kind} ({len(group)})")
        lines += [f"    {finding.line()}" for finding in group[:most]]
        if most is not None and len(group) > most:
            lines.append(f"    ... and {len(group) - most} more")
        lines.append(f"  remedy: {REMEDIES[kind]}")
    wrong = len(errors(findings))
    lines.append(f"{wrong} errors, {len(findings) - wrong} warnings")
    # names may hold what no terminal can show
    return "\n".join(lines).encode(errors="backslashreplace").decode()


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """A report as values that JSON has; every finding with file and place."""
    wrong = len(errors(findings))
    groups = [
        dict(
            level="error" if error else "warning",
            kind=kind,
            count=len(group),
            remedy=REMEDIES[kind],
            found=[
                dict(file=finding.file, where=finding.where, text=finding.text)
                | dict(fix=None if not (error and finding.mend) else _fix(finding.mend))
                for finding in group
            ],
        )
        for error, kind, group in grouped(findings)
    ]
    return dict(errors=wrong, warnings=len(findings) - wrong, groups=groups)


def _fix(mend: Mend) -> str | dict[str, Any]:
    return "left out" if mend[2] is None else mend[2]
