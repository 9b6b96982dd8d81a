"""ToMe (Token Merging, arXiv 2210.09461)."""

from typing import Any

import torch
from torch import Tensor

from ltm_det.basics.arguments import checked, flag
from ltm_det.merging.base import NO_CUES, Cues, Merger, Merging
from ltm_det.merging.matching import (
    Matching,
    bipartite_match,
    match_rounds,
    sized_merging,
    token_sizes,
)


class ToMe(Merger):
    """Merges the most similar pairs of an alternate split of the tokens (section 3 of the paper).

    Every other token of a window looks for its most similar one among the rest, by the cosine of
    their keys, mean over heads; the pairs of the highest cosines become their size-weighted mean.
    A round halves the tokens at best; further ones go on from the merged tokens.

    Args:
        place: Of :class:`Merger`.
        proportional: Whether attention among the merged tokens counts each one as often as it has
            sources, by the logarithm of its size added to the logits (equation 1).
    """

    keeps_grid = False
    reads: tuple[str, ...] = ("keys",)

    @checked(proportional=flag)
    def __init__(
        self, dim: int, window: int, tokens: int, proportional: bool = True, **place: Any
    ) -> None:
        super().__init__(dim, window, tokens, **place)
        self.proportional = proportional

    def forward(
        self, x: Tensor, state: Any = None, valid: Tensor | None = None, cues: Cues = NO_CUES
    ) -> tuple[Merging, Any]:
        size = token_sizes(x, valid, cues)
        metric = x if cues.keys is None else cues.keys
        # what is chosen has no gradient
        matching = match_rounds(self.step, size, self.tokens, cues.regions, metric.detach())
        return self.merging(matching, size, x.dtype), state

    def step(self, alive: Tensor, count: int, apart: Tensor | None, metric: Tensor) -> Matching:
        """One round, see :data:`.matching.Step`."""
        assigned, _ = bipartite_match(alive, count, apart, metric)
        return Matching(assigned, assigned)

    def merging(self, matching: Matching, size: Tensor, dtype: torch.dtype) -> Merging:
        """What becomes of matched tokens, see :func:`.matching.sized_merging`."""
        return sized_merging(matching, size, dtype, self.proportional)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, proportional={self.proportional}"
