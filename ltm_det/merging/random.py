"""Random merging: the control that any merger with a reason for its choice has to beat."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltm_det.basics.arguments import checked, whole
from ltm_det.merging.base import NO_CUES, Cues, Merger, Merging, matrix_merging


class Random(Merger):
    """P groups of tokens, drawn once: each merges into its mean, and takes its group's update.

    The first P tokens of a random order found the groups; each further one joins a random group.

    Args:
        place: Of :class:`Merger`.
        seed: Of the draw. Mergers of equal sizes and seed have equal groups.
    """

    keeps_grid = False
    groups: Tensor

    @checked(seed=whole(-(2**63), 2**64 - 1))  # what torch takes
    def __init__(self, dim: int, window: int, tokens: int, seed: int = 0, **place: Any) -> None:
        super().__init__(dim, window, tokens, **place)
        n = window * window
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(n, generator=generator)
        joined = torch.randint(tokens, (n - tokens,), generator=generator)
        group = torch.empty(n, dtype=torch.long)
        group[order] = torch.cat([torch.arange(tokens), joined])
        groups = F.one_hot(group, tokens).to(torch.get_default_dtype())  # (N, P)
        self.register_buffer("groups", groups, persistent=False)

    def forward(
        self, x: Tensor, state: Any = None, valid: Tensor | None = None, cues: Cues = NO_CUES
    ) -> tuple[Merging, Any]:
        weights = self.groups if valid is None else self.groups * valid.unsqueeze(-1)
        return matrix_merging(weights, self.groups, x.dtype, shut_empty=valid is not None), state
