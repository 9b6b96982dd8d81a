"""A metric's own annotation file beside the data set's: the same images, the same names."""

import copy

import pytest

from ltm_det.datasets.check.dataset import check_ids
from ltm_det.datasets.check.source import Source

DATA = dict(
    images=[dict(id=i, file_name=f"a/{i}.png") for i in range(3)],
    annotations=[
        dict(id=i, image_id=i, category_id=1 + i % 2, bbox=[0, 0, 2, 2]) for i in range(3)
    ],
    categories=[dict(id=1, name="box"), dict(id=2, name="slab")],
)


def source(name: str) -> Source:
    given = dict.fromkeys(Source.__dataclass_fields__) | dict(name=name, ann_file=f"{name}.json")
    return Source(**given | dict(training=False))


def found(change) -> list:
    other = copy.deepcopy(DATA)
    change(other)
    pairs = [(source("test"), DATA, []), (source("test evaluator"), other, [])]
    return [(finding.kind, finding.text) for finding in check_ids(pairs)]


def exchange_names(data) -> None:
    first, second = data["categories"]
    first["name"], second["name"] = second["name"], first["name"]


def renumber(data) -> None:
    for row in data["categories"]:
        row["id"] += 10
    for row in data["annotations"]:
        row["category_id"] += 10


def rotate_images(data) -> None:
    for row in data["images"]:
        row["id"] = (row["id"] + 1) % 3


def other_part(data) -> None:
    """Images and ids of the same names, as where numbers begin anew in each part."""
    for row in data["annotations"]:
        row["id"] += 7
        row["bbox"] = [1, 1, 1, 1]


WRONG = {
    "more images": (
        lambda data: data["images"].append(dict(id=9, file_name="9.png")),
        "it has 1 images that the data set lacks",
    ),
    "another part's": (other_part, "3 of 3 images have other objects"),
    "an image is missing": (lambda data: data["images"].pop(), "it lacks 1 images"),
    "names exchanged": (exchange_names, "3 objects are of other categories"),
    "images exchanged": (rotate_images, "3 images have other files"),
}
RIGHT = {
    "the same": lambda data: None,
    "other numbers of the same names": renumber,
    "another folder": lambda data: data["images"][0].update(file_name="b\\0.png"),
    "further objects": lambda data: data["annotations"].append(dict(id=9, image_id=0)),
    "other boxes": lambda data: data["annotations"][0].update(bbox=[1, 1, 2, 2], category_id=2),
    "rows that are none": lambda data: data["annotations"].append(7),
}


@pytest.mark.parametrize("change, words", WRONG.values(), ids=WRONG)
def test_what_differs_is_said(change, words) -> None:
    ((_, text),) = found(change)
    assert words in text


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
def test_what_means_the_same_passes(change) -> None:
    assert found(change) == []
