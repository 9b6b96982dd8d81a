"""Pictures of what a backbone merges in an image: regions, weights, restored features.

All axes are in pixels of the image on disk, whatever the size at which the network reads it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from mmdet.apis import inference_detector
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from torch import nn

from ltm_det.backbones import MergeWatch
from ltm_det.basics.files import check_name, whole
from ltm_det.pictures.merge_views import Box, MergeView, borders, hues_apart, view_of, zoom
from ltm_det.pictures.predictions import PANEL, enlarge

# Where the name of a stage or a transformer ends in that of a merge point.
STAGE = re.compile(r"\.(?:blocks|transformer)\.")
INCHES = 3.6  # inches of a panel's longer side
PIXELS = (400, 800)  # least and most of a panel's longer side: labels and tokens stay legible
ASPECT = 1.7  # a narrower image leaves room at its sides, for titles
GOLDEN = 0.618034  # multiples of it, modulo 1, lie far apart: hues of regions that touch
PART = 6  # the regions of that many windows each way are shown, if there are more
LEGEND = (
    "Tokens that merge together have one colour: those of a window that give most of themselves to "
    "the same merged token. Black lines are their borders, white ones those of windows.",
    "Targets have numbers. Yellow to red: how much each token of the window weighs in the target's "
    "merged token; these shares add up to 1.",
    "Restored features: their first three principal components as red, green and blue.",
)

Point = tuple[float, float]  # x, y


class MergingPictureError(Exception):
    """Something cannot be drawn. The message names it and the remedy."""


def default_targets(sample: DetDataSample, number: int, score_thr: float) -> list[Point]:
    """Centres of the best boxes over a score, in pixels; the image's centre where there is none."""
    found = sample.pred_instances[sample.pred_instances.scores > score_thr]
    boxes = found.bboxes[found.scores.argsort(descending=True)[:number]]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    height, width = sample.ori_shape
    return [tuple(centre) for centre in centres.tolist()] or [(width / 2, height / 2)]


def draw_image(axis: Axes, image: np.ndarray, size: tuple[int, int], title: str) -> None:
    """An image of ``size`` pixels, given at any scale. What is drawn over it keeps its limits."""
    axis.imshow(image, extent=(0, size[1], size[0], 0), interpolation="bicubic")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
    axis.autoscale(False)


def pale(image: np.ndarray) -> np.ndarray:
    """Grey and bright, so that colours and black lines over it can be told."""
    grey = 80 + 0.65 * image.mean(-1, keepdims=True)
    return np.repeat(grey.astype(np.uint8), 3, axis=-1)


