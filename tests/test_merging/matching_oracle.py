"""Slow oracles of the mergers that match tokens, one window at a time, with lists and loops.

A window is a list of nodes in order. Real ones and dead ones (padding, or what stands for nothing)
are told apart at every turn: in a round the dead go first, and cost no real token anything.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ltm_det.merging import Cues, Merger

# window, P: less than half, half, more than one round, one token, all tokens
SIZES = [(7, 25), (7, 36), (4, 8), (5, 13), (5, 5), (7, 4), (3, 1), (3, 9)]


@dataclass
class Node:
    """A token amid the rounds: what it matches by, and what it holds of the N tokens.

    Attributes:
        metric: D numbers.
        mass: By token, how much of it is in here.
        rows: The tokens that will take this one's update.
        regions: Share of its mass that lies in each region of the window.
    """

    metric: list[float]
    mass: dict[int, float]
    rows: list[int] = field(default_factory=list)
    regions: list[float] = field(default_factory=lambda: [1.0])

    @property
    def size(self) -> float:
        return sum(self.mass.values())


# (real nodes in order, how many to remove) to the (source, destination) of each that goes
Choice = Callable[[list[Node], int], list[tuple[Node, Node]]]


class Groups(NamedTuple):
    """(P, N) the means, (N, P) who takes whose update, and the P sizes."""

    merge: Tensor
    restore: Tensor
    size: Tensor


def cosine(a: list[float], b: list[float]) -> float:
    return sum(i * j for i, j in zip(a, b)) / (math.hypot(*a) * math.hypot(*b))


def alike(a: Node, b: Node) -> float:
    same = sum(i * j for i, j in zip(a.regions, b.regions))
    return cosine(a.metric, b.metric) - 3 * (1 - same)


def tome_choice(real: list[Node], count: int) -> list[tuple[Node, Node]]:
    """The best edges from the second, fourth, ... to the first, third, ..."""
    destinations, edges = real[0::2], []
    for source in real[1::2]:
        best = max(destinations, key=lambda node: alike(source, node))
        edges.append((source, best))
    edges.sort(key=lambda edge: -alike(*edge))
    return edges[:count]


def pitome_choice(margin: float) -> Choice:
    """Of the most energetic, every other one to the most similar of the rest."""

    def energy(node: Node, real: list[Node]) -> float:
        above = [alike(node, other) - margin for other in real]
        return sum(a if a > 0 else math.exp(a) - 1 for a in above) / len(real)

    def choose(real: list[Node], count: int) -> list[tuple[Node, Node]]:
        energetic = sorted(real, key=lambda node: -energy(node, real))[: 2 * count]
        return [
            (source, max(energetic[1::2], key=lambda node: alike(source, node)))
            for source in energetic[0::2]
        ]

    return choose


def matching_oracle(
    metric: Tensor,
    size: list[float],
    tokens: int,
    choose: Choice,
    prune: bool = False,
    regions: Sequence[Hashable] | None = None,
) -> Groups:
    """One window of N tokens with a metric (N, D), of which those of size 0 are dead."""
    regions = [None] * len(size) if regions is None else regions
    names = sorted(set(regions), key=str)
    nodes = [
        Node(
            row,
            {i: size[i]} if size[i] else {},
            [i],
            [float(name == regions[i]) for name in names],
        )
        for i, row in enumerate(metric.tolist())
    ]
    n = len(nodes)
    while len(nodes) > tokens:
        count = min(len(nodes) - tokens, len(nodes) // 2)
        gone = [node for node in nodes if not node.mass][:count]
        real = [node for node in nodes if node.mass]
        for source, destination in choose(real, count - len(gone)):
            gone.append(source)
            destination.rows += source.rows
            if not prune:
                merge_into(destination, source)
        nodes = [node for node in nodes if not any(node is g for g in gone)]
    merge, restore = torch.zeros(tokens, n).double(), torch.zeros(n, tokens).double()
    for p, node in enumerate(nodes):
        for i, mass in node.mass.items():
            merge[p, i] = mass / node.size
        restore[node.rows, p] = 1.0
    return Groups(merge, restore, torch.tensor([node.size for node in nodes]).double())


def merge_into(destination: Node, source: Node) -> None:
    a, b = destination.size, source.size
    for name in ("metric", "regions"):
        pairs = zip(getattr(destination, name), getattr(source, name))
        setattr(destination, name, [(a * i + b * j) / (a + b) for i, j in pairs])
    destination.mass.update(source.mass)


def some_sizes(batch: int, n: int, padded: bool, sized: bool) -> tuple[Tensor | None, Tensor]:
    """valid (batch, N), few tokens to most, or None; sizes (batch, N) of one, or from zero to 3."""
    valid, some = None, torch.randint(n, (batch, 1))  # the token that is real in any case
    if padded:
        valid = torch.rand(batch, n) < torch.linspace(0.1, 0.9, batch)[:, None]
        valid = valid.scatter(-1, some, True)
    size = torch.randint(0, 4, (batch, n)) if sized else torch.ones(batch, n)
    return valid, size.double().scatter(-1, some, 1.0)


def assert_is_the_oracle(
    merger: Merger,
    choose: Choice,
    padded: bool,
    sized: bool,
    prune: bool = False,
    parted: bool = False,
) -> None:
    """Means, restoring, sizes and bias of five windows; who is kept; what is conserved."""
    batch, n, p = 5, merger.window**2, merger.tokens
    x, keys = torch.randn(batch, n, merger.dim), torch.randn(batch, n, 3)
    valid, size = some_sizes(batch, n, padded, sized)
    region = torch.randint(3, (n,)) if parted else torch.zeros(n, dtype=torch.long)
    cues = Cues(keys, size=size if sized else None)
    if parted:
        cues = cues._replace(regions=F.one_hot(region, 3))
    merging, state = merger(x, "passed on", valid, cues)
    assert state == "passed on"
    means = (merging.average or merging.merge)(torch.eye(n))
    restore = merging.unmerge(torch.eye(p))
    for i in range(batch):
        sizes = size[i] if valid is None else size[i] * valid[i]
        real = sizes > 0
        oracle = matching_oracle(keys[i], sizes.tolist(), p, choose, prune, region.tolist())
        torch.testing.assert_close(means[i], oracle.merge, atol=1e-12, rtol=0)
        torch.testing.assert_close(merging.size[i], oracle.size, atol=1e-12, rtol=0)
        torch.testing.assert_close(restore[i][real], oracle.restore[real], atol=0, rtol=0)
        padding = restore[i][~real]
        torch.testing.assert_close(padding.sum(-1), torch.ones(len(padding)))
        fed = merging.size[i] > 0
        assert fed.sum() == min(p, int(real.sum()))  # no real token goes before a dead one
        assert (means[i][:, ~real] == 0).all()
        torch.testing.assert_close(merging.key_bias[i][fed], oracle.size[fed].log())
        assert (merging.key_bias[i][~fed].exp() == 0).all()
        if not prune:  # mass: every real token is in one merged token, as often as its size
            torch.testing.assert_close(merging.size[i].sum(), sizes.sum())
            torch.testing.assert_close(merging.size[i] @ means[i], sizes)
