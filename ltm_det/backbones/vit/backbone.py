"""LTMViT: the plain Vision Transformer, as ViTDet lays it out, with tokens that stay merged.

Sources: ViT (arXiv 2010.11929), ViTDet (arXiv 2203.16527), learnable token merging (2407.15219).
Shapes: B images, T prefix tokens, L = H * W tokens of the map, C channels, M side of the dense
window, k side of the merged window.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint as cp
from mmdet.registry import MODELS
from mmengine.logging import print_log
from mmengine.model import BaseModule, ModuleList
from mmengine.utils import to_2tuple
from timm.layers import PatchEmbed, resample_abs_pos_embed
from torch import Tensor, nn

from ltm_det import cpu
from ltm_det.backbones.common.arguments import check_start
from ltm_det.backbones.common.frozen import FrozenStages
from ltm_det.backbones.common.starts import as_timm
from ltm_det.backbones.common.weights import AccountedLoading
from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.backbones.vit.arguments import (
    RULES,
    check_groups,
    check_positions,
    check_sizes,
    grid_of,
    parse_merger,
)
from ltm_det.backbones.vit.grouped import GroupedAttention
from ltm_det.backbones.vit.layers import (
    MLPS,
    GlobalAttention,
    LTMViTBlock,
    TokenMap,
    WindowAttention,
    keep,
)
from ltm_det.backbones.vit.merge_points import ViTMergePoints
from ltm_det.backbones.vit.positions import RotaryPositions
from ltm_det.backbones.vit.weights import VIT
from ltm_det.basics.arguments import checked
from ltm_det.cpu import Call
from ltm_det.merging import build_merger

Reader = Callable[[Tensor, TokenMap], None]


@MODELS.register_module()
class LTMViT(FrozenStages, ViTMergePoints, AccountedLoading, BaseModule):
    """Plain ViT with windowed and global blocks, and learnable token merging.

    Before block ``merge_at`` the tokens of every window are merged, and stay so to the last block:
    windowed blocks attend among the k x k tokens of a window, global blocks among all merged
    tokens. Between the last block's attention and its MLP, the update they brought is mapped back
    onto the full map, so that this MLP is every token's own.

    Args:
        embed_dims: C.
        depth: Number of blocks.
        num_heads: Heads of each block's attention.
        mlp_ratio: Width of the MLP's first layer over C; a SwiGLU's is gates and values together.
        mlp: 'gelu', or 'swiglu' as of the largest DINOv2 and the "plus" sizes of DINOv3.
        patch_size: Pixels of a patch's side.
        in_channels: Of the image.
        qkv_bias: Whether query, key and value have a bias.
        pretrain_img_size: Side, or (height, width), for which there are absolute positions; they
            are resampled to any other input.
        img_size: Side, or (height, width), for which global blocks have relative positions.
        window_size: M, in tokens.
        global_blocks: Indices of the blocks with global attention; None for the last block of each
            quarter, as in ViTDet; () for none, range(depth) for all.
        query_groups: G, into which the queries of a global block are parted, each with keys of its
            own choice (dynamic group attention, arXiv 2203.03937); None: all attend to all.
        group_keys: M, keys of each group.
        use_abs_pos: Whether there are absolute positions.
        use_rel_pos: Whether attention has decomposed relative positions.
        rope_base: Base of DINOv3's rotary positions, 100 there; None for none. They are read where
            tokens are: a merged one's place is the mean of its sources'.
        prefix_tokens: T, tokens kept beside the map. 0 leaves a checkpoint's class token out, as
            ViTDet does; 1 keeps it, more also distillation and register tokens. Only global blocks
            let them exchange anything with the map.
        final_norm: Whether the map is normalised at the exit.
        norm_eps: Of all layer norms; 1e-5 in DINOv3.
        init_values: Start of the layer scale, or None for no layer scale.
        drop_rate, attn_drop_rate: Dropout of features and of attention.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from the first.
        with_cp: Whether blocks recompute their activations in the backward pass, to save memory.
        frozen_stages: 0 freezes the patch and position embeddings, n > 0 also the first n blocks
            with their mergers; -1 nothing.
        merger: None for the dense backbone, or a dict:

            - type: 'LTM' (learned) or 'Pool' (untrained area pooling).
            - compression_ratio: Kept fraction of the dense tokens, in (0, 1]: one number, or one
              for each entry of merge_at, none above the one before. k = round(M * sqrt(ratio)).
            - merge_at: Block before which tokens are merged, or several, in ascending order.
              Default: depth // 4 - 1, ViTDet's first global block: dense, it takes the most memory.
            - whatever else the merger takes: for LTM ``mask`` and ``temperature``.
        init_cfg: None, or dict(type='Pretrained', checkpoint=...[, prefix, drop_mergers]), see
            :mod:`.weights`.

    Raises:
        InputError: An argument is unknown, out of its range, or does not go with another.
    """

    family = VIT
    executors = {LTMViTBlock: cpu.vit.BLOCK, **cpu.merging.EXECUTORS}

    @checked(**RULES)
    def __init__(
        self,
        *,
        embed_dims: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        mlp: str = "gelu",
        patch_size: int = 16,
        in_channels: int = 3,
        qkv_bias: bool = True,
        pretrain_img_size: int | Sequence[int] = 224,
        img_size: int | Sequence[int] = 1024,
        window_size: int = 14,
        global_blocks: Sequence[int] | None = None,
        query_groups: int | None = None,
        group_keys: int | None = None,
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        rope_base: float | None = None,
        prefix_tokens: int = 0,
        final_norm: bool = False,
        norm_eps: float = 1e-6,
        init_values: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        frozen_stages: int = -1,
        merger: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if global_blocks is None:  # a quarter of less than one block has none
            global_blocks = sorted({depth * quarter // 4 - 1 for quarter in range(1, 5)} - {-1})
        check_sizes(embed_dims, depth, num_heads, mlp_ratio, mlp, global_blocks, frozen_stages)
        check_positions(embed_dims // num_heads, use_rel_pos, rope_base)
        check_groups(query_groups, group_keys, global_blocks, use_rel_pos)
        check_start("LTMViT", init_cfg)
        self.window = window_size
        self.with_cp = with_cp
        self.frozen_stages = frozen_stages

        self.patch_embed = PatchEmbed(
            None, patch_size, in_channels, embed_dims, dynamic_img_pad=True
        )
        self.pretrain_grid = grid_of("pretrain_img_size", pretrain_img_size, patch_size)
        self.pos_embed = self.prefix_tokens = None
        if use_abs_pos:
            positions = self.pretrain_grid[0] * self.pretrain_grid[1]
            self.pos_embed = nn.Parameter(torch.zeros(1, positions, embed_dims))
        if prefix_tokens:
            self.prefix_tokens = nn.Parameter(torch.zeros(1, prefix_tokens, embed_dims))
        self.pos_drop = nn.Dropout(drop_rate)
        self.rope_embed = None
        if rope_base is not None:
            self.rope_embed = RotaryPositions(embed_dims // num_heads, rope_base)

        norm = partial(nn.LayerNorm, eps=norm_eps)
        drops = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = ModuleList()
        for i in range(depth):
            attention, size = WindowAttention, to_2tuple(window_size)
            if i in global_blocks:
                attention, size = GlobalAttention, grid_of("img_size", img_size, patch_size)
                if query_groups is not None:
                    attention = partial(GroupedAttention, groups=query_groups, keys=group_keys)
            attn = attention(
                embed_dims,
                num_heads,
                rel_pos_size=size if use_rel_pos else None,
                qkv_bias=qkv_bias,
                attn_drop=attn_drop_rate,
                proj_drop=drop_rate,
            )
            self.blocks.append(
                LTMViTBlock(
                    embed_dims,
                    num_heads,
                    attn,
                    mlp_ratio=mlp_ratio,
                    **MLPS[mlp],
                    proj_drop=drop_rate,
                    init_values=init_values,
                    drop_path=drops[i],
                    norm_layer=norm,
                )
            )
        self.num_prefix = prefix_tokens
        self.norm = norm(embed_dims) if final_norm else nn.Identity()

        self.sides, options = parse_merger(merger, depth, window_size)
        self.mergers = nn.ModuleDict()  # by the block before which it merges
        side = window_size
        for block, kept in self.sides.items():
            self.mergers[str(block)] = build_merger(
                dim=embed_dims, window=side, tokens=kept**2, depth=block / depth, **options
            )
            side = kept
        self.apply(as_timm)
        for parameter in (self.pos_embed, self.prefix_tokens):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        self.freeze()

    def init_weights(self) -> None:
        kept = {block: side**2 for block, side in self.sides.items()}
        print_log(f"LTMViT: kept of {self.window**2} tokens a window, by block: {kept}", "current")
        super().init_weights()

    def forward(
        self, x: Tensor, extra: Tensor | None = None, read: Reader | None = None
    ) -> list[Tensor]:
        """Images (B, 3, h, w) of any size to one map (B, C, H, W), padded to whole patches.

        Args:
            x: The images.
            extra: (E, C), tokens beside the map, behind the backbone's own; None for none.
            read: Is called after each block with its tokens (B, T + E + L, C) and their map; None:
                nobody looks.
        """
        patch = self.patch_embed.patch_size
        hw = tuple((n + p - 1) // p for n, p in zip(x.shape[2:], patch))  # ONNX: no negatives
        grid = WindowGrid(*hw, self.window)
        x = self.patch_embed(x)  # (B, L, C)
        if self.pos_embed is not None:
            x = x + resample_abs_pos_embed(
                self.pos_embed, hw, self.pretrain_grid, num_prefix_tokens=0, antialias=False
            )
        beside = [tokens for tokens in (self.prefix_tokens, extra) if tokens is not None]
        prefix = sum(tokens.shape[-2] for tokens in beside)
        if beside:
            x = torch.cat([*(tokens.expand(x.shape[0], -1, -1) for tokens in beside), x], dim=1)
        call = cpu.choose(self.executors, x)
        x, tokens, restore = self.pos_drop(x), TokenMap(grid, grid).turned(self.rope_embed, x), keep
        for i, block in enumerate(self.blocks):
            if i in self.sides:
                x, tokens, restore = self._merge(call, i, x, tokens, restore, prefix)
            last = i == len(self.blocks) - 1
            x = self._run(call, block, x, tokens, restore if last else keep)
            if read is not None:
                read(x, tokens._replace(grid=grid) if last else tokens)
        x = self.norm(x[:, prefix:])
        return [x.transpose(1, 2).unflatten(2, hw).contiguous()]

    def _merge(
        self,
        call: Call,
        block: int,
        x: Tensor,
        tokens: TokenMap,
        restore: Callable[..., Tensor],
        beside: int,
    ) -> tuple[Tensor, TokenMap, Callable[[Tensor], Tensor]]:
        """Merges x (B, T + L, C), with T tokens ``beside`` the map, before a block.

        Returns:
            Fewer tokens y0, their map, and the way back to the full map for what becomes of them,
            x + unmerge(y - y0) and then ``restore``.
        """
        prefix, x = x.split([beside, x.shape[1] - beside], dim=1)
        merger = self.mergers[str(block)]
        merging, merged = tokens.merged(x, merger, self.blocks[block], call)
        merged = merged.turned(self.rope_embed, x)
        y0 = merging.merge(x)

        def restore_here(y: Tensor) -> Tensor:
            prefix, y = y.split([beside, y0.shape[1]], dim=1)
            return restore(torch.cat([prefix, merging.update(x, y - y0)], dim=1))

        return torch.cat([prefix, y0], dim=1), merged, restore_here

    def _run(self, call: Call, block: LTMViTBlock, x: Tensor, *args) -> Tensor:
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(call, block, x, *args, use_reentrant=False)
        return call(block, x, *args)

    def frozen(self) -> list[nn.Module | nn.Parameter | None]:
        """The embeddings and the first blocks, with their mergers."""
        embeddings = [self.patch_embed, self.pos_drop, self.pos_embed, self.prefix_tokens]
        mergers = [m for i, m in self.mergers.items() if int(i) < self.frozen_stages]
        return [*embeddings, *self.blocks[: self.frozen_stages], *mergers]
