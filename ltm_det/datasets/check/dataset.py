"""All checks of a data set together."""

from collections.abc import Callable, Iterable
from typing import Any

from ltm_det.datasets.check.annotations import check_annotations
from ltm_det.datasets.check.categories import check_categories, check_classes
from ltm_det.datasets.check.findings import Finding
from ltm_det.datasets.check.images import Image, check_images
from ltm_det.datasets.check.pictures import check_pictures
from ltm_det.datasets.check.reading import check_lists, read
from ltm_det.datasets.check.source import Source

Pictures = Callable[[Source, dict[Any, Image], list[Finding]], None]


def check(
    source: Source, pictures: Pictures | None = check_pictures
) -> tuple[dict[str, Any] | None, list[Finding]]:
    """What a data set holds, None where it can't be read, and what is wrong with it.

    Args:
        pictures: Looks at the image files; None: they are not looked at.
    """
    found: list[Finding] = []
    data = read(source, found)
    if data is not None:
        images = check_data(source, data, found)
        if pictures is not None and source.images is not None:
            pictures(source, images, found)
    return data, found


def check_data(source: Source, data: dict[str, Any], found: list[Finding]) -> dict[Any, Image]:
    """Looks at lists that have been read; gives the images."""
    categories = check_categories(source, data["categories"], found)
    classes = check_classes(source, categories, found)
    images = check_images(source, data["images"], found)
    rows = data.get("annotations", [])
    taught = check_annotations(source, rows, images, categories, classes, found)
    if classes is None or classes:  # else it is said that no category matches
        check_purpose(source, images, taught, found)
    return images


def check_purpose(
    source: Source, images: dict[Any, Image], taught: set[Any], found: list[Finding]
) -> None:
    """Whether there is something to learn from, or to find."""

    def add(kind: str, text: str, error: bool = True) -> None:
        found.append(Finding(kind, source.ann_file, "", text, error=error))

    if not images:
        add("nothing to learn from", "no image is there that can be used")
    elif not taught and source.training:
        add("nothing to learn from", f"none of {len(images)} images has an object of a class")
    elif not taught:
        text = f"none of {len(images)} images has an object of a class"
        add("no annotations", text, error=False)
    elif source.training and source.filters:
        least = source.filters.get("min_size", 0)
        kept = images.keys() & taught if source.filters.get("filter_empty_gt") else images
        sides = [min(images[key].width or 0, images[key].height or 0) for key in kept]
        if not any(side >= least for side in sides):
            text = f"filter_cfg={source.filters} leaves none of {len(images)} images"
            add("nothing to learn from", text)


def recheck(source: Source, data: dict[str, Any]) -> list[Finding]:
    """What is wrong with lists that were mended."""
    found: list[Finding] = []
    if check_lists(source, data, found):
        check_data(source, data, found)
    return found


def check_ids(checked: Iterable[tuple[Source, dict[str, Any] | None, Any]]) -> list[Finding]:
    """Whether a metric's own annotation file knows the images that the data set gives it.

    Args:
        checked: Sources of one split with what they hold.
    """
    ids = [
        (source, {row["id"] for row in data["images"] if isinstance(row, dict) and "id" in row})
        for source, data, _ in checked
        if data is not None
    ]
    metrics = [pair for pair in ids if pair[0].name.endswith("evaluator")]
    found = []
    for source, given in ids:
        for metric, there in metrics:
            if not source.training and given - there:
                text = f"it lacks {len(given - there)} images of {source.ann_file}"
                text += f", {next(iter(given - there))!r} for one"
                found.append(Finding("image ids differ", metric.ann_file, "", text))
    return found
