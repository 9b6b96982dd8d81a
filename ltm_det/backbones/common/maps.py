"""Merging of windows, seen as merging of whole maps.

Shapes: B images, H x W grid of tokens, H' x W' grid of merged tokens, W windows, P kept tokens,
C channels.
"""

from torch import Tensor

from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.merging import Merger, Merging, kept_side


def merged_grid(grid: WindowGrid, merger: Merger) -> WindowGrid:
    """Where a merger's P = k * k tokens of each window lie: without cells of padding alone, where
    it keeps the grid."""
    side = kept_side(merger.tokens / merger.window**2, merger.window)
    return grid.shrunk(side) if merger.keeps_grid else grid.merged(side)


def on_maps(windows: Merging, here: WindowGrid, there: WindowGrid) -> Merging:
    """A merging of windows (B, W, N, C) as one of maps, (B, H * W, C) to (B, H' * W', C) and back.

    Args:
        windows: How each window is merged.
        here: The map's windows.
        there: The merged map's, see `merged_grid`.
    """

    def per_token(values: Tensor | None) -> Tensor | None:
        """(W, P) or (B, W, P) to (B, H' * W')."""
        if values is None:
            return None
        values = values if values.ndim == 3 else values[None]
        return there.reverse(values[..., None])[..., 0]

    return Merging(
        merge=lambda x: there.reverse(windows.merge(here.partition(x))),
        unmerge=lambda y: here.reverse(windows.unmerge(there.partition(y))),
        key_bias=per_token(windows.key_bias),
        size=per_token(windows.size),
        restore=lambda x, change: here.reverse(
            windows.update(here.partition(x), there.partition(change))
        ),
    )
