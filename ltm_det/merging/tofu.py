"""ToFu (Token Fusion, arXiv 2312.01026)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltm_det.basics.arguments import checked, choice, number
from ltm_det.merging.base import Merging
from ltm_det.merging.matching import Matching, bipartite_match
from ltm_det.merging.tome import ToMe

MODES = ("auto", "prune", "merge")


class ToFu(ToMe):
    """ToMe's matching, after which early blocks prune and late blocks merge by MLERP.

    Early features answer to a mean of tokens in no linear way, so that there the matched sources
    are dropped; they take the update of the token that they were matched with. Later a merged token
    is the mean of its sources, rescaled to the largest of their norms (MLERP), since a plain mean
    falls short of the norms that the block knows.

    The paper changes how ToMe's matches are reduced, not how blocks attend, so that proportional
    attention stays; a pruned token does not add to the size of its match.

    Args:
        place: Of :class:`Merger`, and ``proportional`` of :class:`ToMe`.
        mode: 'prune', 'merge', or 'auto' to prune where the merger's depth is below ``switch``.
        switch: Share of the backbone's blocks, in [0, 1].
    """

    @checked(mode=choice(MODES), switch=number(0, most=1))
    def __init__(
        self,
        dim: int,
        window: int,
        tokens: int,
        mode: str = "auto",
        switch: float = 0.5,
        **place: Any,
    ) -> None:
        super().__init__(dim, window, tokens, **place)
        self.mode = mode
        self.prunes = self.depth < switch if mode == "auto" else mode == "prune"

    def merging(self, matching: Matching, size: Tensor, dtype: torch.dtype) -> Merging:
        merging = super().merging(matching, size, dtype)
        if self.prunes:
            return merging
        member = matching.weights * (size > 0)[..., None]
        merge = partial(mlerp, mean=merging.merge, member=member)
        return merging._replace(merge=merge, average=merging.merge)

    def step(self, alive: Tensor, count: int, apart: Tensor | None, metric: Tensor) -> Matching:
        assigned, removed = bipartite_match(alive, count, apart, metric)
        weights = assigned.masked_fill(removed[..., None], 0) if self.prunes else assigned
        return Matching(weights, assigned)

    def extra_repr(self) -> str:
        does = "prunes" if self.prunes else "merges"
        return f"{super().extra_repr()}, mode={self.mode} ({does})"


def mlerp(x: Tensor, mean: Callable[[Tensor], Tensor], member: Tensor) -> Tensor:
    """(*, P, C): the direction of the mean at the largest norm of its members.

    Args:
        x: (*, N, C).
        mean: Maps x to (*, P, C), zero where a merged token has no member.
        member: (*, N, P), one where a token counts, zero elsewhere.
    """
    full = torch.promote_types(x.dtype, torch.float32)
    largest = (x.to(full).norm(dim=-1, keepdim=True) * member).amax(-2)  # (*, P)
    return (F.normalize(mean(x).to(full), dim=-1) * largest[..., None]).to(x.dtype)
