"""The attention and the block of LTMSwin, made of mmdet's modules under mmdet's names.

Shapes: B images, W windows, N tokens in a window, C channels, nH heads, M side of the dense window,
k side of the window attended in.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from mmdet.models.backbones.swin import ShiftWindowMSA, SwinBlock, WindowMSA
from mmdet.models.layers import PatchMerging
from mmengine.model import BaseModule
from torch import Tensor, nn

from ltm_det.backbones.common.attention import attend
from ltm_det.backbones.common.cues import attention_cues
from ltm_det.backbones.common.windows import WindowGrid, cached_by_size, divides
from ltm_det.backbones.swin.weights import relative_position_index
from ltm_det.cpu.door import altered
from ltm_det.merging import Cues, Merger, Merging


class WindowAttention(BaseModule):
    """mmdet's window attention, on windows of side k <= M with the position table of side M.

    The table stays at the dense size whatever k is, so that any checkpoint fits any ratio; the
    bias of a pair of merged tokens is read off it, bilinearly, at their true distance.
    """

    def __init__(self, msa: WindowMSA, window: int) -> None:
        super().__init__()
        self.num_heads = msa.num_heads
        self.scale = msa.scale
        self.relative_position_bias_table = msa.relative_position_bias_table
        self.qkv, self.proj = msa.qkv, msa.proj
        self.attn_drop, self.proj_drop = msa.attn_drop, msa.proj_drop
        place = torch.empty(0)  # of the default device and dtype
        read, index = _tables(msa.window_size[0], window, place.device, place.dtype)
        self.register_buffer("table_readout", read, persistent=False)
        self.register_buffer("relative_position_index", index, persistent=False)

    def position_bias(self) -> Tensor:
        """(nH, N, N) for the side k of the windows it attends in."""
        table = self.relative_position_bias_table
        if self.table_readout is not None:
            table = self.table_readout.to(table.dtype) @ table
        return table.T[:, self.relative_position_index]

    def forward(self, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Attends within windows: (B, W, N, C) to the same.

        Added to the logits is ``bias``, which broadcasts to (B, W, nH, N, N); without it, the
        position bias and ``mask``, if there is one: (W, N, N), (B, W, 1, N) or (B, W, N, N).
        """
        b, w, n, c = x.shape
        shared = mask is not None and mask.ndim == 3
        if mask is not None and not shared:
            mask = mask.expand(b, w, -1, -1).flatten(0, 1)
        if bias is not None:
            bias = bias.expand(b, w, -1, -1, -1).flatten(0, 1)
        else:
            bias = self.position_bias()[None]
            if mask is not None:
                bias = bias + mask.repeat(b if shared else 1, 1, 1)[:, None]
        qkv = self.qkv(x).reshape(b * w, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B * W, nH, N, C / nH)
        x = attend(q, k, v, bias.to(q.dtype), self.attn_drop, self.scale)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(b, w, n, c)))


class ShiftedWindowAttention(BaseModule):
    """Window attention on the map rolled by ``shift``, drop path included."""

    def __init__(self, attn: ShiftWindowMSA, window: int) -> None:
        super().__init__()
        self.shift = window // 2 if attn.shift_size else 0
        self.w_msa = WindowAttention(attn.w_msa, window)
        self.drop = attn.drop

    def forward(self, x: Tensor, grid: WindowGrid, key_bias: Tensor | None = None) -> Tensor:
        """(B, W, N, C) to the same; key_bias is (W, N) or (B, W, N)."""
        mask = self.mask(grid, x, key_bias)
        x = grid.roll(x, -self.shift)
        x = grid.roll(self.w_msa(x, mask), self.shift)
        return self.drop(x)

    def mask(self, grid: WindowGrid, x: Tensor, key_bias: Tensor | None = None) -> Tensor | None:
        """What is added to the logits in the windows of x, in its dtype, or None for nothing.

        (W, N, N) where windows are shifted, (B, W, 1, N) where there is a bias of keys (W, N) or
        (B, W, N), (B, W, N, N) for both.
        """
        mask = grid.shift_mask(self.shift, x.device).to(x.dtype) if self.shift else None
        if key_bias is None:
            return mask
        key_bias = key_bias.expand(x.shape[:-1]).unsqueeze(-1)
        key_bias = grid.roll(key_bias, -self.shift).transpose(-1, -2)  # (B, W, 1, N)
        return key_bias if mask is None else mask + key_bias


class LTMSwinBlock(BaseModule):
    """A Swin block that may share its MLP's update among merged tokens (the paper's Figure 1).

    Args:
        block: mmdet's block; its modules and their names are taken over.
        window: Side of the windows it attends in.
        merger: What merges tokens before the MLP and restores them after it, None for nothing.
    """

    def __init__(self, block: SwinBlock, window: int, merger: Merger | None) -> None:
        super().__init__()
        self.norm1 = block.norm1
        self.attn = ShiftedWindowAttention(block.attn, window)
        self.norm2 = block.norm2
        self.ffn = block.ffn
        self.ffn.add_identity = False
        self.merger = merger
        self.with_cp = block.with_cp

    def forward(
        self,
        x: Tensor,
        grid: WindowGrid,
        state: Any = None,
        key_bias: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """(B, W, N, C) and the merger chain's state to the same."""
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._forward, x, grid, state, key_bias, use_reentrant=False)
        return self._forward(x, grid, state, key_bias)

    def _forward(
        self, x: Tensor, grid: WindowGrid, state: Any, key_bias: Tensor | None
    ) -> tuple[Tensor, Any]:
        valid = grid.valid(x.device)
        z = zero_padding(self.norm1(x), valid)
        x = x + self.attn(z, grid, key_bias)
        merging = grid.no_merging()
        if self.merger is not None:
            merging, state = self.merger(x, state, valid, self.cues(z, valid))
        return merging.update(x, self.ffn(self.norm2(merging.merge(x)))), state

    def cues(self, z: Tensor, valid: Tensor | None) -> Cues:
        """What its merger reads of the attention's input z (B, W, N, C)."""
        msa = self.attn.w_msa
        return attention_cues(msa.qkv, msa.num_heads, z, self.merger.reads, valid)


