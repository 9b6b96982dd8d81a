"""The demo dataset on disk: scenes as PNG, annotations as COCO json.

Objects are scikit-learn's 1797 handwritten digits, backgrounds its two photographs: no download.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ltm_det.basics.files import remove_parts, write_text
from ltm_det.datasets.png import encode_png
from ltm_det.datasets.scene import Draw, Scene, draw_scene

CLASSES = tuple("0123456789")
MARKER = "ltm_det_demo.json"
VERSION = 1  # to be raised with any change of the bytes
SPLITS = ("train", "val")
# Of the photographs' pixels as libjpeg-turbo decodes them (every Pillow wheel does).
PHOTOS_SHA256 = "99310b92a8963a4b9118f3a93695bf9d2f7c20a03361f1962972901ccd5560da"

Progress = Callable[[Iterable[int], str], Iterable[int]]


class DemoDataError(ValueError):
    """An argument that can't be served, or a folder that is not ours to write to."""


def make_demo_data(
    out: str | Path,
    train: int,
    val: int,
    size: int,
    seed: int,
    progress: Progress = lambda items, _: items,
) -> bool:
    """Write `out/{train,val}/*.png` and `out/annotations/{train,val}.json`.

    Image i of a split depends on seed, size, split and i alone: a larger set begins with the
    smaller one.

    Args:
        out: the folder; absent, empty, or from an earlier (perhaps interrupted) run with the same
            arguments.
        train: number of training images, at least 1.
        val: number of validation images, at least 1.
        size: height and width of the images in pixels, at least 96.
        seed: whole number >= 0.
        progress: wraps the iteration over a split's images.

    Returns:
        False where the folder was complete already and nothing was written.

    Raises:
        DemoDataError: bad arguments, or `out` holds something else. Nothing has been touched then.
    """
    for name, value, least in (
        ("train", train, 1),
        ("val", val, 1),
        ("size", size, 96),
        ("seed", seed, 0),
    ):
        if value < least:
            raise DemoDataError(f"{name} must be at least {least}, not {value}")
    photos = _load_photos()
    largest = min(min(photo.shape[:2]) for photo in photos)
    if size > largest:
        raise DemoDataError(f"size must be at most {largest}, the photographs' height, not {size}")

    out = Path(out)
    arguments = dict(version=VERSION, train=train, val=val, size=size, seed=seed)
    if _claim(out, arguments):
        return False
    for split, count in zip(SPLITS, (train, val), strict=True):
        _write_split(out, split, count, size, seed, photos, progress)
    write_text(out / MARKER, _dump({**arguments, "complete": True}))
    return True


def split_digits(count: int) -> dict[str, np.ndarray]:
    """Indices of the digits of each split: every fifth is kept for val."""
    index = np.arange(count)
    return {"train": index[index % 5 != 0], "val": index[index % 5 == 0]}


def _claim(out: Path, arguments: dict) -> bool:
    """Mark the folder as ours; True where it is complete already."""
    remedy = "choose another --out, or remove this folder yourself"
    if out.exists() and not out.is_dir():
        raise DemoDataError(f"{out} is a file; {remedy}")
    marker = out / MARKER
    remove_parts(out, MARKER)
    if marker.is_file():
        try:
            found = json.loads(marker.read_text())
            complete = found.pop("complete")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DemoDataError(f"{marker} is damaged; {remedy}") from None
        if found != arguments:
            raise DemoDataError(f"{out} was made with {found}, not {arguments}; {remedy}")
        if complete:
            return True
    elif out.is_dir() and any(out.iterdir()):
        raise DemoDataError(f"{out} holds files that are not this tool's; {remedy}")
    out.mkdir(parents=True, exist_ok=True)
    write_text(marker, _dump({**arguments, "complete": False}))
    return False


def _load_photos() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    photos = [np.ascontiguousarray(photo) for photo in load_sample_images().images]
    if hashlib.sha256(b"".join(photo.tobytes() for photo in photos)).hexdigest() != PHOTOS_SHA256:
        warnings.warn(
            "the JPEG decoder here gives other pixels than libjpeg-turbo: the scenes are the same, "
            "but backgrounds differ slightly from those made elsewhere",
            stacklevel=3,
        )
    return photos


def _write_split(
    out: Path,
    split: str,
    count: int,
    size: int,
    seed: int,
    photos: list[np.ndarray],
    progress: Progress,
) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    digits, labels = data.images.astype(np.int64), data.target
    pool = split_digits(len(digits))[split]
    images, annotations = [], []
    (out / split).mkdir(exist_ok=True)
    for i in progress(range(count), split):
        draw = Draw(seed, SPLITS.index(split), i)
        scene = draw_scene(draw, photos, digits, labels, pool, size)
        name = f"{i:06d}.png"
        (out / split / name).write_bytes(encode_png(scene.image))
        images.append(dict(id=i, file_name=name, height=size, width=size))
        annotations += _annotations(scene, i, len(annotations) + 1)
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES)]
    file = out / "annotations" / f"{split}.json"
    write_text(file, _dump(dict(images=images, annotations=annotations, categories=categories)))


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    from pycocotools import mask as coco_mask

    rows = []
    for thing, mask in zip(scene.things, scene.masks, strict=True):
        ys, xs = np.nonzero(mask)
        x, y = int(xs.min()), int(ys.min())
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        rows.append(
            dict(
                id=first_id + len(rows),
                image_id=image_id,
                category_id=thing.label,
                bbox=[x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y],
                area=int(mask.sum()),
                iscrowd=0,
                segmentation=dict(size=list(rle["size"]), counts=rle["counts"].decode()),
                digit=thing.digit,  # which handwritten digit: shows that the splits share none
            )
        )
    return rows


def _dump(value: dict) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