def draw_borders(axis: Axes, view: MergeView, part: Box) -> None:
    """Limits the axes to a part of the image and draws the borders of regions and windows."""
    left, right, bottom, top = part
    token = 72 * INCHES * view.pitch[0] / max(right - left, bottom - top)  # points of its side
    rows, columns = (np.arange(n) // view.grid.window for n in view.regions.shape)
    windows = rows[:, None] * view.grid.columns + columns
    for values, color, width in (
        (view.regions, "black", 0.8),
        (windows, "black", 2.4),
        (windows, "white", 1.4),
    ):
        lines, width = borders(values, view.pitch), width * min(1, token / 8)
        axis.add_collection(LineCollection(lines, colors=color, linewidths=width))
    axis.set(xlim=(left, right), ylim=(bottom, top))


def draw_regions(axis: Axes, image: np.ndarray, view: MergeView, targets: Sequence[Point]) -> None:
    """Each token in the colour of its region; on large maps, around the first target alone."""
    size = image.shape[:2]
    part = zoom(view.window_of(view.region_at(*targets[0])), size, PART)
    whole = part[1] - part[0] == size[1]
    draw_image(axis, pale(image), size, "merged tokens" + ("" if whole else ", around target 1"))
    hues = hues_apart(view.regions) * GOLDEN % 1
    tint = hsv_to_rgb(np.stack([hues, np.full_like(hues, 0.9), np.ones_like(hues)], -1))
    axis.imshow(tint, extent=view.extent, interpolation="nearest", alpha=0.45)
    draw_borders(axis, view, part)
    draw_marks(axis, targets)


def draw_shares(axis: Axes, image: np.ndarray, view: MergeView, number: int, target: Point) -> None:
    """How much each token of the target's window weighs in the target's merged token."""
    size = image.shape[:2]
    region = view.region_at(*target)
    window, shares = view.window_of(region), view.shares_in(region)
    draw_image(axis, pale(image), size, f"target {number}: shares up to {shares.max():.2f}")
    alpha = 0.2 + 0.7 * shares / max(shares.max(), 1e-9)
    axis.imshow(shares, extent=window, cmap="YlOrRd", vmin=0, alpha=alpha, interpolation="nearest")
    draw_borders(axis, view, zoom(window, size, 2))
    draw_marks(axis, [target], number)


def draw_marks(axis: Axes, targets: Sequence[Point], first: int = 1) -> None:
    """A cross and a number at each target inside the axes."""
    style = dict(color="white", path_effects=[withStroke(linewidth=2.5, foreground="black")])
    for number, target in enumerate(targets, start=first):
        axis.plot(*target, "+", markersize=8, **style)
        offset = dict(xytext=(3, 3), textcoords="offset points", annotation_clip=True)
        axis.annotate(str(number), target, fontsize=9, fontweight="bold", **offset, **style)


def draw_detections(
    image: np.ndarray, sample: DetDataSample, meta: dict[str, Any], score_thr: float
) -> np.ndarray:
    """The image, at a scale at which labels are legible, with boxes and masks over a score."""
    longest = max(image.shape[:2])
    scale = min(max(longest, PANEL), PIXELS[1]) / longest
    drawn = DetDataSample()
    drawn.pred_instances = enlarge(sample.pred_instances, scale)
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    visualizer = DetLocalVisualizer(line_width=2, alpha=0.5)
    visualizer.dataset_meta = meta
    visualizer.add_datasample("merging", image, drawn, draw_gt=False, pred_score_thr=score_thr)
    return visualizer.get_image()


def merging_figure(
    image: np.ndarray,
    detections: np.ndarray,
    views: Sequence[MergeView],
    targets: Sequence[Point],
    titles: tuple[str, str],
) -> Figure:
    """A row of the image and its detections, then a row for each merge point.

    Args:
        image: (H, W, 3), RGB.
        detections: The same, at any scale, with what was detected.
        views: The merge points.
        targets: Points of the image whose merged tokens are shown.
        titles: Of the figure and of the detections.
    """
    size, longest = image.shape[:2], max(image.shape[:2])
    height, width = (max(side, longest / ASPECT) / longest * INCHES for side in size)
    rows, columns = 1 + len(views), 2 + len(targets)
    figure = Figure(
        figsize=(columns * (width + 0.1), rows * (height + 0.6)),
        dpi=min(max(longest, PIXELS[0]), PIXELS[1]) / INCHES,
        layout="constrained",
    )
    first, *rest = figure.subfigures(rows, 1)
    first.suptitle(titles[0], fontsize=10)
    axes = first.subplots(1, columns)
    draw_image(axes[0], detections, size, titles[1])
    draw_marks(axes[0], targets)
    draw_image(axes[1], image, size, "image")
    for axis in axes[2:]:
        axis.set_axis_off()
    letters = min(60, int(12.5 * width * len(targets)))  # of 9 points
    legend = "\n\n".join(fill(paragraph, letters) for paragraph in LEGEND)
    axes[2].text(0, 1, legend, transform=axes[2].transAxes, va="top", fontsize=9, in_layout=False)
    for part, view in zip(rest, views):
        part.suptitle(view.caption(), fontsize=10)
        axes = part.subplots(1, columns)
        draw_regions(axes[0], image, view, targets)
        draw_image(axes[1], image, size, "features restored from them")
        axes[1].imshow(view.features, extent=view.extent, interpolation="nearest")
        for number, target in enumerate(targets, start=1):
            draw_shares(axes[1 + number], image, view, number, target)
    return figure


def merge_points_of(backbone: nn.Module, names: Sequence[str] | None = None) -> list[str]:
    """The merge points to draw: those named, else a ViT's all, of a Swin each stage's last.

    Raises:
        MergingPictureError: The backbone merges nothing, or has no such point.
    """
    there = backbone.mergers_by_point() if hasattr(backbone, "mergers_by_point") else {}
    if not there:
        raise MergingPictureError(
            f"this {type(backbone).__name__} merges nothing, so there is nothing to draw\n"
            "Take the config of a backbone of ours with a merger, such as "
            "configs/demo_ltm_swin_maskrcnn.py, and its checkpoint"
        )
    for name in names or ():
        if name not in there:
            raise MergingPictureError(f"no merge point {name!r}: choose of {', '.join(there)}")
    return list(names or {STAGE.split(name)[0]: name for name in there}.values())


def read_image(path: str | Path, at: Sequence[Point] = ()) -> np.ndarray:
    """An image, (H, W, 3) RGB, in which the points ``at`` must lie.

    Raises:
        MergingPictureError: There is no readable image, or a point lies outside.
    """
    check_name(path)
    image = cv2.imread(str(path))
    if image is None:
        raise MergingPictureError(f"no readable image at {path}")
    height, width = image.shape[:2]
    for x, y in at:
        if not (0 <= x < width and 0 <= y < height):
            raise MergingPictureError(
                f"the point {x:g} {y:g} lies outside {path}, which has {width} x {height} pixels"
            )
    return image[..., ::-1]


def draw_merging(
    model: nn.Module,
    path: str | Path,
    out: Path,
    targets: int = 3,
    at: Sequence[Point] = (),
    points: Sequence[str] | None = None,
    score_thr: float = 0.5,
) -> None:
    """Writes a picture of what a detector merges in an image.

    Args:
        model: Of :func:`mmdet.apis.init_detector`.
        path: Of the image.
        out: Picture to write; its suffix chooses the format (.png, .jpg, .pdf).
        targets: How many merged tokens to show, at the centres of the best detections.
        at: Points of the image whose merged tokens to show instead.
        points: Merge points to draw, see :func:`merge_points_of`.
        score_thr: Detections below this score are left out.

    Raises:
        MergingPictureError: On a backbone, an image or a point that has nothing to show.
    """
    names, image = merge_points_of(model.backbone, points), read_image(path, at)
    with MergeWatch(model.backbone, names) as watch:
        sample = inference_detector(model, str(path)).cpu()
        views = [
            view_of(name, watch.seen[name], sample.scale_factor, image.shape[:2]) for name in names
        ]
    found = int((sample.pred_instances.scores > score_thr).sum())
    figure = merging_figure(
        image,
        draw_detections(image, sample, model.dataset_meta, score_thr),
        views,
        at or default_targets(sample, targets, score_thr),
        (Path(path).name, f"{found or 'no'} detections over {score_thr:g}"),
    )
    with whole(out) as part:
        figure.savefig(part)
