"""Slow oracles, written straight from the equations with loops over Python's floats.

Shapes: one window of M x M = N tokens, P kept tokens, C channels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Matrices(NamedTuple):
    """What a merger must do to one window.

    Attributes:
        merge: (P, N), the share of each token in each merged one.
        restore: (N, P).
        fed: Whether a real token has a share in the merged one.
        logits: (N, P), S; None for Pool.
        detail: (N, C), what tokens gain beside the merged ones' update; None for nothing.
        size: How many tokens each merged one counts for in attention; None for one each.
    """

    merge: Tensor
    restore: Tensor
    fed: list[bool]
    logits: Tensor | None = None
    detail: Tensor | None = None
    size: list[float] | None = None


def area_shares(window: int, tokens: int) -> Tensor:
    """(N, P): each token is cut into fine points, and the points in each cell are counted.

    With as many points a token as there are cells along the axis, no point lies on an edge.
    """
    rows = round(math.sqrt(tokens))
    shares = torch.zeros(window * window, tokens, dtype=torch.float64)
    first = 0  # cell with which the row of cells begins
    for r in range(rows):
        columns = tokens // rows + (1 if r < tokens % rows else 0)
        for fy in range(r * window, (r + 1) * window):  # fine rows of this row of cells
            for fx in range(columns * window):
                token = (fy // rows) * window + fx // columns
                shares[token, first + fx // window] += 1 / (rows * columns)
        first += columns
    assert first == tokens
    return shares


def pool_oracle(window: int, tokens: int, valid: list[bool] | None = None) -> Matrices:
    shares = area_shares(window, tokens)
    merge, fed = _columns(shares.tolist(), valid)
    return Matrices(merge, shares, fed)


def ltm_oracle(
    x: Tensor,
    step: Tensor,
    previous: Tensor,
    window: int,
    mask: str = "soft",
    temperature: float = 1.0,
    valid: list[bool] | None = None,
    affinity: float = 0.0,
    rounds: int = 0,
    detail: tuple[Tensor, Tensor] | None = None,
    sizes: list[float] | None = None,
) -> Matrices:
    """LTM as in evaluation, Z being the layer-normed tokens: S = S_prev - Z U - k |Z - X~|^2 / C
    with X~ the tokens as S_prev merges them, G = mask(S / temperature), and the tokens' own path
    (I - G G^T) gelu(Z V) W for detail = (V, W). (S is given less k |Z|^2 / C.) ``sizes`` are the
    tokens', one each by default; a merged one's is the sum of its column of G over real tokens."""
    n, p = previous.shape
    valid = valid or [True] * n
    shares = area_shares(window, p).tolist()
    alive = [any(valid[i] and shares[i][j] > 0 for i in range(n)) for j in range(p)]
    z, u, s = [_normalised(row) for row in x.tolist()], step.tolist(), previous.tolist()
    k = float(torch.as_tensor(affinity).detach())
    base = [
        [s[i][j] - sum(z[i][c] * u[c][j] for c in range(len(u))) for j in range(p)]
        for i in range(n)
    ]
    for _ in range(rounds):
        start, _ = _columns([_softmax(row, temperature, alive) for row in s], valid)
        merged = (start @ torch.tensor(z).double()).tolist()  # X~
        s = [list(row) for row in base]
        for i in range(n):
            for j in range(p):
                apart = sum((z[i][c] - merged[j][c]) ** 2 - z[i][c] ** 2 for c in range(len(u)))
                s[i][j] -= k * apart / len(u)
    s = s if rounds else base
    weights, restore = [], []
    for i in range(n):
        soft = _softmax(s[i], temperature, alive)
        chosen = soft.index(max(soft))
        hard = [1.0 if j == chosen else 0.0 for j in range(p)]
        weights.append(
            {"soft": soft, "hard": hard, "hard_soft": [a * b for a, b in zip(hard, soft)]}[mask]
        )
        restore.append(soft if mask == "soft" else hard)
    merge, fed = _columns(weights, valid)
    sizes = sizes or [1.0] * n
    size = [sum(restore[i][j] * sizes[i] for i in range(n) if valid[i]) for j in range(p)]
    restore = torch.tensor(restore).double()
    own = None
    if detail is not None:
        hidden = torch.nn.functional.gelu(torch.tensor(z).double() @ detail[0])
        own = torch.stack([hidden[i] - restore[i] @ (merge @ hidden) for i in range(n)]) @ detail[1]
    return Matrices(merge, restore, fed, torch.tensor(s).double(), own, size)


def _softmax(row: list[float], temperature: float, alive: list[bool]) -> list[float]:
    """Of a token's logits, over the merged tokens that are alive."""
    best = max(value for value, lives in zip(row, alive) if lives)
    e = [math.exp((v - best) / temperature) if lives else 0.0 for v, lives in zip(row, alive)]
    return [value / sum(e) for value in e]


def _normalised(row: list[float]) -> list[float]:
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    return [(value - mean) / math.sqrt(variance + 1e-5) for value in row]


def _columns(weights: list[list[float]], valid: list[bool] | None) -> tuple[Tensor, list[bool]]:
    """Each column's weighted mean over real tokens, zero if it has none."""
    n, p = len(weights), len(weights[0])
    merge, fed = torch.zeros(p, n, dtype=torch.float64), []
    for j in range(p):
        column = [weights[i][j] if valid is None or valid[i] else 0.0 for i in range(n)]
        fed.append(sum(column) > 0)
        if fed[j]:
            merge[j] = torch.tensor([w / sum(column) for w in column], dtype=torch.float64)
    return merge, fed
