"""Bipartite matching of a window's tokens: what ToMe, ToFu, PiToMe, DTEM and LTMP have in common.

A round names sources, which may be removed, and destinations, which stay; each source has a best
match among the destinations, and the ``count`` sources of the highest score are removed. Rounds are
composed until P tokens are left. Everything has a fixed shape, nothing is read back by the host,
and equals are resolved by order.

Shapes: ``*`` any leading dimensions, N tokens in a window, P kept tokens, n tokens before a round
and p = n - count after it, D channels of the metric. Sources, destinations and the like are boolean
masks (*, n). A token that is not ``alive`` stands for nothing: it is a source that is removed first
and nobody's destination, and a step sees at least one living token in each window.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ltm_det.ib import full_precision
from ltm_det.merging.base import Cues, Merging, count_sources, matrix_merging


class Matching(NamedTuple):
    """Where the tokens of one round, or of all rounds, go.

    Attributes:
        weights: (*, n, p), the part of each token's mass that each merged token takes up. Rows sum
            to one, or to less where mass is lost, as a pruned token's is.
        restore: (*, n, p), what each token takes of the merged tokens' updates; rows sum to one.
    """

    weights: Tensor
    restore: Tensor

    def then(self, later: "Matching") -> "Matching":
        """This round followed by one on its merged tokens."""
        return Matching(self.weights @ later.weights, self.restore @ later.restore)


# (alive, count, apart, *features) to the round that removes ``count`` of n tokens, at most half of
# them; apart is (*, n, n), see :func:`cosines`, or None; features are (*, n, D) each, in float32 or
# float64.
Step = Callable[..., Matching]
# Taken off the cosine of tokens of different regions: they come after all others.
APART = 3.0


def token_sizes(x: Tensor, valid: Tensor | None, cues: Cues) -> Tensor:
    """(*, N), how many real tokens each of x (*, N, C) stands for; at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    size = x.new_ones(x.shape[:-1], dtype=dtype) if cues.size is None else cues.size.to(dtype)
    return size if valid is None else size.masked_fill(~valid, 0)


def match_rounds(
    step: Step, size: Tensor, tokens: int, regions: Tensor | None, *features: Tensor
) -> Matching:
    """Rounds from N to P tokens, each removing as many as it can.

    Args:
        step: Decides one round.
        size: (*, N), of :func:`token_sizes`.
        tokens: P.
        regions: Of :class:`ltm_det.merging.Cues`.
        features: What ``step`` reads, (*, N, D) each. From round to round they are averaged,
            weighted by size. Those of dead tokens are zero.
    """
    matching = None
    # the choice of tokens in full precision, also under AMP
    with full_precision(size):
        means = [f.to(size.dtype).masked_fill((size <= 0)[..., None], 0) for f in features]
        regions = None if regions is None else regions.to(size.dtype)
        while (n := size.shape[-1]) > tokens:
            alive = size > 0
            alive = alive | ~alive.any(-1, keepdim=True)
            apart = None if regions is None else 1 - regions @ regions.transpose(-1, -2)
            now = step(alive, min(n - tokens, n // 2), apart, *means)
            mass = now.weights * size[..., None]
            size = mass.sum(-2)
            share = mass / torch.where(size > 0, size, 1)[..., None, :]
            means = [share.transpose(-1, -2) @ f for f in means]
            if regions is not None:
                regions = share.transpose(-1, -2) @ regions
            matching = now if matching is None else matching.then(now)
    if matching is None:
        eye = torch.eye(n, dtype=size.dtype, device=size.device).expand(*size.shape, n)
        matching = Matching(eye, eye)
    return matching


def alternate(alive: Tensor) -> tuple[Tensor, Tensor]:
    """Sources and destinations: of the living tokens in order, the second, fourth, ... and the
    first, third, ...; all dead ones are sources. At least half of the tokens, rounded down, are
    sources."""
    even = alive.cumsum(-1) % 2 == 1
    return ~(alive & even), alive & even


def cosines(metric: Tensor, apart: Tensor | None) -> Tensor:
    """(*, n, n) of metric (*, n, D); zero for a token whose metric is zero.

    ``apart``, (*, n, n) or None, is one for tokens of different regions, zero for those of the
    same, between for those merged across; :data:`APART` times it is taken off.
    """
    unit = F.normalize(metric, dim=-1)
    cosine = unit @ unit.transpose(-1, -2)
    return cosine if apart is None else cosine - APART * apart


def best_match(cosine: Tensor, destination: Tensor) -> tuple[Tensor, Tensor]:
    """For each token the index of its most similar destination, and that cosine: (*, n) each."""
    best, match = cosine.masked_fill(~destination[..., None, :], float("-inf")).max(-1)
    return match, best


def removal_scores(score: Tensor, source: Tensor, alive: Tensor) -> Tensor:
    """(*, n): ``score`` for living sources, plus infinity for dead tokens and minus infinity for
    those that stay."""
    return score.masked_fill(~source, float("-inf")).masked_fill(~alive, float("inf"))


def highest(scores: Tensor, count: int) -> Tensor:
    """Boolean (*, n): the ``count`` tokens of the highest score, the earlier of equals."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    # not of booleans: torch.jit.trace has no form of that
    return torch.zeros_like(scores).scatter(-1, order, 1.0) > 0


def kept_columns(removed: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """(*, n, p), one-hot: the column of each token that stays, in order; zero where ``removed``.

    A matrix (*, n, n) over tokens, times this, is one over the kept tokens.
    """
    column = (~removed).cumsum(-1).masked_fill(removed, 0)[..., None]  # from 1 on
    kept = torch.arange(1, removed.shape[-1] - count + 1, device=removed.device)
    return (column == kept).to(dtype)


def assignment(match: Tensor, removed: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """(*, n, p), one-hot: the column of each token that stays, its match's where ``removed``."""
    columns = kept_columns(removed, count, dtype)
    own = torch.arange(match.shape[-1], device=match.device)
    target = torch.where(removed, match, own)[..., None]
    return columns.gather(-2, target.expand(columns.shape))


def bipartite_match(
    alive: Tensor, count: int, apart: Tensor | None, metric: Tensor
) -> tuple[Tensor, Tensor]:
    """ToMe's matching (arXiv 2210.09461, section 3): the best edges of the alternate split.

    Returns:
        (*, n, p) one-hot, where each token goes, and boolean (*, n), which are removed.
    """
    source, destination = alternate(alive)
    match, best = best_match(cosines(metric, apart), destination)
    removed = highest(removal_scores(best, source, alive), count)
    return assignment(match, removed, count, metric.dtype), removed


def sized_merging(
    matching: Matching, size: Tensor, dtype: torch.dtype, proportional: bool
) -> Merging:
    """Merging by size-weighted means.

    Args:
        matching: From N to P tokens.
        size: (*, N), of :func:`token_sizes`.
        dtype: Of the features that will be merged.
        proportional: Whether the logarithm of a merged token's size is added to the attention
            logits of its key (ToMe's proportional attention). Empty ones are shut out anyway.
    """
    mass = matching.weights * size[..., None]
    merging = matrix_merging(mass, matching.restore, dtype, shut_empty=True)
    size = mass.sum(-2)
    return count_sources(merging, size, dtype) if proportional else merging._replace(size=size)
