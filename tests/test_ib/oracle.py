"""Slow oracles of the information bottleneck: loops over numpy's float64, from the formulas.

They take and give tensors. Shapes: n samples, C channels, K clusters of merged features, J of
input features, Y classes.
"""

import math

import numpy as np
import torch
from torch import Tensor


def assign_oracle(x: Tensor, centroids: Tensor, beta: float) -> Tensor:
    """(n, C), (K, C) -> (n, K): softmax_a(-beta || x/||x|| - c_a/||c_a|| ||^2)."""
    features, centres = _rows(x), [_unit(c) for c in _rows(centroids)]
    phi = np.zeros((len(features), len(centres)))
    for i, feature in enumerate(features):
        f = _unit(feature)
        for a, centre in enumerate(centres):
            phi[i, a] = math.exp(-beta * sum((f[d] - centre[d]) ** 2 for d in range(len(f))))
        phi[i] /= sum(phi[i])
    return torch.from_numpy(phi)


def conditional_oracle(
    phi_out: Tensor, labels: list[int], classes: int, eps: float = 0.0
) -> Tensor:
    """(Y, K): Q(a|y) = sum_i phi(i, a) 1[y_i = y] / sum_i 1[y_i = y], with eps samples on each."""
    phi = _rows(phi_out)
    clusters = phi.shape[1]
    q = np.zeros((classes, clusters))
    for y in range(classes):
        of_class = [i for i in range(len(labels)) if labels[i] == y]
        for a in range(clusters):
            q[y, a] = sum(phi[i, a] for i in of_class) + eps
        q[y] /= len(of_class) + clusters * eps
    return torch.from_numpy(q)


def bound_oracle(phi_out: Tensor, phi_in: Tensor, q: Tensor, labels: list[int]) -> float:
    """IBB as published: mean_i of sum_a sum_b phi_out(i, a) phi_in(i, b) log phi_in(i, b)
    - sum_a phi_out(i, a) log Q(a|y_i)."""
    out, inside, q = _rows(phi_out), _rows(phi_in), _rows(q)
    total = 0.0
    for i, y in enumerate(labels):
        for a in range(out.shape[1]):
            for b in range(inside.shape[1]):
                total += out[i, a] * inside[i, b] * math.log(inside[i, b])
            total -= out[i, a] * math.log(q[y, a])
    return total / len(labels)


def cost_oracle(q: Tensor, posterior: Tensor) -> Tensor:
    """(Y, K), (n, Y) -> (n, K): -sum_y p(y|i) log Q(a|y)."""
    q, p = _rows(q), _rows(posterior)
    cost = np.zeros((len(p), q.shape[1]))
    for i in range(len(p)):
        for a in range(q.shape[1]):
            cost[i, a] = -sum(p[i, y] * math.log(q[y, a]) for y in range(len(q)))
    return torch.from_numpy(cost)


def posterior_oracle(phi: Tensor, q: Tensor, prior: Tensor) -> Tensor:
    """(n, Y): sum_a phi(i, a) Q(a|y) p(y) / sum_y' Q(a|y') p(y')."""
    phi, q, prior = _rows(phi), _rows(q), _rows(prior)
    p = np.zeros((len(phi), len(q)))
    for i in range(len(phi)):
        for a in range(q.shape[1]):
            evidence = sum(q[y, a] * prior[y] for y in range(len(q)))
            for y in range(len(q)):
                p[i, y] += phi[i, a] * q[y, a] * prior[y] / evidence
    return torch.from_numpy(p)


def gradient_oracle(x: Tensor, centroids: Tensor, cost: Tensor, beta: float) -> Tensor:
    """(n, C): d/dx of sum_a phi(x, a) cost(a), by the chain rule entry by entry."""
    phi, features, cost = _rows(assign_oracle(x, centroids, beta)), _rows(x), _rows(cost)
    centres = [_unit(c) for c in _rows(centroids)]
    n, channels = features.shape
    gradient = np.zeros((n, channels))
    for i in range(n):
        f, length = _unit(features[i]), math.sqrt(sum(v * v for v in features[i]))
        for d in range(channels):
            mean = sum(phi[i, b] * centres[b][d] for b in range(len(centres)))
            by_f = sum(  # d/df_d
                cost[i, a] * 2 * beta * phi[i, a] * (centres[a][d] - mean)
                for a in range(len(centres))
            )
            for e in range(channels):  # df_d/dx_e
                gradient[i, e] += by_f * ((d == e) - f[d] * f[e]) / length
    return torch.from_numpy(gradient)


def information_oracle(joint: Tensor) -> float:
    """sum_ab p(a, b) log(p(a, b) / p(a) p(b)) of a table of counts."""
    p = _rows(joint) / float(_rows(joint).sum())
    information = 0.0
    for a in range(p.shape[0]):
        for b in range(p.shape[1]):
            if p[a, b] > 0:
                information += p[a, b] * math.log(p[a, b] / (sum(p[a]) * sum(p[:, b])))
    return information


def entropy_oracle(counts: Tensor) -> float:
    total = sum(counts.flatten().tolist())
    return sum(-v / total * math.log(v / total) for v in counts.flatten().tolist() if v > 0)


def joint_oracle(phi_out: Tensor, phi_in: Tensor) -> Tensor:
    """(K, J): p(a, b) = mean_i phi_out(i, a) phi_in(i, b)."""
    out, inside = _rows(phi_out), _rows(phi_in)
    joint = np.zeros((out.shape[1], inside.shape[1]))
    for i in range(len(out)):
        for a in range(out.shape[1]):
            for b in range(inside.shape[1]):
                joint[a, b] += out[i, a] * inside[i, b] / len(out)
    return torch.from_numpy(joint)


def one_hot(labels: list[int], classes: int) -> Tensor:
    return torch.tensor([[float(y == label) for y in range(classes)] for label in labels]).double()


def _rows(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def _unit(x: np.ndarray) -> list[float]:
    length = math.sqrt(sum(v * v for v in x))
    return [v / length if length else 0.0 for v in x]
