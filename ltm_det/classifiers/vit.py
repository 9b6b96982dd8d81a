"""LTMViT as a classifier reads it: its class token alone.

Shapes: B images, T prefix tokens, L = H * W tokens of the map, C channels.
"""

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from ltm_det import cpu
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.backbones.vit.backbone import LTMViT
from ltm_det.backbones.vit.layers import TokenMap, keep


class ClassTokenViT(LTMViT):
    """LTMViT that gives out its class token: nobody reads the map, so that merged tokens stay
    merged to the end. Its arguments are LTMViT's, ``prefix_tokens`` from 1 on."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, h, w) of any size to the class token (B, C), normed."""
        x, grid = self.embed(x)
        call, tokens = cpu.choose(self.executors, x), TokenMap(grid, grid)
        for i, block in enumerate(self.blocks):
            if i in self.sides:
                x, tokens, _ = self._merge(call, i, x, tokens, keep, self.num_prefix)
            x = self._run(call, block, x, tokens, keep)
        return self.norm(x[:, 0])

    def embed(self, x: Tensor) -> tuple[Tensor, WindowGrid]:
        """Images to tokens (B, T + L, C), positions added, and their map."""
        patch = self.patch_embed.patch_size
        hw = tuple((n + p - 1) // p for n, p in zip(x.shape[2:], patch, strict=True))
        x = self.patch_embed(x) + resample_abs_pos_embed(
            self.pos_embed, hw, self.pretrain_grid, num_prefix_tokens=0, antialias=False
        )
        x = torch.cat([self.prefix_tokens.expand(x.shape[0], -1, -1), x], dim=1)
        return self.pos_drop(x), WindowGrid(*hw, self.window)
