"""LTM's mask module (Learnable Token Merging, arXiv 2407.15219).

Shapes: ``*`` any leading dimensions (B images, W windows), N tokens in a window, P kept tokens,
C channels. ``valid`` is False for padded tokens.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltm_det.basics.arguments import checked, choice, flag, number, whole
from ltm_det.basics.errors import InputError
from ltm_det.ib import full_precision
from ltm_det.merging.base import (
    NO_CUES,
    TEMPERATURE,
    Cues,
    Merger,
    Merging,
    count_sources,
    matrix_merging,
)
from ltm_det.merging.bottleneck import BottleneckStep
from ltm_det.merging.pooling import alive_cells, pooling_matrix

# Added to every share before the start's logarithm, so that each merged token can learn to draw on
# every token of its window.
SHARE_FLOOR = 1e-4
# The logit of a cell of padding alone: no share is left, yet differences of such logits are finite.
NOBODYS = -1e9
# Shares below exp(-FAR) are taken as that: they are nothing, yet far from denormal numbers, below
# 1e-38, whose products take an Intel CPU twenty times as long.
FAR = 50.0


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


HARD_MASKS = {"hard": hard_mask, "hard_soft": hard_soft_mask}
MASKS = ("soft", *HARD_MASKS)


def columns(log_mask: Tensor, real: Tensor | None) -> Tensor:
    """A soft mask, its columns normalised to one, (*, N, P).

    From logarithms, since all shares in a merged token may be too small for float32.

    Args:
        log_mask: (*, N, P), the logarithm of the mask.
        real: Boolean, broadcastable to it: False for padded tokens and for cells of padding alone,
            which have no part. None: all are real.
    """
    if real is not None:
        log_mask = log_mask.masked_fill(~real, NOBODYS)
    log_mask = (log_mask - log_mask.amax(-2, keepdim=True)).clamp(min=-FAR)
    return log_mask.softmax(-2) if real is None else log_mask.softmax(-2) * real


Distances = Callable[[Tensor], Tensor]


def by_merged(z: Tensor) -> Distances:
    """Maps a mask M (*, N, P) to |Z - X~|^2 / C, (*, N, P), the distances of tokens Z (*, N, C) to
    its merged ones X~ = M^T Z, less |Z|^2 / C, which is the same for all P."""

    def distances(mask: Tensor) -> Tensor:
        merged = mask.transpose(-1, -2) @ z  # X~
        alike = z @ merged.transpose(-1, -2) / z.shape[-1]
        return merged.square().mean(-1).unsqueeze(-2) - 2 * alike

    return distances


def by_gram(z: Tensor) -> Distances:
    """The same without X~, by K = Z Z^T / C, which serves every mask: Z X~^T / C = K M, and
    |X~|^2 / C, by column, is the sum over tokens of M * (K M)."""
    gram = z @ z.transpose(-1, -2) / z.shape[-1]  # (*, N, N)

    def distances(mask: Tensor) -> Tensor:
        alike = gram @ mask
        return (mask * alike).sum(-2, keepdim=True) - 2 * alike

    return distances


UPDATES = ("learned", "gradient")


class LTM(Merger):
    """One step of gradient descent on the information-bottleneck bound, learned.

    For X~ = G^T Z the bound's gradient is dIBB/dG = Z (dIBB/dX~)^T, Z being the layer-normed
    tokens. The mask's logits therefore move by

        S = S_prev - Z U - k |Z - X~|^2 / C,    G = mask(S / temperature).

    U (C, P), in the place of step size times (dIBB/dX~)^T, is a learnable table, or it is computed
    for each window (:class:`.bottleneck.BottleneckStep`). The last term, which is not the paper's,
    draws a token to the merged tokens X~ = G^T Z that it resembles, first of G_prev's, then in
    further ``rounds`` of the mask's own; its strength k is learned.
    The chain starts at a learnable table S_0 (N, P) that makes G the window's area pooling, up to a
    share of :data:`SHARE_FLOOR` per cell, and U starts at zero: at initialisation a token joins
    that one of the cells about it which it is most alike, and with ``affinity=0`` merging is
    pooling.

    What merging averages away the merged tokens cannot tell apart. A thin path of the tokens' own,
    D = (I - G G^T) gelu(Z V) W, stands in for the update that they lack; W starts at zero.

    Args:
        dim: C, channels of a token.
        window: Side of the square window; N = window * window.
        tokens: P, from 1 to N.
        chained: Whether S_prev comes from an earlier mask module; then this one has no S_0.
        mask: 'soft', 'hard' or 'hard_soft'.
        temperature: Above 0. Rows of G are (samples of) softmax(S / temperature).
        update: 'learned' for a table U, 'gradient' for the bound's own gradient.
        affinity: k at the start, from 0 on; 0 leaves the term out.
        rounds: How often X~ and the mask are computed in turn, from 1 on.
        detail: Channels of the tokens' own path as a share of C, from 0 to 100; 0 leaves it out.
        proportional: Whether attention among the merged tokens counts each one as often as it has
            sources, by the logarithm of its column of G, summed, added to the logits (as in ToMe,
            arXiv 2210.09461).
        clusters, classes, beta: With 'gradient', of :class:`.bottleneck.BottleneckStep`; None for
            its defaults.
    """

    area: Tensor
    step: Any  # U, or the module that computes it

    @checked(
        mask=choice(MASKS),
        temperature=TEMPERATURE,
        update=choice(UPDATES),
        affinity=number(0),
        rounds=whole(1),
        detail=number(0, most=100),
        proportional=flag,
    )
    def __init__(
        self,
        dim: int,
        window: int,
        tokens: int,
        chained: bool = False,
        mask: str = "soft",
        temperature: float = 1.0,
        update: str = "learned",
        affinity: float = 100.0,
        rounds: int = 2,
        detail: float = 0.25,
        proportional: bool = True,
        depth: float = 0.0,
        clusters: int | None = None,
        classes: int | None = None,
        beta: float | None = None,
    ) -> None:
        super().__init__(dim, window, tokens, chained, depth)
        given = dict(beta=beta, classes=classes, clusters=clusters)
        bottleneck: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        if bottleneck and update == "learned":
            raise InputError(
                f"LTM: update='learned' has no options {sorted(bottleneck)}: they are of "
                "update='gradient'"
            )
        self.mask = mask
        self.proportional = proportional
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
        self.rounds = rounds if affinity else 0
        n, times = window * window, self.rounds * tokens
        gram, merged = n * n * (dim + times), 2 * n * times * dim  # multiply-adds in a window
        self.distances = by_gram if gram < merged else by_merged
        if affinity:
            # of k; of one dimension, since FSDP shards nothing that has none
            self.log_affinity = nn.Parameter(torch.tensor([math.log(affinity)], dtype=dtype))
        self.width = math.ceil(detail * dim)
        if self.width:
            # a draw of its own: the backbone's first weights stay what the seed makes of them
            draw = torch.randn(dim, self.width, generator=torch.Generator().manual_seed(0))
            self.detail_in = nn.Parameter(draw.to(dtype) / math.sqrt(dim))  # V
            self.detail_out = nn.Parameter(torch.zeros(self.width, dim))  # W

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        valid: Tensor | None = None,
        cues: Cues = NO_CUES,
    ) -> tuple[Merging, Tensor]:
        """See :meth:`Merger.forward`; ``state`` is S, the logits (*, N, P) before masking."""
        previous = state if self.chained else self.initial_logits
        assert previous is not None, "a chained mask module takes the state of the one before"
        alive = real = None
        if valid is not None:
            alive = alive_cells(self.area, valid).unsqueeze(-2)  # (*, 1, P)
            real = valid.unsqueeze(-1) & alive
        dtype = torch.promote_types(x.dtype, torch.float32)
        with full_precision(x):  # near ties would turn over in half precision
            z, previous = F.layer_norm(x.to(dtype), (self.dim,)), previous.to(dtype)
            start = self._scaled(previous, alive)
            logits = base = previous - z @ self._step(z, start, real)
            scaled = self._scaled(base, alive)
            distances = self.distances(z)
            for i in range(self.rounds):
                mask = columns((scaled if i else start).log_softmax(-1), real)
                logits = base - self.log_affinity.to(dtype).exp() * distances(mask)
                scaled = self._scaled(logits, alive)
            if self.mask == "soft":
                log_mask = scaled.log_softmax(-1)
                weights, restore = columns(log_mask, real), log_mask.clamp(min=-FAR).exp()
                restore = restore if alive is None else restore * alive
            else:
                weights, restore = HARD_MASKS[self.mask](scaled, self.training)
                weights = weights if real is None else weights * real
        shut_empty = valid is not None or self.mask != "soft"
        merging = matrix_merging(weights, restore, x.dtype, shut_empty)
        if self.proportional:
            sources = restore if real is None else restore * real
            if cues.size is not None:
                sources = sources * cues.size.unsqueeze(-1)
            merging = count_sources(merging, sources.sum(-2), x.dtype)
        if self.width:
            merging = self._with_detail(merging, z.to(x.dtype))
        return merging, logits

    def _step(self, z: Tensor, scaled: Tensor, real: Tensor | None) -> Tensor:
        """U, (C, P) or (*, C, P), from what scaled logits there are so far."""
        if self.update == "learned":
            return self.step.to(z.dtype)
        mask = scaled.softmax(-1)
        return self.step(z, mask if real is None else mask * real)

    def _with_detail(self, merging: Merging, z: Tensor) -> Merging:
        """Restoring adds (I - G G^T) gelu(Z V) W, (*, N, C): zero where all tokens are alike."""
        hidden = F.gelu(z @ self.detail_in).to(z.dtype)
        own = hidden - merging.unmerge(merging.merge(hidden))  # narrow until it is added

        def restore(x: Tensor, change: Tensor) -> Tensor:
            return merging.update(x, change) + (own @ self.detail_out).to(x.dtype)

        return merging._replace(restore=restore)

    def _scaled(self, logits: Tensor, alive: Tensor | None) -> Tensor:
        """S / temperature, far below all else where a cell of padding alone is nobody's choice."""
        scaled = logits / self.temperature
        return scaled if alive is None else scaled.masked_fill(~alive, NOBODYS)

    def extra_repr(self) -> str:
        chain = ", chained" if self.chained else ""
        own = f"mask={self.mask}, temperature={self.temperature}, update={self.update}"
        own += (
            f", rounds={self.rounds}, detail={self.width}, proportional={self.proportional}{chain}"
        )
        return f"{super().extra_repr()}, {own}"
