"""PiToMe (Accelerating Transformers with Spectrum-Preserving Token Merging, arXiv 2405.16148)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ltm_det.merging.matching import (
    Matching,
    assignment,
    best_match,
    cosines,
    highest,
    removal_scores,
)
from ltm_det.merging.tome import ToMe

MARGIN = 0.9  # of the first block, from which it falls linearly to zero


class PiToMe(ToMe):
    """ToMe among the tokens that have many like them; those that stand alone are protected.

    The energy of a token is the mean of ELU(cosine - margin) to the window's tokens, with a margin
    of 0.9 - 0.9 * depth. To remove r tokens, the 2r of the highest energy are, in its order,
    alternately a source and a destination; each source merges into the most similar destination.
    """

    def step(self, alive: Tensor, count: int, apart: Tensor | None, metric: Tensor) -> Matching:
        cosine = cosines(metric, apart)
        margin = MARGIN * (1 - self.depth)
        energy = F.elu(cosine - margin).masked_fill(~alive[..., None, :], 0).mean(-1)
        energy = energy.masked_fill(~alive, float("-inf"))
        order = energy.sort(dim=-1, descending=True, stable=True).indices
        rank = order.argsort(-1)  # 0 for the highest
        # dead tokens are removed first, and only what is left of count costs real ones
        pairs = (count - (~alive).sum(-1, keepdim=True)).clamp(min=0)
        mergeable = rank < 2 * pairs
        source = (mergeable & (rank % 2 == 0)) | ~alive
        # where dead tokens alone are removed, whichever token lives
        destination = torch.where(pairs > 0, mergeable & (rank % 2 == 1), alive)
        match, best = best_match(cosine, destination)
        removed = highest(removal_scores(best, source, alive), count)
        assigned = assignment(match, removed, count, metric.dtype)
        return Matching(assigned, assigned)
