"""LTM's mask module (Learnable Token Merging, arXiv 2407.15219).

Shapes: ``*`` any leading dimensions (B images, W windows), N tokens in a window, P kept tokens,
C channels. ``valid`` is False for padded tokens.
"""

import math
from collections.abc import Mapping
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
from ltm_det.merging.masks import (
    FAR,
    HARD_MASKS,
    MASKS,
    NOBODYS,
    by_gram,
    by_merged,
    clear,
    columns,
)
from ltm_det.merging.pooling import alive_cells, pooling_matrix
from ltm_det.merging.seeds import farthest_points

# Added to every share before the start's logarithm, so that each merged token can learn to draw on
# every token of its window.
SHARE_FLOOR = 1e-4
UPDATES = ("learned", "gradient")
SEEDS = ("grid", "farthest")
# What is not the paper's: as it is without a word, and as ``paper=True`` leaves it out.
OURS = dict(affinity=(100.0, 0.0), detail=(0.25, 0.0), proportional=(True, False))


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

    With ``seeds="farthest"`` the chain starts from the image instead: X~ are at first the P tokens
    of the window that are least alike, so that busy parts get more merged tokens than plain ones,
    and these lie on no grid. Then columns are no places: there are neither S_0 nor a table U, and
    what is learned is k and a weight of each channel of Z in the distances.

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
        seeds: 'grid' or 'farthest', what the chain starts from; the latter takes an affinity above
            0, and keeps no grid.
        detail: Channels of the tokens' own path as a share of C, from 0 to 100; 0 leaves it out.
        proportional: Whether attention among the merged tokens counts each one as often as it has
            sources, by the logarithm of its column of G, summed, added to the logits (as in ToMe,
            arXiv 2210.09461).
        paper: Whether the mask is the paper's alone: without attraction, own path and proportional
            attention, as ``affinity=0, detail=0, proportional=False``.
        clusters, classes, beta: With 'gradient', of :class:`.bottleneck.BottleneckStep`; None for
            its defaults.
    """

    area: Tensor
    step: Any  # U, the module that computes it, or None

    @checked(
        mask=choice(MASKS),
        temperature=TEMPERATURE,
        update=choice(UPDATES),
        affinity=number(0),
        rounds=whole(1),
        seeds=choice(SEEDS),
        detail=number(0, most=100),
        proportional=flag,
        paper=flag,
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
        seeds: str = "grid",
        detail: float = 0.25,
        proportional: bool = True,
        depth: float = 0.0,
        paper: bool = False,
        clusters: int | None = None,
        classes: int | None = None,
        beta: float | None = None,
    ) -> None:
        super().__init__(dim, window, tokens, chained, depth)
        extra = dict(beta=beta, classes=classes, clusters=clusters)
        bottleneck: dict[str, Any] = {k: v for k, v in extra.items() if v is not None}
        if bottleneck and update == "learned":
            raise InputError(
                f"LTM: update='learned' has no options {sorted(bottleneck)}: they are of "
                "update='gradient'"
            )
        if paper:
            given = dict(affinity=affinity, detail=detail, proportional=proportional)
            if seeds != "grid" or any(value not in OURS[name] for name, value in given.items()):
                raise InputError(
                    f"LTM: paper=True leaves out what is not the paper's: seeds={seeds!r} and "
                    f"{given} do not go with it"
                )
            affinity, detail, proportional = 0.0, 0.0, False
        if seeds != "grid" and not affinity:
            raise InputError(
                f"LTM: seeds={seeds!r} takes an affinity above 0, by which tokens join them"
            )
        self.seeds = seeds
        self.keeps_grid = self.grid_with(dict(seeds=seeds))
        self.mask = mask
        self.proportional = proportional
        self.update = update
        self.temperature = temperature
        dtype = torch.get_default_dtype()
        self.step = self.metric = self.initial_logits = None
        if update == "gradient":
            self.step = BottleneckStep(dim, **bottleneck)  # U of a window
        elif self.keeps_grid:
            self.step = nn.Parameter(torch.zeros(dim, tokens))  # U
        if self.keeps_grid:
            area = pooling_matrix(window, tokens)
            self.register_buffer("area", area.to(dtype), persistent=False)
            if not chained:
                start = temperature * (area + SHARE_FLOOR).log()
                self.initial_logits = nn.Parameter(start.to(dtype))  # S_0
        else:
            self.metric = nn.Parameter(torch.ones(dim))  # weights of channels in distances
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
        alive = real = None
        if valid is not None:
            real = valid.unsqueeze(-1)
            if self.keeps_grid:
                alive = alive_cells(self.area, valid).unsqueeze(-2)  # (*, 1, P)
                real = real & alive
        dtype = torch.promote_types(x.dtype, torch.float32)
        with full_precision(x):  # near ties would turn over in half precision
            z = F.layer_norm(x.to(dtype), (self.dim,))
            near = z if self.metric is None else z * self.metric.to(dtype)
            previous, start = self._start(near, state, valid, alive)
            logits = base = previous - self._change(z, start, real)
            scaled = self._scaled(base, alive)
            distances = self.distances(near)
            for i in range(self.rounds):
                mask = columns(scaled.log_softmax(-1) if i else start, real)
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

    def _start(
        self, near: Tensor, state: Tensor | None, valid: Tensor | None, alive: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """S_prev, and the logarithm of its mask (*, N, P) or (N, P); of seeds nothing, and theirs.

        ``near`` is Z, as distances see it.
        """
        previous = state if self.chained else self.initial_logits
        if previous is None and self.keeps_grid:
            raise InputError("a chained mask module takes the state of the one before")
        if previous is None:
            seeds = farthest_points(near, self.tokens, valid)
            return near.new_zeros(()), (seeds - 1) * FAR
        previous = previous.to(near.dtype)
        return previous, self._scaled(previous, alive).log_softmax(-1)

    def _change(self, z: Tensor, start: Tensor, real: Tensor | None) -> Tensor:
        """Z U, (*, N, P), of a mask whose logarithm is ``start``; zero where there is no U."""
        if self.step is None:
            return z.new_zeros(())
        if self.update == "learned":
            return clear(z @ self.step.to(z.dtype))
        mask = start.exp()
        return z @ self.step(z, mask if real is None else mask * real)

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

    @classmethod
    def grid_with(cls, options: Mapping[str, Any]) -> bool:
        return options.get("seeds", "grid") == "grid"

    def extra_repr(self) -> str:
        chain = ", chained" if self.chained else ""
        own = f"mask={self.mask}, temperature={self.temperature}, update={self.update}"
        own += "" if self.keeps_grid else f", seeds={self.seeds}"
        own += (
            f", rounds={self.rounds}, detail={self.width}, proportional={self.proportional}{chain}"
        )
        return f"{super().extra_repr()}, {own}"
