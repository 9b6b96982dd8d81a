"""Small merged backbones and merge points, made up or real, for pictures of them."""

import torch

from ltm_det.backbones import LTMSwin, LTMViT, MergePoint
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.merging import Pool
from tests.test_backbones.swin_cases import MINI as SWIN

VIT = dict(
    embed_dims=8,
    depth=3,
    num_heads=2,
    patch_size=4,
    window_size=4,
    global_blocks=(),
    use_abs_pos=False,
)
POOL = dict(type="Pool", compression_ratio=0.5)


def swin(**options: object) -> LTMSwin:
    return LTMSwin(**SWIN, merger={**POOL, "dense_blocks": 0, **options}).eval()


def vit(**options: object) -> LTMViT:
    return LTMViT(**VIT, merger={**POOL, **options}).eval()


def pool_point(height: int, width: int, channels: int = 5) -> MergePoint:
    """Windows of 4 x 4 tokens, 5 pixels each, pooled into 2 x 2 cells."""
    grid = WindowGrid(height, width, 4)
    tokens = grid.partition(torch.randn(1, height * width, channels))
    merging, _ = Pool(channels, 4, 4)(tokens, None, grid.valid(tokens.device))
    return MergePoint(tokens, merging, grid, 5.0)


CASES = {
    "swin-stage": (swin(), "stages.0.blocks.0", "patch"),
    "swin-block": (swin(scope="block"), "stages.0.blocks.0.ffn", "window"),
    "vit": (vit(merge_at=0), "blocks.0", "patch"),
    "vit-twice": (vit(merge_at=[0, 2], compression_ratio=[0.5, 0.25]), "blocks.2", "window"),
}
