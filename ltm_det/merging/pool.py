"""Untrained area pooling: the baseline that a learned merger has to beat (arXiv 2405.14467)."""

from typing import Any

import torch
from torch import Tensor

from ltm_det.basics.arguments import checked
from ltm_det.merging.base import NO_CUES, Cues, Merger, Merging, matrix_merging
from ltm_det.merging.pooling import pooling_matrix


class Pool(Merger):
    """Averages the tokens of each cell of a smaller grid; restores by the same area weights."""

    area: Tensor

    @checked()
    def __init__(self, dim: int, window: int, tokens: int, **place: Any) -> None:
        super().__init__(dim, window, tokens, **place)
        area = pooling_matrix(window, tokens).to(torch.get_default_dtype())
        self.register_buffer("area", area, persistent=False)

    def forward(
        self, x: Tensor, state: Any = None, valid: Tensor | None = None, cues: Cues = NO_CUES
    ) -> tuple[Merging, Any]:
        weights = self.area if valid is None else self.area * valid.unsqueeze(-1)
        return matrix_merging(weights, self.area, x.dtype, shut_empty=valid is not None), state
