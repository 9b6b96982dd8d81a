"""Faulty data sets: each a change of a good one, with what is to come of it."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Coco = dict[str, Any]
NAN, INF = math.nan, math.inf


@dataclass
class Case:
    """
    Attributes:
        change: Of the lists and the folder of pictures; a text that it gives stands for the json.
        kind: Of the finding; empty where nothing is to be found.
        train: Exit code of training's start, and of testing's.
        mends: Whether what is left can be used.
        names: What the message names besides: an id, a file.
        lost: The class that goes altogether.
    """

    change: Callable[[Coco, Path], str | bytes | None]
    kind: str
    train: int = 2
    test: int = 2
    mends: bool = True
    names: str = ""
    lost: str = ""


CASES: dict[str, Case] = {}


def case(name: str, kind: str, change: Callable, **rest: Any) -> None:
    assert name not in CASES
    CASES[name] = Case(change, kind, **rest)


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


# The file as a whole
FILE = "annotation file unusable"
for name, make in {
    "truncated": lambda coco: json.dumps(coco)[:500],
    "empty": lambda coco: "",
    "blank": lambda coco: "  \n",
    "null": lambda coco: "null",
    "list": lambda coco: json.dumps(coco["annotations"]),
    "number": lambda coco: "3",
    "html": lambda coco: "<!DOCTYPE html><html><body>404</body></html>",
    "bytes": lambda coco: b"\x89PNG\r\n\xff\xfe\x00\x01",
    "deep": lambda coco: "[" * 100_000,
}.items():
    case(f"json {name}", FILE, text(make), mends=False)
for name in ("images", "annotations", "categories"):
    case(
        f"{name} twice",
        FILE,
        text(lambda coco, name=name: json.dumps(coco)[:-1] + f', "{name}": []}}'),
        mends=False,
        names=f"the key '{name}' stands twice",
    )
for name in ("images", "annotations", "categories"):
    case(f"no {name}", FILE, lists(lambda c, name=name: c.pop(name)), mends=False, names=name)
    change = lists(lambda c, name=name: c.update({name: None}))
    case(f"{name} null", FILE, change, mends=False, names=name)
case("images an object", FILE, lists(lambda c: c.update(images={"1": {}})), mends=False)

# Categories
CATEGORY = "category unusable"
case("permuted", "", lists(lambda c: c["categories"].reverse()), train=0, test=0)
case(
    "extra in front",
    "categories that are no class",
    lists(lambda c: c["categories"].insert(0, dict(id=77, name="else"))),
    train=0,
    test=0,
    names="'else'",
)


def gaps(coco: Coco) -> None:
    for entry in coco["categories"]:
        entry["id"] = {1: 1000, 2: 7}[entry["id"]]
    for entry in coco["annotations"]:
        entry["category_id"] = {1: 1000, 2: 7}[entry["category_id"]]


def without(coco: Coco, number: int) -> None:
    coco["categories"] = [c for c in coco["categories"] if c["id"] != number]
    coco["annotations"] = [a for a in coco["annotations"] if a["category_id"] != number]


case("ids with gaps", "", lists(gaps), train=0, test=0)
for number, name in ((1, "box"), (2, "slab")):
    change = lists(lambda c, number=number: without(c, number))
    kind = "classes without a category"
    case(f"without {name}", kind, change, train=0, test=0, names=repr(name), lost=name)
case(
    "no name matches",
    "no category matches",
    lists(lambda c: [entry.update(name=entry["name"].upper()) for entry in c["categories"]]),
    mends=False,
    names="'BOX'",
)
case("no categories at all", "no category matches", lists(lambda c: c["categories"].clear()))
CASES["no categories at all"].mends = False
case(
    "one name, two ids",
    CATEGORY,
    lists(lambda c: c["categories"].append(dict(id=9, name="box"))),
    names="'box'",
)


def split_class(coco: Coco) -> None:
    coco["categories"].insert(0, dict(id=9, name="box"))
    coco["annotations"][0]["category_id"] = 9


case("one class, two ids in use", CATEGORY, lists(split_class), names="'box'")
twin = lists(lambda c: c["categories"].append(dict(id=1, name="slab")))
case("one id, two names", CATEGORY, twin, mends=False, names="id 1")
nameless = lists(lambda c: c["categories"][0].pop("name"))
case("category without name", CATEGORY, nameless, names="id 1", lost="box")
case(
    "category of two lines",
    CATEGORY,
    lists(lambda c: c["categories"].append(dict(id=9, name="a\nb"))),
    names="id 9",
)
case("category without id", CATEGORY, lists(lambda c: c["categories"].append(dict(name="x"))))

# Images
IMAGE = "image unusable"
case("image without width", IMAGE, image(width=...), names="image 2")
case("image without height", IMAGE, image(height=...), names="image 2")
case("width a text", IMAGE, image(width="64"), names="image 2")
case("height zero", IMAGE, image(height=0), names="image 2")
case("width NaN", IMAGE, image(width=NAN), names="image 2")
case("image without file_name", IMAGE, image(file_name=...), names="image 2")
case("file_name a number", IMAGE, image(file_name=3), names="image 2")
case("image without id", IMAGE, image(id=...), names="entry 2")
case("image null", IMAGE, lists(lambda c: c["images"].insert(0, None)), names="entry 1")
case("image id twice, the same", IMAGE, lists(lambda c: c["images"].append(c["images"][0])))
other = lists(lambda c: c["images"].append(dict(c["images"][1], id=1)))
case("image id twice, another", IMAGE, other, names="image 1")
OUTSIDE = "file name outside the folder"
case("file_name absolute", OUTSIDE, image(file_name="/etc/passwd"), names="/etc/passwd")
case("file_name upwards", OUTSIDE, image(file_name="a/../../val/2.png"), names="../val/2.png")

# Annotations
ENTRY, BOX, MASK = "annotation unusable", "box unusable", "mask unusable"
case("annotation null", ENTRY, lists(lambda c: c["annotations"].insert(1, None)), names="entry 2")
case("annotation id twice", ENTRY, annotation(id=1), names="annotation 1")
same = lists(lambda c: c["annotations"].append(c["annotations"][0]))
case("annotation twice", ENTRY, same, names="annotation 1")
case("annotation without id", ENTRY, annotation(id=...), names="entry 3")
case("image_id unknown", ENTRY, annotation(image_id=99), names="annotation 3")
case("image_id a text", ENTRY, annotation(image_id="2"), names="annotation 3")
case("image_id a list", ENTRY, annotation(image_id=[2]), names="annotation 3")
case("no image_id", ENTRY, annotation(image_id=...), names="annotation 3")
case("category_id unknown", ENTRY, annotation(category_id=99), names="annotation 3")
case("no category_id", ENTRY, annotation(category_id=...), names="annotation 3")
for name, box in {
    "left out": ...,
    "null": None,
    "of three": [1, 2, 3],
    "of texts": ["1", "2", "3", "4"],
    "NaN": [1, 2, NAN, 8],
    "infinite": [1, 2, INF, 8],
    "huge": [1, 2, 1e300, 8],
    "negative": [20, 20, -8, 8],
    "outside": [500, 20, 8, 8],
}.items():
    case(f"bbox {name}", BOX, annotation(bbox=box), names="annotation 3")
case("bbox of no size", "box of no size", annotation(bbox=[2, 2, 0, 8]), train=0, test=0)
case("bbox reaching out", "box reaches out", annotation(bbox=[-6, 2, 20, 20]), train=0, test=0)
REST = "area or iscrowd missing"
case("no area", REST, annotation(area=...), names="annotation 3")
case("area NaN", REST, annotation(area=NAN), names="annotation 3")
case("area a text", REST, annotation(area="9"), names="annotation 3")
case("no iscrowd", REST, annotation(iscrowd=...), train=0, names="annotation 3")
for name, mask in {
    "left out": ...,
    "null": None,
    "empty": [],
    "a text": "x",
    "of an empty polygon": [[]],
    "of two points": [[1, 1, 9, 9]],
    "of an odd count": [[1, 1, 9, 1, 9, 9, 4]],
    "NaN": [[1, 1, 9, 1, NAN, 9]],
    "of texts": [["1", "1", "9", "1", "9", "9"]],
    "in no list": [1, 1, 9, 1, 9, 9],
    "runs of another size": dict(size=[4, 4], counts="`0"),
    "runs of garbage": dict(size=[48, 64], counts="~~\x01é"),
    "runs cut short": dict(size=[48, 64], counts="PP"),
    "runs of a wrong sum": dict(size=[48, 64], counts=[5, 6]),
    "runs negative": dict(size=[48, 64], counts=[-5, 48 * 64 + 5]),
    "runs without counts": dict(size=[48, 64]),
}.items():
    case(f"segmentation {name}", MASK, annotation(segmentation=mask), names="annotation 3")
right = [1, 1, 9, 1, 9, 9]
part = annotation(segmentation=[right, [1, 1, 9, 9]])
case("segmentation right in part", "", part, train=0, names="annotation 3")

# What is there to learn
NOTHING = "nothing to learn from"
case("no annotation", NOTHING, lists(lambda c: c["annotations"].clear()), test=0, mends=False)
case("no image", NOTHING, lists(lambda c: c["images"].clear()), mends=False)
crowd = lists(lambda c: [entry.update(bbox=[1, 1, 0, 0]) for entry in c["annotations"]])
case("all boxes of no size", NOTHING, crowd, test=0, mends=False)
