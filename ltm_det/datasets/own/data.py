"""Training and validation data in COCO's form."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from ltm_det.basics.errors import InputError
from ltm_det.basics.files import write_text

MARK = "ltm_det"  # in a json's info: it was written here


@dataclass(frozen=True)
class Split:
    """Annotations and the folder that their file names are relative to."""

    coco: Mapping[str, Any]  # images, annotations, categories
    images: Path
    file: Path | None = None  # where the annotations lie in this very form


@dataclass(frozen=True)
class OwnData:
    """Data of one form.

    Attributes:
        form: 'COCO', 'YOLO' or 'VOC'.
        train: What is trained on.
        val: What AP is computed on; None where the data have no such part.
    """

    form: str
    train: Split
    val: Split | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the categories, in the order of their ids."""
        rows = [row for row in self.train.coco["categories"] if {"id", "name"} <= {*row}]
        names = [str(row["name"]) for row in sorted(rows, key=lambda row: row["id"])]
        return tuple(dict.fromkeys(names))

    @property
    def masked(self) -> bool:
        """Whether objects have masks, and not boxes alone."""
        rows = self.train.coco["annotations"]
        return any(row.get("segmentation") for row in rows)

    def size(self) -> tuple[int, int]:
        """Median longer and shorter side of the training pictures, in pixels.

        Raises:
            InputError: No picture has a size.
        """
        rows = self.train.coco["images"]
        sides = [(row["width"], row["height"]) for row in rows if {"width", "height"} <= {*row}]
        if not sides:
            raise InputError(f"no picture in {self.train.file} has width and height: give them")
        return round(median(map(max, sides))), round(median(map(min, sides)))

    def split(self, share: float) -> "OwnData":
        """With a part for validation: its own, or so large a share of the training pictures.

        Raises:
            InputError: There are too few pictures to keep some.
        """
        if self.val is not None:
            return self
        images = self.train.coco["images"]
        step = round(1 / share)
        if len(images) < 2 * step:
            raise InputError(
                f"{len(images)} pictures without a part for validation are too few to keep every "
                f"{step}th for it: give more, or a part of their own"
            )
        kept, rest = images[::step], [row for i, row in enumerate(images) if i % step]
        train, val = (
            replace(self.train, coco=of_images(self.train.coco, part), file=None)
            for part in (rest, kept)
        )
        return replace(self, train=train, val=val)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Annotation files of training and validation: the data's own, or new ones in a folder.

        Raises:
            InputError: Other annotations are there already.
        """
        assert self.val is not None
        files = []
        for name, part in (("train", self.train), ("val", self.val)):
            file = part.file
            if file is None:
                file = folder / f"{name}.json"
                check_ours(file)
                info = part.coco.get("info")
                info = {**(info if isinstance(info, Mapping) else {}), MARK: True}
                write_text(file, json.dumps({**part.coco, "info": info}))
            files.append(file)
        return files[0], files[1]


def check_ours(file: Path) -> None:
    """Raises InputError where a file is there that was not written here."""
    try:
        there = json.loads(file.read_text())
    except FileNotFoundError:
        return
    except (ValueError, OSError, RecursionError):
        there = None
    info = there.get("info") if isinstance(there, dict) else None
    if not isinstance(info, dict) or MARK not in info:
        raise InputError(f"{file} is there, and is not of this command: name another work folder")


def of_images(coco: Mapping[str, Any], images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The annotations of some of the pictures."""
    ids = {row.get("id") for row in images}
    rows = [row for row in coco["annotations"] if row.get("image_id") in ids]
    return {**coco, "images": list(images), "annotations": rows}
