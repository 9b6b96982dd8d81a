"""Annotations: what they belong to, their boxes and masks; a single loop."""

from collections.abc import Iterator
from typing import Any

from ltm_det.datasets.check.findings import Finding, Mend
from ltm_det.datasets.check.images import Image
from ltm_det.datasets.check.segmentations import FAR, area, is_number, run_sums, wrong_mask
from ltm_det.datasets.check.source import Source

EDGE = 1  # pixels by which a box may reach out without a word
# Kind, text, what mends it (None: leaving it out; empty: nothing does), whether it is an error.
Fault = tuple[str, str, dict[str, Any] | None, bool]


def check_annotations(
    source: Source,
    annotations: list[Any],
    images: dict[Any, Image],
    categories: dict[Any, str | None],
    classes: set | None,
    found: list[Finding],
) -> set[Any]:
    """Ids of images with an object to learn from; what is wrong is added to ``found``.

    Args:
        images: By their ids.
        categories: Names by ids.
        classes: Ids that are of a class; None: all.
    """
    taught: set[Any] = set()
    numbers: dict[int, int] = {}  # where an id is first
    sums = sums_of(annotations) if source.masks else {}
    largest = max((a["id"] for a in annotations if has_id(a)), default=0)
    for index, entry in enumerate(annotations):
        faults = list(faults_of(source, entry, images, categories, sums))
        left = all(fault[3] is False or fault[2] for fault in faults)
        number = entry["id"] if has_id(entry) else None
        if left and (number is None or number in numbers):
            twin = number is not None and annotations[numbers[number]] == entry
            largest += not twin
            text = f"id {number!r} is there before" if number is not None else "it has no id"
            faults.append(("annotation unusable", text, None if twin else dict(id=largest), True))
            left = not twin
        if number is not None:
            numbers.setdefault(number, index)
        for kind, text, mend, error in faults:
            action: Mend | None = ("annotations", index, mend) if error else None
            where = place(index, entry)
            found.append(Finding(kind, source.ann_file, where, text, action, error))
        if left and (classes is None or entry["category_id"] in classes):
            if not any(fault[0] == "box of no size" for fault in faults):
                taught.add(entry["image_id"])
    return taught


def sums_of(annotations: list[Any]) -> dict[str, int]:
    """Pixels of all texts of run lengths, see :func:`run_sums`."""
    masks = [entry.get("segmentation") for entry in annotations if isinstance(entry, dict)]
    counts = [mask.get("counts") for mask in masks if isinstance(mask, dict)]
    texts = [text for text in counts if isinstance(text, str)]
    return dict(zip(texts, run_sums(texts)))


def has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and type(entry.get("id")) is int


def place(index: int, entry: Any) -> str:
    if not isinstance(entry, dict):
        return f"entry {index + 1} of annotations"
    where = f"entry {index + 1} of annotations"
    if "id" in entry:
        where = f"annotation {entry['id']!r}"
    return f"{where} of image {entry['image_id']!r}" if "image_id" in entry else where


def faults_of(
    source: Source,
    entry: Any,
    images: dict[Any, Image],
    categories: dict[Any, str | None],
    sums: dict[str, int],
) -> Iterator[Fault]:
    """What is wrong with one annotation."""
    if not isinstance(entry, dict):
        yield "annotation unusable", f"it is {str(entry)[:80]!r}", None, True
        return
    try:
        image, known = images.get(entry.get("image_id")), entry.get("category_id") in categories
    except TypeError:  # a list, say, is no id
        image, known = None, False
    if image is None:
        text = (
            f"no image has the id {entry['image_id']!r}" if "image_id" in entry else "no image_id"
        )
        yield "annotation unusable", text, None, True
        return
    if not known:
        text = f"no category has the id {entry.get('category_id')!r}"
        yield "annotation unusable", text, None, True
        return
    box = entry.get("bbox")
    text, error = wrong_box(box, image)
    if text:
        kind = "box unusable" if error else ("box of no size", "box reaches out")["reach" in text]
        yield kind, text, None, error
        if error:
            return
    mask_fault = False
    if source.masks:
        text, rest = wrong_mask(entry.get("segmentation"), image.height, image.width, sums)
        if text:
            mask_fault = rest is None
            flat = rest is not None and text.endswith("no list")
            # mmdet leaves out such polygons itself in training; COCO's evaluation fails by them.
            kind = "mask unusable" if rest is None or flat or not source.training else None
            mend = None if rest is None else dict(segmentation=rest)
            yield kind or "polygon left out", text, mend, kind is not None
        elif not source.bitmaps and isinstance(entry["segmentation"], dict):
            if source.training and not entry.get("iscrowd"):
                yield "masks ignored", "run lengths, with poly2mask=False", {}, False
    if not mask_fault:
        yield from incomplete(source, entry, image, sums)


def wrong_box(box: Any, image: Image) -> tuple[str, bool]:
    """What is wrong with a box, and whether it is an error."""
    if not isinstance(box, list):
        return ("no bbox" if box is None else f"bbox is {str(box)[:80]!r}"), True
    if len(box) != 4:
        return f"bbox has {len(box)} numbers: {str(box)[:80]}", True
    for value in box:
        if type(value) not in (int, float) or not -FAR < value < FAR:
            return f"bbox is {str(box)[:80]}", True
    x, y, w, h = box
    if w < 0 or h < 0:
        return f"bbox {box} has a negative size", True
    if w < 1 or h < 1:
        return f"bbox {box} is less than a pixel wide or high", False
    if image.width is None or image.height is None:
        return "", False
    if x >= image.width or y >= image.height or x + w <= 0 or y + h <= 0:
        return f"bbox {box} lies outside of the picture, {image.width} x {image.height}", True
    if x < -EDGE or y < -EDGE or x + w > image.width + EDGE or y + h > image.height + EDGE:
        return f"bbox {box} reaches out of the picture, {image.width} x {image.height}", False
    return "", False


def incomplete(
    source: Source, entry: dict[str, Any], image: Image, sums: dict[str, int]
) -> Iterator[Fault]:
    """Area and iscrowd: mmdet's data set reads the one, COCO's evaluation both."""
    kind, given = "area or iscrowd missing", entry.get("area")
    w, h = entry["bbox"][2:]
    if not is_number(given) or given < 0 or (given == 0 and min(w, h) >= 1):
        text = "no area" if given is None else f"area is {given!r}"
        mask, pixels = entry.get("segmentation"), float(w * h)
        known = image.width is not None and source.masks and mask
        if known and not wrong_mask(mask, image.height, image.width, sums)[0]:
            pixels = area(mask, image.height, image.width) or pixels
        yield kind, text, dict(area=pixels), True
    if entry.get("iscrowd") not in (0, 1):
        crowd = "no iscrowd" if "iscrowd" not in entry else f"iscrowd is {entry['iscrowd']!r}"
        yield kind, crowd, dict(iscrowd=0), not source.training
