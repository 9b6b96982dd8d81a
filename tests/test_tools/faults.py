"""Ways to change a good data set: of its lists, of one entry, of a picture file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Coco = dict[str, Any]


def annotation(**values: Any) -> Callable[[Coco, Path], None]:
    """The third one, with other values; ... leaves one out."""

    def change(coco: Coco, pictures: Path) -> None:
        put(coco["annotations"][2], values)

    return change


def image(**values: Any) -> Callable[[Coco, Path], None]:
    """The second one."""

    def change(coco: Coco, pictures: Path) -> None:
        put(coco["images"][1], values)

    return change


def put(entry: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if value is ...:
            entry.pop(key)
        else:
            entry[key] = value


def lists(change: Callable[[Coco], Any]) -> Callable[[Coco, Path], None]:
    def on(coco: Coco, pictures: Path) -> None:
        change(coco)

    return on


def text(make: Callable[[Coco], str | bytes]) -> Callable[[Coco, Path], str | bytes]:
    return lambda coco, pictures: make(coco)


def picture(change: Callable[[Path], Any]) -> Callable[[Coco, Path], None]:
    """The file of the second image."""

    def on(coco: Coco, pictures: Path) -> None:
        change(pictures / coco["images"][1]["file_name"])

    return on
