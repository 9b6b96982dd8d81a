"""Attention as all families compute it.

Shapes: ``*`` any leading dimensions, nH heads, N queries, M keys, D = C / nH.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ltm_det.cpu.door import altered


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, drop: nn.Module, scale: float
) -> Tensor:
    """drop(softmax(scale * q k^T + bias)) v, (*, nH, N, D).

    Fused where ``drop`` is torch's dropout and nobody watches or changes it; otherwise it is called
    with the weights (*, nH, N, M).
    """
    if type(drop) is nn.Dropout and not altered(drop):
        dropout = drop.p if drop.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale)
    logits = scale * q @ k.transpose(-1, -2)
    return drop((logits if bias is None else logits + bias).softmax(-1)) @ v
