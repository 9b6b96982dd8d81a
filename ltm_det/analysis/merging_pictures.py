"""Pictures of what a backbone merges in an image: regions, weights, restored features.

All axes are in pixels of the image on disk, whatever the size at which the network reads it; the
centre of its first pixel lies at (0.5, 0.5).

Shapes: W windows, N tokens in a window, P merged tokens, M side of a window, H x W grid.
"""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from mmdet.apis import inference_detector
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from torch import Tensor, nn

from ltm_det.analysis.pictures import PANEL, enlarge
from ltm_det.backbones import MergePoint, MergeWatch
from ltm_det.backbones.windows import WindowGrid

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
Box = tuple[float, float, float, float]  # left, right, bottom, top: matplotlib's extent


class MergingPictureError(Exception):
    """Something cannot be drawn. The message names it and the remedy."""


class MergeView(NamedTuple):
    """A merge point in one image, in the image's pixels.

    Attributes:
        name: Of the merge point.
        grid: Its map.
        pitch: Image pixels between neighbouring tokens, along x and along y.
        weights: (W, P, N), share of each token in each merged one. Rows sum to one; those of merged
            tokens that nothing feeds are zero.
        regions: (H, W), merged token to which each token gives most; those of window w are numbered
            from w * P on.
        features: (H, W, 3) in [0, 1], first principal components of the restored features.
    """

    name: str
    grid: WindowGrid
    pitch: tuple[float, float]
    weights: np.ndarray
    regions: np.ndarray
    features: np.ndarray

    def caption(self) -> str:
        m, kept = self.grid.window, self.weights.shape[1]
        token = " x ".join(f"{pitch:.3g}" for pitch in self.pitch)
        return f"{self.name}: windows of {m} x {m} tokens become {kept}; a token is {token} pixels"

    @property
    def extent(self) -> Box:
        """Left, right, bottom, top of the map, as matplotlib has it."""
        return 0, self.grid.width * self.pitch[0], self.grid.height * self.pitch[1], 0

    def region_at(self, x: float, y: float) -> int:
        """The region over a point of the image."""
        row = min(int(y / self.pitch[1]), self.grid.height - 1)
        column = min(int(x / self.pitch[0]), self.grid.width - 1)
        return int(self.regions[row, column])

    def window_of(self, region: int) -> Box:
        """Left, right, bottom, top of the window in which a region lies."""
        row, column = divmod(region // self.weights.shape[1], self.grid.columns)
        width, height = (self.grid.window * pitch for pitch in self.pitch)
        return column * width, (column + 1) * width, (row + 1) * height, row * height

    def shares_in(self, region: int) -> np.ndarray:
        """(M, M): how much each token of its window weighs in a merged token; they sum to one."""
        window, token = divmod(region, self.weights.shape[1])
        return self.weights[window, token].reshape(self.grid.window, self.grid.window)


@torch.no_grad()
def view_of(
    name: str, point: MergePoint, scale_factor: Sequence[float], size: tuple[int, int]
) -> MergeView:
    """What is to be seen at a merge point of one image.

    Args:
        name: Of the merge point.
        point: Seen in a pass over that image alone.
        scale_factor: Pixels that the network reads to a pixel of the image, along x and along y.
        size: (H, W) of the image, in its own pixels. What lies beyond it is padding.
    """
    weights, restore = merging_matrices(point)
    kept = weights.shape[1]
    owner = restore.argmax(-1) + kept * torch.arange(len(restore))[:, None]  # (W, N)
    regions = point.to_map(owner[None, ..., None])[0, 0]
    pitch = tuple(point.stride / factor for factor in scale_factor)
    shown = -(-size[0] // pitch[1]), -(-size[1] // pitch[0])
    features = principal_colours(point.merged_map()[0].cpu(), tuple(map(int, shown)))
    return MergeView(name, point.grid, pitch, weights.numpy(), regions.numpy(), features.numpy())


def merging_matrices(point: MergePoint) -> tuple[Tensor, Tensor]:
    """How the first image's windows are merged, (W, P, N), and how they are restored, (W, N, P)."""
    merging, x = point.merging, point.tokens
    windows, tokens = x.shape[1:3]
    weights = merging.merge(torch.eye(tokens, dtype=x.dtype, device=x.device))
    kept = weights.shape[-2]
    restore = merging.unmerge(torch.eye(kept, dtype=x.dtype, device=x.device))
    weights = weights.expand(len(x), windows, kept, tokens)
    restore = restore.expand(len(x), windows, tokens, kept)
    return weights[0].float().cpu(), restore[0].float().cpu()


def principal_colours(features: Tensor, shown: tuple[int, int]) -> Tensor:
    """The first three principal components of a map as red, green and blue.

    Args:
        features: (C, H, W).
        shown: Rows and columns, from the first on, that decide on components and contrast.

    Returns:
        (H, W, 3) in [0, 1].
    """
    features = features.double().permute(1, 2, 0)
    inside = features[: shown[0], : shown[1]].flatten(0, 1)
    centred = inside - inside.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :3]  # (C, 3)
    strongest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * strongest.sign()  # the sign of an eigenvector is anyone's guess
    low, high = torch.quantile(inside @ axes, torch.tensor([0.02, 0.98]).double(), dim=0)
    return ((features @ axes - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)


def hues_apart(regions: np.ndarray) -> np.ndarray:
    """(H, W) numbers from 0 on, such that regions that touch, if at a corner, differ in theirs."""
    names, flat = np.unique(regions, return_inverse=True)
    r = flat.reshape(regions.shape)
    touching = [(r[:, 1:], r[:, :-1]), (r[1:], r[:-1]), (r[1:, 1:], r[:-1, :-1])]
    touching.append((r[1:, :-1], r[:-1, 1:]))
    pairs = np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in touching])
    neighbours: list[set[int]] = [set() for _ in names]
    for a, b in np.unique(pairs, axis=0).tolist():
        if a != b:
            neighbours[a].add(b)
            neighbours[b].add(a)
    hues = np.full(len(names), -1)
    for region, others in enumerate(neighbours):
        taken = {hues[other] for other in others}
        hues[region] = next(hue for hue in range(len(taken) + 1) if hue not in taken)
    return hues[r]


