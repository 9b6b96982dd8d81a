"""Where a backbone merges, and what happens there.

A merge point is named by the block that reads the merged tokens, in stage scope and in a ViT
'stages.2.blocks.2' or 'blocks.4', in block scope its MLP, 'stages.2.blocks.2.ffn'. A dense
backbone has the same points, at which nothing is merged.

Shapes: B images, W windows, N tokens in a window, P kept tokens, C channels, H x W grid.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.merging import NO_MERGING, Merger, Merging


class MergePoint(NamedTuple):
    """One merge point in one pass.

    Attributes:
        tokens: (B, W, N, C), before merging.
        merging: How they were merged, window by window.
        grid: Their map.
        stride: Pixels between neighbouring tokens.
        shift: By how many tokens the map is rolled back.
        sequences: Maps of an image: of MobileViT one for each pixel of its patches, B * sequences
            in the place of B.
    """

    tokens: Tensor
    merging: Merging
    grid: WindowGrid
    stride: float
    shift: int = 0
    sequences: int = 1

    def merged_map(self) -> Tensor:
        """The merged tokens X~ = G^T Z on the full map, (B, C, H, W), as G lays them out.

        Z are the layer-normed tokens, as the mask module reads them and the next layer does. Of
        several maps of an image it is the mean.
        """
        z = F.layer_norm(self.tokens, self.tokens.shape[-1:])
        maps = self.to_map(self.merging.unmerge(self.merging.merge(z)))
        return maps if self.sequences == 1 else maps.unflatten(0, (-1, self.sequences)).mean(1)

    def to_map(self, tokens: Tensor) -> Tensor:
        """(B, W, N, C) to (B, C, H, W); padded tokens are cut off."""
        maps = self.grid.reverse(self.grid.roll(tokens, self.shift)).transpose(1, 2)
        return maps.unflatten(2, (self.grid.height, self.grid.width))


class MergeWatch:
    """Keeps what the latest pass of a backbone shows at its merge points, by forward hooks.

    A context manager: hooks are there inside, and :attr:`seen` has the points of the latest pass.

    Args:
        backbone: One of ours.
        names: Points to watch. None: all at which the backbone merges.

    Raises:
        TypeError: If the backbone has no merge points.
        ValueError: On a point that is not there; it lists those that are.
    """

    def __init__(self, backbone: nn.Module, names: Iterable[str] | None = None) -> None:
        if not hasattr(backbone, "mergers_by_point"):
            raise TypeError(
                f"{type(backbone).__name__} has no merge points: use LTMSwin or another of ours, "
                "for a dense backbone with merger=None"
            )
        mergers = backbone.mergers_by_point()
        points = mergers or backbone.dense_points()
        self.backbone = backbone
        self.seen: dict[str, MergePoint] = {}
        self.names = list(mergers if names is None else names)
        for name in self.names:
            if name not in points:
                raise ValueError(f"no merge point {name!r}: choose of {list(points)}")
        self._sources = {name: points[name] for name in self.names}
        self._handles: list[Any] = []
        self._image_size: tuple[int, int] | None = None  # while a pass is under way

    def __enter__(self) -> "MergeWatch":
        self._handles = [
            self.backbone.register_forward_pre_hook(self._start),
            self.backbone.register_forward_hook(self._stop),
        ]
        for name, module in self._sources.items():
            if isinstance(module, Merger):
                handle = module.register_forward_hook(partial(self._see_merger, name))
            else:
                handle = module.register_forward_pre_hook(partial(self._see_dense, name))
            self._handles.append(handle)
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self.seen.clear()

    def _start(self, module: nn.Module, args: tuple) -> None:
        self.seen.clear()
        self._image_size = tuple(args[0].shape[2:])

    def _stop(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._image_size = None

    def _see_merger(self, name: str, module: Merger, args: tuple, output: tuple) -> None:
        self._see(name, args[0], output[0], self.backbone.shift_at(name))

    def _see_dense(self, name: str, module: nn.Module, args: tuple) -> None:
        tokens_of = getattr(self.backbone, "tokens_of", lambda x: x)
        self._see(name, tokens_of(args[0]), NO_MERGING)

    def _see(self, name: str, tokens: Tensor, merging: Merging, shift: int = 0) -> None:
        if self._image_size is None:  # a checkpointed block, recomputed in the backward pass
            return
        grid, stride = self.backbone.grid_at(name, self._image_size)
        if tokens.ndim == 3:  # (B, T + L, C)
            tokens = grid.partition(tokens[:, tokens.shape[1] - grid.height * grid.width :])
        sequences = getattr(self.backbone, "sequences", 1)
        self.seen[name] = MergePoint(tokens, merging, grid, stride, shift, sequences)
