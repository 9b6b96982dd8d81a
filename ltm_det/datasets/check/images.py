"""Entries of images: ids, names, sizes, and what the pipeline makes of the sizes."""

import os.path as osp
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ltm_det.datasets.check.findings import Finding
from ltm_det.datasets.check.source import Source

THIN, TOO_THIN = 20, 50  # ratios of the sides that are warned of, and refused in training


@dataclass
class Image:
    """An entry that can be used, by its place in the list; no size where the entry has none."""

    index: int
    name: str
    width: int | None
    height: int | None
    broken: Finding | None = None  # its missing size, which the picture may tell


def check_images(source: Source, images: list[Any], found: list[Finding]) -> dict[Any, Image]:
    """Images of the ids that are there; what is wrong is added to ``found``."""
    usable: dict[Any, Image] = {}

    def wrong(kind: str, index: int, entry: Any, text: str, error: bool = True) -> Finding:
        number = entry.get("id") if isinstance(entry, dict) else None
        where = f"entry {index + 1} of images" if number is None else f"image {number!r}"
        name = entry.get("file_name") if isinstance(entry, dict) else None
        where += f" ({name})" if isinstance(name, str) else ""
        mend = ("images", index, None) if error else None
        found.append(Finding(kind, source.ann_file, where, text, mend, error))
        return found[-1]

    names: Counter[str] = Counter()
    for index, entry in enumerate(images):
        if not isinstance(entry, dict) or type(entry.get("id")) not in (int, str):
            wrong("image unusable", index, entry, f"it has no id: {str(entry)[:80]}")
            continue
        number, name = entry["id"], entry.get("file_name")
        if number in usable:
            first = usable[number].index
            if images[first] == entry:
                wrong("image unusable", index, entry, "the same entry is there twice")
            else:  # whose the annotations are can't be known
                for twin in (first, index):
                    text = f"entries {first + 1} and {index + 1} have this id"
                    wrong("image unusable", twin, images[twin], text)
            continue
        if not isinstance(name, str) or not name or "\0" in name:
            wrong("image unusable", index, entry, f"file_name is {name!r}")
            name = ""
        elif osp.isabs(name) or osp.normpath(name).split("/")[0] == "..":
            kind = "file name outside the folder"
            wrong(kind, index, entry, f"file_name is {name!r}")
            name = ""
        width, height = (_whole(entry.get(key)) for key in ("width", "height"))
        image = usable[number] = Image(index, name, width, height)
        if width is None or height is None:
            text = f"width is {entry.get('width')!r}, height {entry.get('height')!r}"
            image.broken = wrong("image unusable", index, entry, text)
        else:
            for text, error in thin(source, image):
                wrong("picture too thin", index, entry, text, error)
        names[name] += 1
        if name and names[name] == 2:
            wrong("the same picture twice", index, entry, "an image before has this name", False)
    return usable


def thin(source: Source, image: Image) -> Iterator[tuple[str, bool]]:
    """Of a picture that resizing makes nothing of, or that widens its batch for nothing: what is
    wrong, and whether it is an error."""
    long, short = max(image.width, image.height), min(image.width, image.height)
    least = min((resized(short, long, scale) for scale in source.scales), default=(short, long))
    size = f"{image.width} x {image.height}"
    made = f"the config's Resize makes {least[1]} x {least[0]} of it"
    if least[0] < 1:
        yield f"{size}: {made}", True
    elif long / short > THIN:
        what = made if source.scales else "no Resize of the config is known"
        error = source.training and long / short > TOO_THIN
        yield f"{size}, {long / short:.0f} to 1: {what}", error


def resized(short: int, long: int, scale: Any) -> tuple[int, int]:
    """Shorter and longer side as mmcv makes them of a scale."""
    if isinstance(scale, tuple):
        scale = min(scale[0] / long, scale[1] / short)
    return int(short * scale + 0.5), int(long * scale + 0.5)


def _whole(side: Any) -> int | None:
    """Pixels, or None."""
    ok = type(side) in (int, float) and 0 < side < 1e6 and side == int(side)
    return int(side) if ok else None
