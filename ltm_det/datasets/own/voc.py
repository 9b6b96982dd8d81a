"""Pascal VOC: Annotations/*.xml with boxes, JPEGImages/, lists of names in ImageSets/Main."""

import glob
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ltm_det.basics.errors import InputError
from ltm_det.basics.files import read_text
from ltm_det.datasets.own.data import OwnData, Split


def found_in(path: Path) -> OwnData | None:
    """VOC data in a folder, None where there are none.

    Raises:
        InputError: An annotation that is no XML of VOC's, or a list that names what is not there.
    """
    folder = path / "Annotations"
    files = sorted(folder.glob("*.xml")) if folder.is_dir() else []
    if not files:
        return None
    lists = {part: path / "ImageSets" / "Main" / f"{part}.txt" for part in ("train", "val")}
    parts: dict[str, list[Path]] = {"train": files}
    if lists["train"].is_file():
        parts = {part: listed(file, folder) for part, file in lists.items() if file.is_file()}
    trees = {file: root_of(file) for some in parts.values() for file in some}
    found = {name.text for tree in trees.values() for name in tree.iterfind("object/name")}
    names = sorted(str(name).strip() for name in found)
    if not names:
        raise InputError(f"no object in {folder}: there is nothing to learn")
    splits = {
        part: split_of(path, [(file, trees[file]) for file in some], names)
        for part, some in parts.items()
    }
    return OwnData("VOC", splits["train"], splits.get("val"))


def listed(file: Path, folder: Path) -> list[Path]:
    """Annotations that a list of names names.

    Raises:
        InputError: One is not there.
    """
    lines = [line.split() for line in read_text(file).splitlines()]
    files = [folder / f"{words[0]}.xml" for words in lines if words]
    gone = [one.name for one in files if not one.is_file()]
    if gone:
        raise InputError(f"{file} names {gone[:3]}, which are not in {folder}")
    return files


def root_of(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # encodings too
        raise InputError(f"{file} is no XML: {error}") from error


def split_of(path: Path, trees: list[tuple[Path, Any]], names: list[str]) -> Split:
    """A part as COCO annotations; objects marked as difficult are crowds, which AP passes over."""
    images, annotations = [], []
    for number, (file, tree) in enumerate(trees, start=1):
        try:
            width, height = (int(tree.findtext(f"size/{side}")) for side in ("width", "height"))
            name = picture_of(file, tree, path / "JPEGImages")
            images.append(dict(id=number, file_name=name, height=height, width=width))
            for thing in tree.iterfind("object"):
                corners = [float(thing.findtext(f"bndbox/{c}")) for c in CORNERS]
                x1, y1 = corners[0] - 1, corners[1] - 1  # VOC counts pixels from 1
                w, h = corners[2] - x1, corners[3] - y1
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=number,
                        category_id=names.index(thing.findtext("name").strip()),
                        bbox=[x1, y1, w, h],
                        area=w * h,
                        iscrowd=int(thing.findtext("difficult") or 0),
                    )
                )
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{file} lacks a size, a name or a box of VOC's: {error}") from error
    categories = [dict(id=i, name=name) for i, name in enumerate(names)]
    coco = dict(images=images, annotations=annotations, categories=categories)
    return Split(coco, path / "JPEGImages")


def picture_of(file: Path, tree: ElementTree.Element, folder: Path) -> str:
    """The name of an annotation's picture.

    Raises:
        InputError: It names another one than that which is called as it is.
    """
    name = tree.findtext("filename") or f"{file.stem}.jpg"
    if Path(name).stem != file.stem:
        for own in folder.glob(f"{glob.escape(file.stem)}.*"):
            raise InputError(
                f"{file} names the picture {name!r}, but {own.name} is there: correct <filename>"
            )
    return name


CORNERS = ("xmin", "ymin", "xmax", "ymax")
