"""LTMSwin's stages against a slow oracle that leaves unfed tokens out; which mergers there are."""

import itertools
import math

import numpy as np
import pytest
import torch
from mmdet.models.backbones import SwinTransformer
from mmdet.models.backbones.swin import WindowMSA
from torch import Tensor

from ltm_det.backbones import LTMSwin
from ltm_det.backbones.swin.layers import WindowAttention, relative_position_index
from tests.test_backbones.harness import ltm_shapes, mergers_of
from tests.test_backbones.oracle import decide, windows_of
from tests.test_backbones.swin_cases import (
    MINI,
    ONE_STAGE,
    SCOPES,
    build,
    chain_of,
    reference_of,
)


def bias_at(table: Tensor, m: int, dy: float, dx: float) -> Tensor:
    """(nH,): the dense window's table, read bilinearly at a displacement in tokens."""
    total = torch.zeros(table.shape[1])
    top, left = math.floor(dy), math.floor(dx)
    for y, x in itertools.product((top, top + 1), (left, left + 1)):
        near = (1 - abs(dy - y)) * (1 - abs(dx - x))
        if near > 0:
            total += near * table[(y + m - 1) * (2 * m - 1) + x + m - 1]
    return total


def block_oracle(
    block, cells: dict[tuple[int, int], Tensor], sizes: dict, m: int, k: int, shift: int
) -> dict:
    """An ordinary Swin block on the merged tokens there are, by their place (y, x) on the grid;
    each is a key as often as its size says."""
    msa = block.attn.w_msa
    groups: dict[tuple[int, int], list] = {}
    for y, x in cells:
        groups.setdefault(((y - shift) // k, (x - shift) // k), []).append((y, x))
    out = {}
    for group in groups.values():
        qkv = {at: msa.qkv(block.norm1(cells[at])).reshape(3, msa.num_heads, -1) for at in group}
        for at in group:
            heads = []
            for h in range(msa.num_heads):
                logits = [
                    (qkv[at][0, h] * msa.scale) @ qkv[to][1, h]
                    + bias_at(
                        msa.relative_position_bias_table,
                        m,
                        (at[0] - to[0]) * m / k,
                        (at[1] - to[1]) * m / k,
                    )[h]
                    + math.log(sizes[to])
                    for to in group
                ]
                share = torch.stack(logits).softmax(0)
                heads.append(sum(s * qkv[to][2, h] for s, to in zip(share, group)))
            y = cells[at] + msa.proj(torch.cat(heads))
            out[at] = y + block.ffn(block.norm2(y))
    return out


def merged_span_oracle(x: Tensor, blocks, merger, m: int, logits: dict) -> tuple[Tensor, dict]:
    """Stage scope: (H, W, C) through a span that merges, one token at a time."""
    k = math.isqrt(merger.tokens)
    windows, chosen, cells = windows_of(np.ndindex(*x.shape[:2]), m), {}, {}
    sizes = {}
    for (r, c), tokens in windows.items():
        features = torch.stack([x[i, j] for _, i, j in tokens])
        real = [n for n, _, _ in tokens]
        chosen[r, c] = matrices = decide(merger, features, real, logits.get((r, c)))
        for p in range(k * k):
            if matrices.fed[p]:  # as if there were no others
                at = r * k + p // k, c * k + p % k
                cells[at] = matrices.merge[p, real] @ features
                sizes[at] = matrices.size[p] if matrices.size else 1.0
    before = dict(cells)
    for block in blocks:
        cells = block_oracle(block, cells, sizes, m, k, k // 2 if block.attn.shift else 0)
    out = x.clone()
    for (r, c), tokens in windows.items():
        for n, i, j in tokens:
            if chosen[r, c].detail is not None:
                out[i, j] += chosen[r, c].detail[n]
            for p in range(k * k):
                at = (r * k + p // k, c * k + p % k)
                if at in cells:
                    out[i, j] += chosen[r, c].restore[n, p] * (cells[at] - before[at])
    return out, {at: matrices.logits for at, matrices in chosen.items()}


def merged_mlp_oracle(x: Tensor, block, m: int, logits: dict) -> tuple[Tensor, dict]:
    """Block scope: (H, W, C) after attention through an MLP whose update windows share."""
    out, state = x.clone(), {}
    for at, tokens in windows_of(np.ndindex(*x.shape[:2]), m).items():
        features, real = torch.stack([x[i, j] for _, i, j in tokens]), [n for n, _, _ in tokens]
        matrices = decide(block.merger, features, real, logits.get(at))
        state[at] = matrices.logits
        if matrices.detail is not None:
            for n, i, j in tokens:
                out[i, j] += matrices.detail[n]
        for p in range(block.merger.tokens):
            if matrices.fed[p]:
                update = block.ffn(block.norm2(matrices.merge[p, real] @ features))
                for n, i, j in tokens:
                    out[i, j] += matrices.restore[n, p] * update
    return out, state


@pytest.mark.parametrize(
    "dense_blocks, spans",
    [(1, [(0, 1), (1, 5)]), ([[0, 3]], [(0, 1), (1, 3), (3, 4), (4, 5)])],
    ids=["first", "refresh"],
)
@pytest.mark.parametrize("m, ratio, hw", [(4, 0.5, (6, 9)), (5, 0.3, (5, 11)), (3, 0.5, (4, 7))])
def test_stage_scope_is_the_oracle(float64, merger, dense_blocks, spans, m, ratio, hw):
    """Blocks on merged tokens, in which unfed ones have no part; also after a refresh point."""
    model = build(dict(merger, dense_blocks=dense_blocks), "stage", ratio, ONE_STAGE, window_size=m)
    stage, dense = model.stages[0], reference_of(model, ONE_STAGE, window_size=m).stages[0]
    images, logits = torch.randn(2, hw[0] * hw[1], 8), {}
    with torch.no_grad():
        _, _, out = stage(images, hw)
        x = images[1]
        for start, stop in spans:
            if start in (0, 3):
                (block,) = dense.blocks[start:stop]
                x = block(x[None], hw)[0]
            else:
                span, module = stage.blocks[start:stop], stage.mergers[str(start)]
                x, logits = merged_span_oracle(x.reshape(*hw, 8), span, module, m, logits)
                x = x.reshape(-1, 8)
    assert (out[1] - x).abs().max() < 1e-9


@pytest.mark.parametrize("m, ratio, hw", [(4, 0.5, (6, 9)), (5, 0.3, (5, 11))])
def test_block_scope_is_the_oracle(float64, merger, m, ratio, hw):
    dense_blocks = [[0, 3]]
    model = build(dict(merger, dense_blocks=dense_blocks), "block", ratio, ONE_STAGE, window_size=m)
    stage, dense = model.stages[0], reference_of(model, ONE_STAGE, window_size=m).stages[0]
    images, logits = torch.randn(2, hw[0] * hw[1], 8), {}
    with torch.no_grad():
        _, _, out = stage(images, hw)
        x = images[1]
        for block, twin in zip(stage.blocks, dense.blocks):
            if block.merger is None:
                x = twin(x[None], hw)[0]
            else:
                x = x + twin.attn(twin.norm1(x[None]), hw)[0]
                x, logits = merged_mlp_oracle(x.reshape(*hw, 8), block, m, logits)
                x = x.reshape(-1, 8)
    assert [b.merger is None for b in stage.blocks] == [True, False, False, True, False]
    assert (out[1] - x).abs().max() < 1e-9


@pytest.mark.parametrize("window", [1, 2, 5, 7, 12])
def test_relative_position_index_is_mmdets(window):
    msa = WindowMSA(4, 1, (window, window))
    assert torch.equal(relative_position_index(window), msa.relative_position_index)


@pytest.mark.parametrize("m, k", [(7, 7), (7, 5), (7, 4), (7, 1), (12, 8), (4, 3), (5, 2)])
def test_position_bias_is_read_at_true_distances(float64, m, k):
    msa = WindowMSA(6, 3, (m, m))
    torch.nn.init.normal_(msa.relative_position_bias_table)
    bias = WindowAttention(msa, k).position_bias()
    assert bias.shape == (3, k * k, k * k)
    for query, key in itertools.product(range(k * k), range(k * k)):
        dy, dx = query // k - key // k, query % k - key % k
        expected = bias_at(msa.relative_position_bias_table, m, dy * m / k, dx * m / k)
        assert (bias[:, query, key] - expected).abs().max() < 1e-9


@pytest.mark.parametrize(
    "scope, ratio, dense_blocks, chain",
    [
        ("block", 0.5, None, [(2, 8, False), (3, 8, True), (4, 8, True), (5, 8, True)]),
        ("block", 0.5, [[0, 3]], [(1, 8, False), (2, 8, True), (4, 8, True), (5, 8, True)]),
        (
            "block",
            [[0.5, 0.5, 0.25, 0.25, 0.5, 1.0]],
            0,
            [(0, 8, False), (1, 8, True), (2, 4, False), (3, 4, True), (4, 8, False)],
        ),
        ("stage", 0.5, None, [(2, 9, False)]),
        ("stage", 0.5, 0, [(0, 9, False)]),
        ("stage", 0.5, [[0, 3]], [(1, 9, False), (4, 9, True)]),
        (
            "stage",
            [[0.5, 0.5, 0.25, 1.0, 0.25, 0.5]],
            0,
            [(0, 9, False), (2, 4, False), (4, 4, True), (5, 9, False)],
        ),
        ("stage", 0.9, 0, []),  # 4 * sqrt(0.9) is 4 again
        ("block", 1.0, 0, []),
    ],
)
def test_chain(scope, ratio, dense_blocks, chain):
    sizes = dict(ONE_STAGE, depths=(6,))
    model = build(dict(type="LTM", dense_blocks=dense_blocks), scope, ratio, sizes)
    assert chain_of(model.stages[0]) == chain
    for merger in mergers_of(model).values():
        assert (merger.initial_logits is None) == merger.chained
    with torch.no_grad():
        assert model(torch.randn(1, 3, 37, 50))[0].isfinite().all()


def test_state_is_handed_on_across_dense_blocks(float64):
    """The first mask's logits move the last one's."""
    for scope in SCOPES:
        model = build(dict(type="LTM", dense_blocks=[[0, 2, 3]]), scope, 0.5, ONE_STAGE)
        first, last = mergers_of(model).values()
        seen = []
        last.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[1]))
        first.register_forward_hook(lambda m, args, out, seen=seen: seen.append(out[1]))
        model(torch.randn(1, 3, 37, 50))
        assert len(seen) == 2 and seen[0] is seen[1] and last.chained


def test_kept_tokens_are_reported():
    model = build(dict(type="LTM"), "stage", 0.5)
    assert [stage.kept for stage in model.stages] == [[16, 9], [16, 9, 9]]
    assert "kept tokens of 16 in each block=[16, 9, 9]" in repr(model)
    model = build(dict(type="LTM"), "block", 0.3)
    assert [stage.kept for stage in model.stages] == [[16, 5], [16, 5, 5]]


def test_stage_scope_is_the_default():
    model = LTMSwin(merger=dict(type="LTM", compression_ratio=0.5), **MINI)
    assert list(mergers_of(model)) == ["stages.0.mergers.1", "stages.1.mergers.1"]


def test_state_dict_is_mmdets_and_the_mergers():
    dense = {
        key: value.shape
        for key, value in SwinTransformer(**MINI).state_dict().items()
        if not key.endswith("relative_position_index")
    }
    expected = {
        "stage": {
            **ltm_shapes("stages.0.mergers.1", 8, 9, 16),
            **ltm_shapes("stages.1.mergers.1", 16, 9, 16),
        },
        "block": {
            **ltm_shapes("stages.0.blocks.1.merger", 8, 8, 16),
            **ltm_shapes("stages.1.blocks.1.merger", 16, 8, 16),
            **ltm_shapes("stages.1.blocks.2.merger", 16, 8),  # chained
        },
    }
    for scope, own in expected.items():
        model = build(dict(type="LTM"), scope)
        assert {k: v.shape for k, v in model.state_dict().items()} == {**dense, **own}
    for merger in (None, dict(type="Pool")):
        assert {k: v.shape for k, v in build(merger).state_dict().items()} == dense
