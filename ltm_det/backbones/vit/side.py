"""HSTViT: a network of four scales beside a frozen ViT (Hierarchical Side-Tuning, 2310.05393).

Shapes: B images, L tokens of the ViT's map, C its channels, m learned tokens, S = h * w cells of a
side map, D its channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from timm.layers import LayerNorm2d, Mlp
from torch import Tensor, nn

from ltm_det.backbones.common.attention import attend
from ltm_det.backbones.common.starts import as_timm
from ltm_det.backbones.vit.backbone import LTMViT
from ltm_det.backbones.vit.layers import TokenMap
from ltm_det.basics.arguments import checked, many, number, optional, whole
from ltm_det.basics.errors import InputError

STAGES = 4  # at a quarter to a 32nd of the image's sides


class CrossAttention(nn.Module):
    """Cells of a side map attend to a few tokens of the ViT.

    Args:
        dim: D.
        num_heads: Heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.no_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (B, S, D) and tokens (B, m + 1, D) to what x gains."""
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = attend(q, k, v, None, self.no_drop, q.shape[-1] ** -0.5)
        return self.proj(x.transpose(1, 2).flatten(2))


class SideBlock(nn.Module):
    """What a side map takes from one block of the ViT.

    Args:
        width: C.
        dim: D.
        num_heads: Heads of the cross-attention.
        mlp_ratio: Width of the MLP's first layer over D.
    """

    def __init__(self, width: int, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm_vit = nn.LayerNorm(width)
        self.global_bridge = nn.Linear(width, dim)
        self.fine_bridge = nn.Linear(width, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, learned: Tensor, patches: Tensor) -> Tensor:
        """x (B, D, h, w) of the side, learned (B, m, C) and patches (B, H, W, C) of the ViT, as a
        block has left them, to the next x."""
        size = x.shape[2:]
        learned, patches = self.norm_vit(learned), self.norm_vit(patches)
        tokens = torch.cat([learned, patches.mean((1, 2))[:, None]], dim=1)
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attn(self.norm1(x), self.global_bridge(tokens))
        x = x + self.mlp(self.norm2(x))
        fine = self.fine_bridge(patches).permute(0, 3, 1, 2)
        fine = F.interpolate(fine, size, mode="bilinear", align_corners=False)
        return x.transpose(1, 2).unflatten(2, size) + fine


@MODELS.register_module()
class HSTViT(BaseModule):
    """A frozen ViT, and beside it a small network of four scales that learns the task.

    Each block of the ViT has a block of the side network: its map attends to m learned tokens,
    which go through the ViT, and to the mean of the ViT's patches; then the ViT's map, resampled,
    is added. Only the learned tokens and the side network are trained. In a ViT with windows the
    learned tokens meet the map in global blocks alone, as the paper's do in each. A merged ViT
    gives its merged maps.

    Args:
        vit: Arguments of :class:`.backbone.LTMViT`; its depth is a multiple of 4, its weights come
            by its ``init_cfg``.
        learned_tokens: m.
        embed_dims: D of the first stage, which each stage doubles.
        num_heads: Of the stages' cross-attention.
        mlp_ratio: Width of the MLPs' first layers over D.
        out_indices: Stages whose maps are given.
        init_cfg: Of the side network; None for the start as it is.

    Raises:
        InputError: An argument is unknown, out of its range, or does not go with another.
    """

    @checked(
        learned_tokens=whole(1),
        embed_dims=whole(1),
        num_heads=many(whole(1), least=STAGES),
        mlp_ratio=number(above=0, most=1000),
        out_indices=many(whole(0, most=STAGES - 1)),
        init_cfg=optional(lambda name, value: None),
    )
    def __init__(
        self,
        *,
        vit: Mapping[str, Any],
        learned_tokens: int = 8,
        embed_dims: int = 48,
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratio: float = 2.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        dims = [embed_dims * 2**i for i in range(STAGES)]
        if len(num_heads) != STAGES or any(d % n for d, n in zip(dims, num_heads)):
            raise InputError(
                f"HSTViT: num_heads={tuple(num_heads)}: give {STAGES} numbers that divide the "
                f"channels {dims} of the stages"
            )
        self.vit = LTMViT(**vit)
        if not all(merger.keeps_grid for merger in self.vit.mergers.values()):
            raise InputError(
                f"HSTViT: vit.merger={dict(vit['merger'])} leaves no grid to resample: take LTM or "
                "Pool, which keep one"
            )
        depth, width = len(self.vit.blocks), self.vit.patch_embed.proj.out_channels
        if depth % STAGES:
            raise InputError(f"HSTViT: vit.depth={depth} must be a multiple of {STAGES}")
        self.out_indices = tuple(out_indices)
        self.learned = nn.Parameter(torch.zeros(learned_tokens, width))
        self.stem = nn.Sequential(
            nn.Conv2d(self.vit.patch_embed.proj.in_channels, embed_dims, 3, 2, 1),
            LayerNorm2d(embed_dims),
            nn.GELU(),
            nn.Conv2d(embed_dims, embed_dims, 3, 2, 1),
        )
        self.downs = ModuleList(
            nn.Sequential(LayerNorm2d(dim // 2), nn.Conv2d(dim // 2, dim, 2, 2)) for dim in dims[1:]
        )
        each = depth // STAGES
        self.blocks = ModuleList(
            SideBlock(width, dims[i // each], num_heads[i // each], mlp_ratio) for i in range(depth)
        )
        self.norms = ModuleList(LayerNorm2d(dims[i]) for i in self.out_indices)
        self.blocks.apply(as_timm)
        nn.init.trunc_normal_(self.learned, std=0.02)
        self.vit.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) of any size to maps (B, D * 2**i, H / 2**(2 + i), W / 2**(2 + i)),
        sides rounded up."""
        states: list[tuple[Tensor, Tensor]] = []
        m, prefix = len(self.learned), self.vit.num_prefix

        def read(tokens: Tensor, at: TokenMap) -> None:
            learned, patches = tokens[:, prefix : prefix + m], tokens[:, prefix + m :]
            states.append((learned, patches.unflatten(1, (at.grid.height, at.grid.width))))

        self.vit(x, self.learned, read)
        each, outs = len(self.blocks) // STAGES, []
        side = self.stem(x)
        for stage in range(STAGES):
            if stage:
                odd = [n % 2 for n in side.shape[2:]]
                side = self.downs[stage - 1](F.pad(side, (0, odd[1], 0, odd[0])))
            for i in range(stage * each, (stage + 1) * each):
                side = self.blocks[i](side, *states[i])
            if stage in self.out_indices:
                outs.append(self.norms[self.out_indices.index(stage)](side))
        return outs

    def train(self, mode: bool = True) -> "HSTViT":
        """The ViT stays as it is: no dropout, no gradient of its weights."""
        super().train(mode)
        self.vit.eval()
        return self
