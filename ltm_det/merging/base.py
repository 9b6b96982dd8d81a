"""The interface every merger follows.

Shapes: ``*`` any leading dimensions (B images, W windows), N tokens in a window, P kept tokens,
C channels.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ltm_det.basics.arguments import checked, number
from ltm_det.basics.errors import InputError

# Added to the attention logits of a key that is to take no part: its exponential is zero in every
# dtype, yet it is finite in float16, so that a window of such keys alone still has no NaN.
SHUT = -3e4
TEMPERATURE = number(above=0)  # what a softmax or sigmoid may be divided by


class Cues(NamedTuple):
    """What a backbone tells a merger of the tokens beside their features, as far as it reads it.

    Attributes:
        keys: (*, N, D), the keys of the attention that reads the tokens, mean over heads.
        received: (*, N), the attention a token receives within its window, mean over heads and
            queries.
        size: (*, N), how many tokens each one stands for already; None for one each.
        regions: (*, N, R), one-hot, the part of the window that a token lies in, where parts are no
            neighbours on the map, as in a window that a cyclic shift put together; None for one
            part. Mergers that match tokens merge within a part as long as it has others left.
    """

    keys: Tensor | None = None
    received: Tensor | None = None
    size: Tensor | None = None
    regions: Tensor | None = None


NO_CUES = Cues()


class Merging(NamedTuple):
    """What a merger decided for one input: how to go from N tokens to P, and back.

    Attributes:
        merge: Maps (*, N, C) to (*, P, C).
        unmerge: Maps (*, P, C) to (*, N, C).
        key_bias: (*, P), what attention among the merged tokens adds to the logits of each key, or
            None for nothing. A token that no real token feeds has a bias that shuts it out.
        size: (*, P), how many real tokens each merged one stands for, or None if that is not kept.
        average: Maps (*, N, C) to (*, P, C): the mean over a merged token's sources of anything
            that belongs to tokens, such as their places. None: as ``merge``.
        restore: Maps tokens (*, N, C) and the change of the merged ones (*, P, C) to the tokens
            after it. None: x + unmerge(change).
    """

    merge: Callable[[Tensor], Tensor]
    unmerge: Callable[[Tensor], Tensor]
    key_bias: Tensor | None = None
    size: Tensor | None = None
    average: Callable[[Tensor], Tensor] | None = None
    restore: Callable[[Tensor, Tensor], Tensor] | None = None

    def update(self, x: Tensor, change: Tensor) -> Tensor:
        """Tokens x (*, N, C) after the merged ones changed by ``change`` (*, P, C)."""
        return x + self.unmerge(change) if self.restore is None else self.restore(x, change)

    def mean_of(self, x: Tensor) -> Tensor:
        """(*, N, C) to (*, P, C), see ``average``."""
        return (self.average or self.merge)(x)

    def pair_bias(self, bias: Tensor) -> Tensor:
        """(*, nH, N, N), what pairs of tokens have, to its mean over sources (*, nH, P, P)."""
        for _ in range(2):  # the rows, then the columns
            rows = self.mean_of(bias.transpose(-3, -2).flatten(-2))  # (*, P, nH * N)
            bias = rows.unflatten(-1, (bias.shape[-3], -1)).permute(
                *range(rows.ndim - 2), -2, -1, -3
            )
        return bias


NO_MERGING = Merging(merge=lambda x: x, unmerge=lambda y: y)


class Merger(nn.Module):
    """Decides from a window's features how its N tokens become P.

    Args:
        dim: C, channels of a token.
        window: Side of the square window; N = window * window.
        tokens: P, from 1 to N.
        chained: Whether ``state`` comes from an earlier merger of the same stage and P. A merger
            that starts a chain owns whatever the chain starts from.
        depth: Share of the backbone's blocks that come before this merger, in [0, 1).

    Attributes:
        keeps_grid: Whether P = k * k merged tokens lie on a grid of the window, row by row. Where
            they don't, a Swin restores them after every block.
        reads: The fields of :class:`Cues` that it asks its backbone for.
        auxiliary_loss: After a pass in training, what this merger adds to the task's loss, or None;
            see :class:`ltm_det.engine.MergerLossHook`.
    """

    keeps_grid = True
    reads: tuple[str, ...] = ()
    auxiliary_loss: Tensor | None = None

    @classmethod
    def grid_with(cls, options: Mapping[str, Any]) -> bool:
        """:attr:`keeps_grid` of one with these options."""
        return cls.keeps_grid

    @checked()
    def __init__(
        self, dim: int, window: int, tokens: int, chained: bool = False, depth: float = 0.0
    ) -> None:
        super().__init__()
        if not 1 <= tokens <= window * window:
            raise InputError(
                f"a window of {window}x{window} tokens cannot be merged into {tokens}: "
                f"keep between 1 and {window * window}"
            )
        self.dim = dim
        self.window = window
        self.tokens = tokens
        self.chained = chained
        self.depth = depth

    def forward(
        self, x: Tensor, state: Any = None, valid: Tensor | None = None, cues: Cues = NO_CUES
    ) -> tuple[Merging, Any]:
        """Decides how to merge ``x``.

        Args:
            x: (*, N, C), a window's tokens in row-major order.
            state: What the previous merger of the chain returned, None at its start.
            valid: Boolean, broadcastable to (*, N): False for padded tokens. Every window holds at
                least one real token. None: all are real.
            cues: What it :attr:`reads`; without them a merger makes do with ``x``.

        Returns:
            The merging, and the state to hand to the next merger of the chain.
        """
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes checkpoints whose learned numbers, such as LTM's strength, are without a dimension.

        They have one since, as FSDP shards nothing without. ``state_dict`` is torch's own copy, of
        which the modules inside get their part later.
        """
        for name, own in self.named_parameters(prefix.removesuffix(".")):
            value = state_dict.get(name)
            if isinstance(value, Tensor) and value.ndim == 0 and own.numel() == 1:
                state_dict[name] = value.reshape(own.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        n = self.window**2
        return f"dim={self.dim}, tokens={self.tokens}/{n} ({self.tokens / n:.3f} kept)"


def autocast_is_on(device: torch.device) -> bool:
    """Also for the meta device, which has none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def matrix_merging(
    weights: Tensor, restore: Tensor, dtype: torch.dtype, shut_empty: bool
) -> Merging:
    """Merging by matrix products, given non-negative matrices over tokens and kept tokens.

    Args:
        weights: (*, N, P), share of each token in each merged one; rows of padded tokens are zero.
            Columns are normalised here, so that merging is a weighted mean.
        restore: (*, N, P), rows sum to one, so that restoring is a convex mix.
        dtype: Of the features that will be merged.
        shut_empty: Whether some column may be all zero. Such a token is shut out of attention.
    """
    size = weights.sum(-2)  # (*, P)
    weights = (weights / torch.where(size > 0, size, 1).unsqueeze(-2)).to(dtype)
    restore = restore.to(dtype)
    key_bias = None
    if shut_empty:
        key_bias = torch.zeros_like(size, dtype=dtype).masked_fill(size <= 0, SHUT)

    def unmerge(y: Tensor) -> Tensor:
        return (restore @ y).to(y.dtype)

    def add(x: Tensor, change: Tensor) -> Tensor:
        same = x.dtype == change.dtype == restore.dtype and x.shape[:-1] == restore.shape[:-1]
        if not same or x.ndim < 3 or autocast_is_on(x.device):
            return x + unmerge(change)
        batches = (t.flatten(0, -3) for t in (x, restore, change))
        return torch.baddbmm(*batches).view(x.shape)  # one pass over x

    return Merging(  # in the features' dtype under AMP too, so that updates add up in it
        merge=lambda x: (weights.transpose(-1, -2) @ x).to(x.dtype),
        unmerge=unmerge,
        key_bias=key_bias,
        restore=add,
    )


def count_sources(merging: Merging, size: Tensor, dtype: torch.dtype) -> Merging:
    """The merging with proportional attention (ToMe, arXiv 2210.09461, equation 1).

    Args:
        merging: Its ``key_bias``, if there is one, shuts out what is empty.
        size: (*, P), how many real tokens each merged one stands for; its logarithm is added to the
            attention logits of a key.
        dtype: Of the features that will be merged.
    """
    # from eps on: less is no key at all, and the gradient 1 / size would overflow
    key_bias = size.clamp(min=torch.finfo(size.dtype).eps).log()
    if merging.key_bias is not None:
        key_bias = torch.where(merging.key_bias < 0, merging.key_bias, key_bias)
    return merging._replace(key_bias=key_bias.to(dtype), size=size)
