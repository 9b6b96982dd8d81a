"""How patch embedding, patch merging and a map's norm run on the CPU: some tokens at a time.

Shapes: B images, R x S patches, H x W grid, C and D channels.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltm_det.cpu import layers, pieces
from ltm_det.cpu.door import Executor
from ltm_det.cpu.products import product


def patches_piece(
    eps: float,
    x: Tensor,
    norm: Tensor,
    norm_bias: Tensor | None,
    reduction: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """Patch merging of rows of S patches, (R, S, 2, 2, C) to (R, S, D)."""
    x = x.flatten(2)
    x = F.layer_norm(x, x.shape[-1:], norm, norm_bias, eps)
    return product(x, reduction, bias)


def run_patch_merging(
    patches: Any, x: Tensor, hw: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """Its PatchMerging of 2 x 2, (B, H * W, C) to (B, H' * W', D) and (H', W').

    Patches are views of the map; the weights, few, are put into the order of the views instead.
    """
    (b, _, c), norm, reduction = x.shape, patches.norm, patches.reduction
    x = patches.cut(x, hw)  # (B, R, S, 2, 2, C)
    r, s = x.shape[1:3]

    def reorder(weight: Tensor | None) -> Tensor | None:  # the last axis, from (C, row, column)
        return None if weight is None else weight.unflatten(-1, (c, 4)).mT.flatten(-2)

    weights = [*map(reorder, (norm.weight, norm.bias, reduction.weight)), reduction.bias]
    size = max(1, pieces.PIECE // (s * 4 * c))
    row = s, reduction.out_features
    x = pieces.run(partial(patches_piece, norm.eps), size, [x.flatten(0, 1)], weights, row=row)
    return x.view(b, r * s, -1), (r, s)


def run_patch_embedding(patches: Any, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """mmdet's, images (B, 3, h, w) to tokens (B, H * W, C) and (H, W). Without gradients."""
    if patches.adap_padding is not None:
        x = patches.adap_padding(x)
    x = patches.projection(x)
    hw, tokens = (x.shape[2], x.shape[3]), x.flatten(2).transpose(1, 2)
    return layers.norm(patches.norm, tokens, out=x.new_empty(tokens.shape)), hw


PATCH_EMBEDDING = Executor(
    run_patch_embedding,
    serves=lambda patches: layers.unseen(),
    slots={"norm": "LayerNorm"},
)
# inductor has no oneDNN product with weights that are computed
PATCH_MERGING = Executor(
    run_patch_merging,
    serves=lambda patches: not torch.compiler.is_compiling(),
    slots={"norm": "LayerNorm", "reduction": "Linear", "sampler": "Unfold"},
)
MAP_NORM = Executor(layers.norm, serves=lambda norm: layers.unseen())
