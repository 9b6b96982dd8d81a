"""A slow oracle of LTMP, one window at a time, and what its tests put in."""

import math

import torch

from ltm_det.merging import LTMP, Cues
from tests.test_merging.matching_oracle import Groups, Node, cosine, merge_into

DIM = 5


def build(window, tokens, merge=0.4, prune=0.8, **options):
    """With both thresholds amid random scores."""
    merger = LTMP(DIM, window, tokens, **options)
    with torch.no_grad():
        merger.merge_threshold.fill_(merge)
        merger.prune_threshold.fill_(prune)
    return merger


def some_cues(batch, n, size=None, valid=None):
    received = torch.rand(batch, n) + 0.1
    if valid is not None:
        received = received * valid
    return Cues(torch.randn(batch, n, 3), received / received.sum(-1, keepdim=True), size)


def sigmoid(value):
    return (1 + math.tanh(value / 2)) / 2


def ltmp_oracle(keys, received, size, tokens, merge, prune, temperature=0.1):
    """One window; with the groups, for each round how many real tokens the thresholds keep (with
    sigmoids) and how many there are, and in which ways tokens were removed."""
    nodes = [
        Node([*key, r], {i: size[i]} if size[i] else {}, [i])
        for i, (key, r) in enumerate(zip(keys.tolist(), received.tolist()))
    ]
    n, rounds, ways = len(nodes), [], set()
    while len(nodes) > tokens:
        count = min(len(nodes) - tokens, len(nodes) // 2)
        gone = [node for node in nodes if not node.mass][:count]
        real = [node for node in nodes if node.mass]
        mean = sum(node.metric[-1] for node in real) / len(real)
        edges, kept = [], float(len(real[0::2]))
        for source in real[1::2]:
            cos = [cosine(source.metric[:-1], node.metric[:-1]) for node in real[0::2]]
            merges, prunes = max(cos) - merge, prune - source.metric[-1] / mean
            kept += (1 - sigmoid(merges / temperature)) * (1 - sigmoid(prunes / temperature))
            edges.append((source, real[0::2][cos.index(max(cos))], merges, prunes))
        rounds.append((kept, len(real)))
        edges.sort(key=lambda edge: -max(edge[2:]))
        for source, match, merges, prunes in edges[: count - len(gone)]:
            gone.append(source)
            match.rows += source.rows
            if merges >= prunes:
                merge_into(match, source)
            ways.add("merged" if merges >= prunes else "pruned")
        nodes = [node for node in nodes if not any(node is g for g in gone)]
    means, restore = torch.zeros(tokens, n), torch.zeros(n, tokens)
    for p, node in enumerate(nodes):
        for i, mass in node.mass.items():
            means[p, i] = mass / node.size
        restore[node.rows, p] = 1.0
    return Groups(means, restore, torch.tensor([float(node.size) for node in nodes])), rounds, ways
