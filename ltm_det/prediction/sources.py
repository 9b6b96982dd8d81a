"""Pictures from files, folders and videos."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ltm_det.basics.errors import InputError
from ltm_det.basics.files import check_name
from ltm_det.prediction.detector import as_array

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


@dataclass(frozen=True)
class Frame:
    """A picture and where it is from."""

    image: np.ndarray  # (h, w, 3), blue first
    name: str  # under which it is written, without ending, unique among all
    file: Path  # it, or its video
    rate: float | None  # of its video, frames a second


def files_of(given: Iterable[str | Path]) -> list[Path]:
    """Files, and all pictures and videos in folders, in order of their names.

    Raises:
        InputError: There is no such file, a folder has none, or an ending is unknown.
    """
    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            inside = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in (*PICTURES, *VIDEOS)
            )
            if not inside:
                raise InputError(f"no picture or video in {path}: endings are {PICTURES + VIDEOS}")
            found += inside
        elif not path.is_file():
            raise InputError(f"no picture, folder or video at {path}")
        elif path.suffix.lower() not in (*PICTURES, *VIDEOS):
            raise InputError(f"{path} ends in none of {PICTURES + VIDEOS}")
        else:
            found.append(path)
    for path in found:
        check_name(path)
    return found


def names_of(files: Sequence[Path]) -> list[str]:
    """Names without endings; of those that are alike, all but the first get a number, and so do
    those that a video's frames would have."""
    seen: set[str] = set()
    videos = {file.stem for file in files if file.suffix.lower() in VIDEOS}
    names = []
    for file in files:
        name, number = file.stem, 1
        while name in seen or is_frame(name, videos):
            number += 1
            name = f"{file.stem}_{number}"
        seen.add(name)
        names.append(name)
    return names


def is_frame(name: str, videos: set[str]) -> bool:
    """Whether a frame of one of the videos, or of one with a number, could have a name."""
    found = re.fullmatch(r"(.+?)(_\d+)?_\d{6,}", name)
    return found is not None and found[1] in videos


def pictures_of(dataset: Any) -> list[Path]:
    """The files of mmengine's data set."""
    return [Path(dataset.get_data_info(i)["img_path"]) for i in range(len(dataset))]


def check_apart(files: Sequence[Path], out: Path) -> None:
    """That nothing that is read could be written over, labels beside pictures included.

    Raises:
        InputError: A file lies in the folder to write to.
    """
    for file in files:
        if out.resolve() in file.resolve().parents:
            raise InputError(
                f"{file} lies in {out}, where it or its labels could be written over: name a "
                "folder to write to that holds none of the pictures"
            )


def frames(files: Sequence[Path]) -> Iterator[Frame]:
    """All pictures, and all frames of videos, one after the other.

    Raises:
        InputError: A file can't be read; those before it have been given by then.
    """
    for file, name in zip(files, names_of(files), strict=True):
        if file.suffix.lower() in PICTURES:
            yield Frame(as_array(file), name, file, None)
        else:
            yield from frames_of_video(file, name)


def frames_of_video(file: Path, name: str) -> Iterator[Frame]:
    """A video's frames, named by their numbers from 0."""
    video = cv2.VideoCapture(str(file))
    try:
        rate, number = video.get(cv2.CAP_PROP_FPS) or 25.0, 0
        while True:
            there, image = video.read()
            if not there:
                break
            yield Frame(image, f"{name}_{number:06d}", file, rate)
            number += 1
    finally:
        video.release()
    if not number:
        raise InputError(f"{file} is no video that OpenCV can read: check the file")


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """So many at a time; the last ones may be fewer."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
