"""What mergers may read of the attention that reads their tokens.

Shapes: ``*`` any leading dimensions (B images, W windows), N tokens in a window, C channels,
nH heads, D = C / nH.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ltm_det.cpu.door import is_linear
from ltm_det.merging import Cues, received_attention


def attention_cues(
    qkv: nn.Module,
    num_heads: int,
    z: Tensor,
    reads: Sequence[str],
    valid: Tensor | None = None,
    size: Tensor | None = None,
) -> Cues:
    """The cues named in ``reads``, computed from an attention's projection of its own input.

    Keys are linear in the tokens, so that their mean over heads is one projection to D channels.
    The attention received is that within the window, without position bias: fused attention keeps
    none, so that queries and keys are computed for it.

    Args:
        qkv: C to 3C channels: queries, keys, values, each head by head.
        num_heads: nH.
        z: (*, N, C), the layer-normed tokens of a window.
        reads: Fields of :class:`ltm_det.merging.Cues`.
        valid: Boolean, broadcastable to (*, N); False for tokens that neither ask nor answer.
        size: Handed on.
    """
    keys = received = None
    if "keys" in reads:
        keys = mean_keys(qkv, num_heads, z)
    if "received" in reads:
        q, k = (t.unflatten(-1, (num_heads, -1)) for t in queries_and_keys(qkv, z))
        received = received_attention(q.transpose(-3, -2), k.transpose(-3, -2), valid)
    return Cues(keys, received, size)


def queries_and_keys(qkv: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """(*, N, C) each; without the values, where nothing wraps or changes the layer."""
    if not is_linear(qkv):
        q, k, _ = qkv(z).chunk(3, -1)
        return q, k
    weight, bias = (None if t is None else t[: 2 * z.shape[-1]] for t in (qkv.weight, qkv.bias))
    q, k = F.linear(z, weight, bias).chunk(2, -1)
    return q, k


def mean_keys(qkv: nn.Module, num_heads: int, z: Tensor) -> Tensor:
    """(*, N, D), the keys of z (*, N, C), mean over heads.

    Keys are linear in the tokens, so that of a layer that nothing wraps or changes the mean is one
    projection to D channels.
    """
    if not is_linear(qkv):
        return qkv(z).unflatten(-1, (3, num_heads, -1))[..., 1, :, :].mean(-2)
    own = [None if t is None else t.chunk(3)[1] for t in (qkv.weight, qkv.bias)]
    weight, bias = (None if t is None else t.unflatten(0, (num_heads, -1)).mean(0) for t in own)
    return F.linear(z, weight, bias)
