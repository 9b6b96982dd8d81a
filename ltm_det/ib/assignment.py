"""Soft clustering of features, by which the information bottleneck is counted.

Shapes: ``*`` any leading dimensions, C channels, K clusters.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

NO_DIRECTION = 1e-6  # a feature shorter than this has no direction; its unit vector is zero


def unit(x: Tensor) -> Tensor:
    """x / ||x|| over the last dimension, in at least float32; zero where x has no direction."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > NO_DIRECTION, x / norm.clamp(min=NO_DIRECTION), 0)


def full_precision(x: Tensor) -> AbstractContextManager:
    """Autocast off; the meta device, which counts MACs, has none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def assign(x: Tensor, centroids: Tensor, beta: float) -> Tensor:
    """phi(x, a) = softmax_a(-beta ||x/||x|| - c_a/||c_a|| ||^2), arXiv 2407.15219's assignment.

    Both have unit length, so that the exponent is 2 beta cos(x, c_a) up to a constant, and a
    feature without direction belongs to all clusters alike. The float dtype is at least float32,
    also under autocast.

    Args:
        x: (*, C)
        centroids: (K, C)
        beta: Inverse temperature, above 0. With unit vectors, 1 is nearly uniform over many
            clusters, 10 has a clear favourite, 100 is nearly one-hot; infinity is one-hot.

    Returns:
        (*, K), rows sum to one.
    """
    with full_precision(x):
        x, centroids = unit(x), unit(centroids)
        dtype = torch.promote_types(x.dtype, centroids.dtype)
        cosine = x.to(dtype) @ centroids.to(dtype).T
        if math.isinf(beta):
            return F.one_hot(cosine.argmax(-1), len(centroids)).to(dtype)
        return (2 * beta * cosine).softmax(-1)