class GridlessSwinBlock(LTMSwinBlock):
    """A Swin block on merged tokens that lie on no grid: merged before it, restored after it.

    The tokens of each window of this block are merged; in a shifted window the merger is told which
    of them only the roll made neighbours. Position bias and shift mask of a pair of merged tokens
    are the mean over the pairs of their sources.
    """

    def _forward(
        self, x: Tensor, grid: WindowGrid, state: Any, key_bias: Tensor | None
    ) -> tuple[Tensor, Any]:
        return self.around(x, grid, self.inside), state

    def inside(self, y: Tensor, bias: Tensor) -> Tensor:
        """The block itself, on merged tokens (B, W, P, C)."""
        y = y + self.attn.drop(self.attn.w_msa(self.norm1(y), bias=bias))
        return y + self.ffn(self.norm2(y))

    def around(
        self, x: Tensor, grid: WindowGrid, inside: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Merges x (B, W, N, C), and restores it from what ``inside`` makes of the merged tokens
        and of the bias of their attention's logits."""
        shift = self.attn.shift
        valid = grid.rolled_valid(shift, x.device)
        x = grid.roll(x, -shift)
        cues = self.cues(self.norm1(x), valid)._replace(regions=grid.regions(shift, x.device))
        merging, _ = self.merger(x, None, valid, cues)
        y0 = merging.merge(x)  # (B, W, P, C)
        y = inside(y0, self.merged_bias(merging, grid, x))
        return grid.roll(merging.update(x, y - y0), shift)

    def merged_bias(self, merging: Merging, grid: WindowGrid, x: Tensor) -> Tensor:
        """(B, W, nH, P, P), what attention among the merged tokens adds to its logits."""
        bias, mask = self.attn.w_msa.position_bias().to(x.dtype)[None], self.attn.mask(grid, x)
        if mask is not None:  # else the same in all windows
            bias = bias + mask[:, None]
        bias = merging.pair_bias(bias)
        return bias if merging.key_bias is None else bias + merging.key_bias[..., None, None, :]


class LTMPatchMerging(BaseModule):
    """mmdet's patch merging of 2 x 2, without the copies of ``nn.Unfold``, channel by channel,
    where nobody watches or changes that.

    Args:
        patches: mmdet's; its norm and its reduction and their names are taken over.
    """

    def __init__(self, patches: PatchMerging) -> None:
        super().__init__()
        self.norm, self.reduction = patches.norm, patches.reduction
        self.sampler = patches.sampler

    @staticmethod
    def fits(patches: PatchMerging) -> bool:
        """Whether patches are of 2 x 2, as everywhere but by a change of mmdet's arguments."""
        sampler = patches.sampler
        usual = sampler.kernel_size == sampler.stride == (2, 2) and sampler.dilation == (1, 1)
        return usual and patches.adap_padding is not None

    def forward(self, x: Tensor, hw: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """(B, H * W, C) to (B, H' * W', D) and (H', W')."""
        x = self.cut(x, hw)
        rows, columns = x.shape[1:3]
        if type(self.sampler) is nn.Unfold and not altered(self.sampler):
            x = x.flatten(3, 4).transpose(3, 4).flatten(3).flatten(1, 2)  # (C, 2, 2), as it does
        else:
            image = x.transpose(2, 3).flatten(1, 2).flatten(2, 3).permute(0, 3, 1, 2)
            x = self.sampler(image).transpose(1, 2)
        if self.norm is not None:
            x = self.norm(x)
        return self.reduction(x), (rows, columns)

    @staticmethod
    def cut(x: Tensor, hw: tuple[int, int]) -> Tensor:
        """(B, H * W, C) to patches (B, H', W', 2, 2, C), padded with zeros."""
        (height, width), x = hw, x.unflatten(1, hw)
        if not (divides(2, height) and divides(2, width)):
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, ((width + 1) // 2, 2)).unflatten(1, ((height + 1) // 2, 2))
        return x.transpose(2, 3)


def zero_padding(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zeroes padded tokens, which is what the dense Swin lets attention see of them."""
    return x if valid is None else x.masked_fill(~valid[..., None], 0)


@cached_by_size(2)  # a backbone's blocks have one or two sizes, and share what is large of 56 x 56
def _tables(
    window: int, side: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor]:
    return relative_position_readout(window, side), relative_position_index(side)


def relative_position_readout(window: int, side: int) -> Tensor | None:
    """((2k-1)^2, (2M-1)^2), which reads the table of windows of side k off that of side M.

    Cells of the merged window lie M / k tokens apart: the bias at displacement j cells is the
    dense table's at j * M / k tokens, linearly interpolated along each axis. None where k = M.
    """
    if side == window:
        return None
    at = torch.arange(1 - side, side) * window / side + window - 1  # in rows of the dense table
    axis = (1 - (at[:, None] - torch.arange(2 * window - 1)).abs()).clamp(min=0)
    return torch.kron(axis, axis)
