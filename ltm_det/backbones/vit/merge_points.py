"""Where a LTMViT merges, as :class:`ltm_det.backbones.MergeWatch` asks for it."""

from torch import nn

from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.backbones.vit.layers import LTMViTBlock
from ltm_det.merging import Merger


class ViTMergePoints:
    """Mixin: the merge points of a backbone with ``blocks``, ``mergers``, ``sides``, ``window``."""

    def mergers_by_point(self) -> dict[str, Merger]:
        """The mergers, by the name of their merge point, see :class:`MergePoint`."""
        return {f"blocks.{block}": merger for block, merger in self.mergers.items()}

    def dense_points(self) -> dict[str, nn.Module]:
        """What reads the tokens first at each merge point that a merger could have."""
        return {f"blocks.{i}": block for i, block in enumerate(self.blocks)}

    def shift_at(self, name: str) -> int:
        """By how many tokens the map is rolled back at a merge point: windows never shift."""
        return 0

    def grid_at(self, name: str, image_size: tuple[int, int]) -> tuple[WindowGrid, float]:
        """The map at a merge point for images of h x w pixels, and the pixels of a token."""
        patch = self.patch_embed.patch_size
        grid = WindowGrid(-(-image_size[0] // patch[0]), -(-image_size[1] // patch[1]), self.window)
        sides = [k for block, k in self.sides.items() if block < int(name.split(".")[1])]
        for side in sides:
            grid = grid.shrunk(side)
        return grid, patch[0] * self.window / grid.window

    def grid_of_block(self, name: str, image_size: tuple[int, int]) -> WindowGrid:
        """The map that a block runs on for images of h x w pixels.

        Raises:
            ValueError: There is no such block, or its tokens lie on no grid.
        """
        if not isinstance(self.get_submodule(name), LTMViTBlock):
            raise ValueError(f"{name!r} is no block: give one such as 'blocks.11'")
        index = int(name.split(".")[1])
        mergers = [m for block, m in self.mergers.items() if int(block) <= index]
        if not all(merger.keeps_grid for merger in mergers):
            raise ValueError(f"the merged tokens of {name!r} lie on no grid: choose one before")
        grid, _ = self.grid_at(name, image_size)
        return grid.shrunk(self.sides[index]) if index in self.sides else grid
