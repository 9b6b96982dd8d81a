"""What a backbone merges in an image, in the image's pixels: regions, weights, restored features.

The centre of an image's first pixel lies at (0.5, 0.5).

Shapes: W windows, N tokens in a window, P merged tokens, M side of a window, H x W grid.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ltm_det.backbones import MergePoint
from ltm_det.backbones.common.windows import WindowGrid

Box = tuple[float, float, float, float]  # left, right, bottom, top: matplotlib's extent


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
