"""HSTViT: what it reads of the frozen ViT, what it trains, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ltm_det.backbones import HSTViT, LTMViT
from ltm_det.basics.errors import InputError
from tests.test_backbones.harness import randomise

VIT = dict(
    embed_dims=16,
    depth=4,
    num_heads=2,
    patch_size=8,
    window_size=4,
    global_blocks=range(4),
    pretrain_img_size=64,
    prefix_tokens=1,
)
LTM = dict(type="LTM", merge_at=1, compression_ratio=0.5)


def build(vit: dict | None = None, **options: object) -> HSTViT:
    given = dict(learned_tokens=3, embed_dims=8, num_heads=(1, 2, 2, 4)) | options
    return randomise(HSTViT(vit=VIT | (vit or {}), **given))


def by_hand(model: HSTViT, images: torch.Tensor) -> list[torch.Tensor]:
    """Block by block, of a dense ViT with all blocks global and whole patches."""
    vit, (height, width) = model.vit, images.shape[2:]
    x = vit.patch_embed(images)
    grid = height // 8, width // 8
    place = nn.functional.interpolate(
        vit.pos_embed.unflatten(1, (8, 8)).permute(0, 3, 1, 2), grid, mode="bicubic"
    )
    x = x + place.flatten(2).transpose(1, 2)
    beside = torch.cat([vit.prefix_tokens[0], model.learned]).expand(len(images), -1, -1)
    x = torch.cat([beside, x], dim=1)
    side, outs = model.stem(images), []
    for i, (block, own) in enumerate(zip(vit.blocks, model.blocks, strict=True)):
        z = block.norm1(x)
        q, k, v = block.attn.qkv(z).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        shares = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
        x = x + block.attn.proj((shares @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        if i:
            side = model.downs[i - 1](side)
        learned, patches = own.norm_vit(x[:, 1:4]), own.norm_vit(x[:, 4:])
        tokens = own.global_bridge(torch.cat([learned, patches.mean(1, keepdim=True)], dim=1))
        cells = side.flatten(2).transpose(1, 2)
        heads = own.attn.num_heads
        q = own.attn.q(own.norm1(cells)).unflatten(2, (heads, -1)).transpose(1, 2)
        k, v = (
            part.unflatten(2, (heads, -1)).transpose(1, 2)
            for part in own.attn.kv(tokens).chunk(2, dim=2)
        )
        shares = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        cells = cells + own.attn.proj((shares @ v).transpose(1, 2).flatten(2))
        cells = cells + own.mlp(own.norm2(cells))
        fine = own.fine_bridge(patches).transpose(1, 2).unflatten(2, grid)
        fine = F.interpolate(fine, side.shape[2:], mode="bilinear")
        side = cells.transpose(1, 2).reshape(side.shape) + fine
        outs.append(model.norms[i](side))
    return outs


def test_it_is_the_papers_block_by_block() -> None:
    model, images = build(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for own, expected in zip(model(images), by_hand(model, images), strict=True):
            torch.testing.assert_close(own, expected)


@pytest.mark.parametrize(
    "merger", [None, LTM, dict(LTM, type="Pool")], ids=["dense", "LTM", "Pool"]
)
@pytest.mark.parametrize("size", [(64, 64), (37, 90), (8, 8)])
def test_any_size_and_merged_vits(merger: dict | None, size: tuple) -> None:
    model = build(dict(merger=merger, prefix_tokens=0))
    outs = model(torch.randn(2, 3, *size))
    for i, out in enumerate(outs):
        sides = [-(-n // 2 ** (2 + i)) for n in size]
        assert out.shape == (2, 8 * 2**i, *sides) and out.isfinite().all()


def test_merged_maps_are_another_input() -> None:
    dense, merged, images = build(), build(dict(merger=LTM)), torch.randn(1, 3, 64, 64)
    merged.load_state_dict(dense.state_dict(), strict=False)
    apart = [(a - b).abs().max() for a, b in zip(dense(images), merged(images))]
    assert (
        apart[0] < 1e-9 < 1e-6 < min(apart[1:])
    )  # merged before block 1, of which it is the input


def test_only_the_side_network_and_its_tokens_learn() -> None:
    model = build(dict(drop_path_rate=0.5, drop_rate=0.5)).train()
    assert not model.vit.training and model.blocks.training
    images = torch.randn(1, 3, 64, 64)
    first, again = (model(images) for _ in range(2))
    torch.testing.assert_close(first, again)  # no dropout in what is frozen
    sum(out.square().sum() for out in first).backward()
    learn = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learn == {n for n, _ in model.named_parameters() if not n.startswith("vit.")}
    assert model.learned.grad.abs().min() > 0


def test_tokens_beside_the_map_change_nothing_where_nobody_asks() -> None:
    vit = randomise(LTMViT(**VIT))
    images, seen = torch.randn(1, 3, 64, 64), []
    (plain,) = vit(images)
    (watched,) = vit(images, read=lambda x, at: seen.append((x.shape, at.grid.height)))
    torch.testing.assert_close(plain, watched, rtol=0, atol=0)
    assert seen == [((1, 65, 16), 8)] * 4
    (more,) = vit(images, extra=torch.randn(2, 16))
    assert (more - plain).abs().max() > 1e-3


def test_chosen_stages() -> None:
    model = build(out_indices=(1, 3))
    assert [out.shape[1] for out in model(torch.randn(1, 3, 64, 64))] == [16, 64]


@pytest.mark.parametrize(
    ("vit", "options", "words"),
    [
        (dict(depth=6, global_blocks=()), {}, "vit.depth=6 must be a multiple of 4"),
        (dict(merger=dict(LTM, type="ToMe")), {}, "leaves no grid to resample"),
        ({}, dict(num_heads=(3, 2, 2, 2)), r"num_heads=\(3, 2, 2, 2\): give 4 numbers"),
        ({}, dict(num_heads=(1, 2)), "num_heads must have 4 or more entries"),
        ({}, dict(learned_tokens=0), "learned_tokens must be a whole number from 1 on"),
        ({}, dict(out_indices=(4,)), r"out_indices\[0\] must be a whole number from 0 to 3"),
        (dict(depht=4), {}, "no argument 'depht'.*'depth'"),
    ],
)
def test_what_cannot_be_is_named(vit: dict, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(vit, **options)
