"""LTMViT against a slow oracle that goes from token to token, and knows only those there are."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltm_det.backbones.vit.layers import WindowAttention, relative_embedding
from tests.test_backbones.oracle import decide, windows_of
from tests.test_backbones.vit_cases import build

# By its place: (y, x) on the map, or a number for a prefix token.
Tokens = dict[tuple[int, int] | int, Tensor]
# How many tokens each of them counts for, where it is not one.
Sizes = dict[tuple[int, int] | int, float]


def read(table: Tensor, at: float) -> Tensor:
    """Linearly between two rows; beyond the ends as at the ends."""
    at = min(max(at, 0), len(table) - 1)
    low, part = math.floor(at), at - math.floor(at)
    return table[low] if part == 0 else (1 - part) * table[low] + part * table[low + 1]


def resized(table: Tensor, rows: int) -> Tensor:
    """The table as so many equal cells, read at their middles."""
    return torch.stack([read(table, (i + 0.5) * len(table) / rows - 0.5) for i in range(rows)])


def attention_oracle(
    attn, z: Tokens, sizes: Sizes, groups: list[list], lengths, spacing: float
) -> Tokens:
    """Attention of tokens within their group, each a key as often as its size says; places in it
    that hold no token are zero keys."""
    zero, out = torch.zeros(attn.qkv.in_features), {}
    if attn.use_rel_pos:
        rows = resized(attn.rel_pos_h, 2 * lengths[0] - 1)
        columns = resized(attn.rel_pos_w, 2 * lengths[1] - 1)
    for group in groups:
        qkv = {at: attn.qkv(z.get(at, zero)).reshape(3, attn.num_heads, -1) for at in group}
        for at in group:
            logits = []
            for to in group if at in z else ():
                (q, _, _), (_, k, _) = qkv[at], qkv[to]
                logit = (q * k).sum(-1) / math.sqrt(q.shape[-1]) + math.log(sizes.get(to, 1.0))
                if attn.use_rel_pos and isinstance(at, tuple) and isinstance(to, tuple):
                    dy, dx = (at[0] - to[0]) * spacing, (at[1] - to[1]) * spacing
                    row = read(rows, dy + lengths[0] - 1)
                    logit = logit + q @ (row + read(columns, dx + lengths[1] - 1))
                logits.append(logit)
            if logits:
                shares = torch.stack(logits).softmax(0)
                heads = sum(s[:, None] * qkv[to][2] for s, to in zip(shares, group))
                out[at] = attn.proj(heads.flatten())
    return out


def block_oracle(block, tokens: Tokens, sizes: Sizes, hw, m: int, k: int, last: bool) -> Tokens:
    """A block on tokens of which k x k stand for a dense window of m x m; the last one's MLP comes
    after all."""
    groups, lengths = [list(tokens)], hw
    if isinstance(block.attn, WindowAttention):
        windows = windows_of((at for at in tokens if isinstance(at, tuple)), k)
        groups, lengths = [[(y, x) for _, y, x in window] for window in windows.values()], (m, m)
        if k == m:  # the dense map is padded to whole windows
            whole = list(itertools.product(range(m), range(m)))
            groups = [[(r * m + y, c * m + x) for y, x in whole] for r, c in windows]
    z = {at: block.norm1(x) for at, x in tokens.items()}
    update = attention_oracle(block.attn, z, sizes, groups, lengths, m / k)
    out = {}
    for at, x in tokens.items():
        if at in update:  # not a prefix token, which lies in no window
            x = x + block.ls1(update[at])
        out[at] = x if last else mlp_oracle(block, x)
    return out


def mlp_oracle(block, x: Tensor) -> Tensor:
    return x + block.ls2(block.mlp(block.norm2(x)))


def blocks_oracle(
    blocks: dict, mergers: dict, tokens: Tokens, sizes: Sizes, hw, m: int, k: int
) -> Tokens:
    """The blocks from the first on, by their index, and the mergers of some of them."""
    for i, block in blocks.items():
        if i in mergers:
            later = {j: b for j, b in blocks.items() if j >= i}
            return merged_oracle(later, mergers, tokens, sizes, hw, m, k)
        tokens = block_oracle(block, tokens, sizes, hw, m, k, last=i == max(blocks))
    return tokens


def merged_oracle(
    blocks: dict, mergers: dict, tokens: Tokens, sizes: Sizes, hw, m: int, k: int
) -> Tokens:
    """Merged before the first of these blocks, and back after the last."""
    first = min(blocks)
    merger, side = mergers[first], math.isqrt(mergers[first].tokens)
    assert merger.window == k > side
    windows = windows_of((at for at in tokens if isinstance(at, tuple)), k)
    before, chosen = {at: x for at, x in tokens.items() if isinstance(at, int)}, {}
    counts: Sizes = {}
    for (r, c), window in windows.items():
        features, real = (
            torch.stack([tokens[y, x] for _, y, x in window]),
            [n for n, _, _ in window],
        )
        given = [sizes.get((y, x), 1.0) for _, y, x in window]
        chosen[r, c] = matrices = decide(merger, features, real, sizes=given)
        for p in range(side * side):
            if matrices.fed[p]:  # as if there were no others
                at = r * side + p // side, c * side + p % side
                before[at] = matrices.merge[p, real] @ features
                counts[at] = matrices.size[p] if matrices.size else 1.0
    mergers = {i: other for i, other in mergers.items() if i != first}
    after = blocks_oracle(blocks, mergers, before, counts, hw, m, side)
    out = {at: x for at, x in after.items() if isinstance(at, int)}
    for (r, c), window in windows.items():
        for n, y, x in window:
            out[y, x] = tokens[y, x]
            if chosen[r, c].detail is not None:
                out[y, x] = out[y, x] + chosen[r, c].detail[n]
            for p in range(side * side):
                if chosen[r, c].restore[n, p] > 0:
                    at = (r * side + p // side, c * side + p % side)
                    update = after[at] - before[at]
                    out[y, x] = out[y, x] + chosen[r, c].restore[n, p] * update
    return out


def vit_oracle(model, image: Tensor) -> Tensor:
    """(3, h, w) to (C, H, W), the grid for which there are absolute positions."""
    proj, p, (height, width) = model.patch_embed.proj, 4, model.pretrain_grid
    padded = torch.zeros(3, height * p, width * p)
    padded[:, : image.shape[1], : image.shape[2]] = image
    tokens: Tokens = {}
    if model.prefix_tokens is not None:
        tokens = dict(enumerate(model.prefix_tokens[0]))
    for y, x in itertools.product(range(height), range(width)):
        patch = padded[:, y * p : (y + 1) * p, x * p : (x + 1) * p]
        tokens[y, x] = (proj.weight * patch).sum((1, 2, 3)) + proj.bias
        tokens[y, x] = tokens[y, x] + model.pos_embed[0, y * width + x]
    blocks = dict(enumerate(model.blocks))
    mergers = {int(i): merger for i, merger in model.mergers.items()}
    m = model.window
    tokens = blocks_oracle(blocks, mergers, tokens, {}, (height, width), m, m)
    out = torch.empty(proj.out_channels, height, width)
    for y, x in itertools.product(range(height), range(width)):
        out[:, y, x] = model.norm(mlp_oracle(model.blocks[-1], tokens[y, x]))
    return out


def assert_is_the_oracle(model) -> None:
    height, width = (4 * n for n in model.pretrain_grid)
    images = torch.randn(2, 3, height - 1, width - 2)
    with torch.no_grad():
        (out,) = model(images)
        assert (out[1] - vit_oracle(model, images[1])).abs().max() < 1e-9


VARIANTS = {
    "plain": dict(use_rel_pos=False, prefix_tokens=0, init_values=None),
    "windows": dict(global_blocks=(), mlp_ratio=2.5),
    "global": dict(global_blocks=range(5), final_norm=True, qkv_bias=False),
    "wide": dict(img_size=(12, 72), num_heads=4, prefix_tokens=1),
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


@pytest.mark.parametrize(
    "m, hw", [(4, (6, 9)), (5, (5, 11)), (3, (7, 4)), (4, (3, 2)), (4, (8, 4)), (1, (3, 2))]
)
@variants
def test_dense(float64, options, m, hw):
    size = (4 * hw[0], 4 * hw[1])
    assert_is_the_oracle(build(None, window_size=m, pretrain_img_size=size, **options))


def test_relative_positions_at_their_own_size(float64):
    """No table is resized."""
    assert_is_the_oracle(build(None, pretrain_img_size=(24, 36), img_size=(24, 36)))


@pytest.mark.parametrize(
    "m, merge_at, ratio, hw, sides",
    [
        (4, 0, 0.5, (6, 9), [3]),
        (5, 2, 0.3, (5, 11), [3]),
        (3, 4, 0.1, (7, 4), [1]),
        (6, [1, 3], [0.5, 0.1], (8, 9), [4, 2]),
        (4, [0, 2, 3], [0.6, 0.25, 0.05], (9, 6), [3, 2, 1]),
        (4, 1, 0.5, (8, 4), [3]),
    ],
    ids=str,
)
@variants
def test_merged(float64, merger, options, m, merge_at, ratio, hw, sides):
    merger = dict(merger, merge_at=merge_at, compression_ratio=ratio)
    size = (4 * hw[0], 4 * hw[1])
    model = build(merger, window_size=m, pretrain_img_size=size, **options)
    assert [math.isqrt(merger.tokens) for merger in model.mergers.values()] == sides
    assert_is_the_oracle(model)


@pytest.mark.parametrize("rows, length", [(5, 3), (3, 5), (27, 14), (127, 50), (1, 4), (9, 1)])
def test_resized_table_is_torchs(float64, rows, length):
    table = torch.randn(rows, 6)
    expected = F.interpolate(table.T[None], 2 * length - 1, mode="linear")[0].T
    assert (resized(table, 2 * length - 1) - expected).abs().max() < 1e-9
    embedding = relative_embedding(table, length, length, 1.0)
    for query, key in itertools.product(range(length), range(length)):
        assert (embedding[query, key] - expected[query - key + length - 1]).abs().max() < 1e-9


@pytest.mark.parametrize("m, k", [(14, 9), (14, 10), (14, 7), (14, 1), (7, 5), (4, 3), (5, 2)])
def test_merged_cells_are_apart_as_they_are(float64, m, k):
    table = torch.randn(2 * m - 1, 6)
    embedding = relative_embedding(table, m, k, m / k)
    assert embedding.shape == (k, k, 6)
    for query, key in itertools.product(range(k), range(k)):
        expected = read(table, (query - key) * m / k + m - 1)
        assert (embedding[query, key] - expected).abs().max() < 1e-9