def borders(values: np.ndarray, pitch: tuple[float, float]) -> np.ndarray:
    """(S, 2, 2): ends, as x and y, of the token edges between unlike neighbours of a map."""
    row, column = np.nonzero(values[:, 1:] != values[:, :-1])
    upright = np.stack([column + 1, row, column + 1, row + 1], 1)
    row, column = np.nonzero(values[1:] != values[:-1])
    level = np.stack([column, row + 1, column + 1, row + 1], 1)
    return np.concatenate([upright, level]).reshape(-1, 2, 2) * np.array(pitch)


def zoom(window: Box, size: tuple[int, int], times: float) -> Box:
    """The part of an image, of its shape, around a window and ``times`` as large; at most all."""
    left, right, bottom, top = window
    height, width = size
    scale = min(1.0, times * max((right - left) / width, (bottom - top) / height))
    half_x, half_y = scale * width / 2, scale * height / 2
    x = min(max((left + right) / 2, half_x), width - half_x)
    y = min(max((top + bottom) / 2, half_y), height - half_y)
    return x - half_x, x + half_x, y + half_y, y - half_y


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
            "Take the config of an LTMSwin or LTMViT with a merger, such as "
            "configs/demo_ltm_swin_maskrcnn.py, and its checkpoint"
        )
    for name in names or ():
        if name not in there:
            raise MergingPictureError(f"no merge point {name!r}: choose of {', '.join(there)}")
    return list(names or {name.partition(".blocks.")[0]: name for name in there}.values())


def read_image(path: str | Path, at: Sequence[Point] = ()) -> np.ndarray:
    """An image, (H, W, 3) RGB, in which the points ``at`` must lie.

    Raises:
        MergingPictureError: There is no readable image, or a point lies outside.
    """
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
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
