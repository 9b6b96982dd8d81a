"""Seeds of merged tokens: tokens of a window that are least alike.

Shapes: ``*`` any leading dimensions, N tokens in a window, P kept tokens, C channels.
"""

import torch
from torch import Tensor


@torch.no_grad()
def farthest_points(z: Tensor, count: int, valid: Tensor | None = None) -> Tensor:
    """(*, N, P), one-hot columns: of tokens z (*, N, C) the one nearest to their mean, then each
    time the one farthest from all so far (Gonzalez, 1985: at most twice the least radius of P
    balls that hold all tokens).

    Where fewer than P tokens are real, or differ, some are seeds more than once.

    Args:
        count: P.
        valid: Boolean, broadcastable to (*, N): False for padded tokens, which are no seeds. Every
            window holds at least one real token. None: all are real.
    """
    real = z.new_ones(z.shape[:-1], dtype=torch.bool) if valid is None else valid
    real = real.expand(z.shape[:-1])
    share = real.to(z.dtype) / real.sum(-1, keepdim=True)
    z = z - share.unsqueeze(-2) @ z  # its mean is at zero
    alike = z @ z.transpose(-1, -2)
    length = alike.diagonal(dim1=-2, dim2=-1)  # (*, N)
    nearest = length.masked_fill(~real, float("inf")).argmin(-1, keepdim=True)
    reach = torch.where(real, torch.inf, -torch.inf)  # of a token, to the seeds so far
    seeds = [nearest]
    for _ in range(count - 1):
        row = alike.gather(-2, seeds[-1].unsqueeze(-1).expand(*seeds[-1].shape, z.shape[-2]))
        apart = length + length.gather(-1, seeds[-1]) - 2 * row.squeeze(-2)
        reach = torch.minimum(reach, apart)
        seeds.append(reach.argmax(-1, keepdim=True))
    at = torch.cat(seeds, -1).unsqueeze(-2)  # (*, 1, P)
    tokens = torch.arange(z.shape[-2], device=z.device).unsqueeze(-1)
    return (tokens == at).to(z.dtype)
