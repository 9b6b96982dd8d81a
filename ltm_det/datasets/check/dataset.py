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
    """Whether a metric's own annotation file speaks of the images that the data set gives it, and
    calls the same objects the same.

    Args:
        checked: Sources of one split with what they hold.
    """
    held = [(source, data) for source, data, _ in checked if data is not None]
    metrics = [pair for pair in held if pair[0].name.endswith("evaluator")]
    found = []
    for source, data in held:
        for metric, other in metrics:
            if source.training or metric is source:
                continue
            texts = {
                "image ids differ": other_images(source, data, other),
                "names of objects differ": other_names(source, data, other),
            }
            found += [Finding(k, metric.ann_file, "", text) for k, text in texts.items() if text]
    for metric, other in metrics:
        parts = [by_id(d, "images") for s, d in held if not s.training and s is not metric]
        more = [key for key in by_id(other, "images") if not any(key in part for part in parts)]
        if parts and more:
            text = f"it has {len(more)} images that the data set lacks, {more[0]!r} for one: AP "
            text += "would count all their objects as missed"
            found.append(Finding("image ids differ", metric.ann_file, "", text))
    return found


def other_images(source: Source, data: dict[str, Any], other: dict[str, Any]) -> str:
    """What a metric's images are not, of those in ``data``; nothing where all are there."""
    given, there = by_id(data, "images"), by_id(other, "images")
    missing = [key for key in given if key not in there]
    if missing:
        return f"it lacks {len(missing)} images of {source.ann_file}, {missing[0]!r} for one"
    moved = [key for key, row in given.items() if name_of(row) != name_of(there[key])]
    if moved:
        one = moved[0]
        return (
            f"{len(moved)} images have other files than in {source.ann_file}: {one!r} is "
            f"{name_of(there[one])!r}, there {name_of(given[one])!r}"
        )
    own, theirs = boxes_by_image(data), boxes_by_image(other)
    both = own.keys() & theirs.keys()
    apart = [key for key in both if own[key].isdisjoint(theirs[key])]
    if len(apart) > len(both) / 2:  # one part's file in the place of another's, of equal names
        return f"{len(apart)} of {len(both)} images have other objects than in {source.ann_file}"
    return ""


def boxes_by_image(data: dict[str, Any]) -> dict[Any, set[str]]:
    """The boxes of each image that has any, as they are written."""
    boxes: dict[Any, set[str]] = {}
    for row in data.get("annotations") or []:
        if isinstance(row, dict) and row.get("bbox") is not None:
            boxes.setdefault(key_of(row.get("image_id")), set()).add(str(row["bbox"]))
    return boxes


def other_names(source: Source, data: dict[str, Any], other: dict[str, Any]) -> str:
    """Which objects a metric calls by another name: those of the same id, image and box."""
    given, there = by_id(data, "annotations"), by_id(other, "annotations")
    names, others = (by_id(held, "categories") for held in (data, other))

    def name(row: dict[str, Any], of: dict[Any, dict[str, Any]]) -> Any:
        return of.get(key_of(row.get("category_id")), {}).get("name")

    moved = []
    for key, row in given.items():
        twin = there.get(key)
        if twin is None or any(row.get(k) != twin.get(k) for k in ("image_id", "bbox")):
            continue
        if name(row, names) != name(twin, others):
            moved.append(key)
    if not moved:
        return ""
    one = moved[0]
    return (
        f"{len(moved)} objects are of other categories than in {source.ann_file}: {one!r} is a "
        f"{name(there[one], others)!r}, there a {name(given[one], names)!r}"
    )


def by_id(data: dict[str, Any], kind: str) -> dict[Any, dict[str, Any]]:
    """The rows of an annotation file that can be told apart by id."""
    rows = data.get(kind)
    rows = rows if isinstance(rows, list) else []
    rows = [row for row in rows if isinstance(row, dict) and row.get("id") is not None]
    return {key_of(row["id"]): row for row in rows}


def key_of(value: Any) -> Any:
    """An id that can be looked up, whatever it is."""
    return value if isinstance(value, (int, str)) else repr(value)


def name_of(image: dict[str, Any]) -> str:
    """The name of an image's file, wherever its folder lies."""
    return str(image.get("file_name")).replace("\\", "/").rpartition("/")[2]
