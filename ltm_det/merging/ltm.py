"""LTM's mask module (Learnable Token Merging, arXiv 2407.15219).

Shapes: ``*`` any leading dimensions (B images, W windows), N tokens in a window, P kept tokens,
C channels. ``valid`` is False for padded tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltm_det.merging.base import NO_CUES, Cues, Merger, Merging, matrix_merging
from ltm_det.merging.bottleneck import BottleneckStep
from ltm_det.merging.pooling import alive_cells, pooling_matrix

# Added to every share before the start's logarithm, so that each merged token can learn to draw on
# every token of its window.
SHARE_FLOOR = 1e-4


def soft_mask(logits: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """G = softmax over P: every token has a share in every merged one."""
    soft = logits.softmax(-1)
    return soft, soft


def hard_mask(logits: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """One-hot rows: straight-through Gumbel-Softmax in training, argmax without noise otherwise."""
    if training:
        hard = F.gumbel_softmax(logits, hard=True)
    else:
        hard = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    return hard, hard


def hard_soft_mask(logits: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """Hard times soft: a merged token is the mean of the tokens that chose it, weighted by how sure
    they are; restoring copies it back, since a one-hot row that sums to one is the hard row."""
    hard, _ = hard_mask(logits, training)
    return hard * logits.softmax(-1), hard


MASKS = {"soft": soft_mask, "hard": hard_mask, "hard_soft": hard_soft_mask}


UPDATES = ("learned", "gradient")


class LTM(Merger):
    """One step of gradient descent on the information-bottleneck bound, learned.

    For X~ = G^T Z the bound's gradient is dIBB/dG = Z (dIBB/dX~)^T, Z being the layer-normed
    tokens. The mask's logits therefore move by S = S_prev - Z U, and G = mask(S / temperature). U
    (C, P), in the place of step size times (dIBB/dX~)^T, is a learnable table, or it is computed
    for each window (:class:`.bottleneck.BottleneckStep`). The chain starts at a learnable table S_0
    (N, P) that makes G the window's area pooling, and U starts at zero: at initialisation merging
    is pooling, up to a share of :data:`SHARE_FLOOR` per cell.

    Args:
        dim: C, channels of a token.
        window: Side of the square window; N = window * window.
        tokens: P, from 1 to N.
        chained: Whether S_prev comes from an earlier mask module; then this one has no S_0.
        mask: 'soft', 'hard' or 'hard_soft'.
        temperature: Above 0. Rows of G are (samples of) softmax(S / temperature).
        update: 'learned' for a table U, 'gradient' for the bound's own gradient.
        bottleneck: With 'gradient', the options of :class:`.bottleneck.BottleneckStep`.
    """

    area: Tensor

    def __init__(
        self,
        dim: int,
        window: int,
        tokens: int,
        chained: bool = False,
        mask: str = "soft",
        temperature: float = 1.0,
        update: str = "learned",
        depth: float = 0.0,
        **bottleneck,
    ) -> None:
        super().__init__(dim, window, tokens, chained, depth)
        if update not in UPDATES:
            raise ValueError(f"unknown update {update!r}: choose one of {sorted(UPDATES)}")
        if bottleneck and update == "learned":
            raise TypeError(f"update='learned' has no options {sorted(bottleneck)}")
        if mask not in MASKS:
            raise ValueError(f"unknown mask {mask!r}: choose one of {sorted(MASKS)}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be finite and above 0, got {temperature}")
        self.mask = mask
        self.update = update
        self.temperature = temperature
        area = pooling_matrix(window, tokens)
        dtype = torch.get_default_dtype()
        self.register_buffer("area", area.to(dtype), persistent=False)
        if update == "learned":
            self.step = nn.Parameter(torch.zeros(dim, tokens))  # U
        else:
            self.step = BottleneckStep(dim, **bottleneck)  # U of a window
        self.initial_logits = None  # S_0
        if not chained:
            start = temperature * (area + SHARE_FLOOR).log()
            self.initial_logits = nn.Parameter(start.to(dtype))

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        valid: Tensor | None = None,
        cues: Cues = NO_CUES,
    ) -> tuple[Merging, Tensor]:
        """See :meth:`Merger.forward`; ``state`` is S, the logits (*, N, P) before masking."""
        previous = state if self.chained else self.initial_logits
        z = F.layer_norm(x, (self.dim,))
        step = self.step
        if self.update == "gradient":
            mask, _ = soft_mask(self._scaled(previous, valid), self.training)
            step = step(z, mask if valid is None else mask * valid.unsqueeze(-1))
        logits = previous - z @ step
        weights, restore = MASKS[self.mask](self._scaled(logits, valid), self.training)
        if valid is not None:
            weights = weights * valid.unsqueeze(-1)
        # With a soft mask every living cell draws on all real tokens, so that none is empty, short
        # of logits some 100 apart, whose shares vanish in float32.
        shut_empty = valid is not None or self.mask != "soft"
        return matrix_merging(weights, restore, x.dtype, shut_empty), logits

    def _scaled(self, logits: Tensor, valid: Tensor | None) -> Tensor:
        """S / temperature, minus infinity where a cell of padding alone is nobody's choice."""
        # at least float32, also under AMP: the columns' sums run over small shares
        scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        if valid is None:
            return scaled
        dead = ~alive_cells(self.area, valid)
        return scaled.masked_fill(dead.unsqueeze(-2), float("-inf"))

    def extra_repr(self) -> str:
        chain = ", chained" if self.chained else ""
        own = f"mask={self.mask}, temperature={self.temperature}, update={self.update}{chain}"
        return f"{super().extra_repr()}, {own}"
