"""COCO annotations: one json, or a folder with one for each part."""

from pathlib import Path
from typing import Any

from ltm_det.basics import strict_json
from ltm_det.basics.errors import InputError
from ltm_det.basics.files import read_text
from ltm_det.basics.words import is_name
from ltm_det.datasets.own.data import OwnData, Split

# How parts are called in names of files and folders.
PARTS = dict(train=("train",), val=("val", "valid", "validation", "test"))
# What entries have, where they have it.
FIELDS: dict[str, dict[str, Any]] = dict(
    images=dict(id=(int, str), file_name=str, width=(int, float), height=(int, float)),
    annotations=dict(image_id=(int, str), category_id=(int, str)),
    categories=dict(id=(int, str), name=str),
)
ROBOFLOW = "_annotations.coco.json"


def found_in(path: Path) -> OwnData | None:
    """COCO data at a path, None where there are none.

    Raises:
        InputError: A json that is none, pictures that are not there, or several files for a part.
    """
    if path.is_file():
        return OwnData("COCO", read(path)) if path.suffix == ".json" else None
    files = [
        *sorted(path.glob("*.json")),
        *sorted(path.glob("annotations/*.json")),
        *sorted(path.glob(f"*/{ROBOFLOW}")),
    ]
    if not files:
        return None
    if len(files) == 1:
        return OwnData("COCO", read(files[0], path))
    parts = {part: of_part(files, words, path) for part, words in PARTS.items()}
    if parts["train"] is None:
        names = [str(file.relative_to(path)) for file in files]
        raise InputError(f"none of {names} in {path} is called train: name the one to train on so")
    val = None if parts["val"] is None else read(parts["val"], path)
    return OwnData("COCO", read(parts["train"], path), val)


def of_part(files: list[Path], words: tuple[str, ...], root: Path) -> Path | None:
    """The file of a part: the first word that names one decides; files of instances go first, since
    COCO's own folder has captions and keypoints beside them."""
    for word in words:
        named = [file for file in files if word in str(file.relative_to(root)).lower()]
        if "val" not in word:  # 'train' is no part of 'val', but 'val' is one of 'valid'
            named = [file for file in named if "val" not in str(file.relative_to(root)).lower()]
        instances = [file for file in named if "instances" in file.name]
        if len(instances or named) > 1:
            raise InputError(f"several files are called {word}: {list(map(str, named))}: keep one")
        if named:
            return (instances or named)[0]
    return None


def check_rows(file: Path, coco: dict[str, Any]) -> None:
    """That lists are lists of objects, as far as they are read before the data are checked.

    Raises:
        InputError: Names the first that is none.
    """
    for name, fields in FIELDS.items():
        rows = coco[name]
        if not isinstance(rows, list):
            raise InputError(f"{file}: {name!r} is {rows!r:.60}, no list")
        for i, row in enumerate(rows):
            if not isinstance(row, dict):
                raise InputError(f"{file}: {name}[{i}] is {row!r:.60}, no object")
            for field, kinds in fields.items():
                value = row.get(field)
                bad = not isinstance(value, kinds) or isinstance(value, bool)
                if field in row and (bad or isinstance(value, str) and not is_name(value)):
                    raise InputError(f"{file}: {name}[{i}] has {field}={value!r:.60}")
    kinds = {type(row.get("id")) for row in coco["categories"] if "id" in row}
    if len(kinds) > 1:
        raise InputError(f"{file}: ids of categories are numbers and texts: give one kind")


def read(file: Path, root: Path | None = None) -> Split:
    """A json, and the folder in which its pictures are: beside it, or in a folder of its part.

    Raises:
        InputError: It is no json of COCO's, or its first picture is nowhere.
    """
    try:
        coco: Any = strict_json.parse(read_text(file))
    except ValueError as error:
        raise InputError(f"{file} is no json that can be used: {error}") from error
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(coco, dict) or key not in coco]
    if missing:
        raise InputError(f"{file} is no COCO file: it has no {', '.join(missing)}")
    check_rows(file, coco)
    if not coco["images"]:
        raise InputError(f"{file} names no picture")
    name = str(coco["images"][0].get("file_name"))
    part = next((word for word in ("train", "val", "test") if word in file.stem), file.stem)
    bases = [file.parent, root or file.parent, file.parent.parent]
    bases += [base / "images" for base in bases]
    folders = bases + [base / part for base in bases]
    for folder in folders:
        if (folder / name).is_file():
            return Split(coco, folder, file)
    near = {folder for base in bases for folder in base.glob(f"*{part}*")} - {*folders}
    found = sorted(folder for folder in near if (folder / name).is_file())
    if len(found) > 1:
        raise InputError(
            f"{name}, the first picture of {file}, is in {' and in '.join(map(str, found))}: "
            f"call the right one {part!r}"
        )
    if found:
        return Split(coco, found[0], file)
    folders += sorted(near)
    looked = sorted({str(folder) for folder in folders if folder.is_dir()})
    raise InputError(f"{name}, the first picture of {file}, is in none of {looked}: put it there")
