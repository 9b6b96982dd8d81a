"""The attention that tokens receive."""

import torch
from torch import Tensor


def received_attention(q: Tensor, k: Tensor, valid: Tensor | None = None) -> Tensor:
    """(*, N), the attention that each token gets, mean over heads and queries.

    Args:
        q, k: Queries and keys (*, nH, N, D).
        valid: Boolean, broadcastable to (*, N); False for tokens that neither ask nor answer.
    """
    logits = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5  # (*, nH, N, N)
    if valid is not None:
        least = torch.finfo(logits.dtype).min
        logits = logits.masked_fill(~valid[..., None, None, :], least)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    share = logits.softmax(-1, dtype).mean(-3)  # (*, N, N)
    if valid is None:
        return share.mean(-2)
    return (share * valid[..., None]).sum(-2) / valid.sum(-1, keepdim=True).clamp(min=1)
