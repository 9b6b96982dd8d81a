"""RoIAlign on the CPU for the maps of all levels, some regions at a time.

The value of a bin is the mean of bilinear samples, of which each is a product of a weight along y
and one along x: so the mean is one weighted sum over the cells that the bin touches, with a row of
weights for each axis. Cells are read once, with all their channels, however many samples lie near.

Shapes: K regions, T cells that a bin touches along an axis, C channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ltm_det.cpu import threads

# Regions in a piece.
REGIONS = 32


def roi_align(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """torchvision's ``roi_align`` of each region on the map of its level, without gradients.

    Args:
        maps: (B, C, H, W) of each level, fastest where channels come last in memory.
        rois: (K, 5), index of the image, x1, y1, x2, y2 in pixels.
        levels: (K,), indices of maps.
        size: Bins down and across.
        scales: Cells to a pixel, of each level.
        sampling_ratio: Samples to a bin along an axis; 0 for as many as it has cells.
        aligned: Whether a cell's centre lies at its middle (0.5) and not at its corner.

    Returns:
        (K, C, bins down, bins across), of which channels come last in memory.
    """
    channels = maps[0].shape[1]
    out = maps[0].new_empty(len(rois), size[0] * size[1], channels)
    parts = []
    for level, scale in enumerate(scales):
        own = (levels == level).nonzero().squeeze(1)
        extent = ((rois[own, 3:] - rois[own, 1:3]) * scale).ceil()
        parts += [(level, part) for part in own[alike(extent, size)].split(REGIONS)]
    # a map of one image is a table whose rows are spread, which each piece would copy as a whole
    tables = [x.permute(0, 2, 3, 1).reshape(-1, channels).contiguous() for x in maps]

    def compute(i: int) -> None:
        level, at = parts[i]
        if not len(at):
            return
        height, width = maps[level].shape[2:]
        image, low, high = rois[at].split([1, 2, 2], dim=1)
        low = low * scales[level] - 0.5 * aligned
        sides = high * scales[level] - 0.5 * aligned - low
        if not aligned:
            sides = sides.clamp(min=1)
        down, y = axis_weights(low[:, 1], sides[:, 1], height, size[0], sampling_ratio)
        across, x = axis_weights(low[:, 0], sides[:, 0], width, size[1], sampling_ratio)
        y = image.long()[:, :, None] * height + y
        cells = y[:, :, None, :, None] * width + x[:, None, :, None, :]
        weights = down[:, :, None, :, None] * across[:, None, :, None, :]
        found = F.embedding_bag(
            cells.flatten(0, 2).flatten(1),
            tables[level],
            mode="sum",
            per_sample_weights=weights.flatten(0, 2).flatten(1).to(out.dtype),
        )
        out[at] = found.view(len(at), -1, channels)

    threads.run(compute, len(parts))
    return out.unflatten(1, size).permute(0, 3, 1, 2)


def alike(extent: Tensor, size: tuple[int, int]) -> Tensor:
    """An order (K,) in which neighbours touch about as many cells along both axes: what is computed
    of a piece is as large as its widest region and its highest.

    Args:
        extent: (K, 2), cells across and down.
        size: Bins down and across.
    """
    across, down = (extent[:, 0] / size[1]).ceil(), extent[:, 1] / size[0]
    return (across * (down.max() + 1) + down).argsort() if len(extent) else across.long()


def axis_weights(
    low: Tensor, sides: Tensor, cells: int, bins: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """How much each cell counts in each bin of a region, along one axis.

    Args:
        low: (K,), where the regions start, in cells.
        sides: (K,), how long they are.
        cells: Of the map.
        bins: Of a region.
        sampling_ratio: Samples in a bin; 0 for as many as it has cells.

    Returns:
        Weights (K, bins, T), which sum to one where all samples lie on the map, and the cells.
    """
    step = (sides / bins)[:, None, None]
    if sampling_ratio > 0:
        samples = torch.full_like(step, sampling_ratio)
    else:
        samples = step.ceil()  # none where a region has no size
    s = torch.arange(int(samples.max().clamp(min=1)))
    share = 1 / samples.clamp(min=1)
    at = low[:, None, None] + (torch.arange(bins)[:, None] + (s + 0.5) * share) * step
    counts = (s < samples) & (at >= -1) & (at <= cells)  # samples further off are zero
    at = at.clamp(0, cells - 1)  # (K, bins, S)
    touched = at[:, :, :1].floor() + torch.arange(int((step * bins).max() / bins) + 3)
    near = (1 - (at[..., None] - touched[:, :, None]).abs()).clamp(min=0)  # (K, bins, S, T)
    weights = (near * (counts * share)[..., None]).sum(2)
    return weights, touched.long().clamp(max=cells - 1)
