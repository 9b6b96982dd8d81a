"""Mergers that lose the grid, within the backbones: properties; their block, by a slow oracle."""

import pytest
import torch
from torch import Tensor

from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.backbones.swin.layers import GridlessSwinBlock, WindowAttention
from ltm_det.merging import MERGERS
from tests.test_backbones.conftest import FAMILIES
from tests.test_backbones.harness import (
    assert_can_be_copied,
    assert_further_padding_reaches_no_further,
    assert_images_are_independent,
    assert_padded_tokens_are_not_read,
    difference,
    mergers_of,
)
from tests.test_backbones.swin_cases import ONE_STAGE, build
from tests.test_merging.matching_oracle import matching_oracle, pitome_choice, tome_choice

GRIDLESS = [dict(type=name) for name, kind in MERGERS.items() if not kind.keeps_grid]
GRIDLESS += [dict(type="ToFu", mode="merge"), dict(type="ToMe", proportional=False)]


@pytest.fixture(params=GRIDLESS, ids=lambda merger: "-".join(map(str, merger.values())))
def rival(request):
    return request.param


def some_images(batch=2):
    """Of 10 x 13 tokens: windows of 4 x 4 are padded at the bottom and at the right."""
    return torch.randn(batch, 3, 37, 50)


@pytest.mark.parametrize("ratio", [0.06, 0.3, 0.7])
def test_image_of_one_colour_is_merged_without_loss(float64, family, rival, ratio):
    model = family.build({**rival, **family.layouts["start"]}, ratio=ratio, **family.equal)
    dense = family.dense(model, **family.equal)
    images = torch.randn(2, 3, 1, 1).expand(-1, -1, 64, 32)
    with torch.no_grad():
        assert difference(model(images), dense(images)) < 1e-9


def test_images_are_independent_and_differ_from_dense(float64, family, layout, rival):
    model = family.build({**rival, **family.layouts[layout]})
    assert_images_are_independent(model, some_images(3))
    images = some_images(1)
    with torch.no_grad():
        assert difference(model(images), family.dense(model)(images)) > 1e-3


@pytest.mark.parametrize("layout", ["start", "twice"])
def test_vit_without_relative_positions(float64, rival, layout):
    family = FAMILIES["vit"]
    model = family.build({**rival, **family.layouts[layout]}, use_rel_pos=False)
    assert_images_are_independent(model, some_images(3))


def test_padded_tokens_are_not_read(float64, family, layout, rival, monkeypatch):
    model = family.build({**rival, **family.layouts[layout]}, **family.unread)
    assert_padded_tokens_are_not_read(model, some_images(), monkeypatch)


@pytest.mark.parametrize("name", ["swin-block", "vit"])
def test_further_padding_reaches_no_further(float64, name, rival):
    """Not so in Swin's stage scope: the last windows of a shifted block hold tokens of the map's
    far side, which vie with the rest for the places of merged tokens."""
    family = FAMILIES[name]
    model = family.build({**rival, **family.layouts["later"]}, **family.local)
    dense = family.dense(model, **family.local)
    images = torch.randn(1, 3, 30, 249)
    assert_further_padding_reaches_no_further(dense, model, images, (0, 60), 4)


def test_all_kept_is_dense(float64, family, rival):
    model, images = family.build(rival, ratio=1.0), some_images(1)
    assert not mergers_of(model)
    with torch.no_grad():
        assert difference(model(images), family.dense(model)(images)) < 1e-9


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(family, rival, low):
    """Choices between near ties may turn over, so that features may be far from float32's."""
    model, images = family.build({**rival, **family.layouts["twice"]}), some_images()
    with torch.autocast("cpu", low):
        outs = model.train()(images)
    sum(m.float().square().mean() for m in outs).backward()
    assert all(m.isfinite().all() for m in outs)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        outs = model.eval().to(low)(images.to(low))
    assert all(m.isfinite().all() and m.dtype == low for m in outs)


@pytest.mark.parametrize("size", [(1, 1), (5, 100)], ids=str)
def test_any_size(family, rival, size):
    model = family.build(rival, window_size=7)
    for batch in (0, 2):
        outs = model.train(batch == 2)(torch.randn(batch, 3, *size))
        maps = family.maps(*map(family.tokens, size))
        assert [m.shape for m in outs] == [(batch, *shape) for shape in maps]
        assert all(m.isfinite().all() for m in outs)
    sum(m.sum() for m in outs).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_copies(family, rival):
    assert_can_be_copied(family.build({**rival, **family.layouts["twice"]}), some_images())


