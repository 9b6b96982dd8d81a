"""What mergers may read of the attention that reads their tokens.

Shapes: ``*`` any leading dimensions (B images, W windows), N tokens in a window, C channels,
nH heads, D = C / nH.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ltm_det.merging import Cues, received_attention


def attention_cues(
    qkv: nn.Linear,
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
    c = z.shape[-1]
    if "keys" in reads:
        weight = qkv.weight[c : 2 * c].unflatten(0, (num_heads, -1)).mean(0)
        bias = qkv.bias
        if bias is not None:
            bias = bias[c : 2 * c].unflatten(0, (num_heads, -1)).mean(0)
        keys = F.linear(z, weight, bias)
    if "received" in reads:
        bias = None if qkv.bias is None else qkv.bias[: 2 * c]
        q, k = F.linear(z, qkv.weight[: 2 * c], bias).chunk(2, -1)
        q, k = (t.unflatten(-1, (num_heads, -1)).transpose(-3, -2) for t in (q, k))
        received = received_attention(q, k, valid)
    return Cues(keys, received, size)
