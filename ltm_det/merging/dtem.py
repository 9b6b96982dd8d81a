"""DTEM (Decoupled Token Embedding for Merging, arXiv 2412.10569)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ltm_det.basics.arguments import checked, whole
from ltm_det.merging.base import NO_CUES, TEMPERATURE, Cues, Merging
from ltm_det.merging.matching import (
    APART,
    Matching,
    alternate,
    best_match,
    cosines,
    highest,
    kept_columns,
    match_rounds,
    removal_scores,
    token_sizes,
)
from ltm_det.merging.tome import ToMe


class DTEM(ToMe):
    """ToMe whose matching reads an embedding that is learned for it, in the place of the keys.

    A linear head on the layer-normed tokens gives the embedding. In evaluation the matching is
    ToMe's. In training it is relaxed, so that the head gets gradients, on the P columns that ToMe's
    keeps: a removed source spreads its mass over the destinations by softmax(cosine / temperature),
    and a source that stays gives them, in the same shares, the part sigmoid((score - threshold) /
    temperature) of its mass, its score being its best cosine and the threshold halfway between the
    scores of the last that is removed and the first that stays. Restoring takes the same shares. As
    the temperature falls, this becomes ToMe's matching.

    The paper relaxes the choice of the best pairs by a continuous operator, and training there
    keeps all tokens; here both have the shapes of evaluation.

    Args:
        place: Of :class:`Merger`, and ``proportional`` of :class:`ToMe`.
        embed_dims: D, channels of the embedding; C if that is less.
        temperature: Above 0, of the relaxation.
    """

    reads = ()

    @checked(embed_dims=whole(1), temperature=TEMPERATURE)
    def __init__(
        self,
        dim: int,
        window: int,
        tokens: int,
        embed_dims: int = 64,
        temperature: float = 0.1,
        **place: Any,
    ) -> None:
        super().__init__(dim, window, tokens, **place)
        self.temperature = temperature
        self.head = nn.Linear(dim, min(embed_dims, dim))

    def forward(
        self, x: Tensor, state: Any = None, valid: Tensor | None = None, cues: Cues = NO_CUES
    ) -> tuple[Merging, Any]:
        size = token_sizes(x, valid, cues)
        metric = self.head(F.layer_norm(x, (self.dim,)))
        step = self.soft_step if self.training else self.step
        matching = match_rounds(step, size, self.tokens, cues.regions, metric)
        return self.merging(matching, size, x.dtype), state

    def soft_step(
        self, alive: Tensor, count: int, apart: Tensor | None, metric: Tensor
    ) -> Matching:
        """One relaxed round, see :data:`.matching.Step`."""
        source, destination = alternate(alive)
        cosine = cosines(metric, apart)
        scores = removal_scores(best_match(cosine, destination)[1], source, alive)
        removed = highest(scores, count)
        scores = scores.clamp(-2 - APART, 2)  # finite, and still beyond all cosines
        threshold = scores.sort(dim=-1, descending=True).values[..., count - 1 : count + 1]
        part = ((scores - threshold.mean(-1, keepdim=True)) / self.temperature).sigmoid()
        part = part.masked_fill(removed, 1).masked_fill(destination, 0)[..., None]
        logits = (cosine / self.temperature).masked_fill(~destination[..., None, :], float("-inf"))
        columns = kept_columns(removed, count, metric.dtype)  # (*, n, p)
        shares = part * (logits.softmax(-1) @ columns) + (1 - part) * columns
        return Matching(shares, shares)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}"
