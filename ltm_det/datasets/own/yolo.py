"""YOLO's form: data.yaml, pictures, and beside each a text of boxes or polygons.

A label's line is a class and either a box, its centre and size, or a polygon, all as shares of the
picture's width and height.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import yaml
from pycocotools import mask as coco_mask

from ltm_det.basics.errors import InputError
from ltm_det.basics.files import check_name, read_text
from ltm_det.basics.words import is_name
from ltm_det.datasets.own.data import OwnData, Split

FAR = 1e4  # above all classes, and shares that a slip could make
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def found_in(path: Path) -> OwnData | None:
    """YOLO data at a path, None where there are none.

    Raises:
        InputError: A data.yaml without names or training pictures, or a label that can't be read.
    """
    file = path if path.suffix in (".yaml", ".yml") else path / "data.yaml"
    if not file.is_file():
        return None
    try:
        about = OnceLoader(read_text(file)).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is no YAML that can be used: {error}") from error
    if not isinstance(about, dict) or "names" not in about or not about.get("train"):
        raise InputError(f"{file} must have 'names' of the classes and 'train', the pictures")
    if "kpt_shape" in about:
        raise InputError(
            f"{file}: kpt_shape={about['kpt_shape']!r}, its labels are of key points, which no "
            "detector of ours learns: export the data with boxes or polygons"
        )
    names = class_names(file, about["names"])
    if about.get("nc", len(names)) != len(names):
        raise InputError(f"{file}: nc={about['nc']!r}, but there are {len(names)} names")
    root = file.parent / str(about.get("path") or ".")
    roots = [root, file.parent]  # a path that was right on another machine is passed over
    train = split_of(file, roots, about["train"], names)
    if train is None:
        raise InputError(f"{file}: there is no picture at train: {about['train']}")
    val = split_of(file, roots, about["val"], names) if about.get("val") else None
    if about.get("val") and val is None:
        raise InputError(f"{file}: there is no picture at val: {about['val']}")
    return OwnData("YOLO", train, val)


class OnceLoader(yaml.SafeLoader):
    """Of two equal keys yaml keeps the last one without a word; here they are refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def class_names(file: Path, given: Any) -> list[str]:
    """The names, which are a list, or a mapping from 0 on.

    Raises:
        InputError: They are neither.
    """
    names = given
    if isinstance(given, dict):
        numbered = {str(number): name for number, name in given.items()}
        names = [numbered.get(str(i)) for i in range(len(given))]
        if None in names:
            raise InputError(f"{file}: names have the numbers {[*given]}: count them from 0")
    if not isinstance(names, list) or not names:
        raise InputError(f"{file}: names={given!r}: give a list of class names")
    for name in names:
        if isinstance(name, (int, float)) and not isinstance(name, bool):
            continue  # of digits, say
        if not is_name(name):
            raise InputError(f"{file}: the name {name!r} is no text of one line: put it in quotes")
    return [str(name) for name in names]


def pictures_of(roots: list[Path], given: Any) -> list[Path]:
    """Pictures of a part: folders, or texts with a picture a line, as one or as a list."""
    found: list[Path] = []
    for one in given if isinstance(given, list) else [given]:
        options = [root / str(one) for root in roots]
        options += [roots[-1] / str(one).removeprefix("../")]  # as Roboflow writes them
        place = next((path for path in options if path.exists()), None)
        if place is None and isinstance(given, list):
            raise InputError(
                f"there is no {one} of {given} in {roots[-1]}: leave it out, or mend it"
            )
        if place is None:
            continue
        if place.is_dir():
            found += sorted(f for f in place.rglob("*") if f.suffix.lower() in ENDINGS)
        else:
            lines = read_text(place).split("\n")
            found += [place.parent / line.strip() for line in lines if line.strip()]
    return found


def split_of(file: Path, roots: list[Path], given: Any, names: list[str]) -> Split | None:
    """A part as COCO annotations, None where it has no picture."""
    pictures = pictures_of(roots, given)
    if not pictures:
        return None
    images, annotations = [], []
    folder = file.parent.resolve()
    for number, picture in enumerate(pictures, start=1):
        check_name(picture)
        pixels = cv2.imread(str(picture))
        if pixels is None:
            raise InputError(f"{picture}, a picture of {file}, can't be read: mend or remove it")
        height, width = pixels.shape[:2]
        name = picture.resolve()
        name = name.relative_to(folder) if name.is_relative_to(folder) else name
        images.append(dict(id=number, file_name=str(name), height=height, width=width))
        for row in rows_of(label_of(picture), len(names), width, height):
            annotations.append(dict(row, id=len(annotations) + 1, image_id=number))
    categories = [dict(id=i, name=name) for i, name in enumerate(names)]
    coco = dict(images=images, annotations=annotations, categories=categories)
    return Split(coco, folder)


def label_of(picture: Path) -> Path:
    """The text of a picture: 'labels' stands for the last 'images' of its path."""
    parts = list(picture.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def rows_of(file: Path, classes: int, width: int, height: int) -> Iterator[dict[str, Any]]:
    """A label file's objects; a picture without one has none.

    Raises:
        InputError: A line that is neither a box nor a polygon, or an unknown class.
    """
    if not file.is_file():
        return
    for number, line in enumerate(read_text(file).removeprefix("\ufeff").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            label, *shares = [float(word) for word in line.split()]
        except ValueError:
            raise InputError(f"{where}: {line!r} is not all numbers") from None
        if not all(abs(number) < FAR for number in (label, *shares)):  # not so for NaN
            raise InputError(f"{where}: {line!r} has more than shares of the picture, 0 to 1")
        if label != int(label) or not 0 <= label < classes:
            raise InputError(f"{where}: there is no class {label:g}, data.yaml has {classes}")
        if len(shares) == 4:
            x, y, w, h = shares
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            yield dict(category_id=int(label), bbox=box, area=box[2] * box[3], iscrowd=0)
            continue
        if len(shares) < 6 or len(shares) % 2:
            raise InputError(f"{where}: {len(shares)} numbers are neither a box nor a polygon")
        corners = [share * (height if i % 2 else width) for i, share in enumerate(shares)]
        xs, ys = corners[::2], corners[1::2]
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        rle = coco_mask.merge(coco_mask.frPyObjects([corners], height, width))
        yield dict(
            category_id=int(label),
            bbox=box,
            area=float(coco_mask.area(rle)),
            iscrowd=0,
            segmentation=[corners],
        )
