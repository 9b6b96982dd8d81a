"""Masks of LTM: from logits to what merges and restores, and how far tokens are from the merged.

Shapes: ``*`` any leading dimensions, N tokens in a window, P kept tokens, C channels.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltm_det.basics.graphs import tracing

# The logit of a cell of padding alone: no share is left, yet differences of such logits are finite.
NOBODYS = -1e9
# Shares below exp(-FAR) are taken as that: they are nothing, yet far from denormal numbers, below
# 1e-38, whose products take an Intel CPU twenty times as long.
FAR = 50.0
# Gradients below it are nothing either; times such a share they would be denormal numbers.
LEAST_GRADIENT = 1e-20


def hard_mask(logits: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """One-hot rows: straight-through Gumbel-Softmax in training, argmax without noise otherwise."""
    if training:
        hard = F.gumbel_softmax(logits, hard=True)
    else:
        hard = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    return hard, hard


def hard_soft_mask(logits: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """Hard times soft: a merged token is the mean of the tokens that chose it, weighted by how sure
    they are; restoring copies it back, since a one-hot row that sums to one is the hard row."""
    hard, _ = hard_mask(logits, training)
    return hard * logits.softmax(-1), hard


HARD_MASKS = {"hard": hard_mask, "hard_soft": hard_soft_mask}
MASKS = ("soft", *HARD_MASKS)


def columns(log_mask: Tensor, real: Tensor | None) -> Tensor:
    """A soft mask, its columns normalised to one, (*, N, P).

    From logarithms, since all shares in a merged token may be too small for float32.

    Args:
        log_mask: (*, N, P), the logarithm of the mask.
        real: Boolean, broadcastable to it: False for padded tokens and for cells of padding alone,
            which have no part. None: all are real.
    """
    if real is not None:
        log_mask = log_mask.masked_fill(~real, NOBODYS)
    log_mask = (log_mask - log_mask.amax(-2, keepdim=True)).clamp(min=-FAR)
    return log_mask.softmax(-2) if real is None else log_mask.softmax(-2) * real


class _Clear(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return F.hardshrink(gradient, LEAST_GRADIENT)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.view_as(tangent)


def clear(product: Tensor) -> Tensor:
    """A product of matrices, unchanged, into whose factors no gradients below
    :data:`LEAST_GRADIENT` go: most of a sharp mask's are nothing, and denormal numbers among them
    take an Intel CPU seven times as long for the whole backward pass."""
    return _Clear.apply(product) if product.requires_grad and not tracing() else product


Distances = Callable[[Tensor], Tensor]


def by_merged(z: Tensor) -> Distances:
    """Maps a mask M (*, N, P) to |Z - X~|^2 / C, (*, N, P), the distances of tokens Z (*, N, C) to
    its merged ones X~ = M^T Z, less |Z|^2 / C, which is the same for all P."""

    def distances(mask: Tensor) -> Tensor:
        merged = clear(mask.transpose(-1, -2) @ z)  # X~
        alike = clear(z @ merged.transpose(-1, -2)) / z.shape[-1]
        return merged.square().mean(-1).unsqueeze(-2) - 2 * alike

    return distances


def by_gram(z: Tensor) -> Distances:
    """The same without X~, by K = Z Z^T / C, which serves every mask: Z X~^T / C = K M, and
    |X~|^2 / C, by column, is the sum over tokens of M * (K M)."""
    gram = clear(z @ z.transpose(-1, -2)) / z.shape[-1]  # (*, N, N)

    def distances(mask: Tensor) -> Tensor:
        alike = clear(gram @ mask)
        return (mask * alike).sum(-2, keepdim=True) - 2 * alike

    return distances
