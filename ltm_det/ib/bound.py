"""The information-bottleneck bound of learnable token merging, and its gradients.

IBB = -H + 1/n sum_i sum_a phi(x~_i, a) cost(i, a), with cost(i, a) = -log Q(a|y_i), where
H = -1/n sum_i sum_b phi(x_i, b) log phi(x_i, b) belongs to the input alone: it is no function of
the model, and :func:`input_term` has it apart (arXiv 2407.15219 and its published loss).

Shapes: ``*`` any leading dimensions, n samples, C channels, K clusters, Y classes, N tokens in a
window, P kept tokens.
"""

import torch
from torch import Tensor

from ltm_det.ib.assignment import NO_DIRECTION, assign, full_precision, unit

# Added to every count behind Q, in samples: an absent class gets the uniform distribution, and
# what has never been seen a finite cost.
EPS = 1e-6


def class_conditional(counts: Tensor, eps: float = EPS) -> Tensor:
    """Q(a|y): how each class is spread over the clusters.

    Args:
        counts: (Y, K), sum of phi(x~_i, a) over the samples of each class.
        eps: Above 0, see :data:`EPS`.

    Returns:
        (Y, K), rows sum to one.
    """
    counts = counts + eps
    return counts / counts.sum(-1, keepdim=True)


def class_cost(log_q: Tensor, labels: Tensor) -> Tensor:
    """cost(i, a) = -log Q(a|y_i); for an unknown label the mean over its posterior.

    Args:
        log_q: (Y, K)
        labels: (*,) whole numbers from 0 to Y - 1, which is not checked, or (*, Y) probabilities
            of the classes.

    Returns:
        (*, K)
    """
    with full_precision(log_q):
        return -(labels.to(log_q.dtype) @ log_q if labels.is_floating_point() else log_q[labels])


def class_posterior(phi: Tensor, log_q: Tensor, log_prior: Tensor) -> Tensor:
    """p(y|x~) = sum_a phi(x~, a) Q(y|a), with Q(y|a) by Bayes from Q(a|y) and the prior.

    Args:
        phi: (*, K)
        log_q: (Y, K)
        log_prior: (Y,), log p(y), up to a constant.

    Returns:
        (*, Y), rows sum to one.
    """
    with full_precision(phi):
        return phi @ (log_q + log_prior[:, None]).softmax(0).T


def bound(phi: Tensor, cost: Tensor) -> Tensor:
    """The part of IBB that depends on the model: the mean over samples of sum_a phi cost.

    Args:
        phi: (*, K), assignments of the merged features.
        cost: (*, K), see :func:`class_cost`.

    Returns:
        A scalar in nats; 0 without samples.
    """
    return (phi * cost).sum() / max(phi[..., 0].numel(), 1)


def input_term(phi_in: Tensor) -> Tensor:
    """-H, the part of IBB that depends on the input alone: mean of sum_b phi_in log phi_in.

    Args:
        phi_in: (*, K), assignments of the input features.
    """
    return torch.xlogy(phi_in, phi_in).sum() / max(phi_in[..., 0].numel(), 1)


def bound_gradient(x: Tensor, centroids: Tensor, cost: Tensor, beta: float) -> Tensor:
    """d/dx of sum_a phi(x, a) cost(a), for each sample, the cost taken as given.

    With f = x/||x||, c_a of unit length and s_a = phi_a (cost_a - sum_b phi_b cost_b) this is
    2 beta (1 - f f^T) sum_a s_a c_a / ||x||: it pulls towards the clusters that cost more, at
    right angles to x. The gradient of :func:`bound` is this over the number of samples.

    Args:
        x: (*, C)
        centroids: (K, C)
        cost: (*, K)
        beta: As in :func:`assign`.

    Returns:
        (*, C); zero where x has no direction.
    """
    with full_precision(x):
        phi, f = assign(x, centroids, beta), unit(x)
        surplus = phi * (cost - (phi * cost).sum(-1, keepdim=True))
        pull = 2 * beta * surplus @ unit(centroids).to(surplus.dtype)
        pull = pull - f * (f * pull).sum(-1, keepdim=True)
        norm = x.to(f.dtype).norm(dim=-1, keepdim=True)
        return torch.where(norm > NO_DIRECTION, pull / norm.clamp(min=NO_DIRECTION), 0)


def mask_gradient(z: Tensor, gradient: Tensor, mask: Tensor | None = None) -> Tensor:
    """dIBB/dG from dIBB/dX~.

    Args:
        z: (*, N, C), the tokens Z.
        gradient: (*, P, C), dIBB/dX~.
        mask: None where X~ = G^T Z; then dIBB/dG = Z (dIBB/dX~)^T. Or G, (*, N, P), where X~ are
            weighted means, G's columns over their sums m: then the entry of token n and merged
            token p is (Z_n - X~_p) . dIBB/dX~_p / m_p. No sum may be zero.

    Returns:
        (*, N, P)
    """
    with full_precision(z):
        z = z.to(gradient.dtype)  # which bound_gradient has in at least float32
        along = z @ gradient.transpose(-1, -2)
        if mask is None:
            return along
        size = mask.sum(-2, keepdim=True)  # (*, 1, P)
        merged = (mask / size).transpose(-1, -2) @ z
        return (along - (merged * gradient).sum(-1).unsqueeze(-2)) / size
