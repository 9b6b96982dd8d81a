"""Image files: whether they are there, can be decoded, and have the size that the json says."""

import os
import os.path as osp
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from PIL import Image as Pictures
from PIL import UnidentifiedImageError

from ltm_det.datasets.check.findings import Finding
from ltm_det.datasets.check.images import Image, thin
from ltm_det.datasets.check.source import Source

COMMON = ("JPEG", "MPO", "PNG", "BMP", "PPM")  # which OpenCV reads as PIL does
ORIENTATION = 0x0112  # the tag of EXIF; 1: as it lies
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass(frozen=True)
class Seen:
    """What a file was found to be.

    Attributes:
        bytes: Its size, and mtime_ns: when it was written; -1: it is no file.
        fault: Why it can't be loaded; empty where it can.
        stored: Width and height of the pixels as they lie in the file.
        loaded: As mmcv loads them, turned by EXIF.
        orientation: Of EXIF.
    """

    bytes: int = -1
    mtime_ns: int = -1
    fault: str = ""
    stored: tuple[int, int] = (0, 0)
    loaded: tuple[int, int] = (0, 0)
    orientation: int = 1

    def values(self) -> list[Any]:
        return list(astuple(self))


def check_pictures(
    source: Source,
    images: dict[Any, Image],
    found: list[Finding],
    seen: dict[str, Seen] | None = None,
    progress: Progress = lambda things, count: things,
    workers: int | None = None,
) -> None:
    """Looks at all files, in threads, since decoding leaves Python's lock; adds to ``found``.

    Args:
        seen: By path, what files were found to be before; a file that was written since is looked
            at again. What is found is added.
        progress: Shows it, given the results and their number.
        workers: Threads; None: as many as there are processors.
    """
    if not usable_folder(source, found):
        return
    seen = {} if seen is None else seen
    named = [(key, image) for key, image in images.items() if image.name]
    paths = [osp.join(source.images, image.name) for _, image in named]
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or processors()) as pool:
        warnings.simplefilter("ignore")  # PIL's, of large pictures and of odd EXIF
        looks = pool.map(partial(look, seen), paths, chunksize=16)
        for (key, image), path, result in zip(named, paths, progress(looks, len(paths))):
            seen[path] = result
            found += faults(source, image, path, f"image {key!r}", result)


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_folder(source: Source, found: list[Finding]) -> bool:
    """Whether pictures can be looked for; elsewhere than on a disk they are not."""
    folder = source.images or "."
    if "://" in folder or ":s3" in folder:
        return False
    text = ""
    if not osp.isdir(folder):
        text = "it is a file" if osp.exists(folder) else "it is not there"
    elif not os.access(folder, os.R_OK | os.X_OK):
        text = "it can't be read"
    if text:
        found.append(Finding("image folder unusable", folder, "", text))
    return not text


def look(seen: dict[str, Seen], path: str) -> Seen:
    """What a file is, from ``seen`` where it hasn't changed."""
    try:
        state = os.stat(path)
    except OSError as error:
        return Seen(fault=f"there is no such file ({error.strerror})")
    except ValueError as error:  # no name that a file can have
        return Seen(fault=f"there is no such file ({error})")
    if not stat.S_ISREG(state.st_mode):
        return Seen(fault="it is no file")
    before = seen.get(path)
    if before is not None and (before.bytes, before.mtime_ns) == (state.st_size, state.st_mtime_ns):
        return before
    return Seen(state.st_size, state.st_mtime_ns, *decode(path, state.st_size))


def decode(path: str, size: int) -> tuple[Any, ...]:
    """Fault, sizes and orientation of a file. JPEGs are drafts of an eighth: all bits are read."""
    if not size:
        return ("it is empty",)
    try:
        with Pictures.open(path) as picture:
            stored = picture.size
            orientation = picture.getexif().get(ORIENTATION, 1)
            picture.draft(None, (stored[0] // 8, stored[1] // 8))
            picture.load()
            common = picture.format in COMMON
    except UnidentifiedImageError:
        shape = loaded_shape(path)  # of formats that OpenCV alone reads
        start = first_bytes(path)
        fault = f"it is no picture; it begins with {start!r}" if shape is None else ""
        return (fault, shape or (0, 0), shape or (0, 0))
    except Pictures.DecompressionBombError as error:
        return (str(error),)
    except Exception as error:  # of a damaged file decoders raise whatever they like
        return (f"it is damaged: {error}",)
    if orientation == 1 and common:
        return "", stored, stored
    shape = loaded_shape(path)
    if shape is None:
        return ("OpenCV can't decode it",)
    return "", stored, shape, int(orientation)


def loaded_shape(path: str) -> tuple[int, int] | None:
    """Width and height as mmcv has them, by OpenCV."""
    with open(path, "rb") as file:
        content = np.frombuffer(file.read(), np.uint8)
    try:
        picture = cv2.imdecode(content, cv2.IMREAD_COLOR)
    except cv2.error:
        picture = None
    return None if picture is None else (picture.shape[1], picture.shape[0])


def first_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(12)


def faults(source: Source, image: Image, path: str, where: str, seen: Seen) -> Iterator[Finding]:
    """Of one file, in the light of what the json says of it."""
    drop = ("images", image.index, None)
    if seen.fault:
        yield Finding("picture file unusable", path, where, seen.fault, drop)
        return
    size = seen.loaded if source.turned else seen.stored
    if image.broken is not None:  # the json has no size: the picture tells it
        image.broken.mend = ("images", image.index, dict(width=size[0], height=size[1]))
        image.width, image.height = size
        for text, error in thin(source, image):
            yield Finding("picture too thin", path, where, text, drop if error else None, error)
        return
    given = (image.width, image.height)
    text = f"{size[0]} x {size[1]} when loaded, {given[0]} x {given[1]} in the json"
    turned = f"orientation {seen.orientation}"
    if given != size and given == (seen.stored if source.turned else seen.loaded):
        yield Finding("picture turned by EXIF", path, where, f"{text} ({turned})", drop)
    elif given != size:
        yield Finding("picture of another size", path, where, text, drop)
    elif seen.orientation != 1 and seen.stored == seen.loaded:
        text = f"{turned} turns it, and leaves its size: were boxes drawn on the turned picture?"
        yield Finding("picture turned by EXIF", path, where, text, error=False)
