"""Dynamic group attention (DGT, arXiv 2203.03937) for LTMViT's global blocks.

Shapes: B images, T prefix tokens, L tokens of the map, C channels, nH heads, D = C / nH, G groups,
S = ceil(L / G) queries of a group, M keys of a group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ltm_det.backbones.common.attention import attend
from ltm_det.backbones.vit.layers import GlobalAttention, Place
from ltm_det.backbones.vit.positions import rotated

# Of k-means, each time anew.
ROUNDS = 3


class GroupedAttention(GlobalAttention):
    """Queries that are alike attend to the keys that suit them best, all of a group to the same.

    In each head queries are parted by k-means, and a group's keys are those of the largest products
    with its mean. Neither has a gradient. Groups are of equal size, so that shapes depend on the
    size of the input alone: k-means' clusters are laid in a row and cut in equal parts. Prefix
    tokens attend to all tokens, and all may attend to them.

    Args:
        dim: C.
        num_heads: nH.
        groups: G.
        keys: M; where there are no more tokens, every token attends to every token.
        options: As for :class:`.layers.GlobalAttention`, without relative positions.
    """

    everywhere = None

    def __init__(self, dim: int, num_heads: int, groups: int, keys: int, **options) -> None:
        super().__init__(dim, num_heads, **options)
        self.groups, self.keys = groups, keys

    def mix(self, qkv: Tensor, place: Place, mask: Tensor | None) -> Tensor:
        """See :meth:`.layers.RelPosAttention.mix`; ``mask`` is the same for all queries."""
        if self.keys >= qkv.shape[1]:
            return super().mix(qkv, place, mask)
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)  # each (B, nH, T + L, D)
        if place.rope is not None:
            q, k = rotated(q, place.rope), rotated(k, place.rope)
        prefix = q.shape[2] - place.cells[0] * place.cells[1]
        first, q = q[:, :, :prefix], q[:, :, prefix:]
        with torch.no_grad():
            members = alike(q, self.groups)  # (B, nH, G, S)
            means = rows(q, members).mean(3)
            suits = self.scale * means @ k.transpose(-1, -2)  # (B, nH, G, T + L)
            suits = suits if mask is None else suits + mask
            best = suits.topk(self.keys).indices  # (B, nH, G, M)
        bias = None
        if mask is not None:
            bias = mask.to(q.dtype).expand_as(suits).gather(3, best)[:, :, :, None].flatten(1, 2)
        parts = (rows(x, at).flatten(1, 2) for x, at in ((q, members), (k, best), (v, best)))
        x = attend(*parts, bias, self.attn_drop, self.scale)  # (B, nH * G, S, D)
        order = members.flatten(2)[:, :, : q.shape[2]]
        x = x.unflatten(1, members.shape[1:3]).flatten(2, 3)
        x = rows(x, order.argsort(-1))
        if prefix:
            mask = None if mask is None else mask.to(q.dtype)
            x = torch.cat([attend(first, k, v, mask, self.attn_drop, self.scale), x], dim=2)
        return self.norm(x.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return f"groups={self.groups}, keys={self.keys}"


def alike(x: Tensor, groups: int) -> Tensor:
    """(*, G, S), which rows of x (*, L, D) make each group: every row once, and the last again
    where they do not divide."""
    length = x.shape[-2]
    first = torch.arange(groups, device=x.device) * length // groups  # spread over the map
    centroids = x[..., first, :]
    for _ in range(ROUNDS):
        near = nearness(x, centroids).argmax(-1)
        member = F.one_hot(near, groups).to(x.dtype)  # (*, L, G)
        count = member.sum(-2).unsqueeze(-1)
        means = member.transpose(-1, -2) @ x / count.clamp(min=1)
        centroids = torch.where(count > 0, means, centroids)
    near, own = nearness(x, centroids).max(-1)
    order = near.argsort(-1, descending=True)
    order = order.gather(-1, own.gather(-1, order).argsort(dim=-1, stable=True))
    size = (length + groups - 1) // groups
    places = torch.arange(groups * size, device=x.device).clamp(max=length - 1)
    return order[..., places].unflatten(-1, (groups, size))


def nearness(x: Tensor, centroids: Tensor) -> Tensor:
    """(*, L, G), half the squared distance, negative, less what is the same for all centroids."""
    return x @ centroids.transpose(-1, -2) - centroids.square().sum(-1).unsqueeze(-2) / 2


def rows(x: Tensor, at: Tensor) -> Tensor:
    """Rows ``at`` (B, nH, *) of x (B, nH, L, D), (B, nH, *, D)."""
    taken = x.gather(2, at.flatten(2)[..., None].expand(-1, -1, -1, x.shape[-1]))
    return taken.unflatten(2, at.shape[2:])
