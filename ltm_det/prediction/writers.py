"""What was found, as files: pictures and videos, a COCO json, YOLO labels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from ltm_det.basics.errors import InputError
from ltm_det.basics.files import whole, write_text
from ltm_det.deploy import Detections
from ltm_det.prediction.sources import Frame


class Pictures:
    """Pictures with the objects drawn on them, `NAME.jpg`; of a video one video, `NAME.mp4`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.video: Any = None
        self.of: Path | None = None  # the video that is being written

    def add(self, frame: Frame, found: Detections) -> None:
        drawn = found.drawn(frame.image)
        if frame.rate is None:
            self.close()
            with whole(self.out / f"{frame.name}.jpg") as part:
                if not cv2.imwrite(str(part), drawn):
                    raise InputError(f"{part} could not be written: is the disk full?")
            return
        if self.of != frame.file:
            self.close()
            self.open(frame)
        self.video.write(drawn)

    def open(self, frame: Frame) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        name = frame.name.rpartition("_")[0]
        size = frame.image.shape[1::-1]
        code = cv2.VideoWriter_fourcc(*"mp4v")
        self.video = cv2.VideoWriter(str(self.out / f"{name}.mp4"), code, frame.rate, size)
        self.of = frame.file
        if not self.video.isOpened():
            raise InputError(f"OpenCV here writes no .mp4: leave 'pictures' out for {frame.file}")

    def close(self) -> None:
        if self.video is not None:
            self.video.release()
        self.video = self.of = None


class Coco:
    """All objects in one json, `detections.json`: images, annotations with scores, categories."""

    def __init__(self, out: Path, classes: Sequence[str] | None) -> None:
        self.file, self.classes = out / "detections.json", classes
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, frame: Frame, found: Detections) -> None:
        number = len(self.images) + 1
        height, width = found.size
        name = frame.file.name if frame.rate is None else frame.name
        self.images.append(dict(id=number, file_name=name, height=height, width=width))
        self.annotations += found.to_coco(number, len(self.annotations) + 1)

    def close(self) -> None:
        names = self.classes
        if names is None:
            most = max((row["category_id"] for row in self.annotations), default=0)
            names = [str(label) for label in range(most)]
        categories = [dict(id=i, name=name) for i, name in enumerate(names, start=1)]
        rows = dict(images=self.images, annotations=self.annotations, categories=categories)
        write_text(self.file, json.dumps(rows) + "\n")


class Yolo:
    """A label file for each picture, `labels/NAME.txt`, and `classes.txt`."""

    def __init__(self, out: Path, classes: Sequence[str] | None) -> None:
        self.out, self.classes = out, classes

    def add(self, frame: Frame, found: Detections) -> None:
        write_text(self.out / "labels" / f"{frame.name}.txt", found.to_yolo())

    def close(self) -> None:
        if self.classes is not None:
            write_text(self.out / "classes.txt", "".join(f"{name}\n" for name in self.classes))


def writers_of(forms: Sequence[str], out: Path, classes: Sequence[str] | None) -> list[Any]:
    """The writers of 'pictures', 'coco' and 'yolo'."""
    kinds = dict(
        pictures=lambda: Pictures(out),
        coco=lambda: Coco(out, classes),
        yolo=lambda: Yolo(out, classes),
    )
    return [kinds[form]() for form in forms]


FORMS = ("pictures", "coco", "yolo")
