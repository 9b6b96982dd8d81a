"""The objects on a picture, and the forms in which other programs want them.

Shapes: a picture of h x w pixels, K objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco


@dataclass(frozen=True)
class Detections:
    """The objects on a picture, the best first."""

    boxes: np.ndarray  # (K, 4), x1, y1, x2, y2 in the picture's pixels
    scores: np.ndarray  # (K,)
    labels: np.ndarray  # (K,), from 0
    names: list[str] | None  # of the labels, (K,), where the detector knows them
    masks: list[dict[str, Any]] | None  # COCO's run lengths of each, of a detector that has masks
    size: tuple[int, int]  # height and width of the picture

    def __len__(self) -> int:
        return len(self.boxes)

    def bitmaps(self) -> np.ndarray:
        """The masks as (K, h, w) of bool.

        Raises:
            ValueError: The detector has none.
        """
        if self.masks is None:
            raise ValueError("the detector in this file has boxes alone, no masks")
        if not self.masks:
            return np.zeros((0, *self.size), bool)
        return coco.decode(self.masks).transpose(2, 0, 1).astype(bool)

    def above(self, score: float) -> "Detections":
        """Those of at least this score."""
        kept = np.flatnonzero(self.scores >= score)
        return replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
            names=None if self.names is None else [self.names[i] for i in kept],
            masks=None if self.masks is None else [self.masks[i] for i in kept],
        )

    def to_supervision(self) -> Any:
        """As the supervision package has them, names in ``data['class_name']``.

        Raises:
            ImportError: It is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(f"{error}: to_supervision needs pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            mask=self.bitmaps() if self.masks else None,
            confidence=self.scores.astype(np.float32),
            class_id=self.labels.astype(int),
            data={} if self.names is None else {"class_name": np.array(self.names, dtype=str)},
        )

    def to_coco(self, image_id: int, first_id: int = 1) -> list[dict[str, Any]]:
        """As annotations of a COCO json, with their scores; the category of label i is i + 1.

        Args:
            image_id: Of the picture.
            first_id: Of the first annotation.
        """
        rows = []
        for i, (x1, y1, x2, y2) in enumerate(self.boxes.tolist()):
            row = dict(
                id=first_id + i,
                image_id=image_id,
                category_id=int(self.labels[i]) + 1,
                bbox=[x1, y1, x2 - x1, y2 - y1],
                area=(x2 - x1) * (y2 - y1),
                iscrowd=0,
                score=float(self.scores[i]),
            )
            if self.masks is not None:
                counts = self.masks[i]["counts"]
                text = counts.decode() if isinstance(counts, bytes) else counts
                row["segmentation"] = dict(size=list(self.masks[i]["size"]), counts=text)
                row["area"] = float(coco.area(self.masks[i]))
            rows.append(row)
        return rows

    def to_yolo(self) -> str:
        """As the text of a YOLO label file, sizes as shares of the picture: where there are masks,
        a line a polygon, which is a mask's largest part; else a line a box, its centre first."""
        height, width = self.size
        shares = np.array([width, height], np.float64)
        lines = []
        for i, label in enumerate(self.labels.tolist()):
            if self.masks is None:
                low, high = self.boxes[i, :2] / shares, self.boxes[i, 2:] / shares
                numbers = [*((low + high) / 2), *(high - low)]
            else:
                outline = largest_outline(coco.decode(self.masks[i]))
                if outline is None:  # YOLO has no way to say that a mask is empty
                    continue
                numbers = (outline / shares).flatten()
            lines.append(" ".join([str(label), *(f"{number:.6f}" for number in numbers)]))
        return "".join(f"{line}\n" for line in lines)

    def drawn(self, image: np.ndarray) -> np.ndarray:
        """A copy of the picture (h, w, 3), blue first, with the objects on it."""
        image = image.copy()
        thick = max(1, round(max(self.size) / 500))  # pixels
        for i in reversed(range(len(self))):  # the best on top
            color = color_of(int(self.labels[i]))
            if self.masks is not None:
                inside = coco.decode(self.masks[i]).astype(bool)
                image[inside] = (image[inside] * 0.5 + np.array(color) * 0.5).astype(np.uint8)
            x1, y1, x2, y2 = (round(float(side)) for side in self.boxes[i])
            cv2.rectangle(image, (x1, y1), (x2, y2), color, thick)
            name = str(self.labels[i]) if self.names is None else self.names[i]
            words = f"{name} {self.scores[i]:.2f}"
            write_words(image, words, (x1, y1), color, thick)
        return image


def largest_outline(mask: np.ndarray) -> np.ndarray | None:
    """The outline (n, 2) of x, y around the largest part of a mask (h, w); None of an empty one."""
    parts, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    # a polygon has three corners
    parts = [part[:, 0] for part in parts if len(part) >= 3]
    return max(parts, key=cv2.contourArea, default=None)


def color_of(label: int) -> tuple[int, int, int]:
    """Blue, green and red of a label: hues that go round by the golden ratio, so that neighbours
    differ."""
    hue = round(label * 0.618 * 180) % 180  # OpenCV's hues, 0 to 179
    pixel = cv2.cvtColor(np.uint8([[[hue, 200, 255]]]), cv2.COLOR_HSV2BGR)[0, 0]
    return tuple(int(part) for part in pixel)


def write_words(
    image: np.ndarray, words: str, at: Sequence[int], color: tuple[int, int, int], thick: int
) -> None:
    """Writes words, black on a colour, over the point (x, y), or below it at the upper edge."""
    scale = 0.4 * thick
    (width, height), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    x = max(0, min(at[0], image.shape[1] - width))
    y = at[1] if at[1] > height + 4 else at[1] + height + 4
    cv2.rectangle(image, (x, y - height - 4), (x + width, y), color, -1)
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(image, words, (x, y - 2), font, scale, (0, 0, 0), thick, cv2.LINE_AA)


def names_of(labels: Sequence[int], classes: Sequence[str] | None) -> list[str] | None:
    """Names of labels, where they are known; a head may have room for more than it was taught."""
    if classes is None:
        return None
    return [classes[label] if label < len(classes) else str(label) for label in labels]
