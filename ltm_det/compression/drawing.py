"""What the report shows: pictures side by side, and charts, each as text that HTML can hold.

Shapes: a picture of h x w pixels.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.structures import DetDataSample
from pycocotools import mask as coco
from pycocotools.coco import COCO
from torch import nn

from ltm_det.basics.errors import InputError
from ltm_det.compression.evaluation import Batch
from ltm_det.deploy.detections import Detections, color_of, write_words
from ltm_det.prediction.detector import as_detections

SIDE = 360  # pixels of a panel's longer side
SURE = 0.3  # score that objects on pictures have at least
WORDS = 12  # objects of a picture up to which they are named
QUALITY = 85  # of JPEG
BAR = 0.42  # inches


def embedded(content: bytes, kind: str) -> str:
    """A file's content as an address that needs no other file."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def truth_of(truth: COCO, sample: DetDataSample, classes: Sequence[str]) -> Detections:
    """A picture's annotations, as if they were found."""
    labels = {row["id"]: row["name"] for row in truth.dataset["categories"]}
    rows = truth.loadAnns(truth.getAnnIds(imgIds=[sample.img_id], iscrowd=False))
    rows = [row for row in rows if labels.get(row["category_id"]) in classes]
    names = [labels[row["category_id"]] for row in rows]
    boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masked = bool(rows) and all(row.get("segmentation") for row in rows)
    return Detections(
        boxes,
        np.ones(len(rows), np.float32),
        np.array([classes.index(name) for name in names], np.int64),
        names,
        [truth.annToRLE(row) for row in rows] if masked else None,
        sample.ori_shape[:2],
    )


def panel(image: np.ndarray, found: Detections, named: bool) -> np.ndarray:
    """A picture (h, w, 3), blue first, of a panel's size with objects on it: masks with their
    outlines, or boxes; names where there are few."""
    scale = SIDE / max(image.shape[:2])
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    for i in reversed(range(len(found))):
        color = color_of(i if not named else int(found.labels[i]))
        if found.masks is not None and i < len(found.masks):
            mask = cv2.resize(coco.decode(found.masks[i]) * 255, size) > 127
            image[mask] = (image[mask] * 0.6 + np.array(color) * 0.4).astype(np.uint8)
            lines, _ = cv2.findContours(
                mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(image, lines, -1, color, 1, cv2.LINE_AA)
        else:
            x1, y1, x2, y2 = (round(float(side) * scale) for side in found.boxes[i])
            cv2.rectangle(image, (x1, y1), (x2, y2), color, 1)
        if named and found.names is not None and len(found) <= WORDS:
            at = [round(float(side) * scale) for side in found.boxes[i, :2]]
            write_words(image, found.names[i], at, color, 1)
    return image


@torch.no_grad()
def pictures(
    models: Sequence[nn.Module], batches: Sequence[Batch], truth: COCO, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Validation pictures side by side: the truth, and what each detector finds.

    Args:
        models: In evaluation mode.
        batches: Of a picture each.
        truth: The annotations.
        classes: Names of the labels.

    Returns:
        Of each ``name``, the ``image`` as an address, and the numbers of ``objects`` on each panel.

    Raises:
        InputError: A picture cannot be read.
    """
    rows = []
    for batch in batches:
        (sample,) = batch["data_samples"]
        image = cv2.imread(sample.img_path)
        if image is None:
            raise InputError(f"{sample.img_path} cannot be read any more: put it back")
        found = [truth_of(truth, sample, classes)]
        for model in models:
            (own,) = model.test_step(batch)
            found.append(as_detections(own, image.shape[:2], classes).above(SURE))
        panels = [panel(image, objects, len(classes) > 1) for objects in found]
        gap = np.full((panels[0].shape[0], 6, 3), 255, np.uint8)
        joined = np.concatenate([p for own in panels for p in (own, gap)][:-1], 1)
        _, coded = cv2.imencode(".jpg", joined, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        name = sample.img_path.rpartition("/")[2]
        address = embedded(coded.tobytes(), "jpeg")
        rows.append(dict(name=name, image=address, objects=[len(own) for own in found]))
    return rows


def as_svg(figure: Figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata=dict(Date=None))
    return embedded(out.getvalue(), "svg+xml")


def latency_chart(times: Mapping[str, Any]) -> str:
    """Milliseconds of each detector, a bar of its parts."""
    models = times["models"]
    parts = list(dict.fromkeys(part for own in models.values() for part in own["parts"]))
    figure = Figure((8, BAR * len(models) + 1.4), layout="constrained")
    axes = figure.subplots()
    colors = {part: f"C{i % 10}" if i < 10 else f"{0.3 + 0.05 * i}" for i, part in enumerate(parts)}
    for row, own in enumerate(models.values()):
        left = 0.0
        total = sum(own["parts"].values())
        for part, value in own["parts"].items():  # measured apart, with a clock in each
            width = value / total * own["ms"]
            axes.barh(row, width, left=left, color=colors[part], height=0.7)
            left += width
        if not own["parts"]:
            axes.barh(row, own["ms"], color="0.6", height=0.7)
        axes.text(own["ms"], row, f" {own['ms']:.0f} ms ({own['ratio']:.2f})", va="center")
    axes.set_yticks(range(len(models)), list(models))
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a picture, median")
    axes.set_xlim(0, 1.3 * max(own["ms"] for own in models.values()))
    handles = [axes.barh([0], [0], color=colors[part], label=part) for part in parts]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return as_svg(figure)


def merging_chart(merging: Sequence[Mapping[str, Any]]) -> str:
    """The share of its tokens that each block computes on."""
    figure = Figure((8, 2.2), layout="constrained")
    axes = figure.subplots()
    first, places = 0, []
    for i, stage in enumerate(merging):
        at = range(first, first + len(stage["kept"]))
        axes.bar(at, stage["kept"], color=f"C{i % 10}", width=0.85, label=stage["name"])
        places += [(x, str(block)) for block, x in enumerate(at)]
        first += len(stage["kept"])
    axes.set_xticks([x for x, _ in places], [name for _, name in places], fontsize=7)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("block")
    axes.set_ylabel("kept tokens")
    figure.legend(loc="outside right upper", fontsize=8)
    return as_svg(figure)
