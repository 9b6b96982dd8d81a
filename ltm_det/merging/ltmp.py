"""LTMP (Learned Thresholds Token Merging and Pruning, arXiv 2307.10780)."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ltm_det.basics.arguments import checked
from ltm_det.ib import full_precision
from ltm_det.merging.base import NO_CUES, TEMPERATURE, Cues, Merging
from ltm_det.merging.matching import (
    Matching,
    alternate,
    assignment,
    best_match,
    cosines,
    highest,
    match_rounds,
    removal_scores,
    token_sizes,
)
from ltm_det.merging.received import received_attention
from ltm_det.merging.tome import ToMe


class LTMP(ToMe):
    """Merges tokens that are similar and prunes those that matter little, by learned thresholds.

    A token of one half of ToMe's alternate split has a margin for merging, the cosine of its key
    with its best match's less ``merge_threshold``, and one for pruning, ``prune_threshold`` less
    its importance: the attention it receives over the mean of the window's real tokens, so that
    the scale is the same in windows of any size, and near that of cosines. The N - P tokens whose
    larger margin is largest are removed, each in the way of that margin. A pruned token weighs
    nothing, and takes the update of its match.

    In training, sigmoid(margin / temperature) stands in for the step at a margin of zero in the
    gradient: the weight of a removed token in its match, one or if pruned zero, has that of
    merging * (1 - pruning). The scores themselves get no gradient. ``auxiliary_loss`` is the
    budget, (kept - P / N)^2, with the fraction of real tokens that the thresholds alone would keep,
    by the same sigmoids, over all windows of the batch; where there are several rounds, the product
    of theirs. As half of the tokens never go in a round, P close to N / 2 drives the thresholds to
    where all others would. :class:`ltm_det.engine.MergerLossHook` adds it to a detector's losses.

    What differs from the paper: there, whatever has a margin above zero is merged, or else pruned,
    also from the other half, in any number, so that one image at a time is run, and training masks
    tokens instead of removing them. Here windows and images of a batch keep one shape, in training
    too. The paper's budget is of FLOPs, which P sets here. Thresholds start as in the authors'
    code, where next to nothing is removed; they want a larger learning rate than weights, and no
    decay.

    Args:
        place: Of :class:`Merger`, and ``proportional`` of :class:`ToMe`.
        temperature: Above 0, of the sigmoids.
    """

    reads = ("keys", "received")

    @checked(temperature=TEMPERATURE)
    def __init__(
        self, dim: int, window: int, tokens: int, temperature: float = 0.1, **place: Any
    ) -> None:
        super().__init__(dim, window, tokens, **place)
        self.temperature = temperature
        self.merge_threshold = nn.Parameter(torch.tensor([0.9]))
        self.prune_threshold = nn.Parameter(torch.tensor([0.0]))

    def __getstate__(self) -> dict[str, Any]:
        """Without the loss, whose graph can be neither copied nor pickled."""
        return self.__dict__ | dict(auxiliary_loss=None)

    def forward(
        self, x: Tensor, state: Any = None, valid: Tensor | None = None, cues: Cues = NO_CUES
    ) -> tuple[Merging, Any]:
        size = token_sizes(x, valid, cues)
        keys = x if cues.keys is None else cues.keys
        received = self_attention(x.detach(), size) if cues.received is None else cues.received
        kept: list[Tensor] = []  # by round
        matching = match_rounds(
            partial(self.threshold_step, kept=kept),
            size,
            self.tokens,
            cues.regions,
            keys.detach(),
            received.detach()[..., None],
        )
        self.auxiliary_loss = None
        if self.training:
            fraction = math.prod(kept, start=size.new_ones(()))
            self.auxiliary_loss = (fraction - self.tokens / self.window**2) ** 2
        return self.merging(matching, size, x.dtype), state

    def threshold_step(
        self,
        alive: Tensor,
        count: int,
        apart: Tensor | None,
        keys: Tensor,
        received: Tensor,
        kept: list[Tensor],
    ) -> Matching:
        """One round, see :data:`.matching.Step`; adds to ``kept`` what the thresholds would keep.

        After the first round keys and attention are means over a merged token's sources.
        """
        keys, received = keys.detach(), received.detach().squeeze(-1)  # means know the thresholds
        source, destination = alternate(alive)
        match, cosine = best_match(cosines(keys, apart), destination)
        mean = (received * alive).sum(-1, keepdim=True) / alive.sum(-1, keepdim=True)
        merge = cosine - self.merge_threshold.to(keys.dtype)
        prune = self.prune_threshold.to(keys.dtype) - received / torch.where(mean > 0, mean, 1)
        scores = removal_scores(torch.maximum(merge, prune).detach(), source, alive)
        removed = highest(scores, count)
        assigned = assignment(match, removed, count, keys.dtype)

        merging = (merge / self.temperature).sigmoid()
        pruning = (prune / self.temperature).sigmoid()
        keep = ((1 - merging) * (1 - pruning)).masked_fill(~source, 1)
        kept.append((keep * alive).sum() / alive.sum().clamp(min=1))
        pruned = removed & (prune > merge)
        gate = (merging * (1 - pruning)).masked_fill(~removed, 0)
        weight = (~pruned).to(keys.dtype) + (gate - gate.detach())  # straight through
        return Matching(assigned * weight[..., None], assigned)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}"


def self_attention(x: Tensor, size: Tensor) -> Tensor:
    """(*, N), the attention that tokens x (*, N, C) would receive if queries and keys were they."""
    alive = size > 0
    with full_precision(x):
        x = x.to(size.dtype).masked_fill(~alive[..., None], 0).unsqueeze(-3)  # one head
        return received_attention(x, x, alive)
