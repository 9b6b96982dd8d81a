"""Entropy and mutual information of joint tables, in nats."""

import torch
from torch import Tensor


def entropy(counts: Tensor) -> Tensor:
    """H of a distribution given by non-negative counts of any shape.

    Raises:
        ValueError: If nothing was counted.
    """
    p = _probabilities(counts)
    return -torch.xlogy(p, p).sum()


def mutual_information(joint: Tensor) -> Tensor:
    """I(A; B) = H(A) + H(B) - H(A, B), never below zero.

    This is the plug-in estimate: counted from few samples it lies above the truth, by about
    (A - 1)(B - 1) / (2 n) nats for n samples in one cell each.

    Args:
        joint: (A, B), non-negative counts, or sums of soft assignments.

    Raises:
        ValueError: If nothing was counted.
    """
    information = entropy(joint.sum(1)) + entropy(joint.sum(0)) - entropy(joint)
    return information.clamp(min=0)  # of rounding


def _probabilities(counts: Tensor) -> Tensor:
    total = counts.sum()
    if not total > 0:
        raise ValueError(f"no information in a table of {tuple(counts.shape)} without samples")
    return counts / total