def bias_of(msa: WindowAttention, m: int, one: int, two: int) -> Tensor:
    """(nH,), the position bias of two tokens of a window."""
    dy, dx = one // m - two // m, one % m - two % m
    return msa.relative_position_bias_table[(dy + m - 1) * (2 * m - 1) + dx + m - 1]


def block_oracle(x: Tensor, block: GridlessSwinBlock, choose, prune: bool) -> Tensor:
    """(H, W, C) through a block on the merged tokens of each window of the rolled map."""
    m, shift, msa = block.merger.window, block.attn.shift, block.attn.w_msa
    height, width = (-(-side // m) * m for side in x.shape[:2])
    out = x.clone()
    for top in range(0, height, m):
        for left in range(0, width, m):
            # of each token its place in the rolled map, and in the map
            rolled = [(top + n // m, left + n % m) for n in range(m * m)]
            at = [((i + shift) % height, (j + shift) % width) for i, j in rolled]
            real = [n for n, (i, j) in enumerate(at) if i < x.shape[0] and j < x.shape[1]]
            tokens = torch.zeros(m * m, x.shape[-1])
            for n in real:
                tokens[n] = x[at[n]]
            qkv = msa.qkv(block.norm1(tokens)).unflatten(-1, (3, msa.num_heads, -1))
            keys, sizes = qkv[:, 1].mean(1), [float(n in real) for n in range(m * m)]
            wrapped = [(i + shift >= height, j + shift >= width) for i, j in rolled]
            groups = matching_oracle(keys, sizes, block.merger.tokens, choose, prune, wrapped)

            fed = [p for p in range(block.merger.tokens) if groups.size[p] > 0]
            y0 = {p: groups.merge[p] @ tokens for p in fed}
            qkv = {p: msa.qkv(block.norm1(y0[p])).reshape(3, msa.num_heads, -1) for p in fed}
            for p in fed:
                logits = []  # (nH,) each
                for q in fed:
                    logit = (qkv[p][0] * msa.scale * qkv[q][1]).sum(-1) + groups.size[q].log()
                    for one in groups.merge[p].nonzero().flatten().tolist():
                        for two in groups.merge[q].nonzero().flatten().tolist():
                            share = groups.merge[p, one] * groups.merge[q, two]
                            apart = wrapped[one] != wrapped[two]
                            logit = logit + share * (bias_of(msa, m, one, two) - 100.0 * apart)
                    logits.append(logit)
                share = torch.stack(logits).softmax(0)  # (P', nH)
                mixed = sum(s[:, None] * qkv[q][2] for s, q in zip(share, fed))
                y = y0[p] + msa.proj(mixed.flatten())
                y = y + block.ffn(block.norm2(y))
                for n in real:
                    if groups.restore[n, p]:
                        out[at[n]] += y - y0[p]
    return out


@pytest.mark.parametrize(
    "merger, choose",
    [
        (dict(type="ToMe"), tome_choice),
        (dict(type="ToFu", mode="prune"), tome_choice),
        (dict(type="PiToMe"), pitome_choice),
    ],
    ids=["ToMe", "ToFu", "PiToMe"],
)
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("m, ratio, hw", [(4, 0.6, (6, 9)), (3, 0.3, (4, 6))])
def test_swin_block_is_the_oracle(float64, merger, choose, shifted, m, ratio, hw):
    model = build(merger, "stage", ratio, ONE_STAGE, window_size=m)
    block = model.stages[0].blocks[3 if shifted else 2]
    assert bool(block.attn.shift) == shifted
    if choose is pitome_choice:
        choose = choose(0.9 * (1 - (3 if shifted else 2) / 5))  # of five blocks
    grid, x = WindowGrid(*hw, m), torch.randn(2, hw[0] * hw[1], 8)
    with torch.no_grad():
        out, _ = block(grid.partition(x), grid)
        expected = block_oracle(x[1].unflatten(0, hw), block, choose, merger.get("mode") == "prune")
    assert type(block) is GridlessSwinBlock
    assert (grid.reverse(out)[1].unflatten(0, hw) - expected).abs().max() < 1e-9
