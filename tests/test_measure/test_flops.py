"""Counts of backbones against figures worked out by hand, and against the CPU."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from mmdet.models import SwinTransformer
from mmdet.registry import MODELS
from torch import nn

from ltm_det.measure.flops import attention_macs, count_backbone, count_call
from tests.test_measure.by_hand import DEPTHS, HEADS, WINDOW, C, swin_by_hand

SWIN = dict(embed_dims=C, depths=DEPTHS, num_heads=HEADS, window_size=WINDOW)
MERGED = dict(depths=(2, 2, 4, 2), num_heads=(2, 2, 2, 2), window_size=WINDOW)


def merged_swin_by_hand(height: int, width: int, c: int, kept: int, scope: str) -> dict:
    """Macs of each part of MERGED, c channels in stage 1, with LTM in all but a stage's first
    block."""
    depths, n, (h, w) = MERGED["depths"], WINDOW**2, (height // 4, width // 4)
    macs = swin_by_hand(height, width, c, depths, WINDOW)
    for i, depth in enumerate(depths):
        windows, own = -(-h // WINDOW) * -(-w // WINDOW), c // 4
        # the step, merging and restoring; two rounds of merging and comparing, or of a product with
        # the Gram matrix, whichever is less
        mask = windows * n * kept * c * (1 + 2)
        mask += windows * n * min(2 * 2 * kept * c, n * (c + 2 * kept))
        mask += windows * (2 * n * c * own + 2 * n * kept * own)  # the tokens' own path
        if h % WINDOW or w % WINDOW:
            mask += windows * n * kept  # which cells hold a real token
        mlp = 2 * (windows * kept - h * w) * 4 * c * c  # more or less than the dense one's
        if scope == "block":
            macs[f"stages.{i}"] += (depth - 1) * (mask + mlp)
        else:
            side = math.isqrt(kept)
            linear = windows * (kept - n) * 4 * c * c
            attention = 2 * windows * (kept**2 - n**2) * c
            bias = MERGED["num_heads"][i] * (2 * side - 1) ** 2 * (2 * WINDOW - 1) ** 2
            macs[f"stages.{i}"] += mask + (depth - 1) * (mlp + linear + attention + bias)
        c, h, w = 2 * c, -(-h // 2), -(-w // 2)
    return macs


@pytest.mark.parametrize("shape", [(64, 96), (32, 32), (100, 36)])
def test_swin_is_counted_as_by_hand(shape: tuple[int, int]) -> None:
    counts = count_backbone(SwinTransformer(**SWIN), shape)
    expected = swin_by_hand(*shape, C, DEPTHS, WINDOW)
    assert counts.macs == {
        "backbone": sum(expected.values()),
        **{f"backbone.{name}": n for name, n in expected.items()},
    }
    assert counts.params["backbone"] >= sum(n for name, n in counts.params.items() if "." in name)


# A mask costs as much as it saves where channels are few: of 16 kept 8, at 16 channels. It costs
# with C what the MLP costs with C squared.
@pytest.mark.parametrize("channels", [16, 64])
@pytest.mark.parametrize(
    "scope, ratio, kept",
    [("block", 0.25, 4), ("block", 0.5, 8), ("stage", 0.25, 4), ("stage", 0.5, 9)],
)
def test_merged_swin_is_counted_as_by_hand_on_meta_and_on_the_cpu(
    scope: str, ratio: float, kept: int, channels: int
) -> None:
    merger = dict(type="LTM", compression_ratio=ratio, scope=scope)
    model = MODELS.build(dict(type="LTMSwin", embed_dims=channels, merger=merger, **MERGED)).eval()
    counts = count_backbone(model, (64, 96))
    expected = merged_swin_by_hand(64, 96, channels, kept, scope)
    assert {name: counts.macs[f"backbone.{name}"] for name in expected} == expected
    assert sum(n for name, n in counts.macs.items() if "." in name) == counts.macs["backbone"]
    on_cpu, _ = count_call(model, torch.zeros(1, 3, 64, 96))
    assert counts.macs["backbone"] == on_cpu == sum(expected.values())
    if channels == 64:
        assert on_cpu < sum(swin_by_hand(64, 96, channels, MERGED["depths"], WINDOW).values())


def test_dense_ltm_swin_counts_as_swin() -> None:
    dense = MODELS.build(dict(type="LTMSwin", merger=None, **SWIN))
    assert (
        count_backbone(dense, (64, 96)).macs
        == count_backbone(SwinTransformer(**SWIN), (64, 96)).macs
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_fused_attention_counts_as_its_matrix_products(device: str) -> None:
    b, heads, n, m, c = 2, 3, 5, 7, 4
    q = torch.zeros(b, heads, n, c, device=device)
    k, v = torch.zeros(2, b, heads, m, c, device=device)
    bias = torch.zeros(1, heads, n, m, device=device)

    def explicit(q, k, v, bias):
        return (q @ k.mT + bias).softmax(-1) @ v

    expected = 2 * b * heads * n * m * c
    assert count_call(explicit, q, k, v, bias)[0] == expected
    assert count_call(F.scaled_dot_product_attention, q, k, v, bias)[0] == expected
    assert count_call(F.scaled_dot_product_attention, q, k, v)[0] == expected


def swin_attention_by_hand(height: int, width: int, kept: int = WINDOW) -> int:
    """Macs of attention's own products in SWIN, in windows of ``kept`` x ``kept`` tokens."""
    h, w = height // 4, width // 4
    macs = 0
    for i, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        windows = -(-h // WINDOW) * -(-w // WINDOW)
        head_dim = C * 2**i // heads
        macs += depth * 2 * windows * heads * kept**4 * head_dim
        if kept < WINDOW:  # the bias of merged tokens is read off the table by a product
            macs += depth * heads * (2 * kept - 1) ** 2 * (2 * WINDOW - 1) ** 2
        h, w = -(-h // 2), -(-w // 2)
    return macs


@pytest.mark.parametrize("shape", [(64, 96), (100, 36)])
def test_attention_of_swin_is_counted_as_by_hand(shape: tuple[int, int]) -> None:
    expected = swin_attention_by_hand(*shape)
    assert attention_macs(SwinTransformer(**SWIN), shape) == expected
    assert attention_macs(MODELS.build(dict(type="LTMSwin", **SWIN)), shape) == expected
    merger = dict(type="LTM", compression_ratio=0.25, dense_blocks=0)
    merged = MODELS.build(dict(type="LTMSwin", merger=merger, **SWIN))
    assert attention_macs(merged, shape) == swin_attention_by_hand(*shape, kept=2)


@pytest.mark.parametrize("rel_pos", [False, True])
def test_attention_of_vit_is_counted_as_by_hand(rel_pos: bool) -> None:
    vit = dict(type="LTMViT", embed_dims=C, depth=4, num_heads=2, window_size=4)
    vit.update(global_blocks=[1, 3], use_rel_pos=rel_pos)

    def by_hand(side: int, h: int, w: int) -> int:
        """A windowed block, on two windows, and a global one; either with relative positions."""
        windowed = 2 * (2 * side**4 + rel_pos * side**2 * 2 * side)
        return C * (windowed + 2 * (h * w) ** 2 + rel_pos * h * w * (h + w))

    dense = by_hand(4, 3, 5)  # patches of 48 x 80 pixels
    assert attention_macs(MODELS.build(vit), (48, 80)) == 2 * dense
    vit["merger"] = dict(type="LTM", compression_ratio=0.25, merge_at=2)
    assert attention_macs(MODELS.build(vit), (48, 80)) == dense + by_hand(2, 2, 3)


def test_attention_of_timms_vits_is_counted_as_by_hand() -> None:
    expected = 3 * 2 * 16**2 * C  # blocks, two products, 4 x 4 patches
    options = dict(img_size=64, patch_size=16, embed_dim=C, depth=3, num_heads=2, num_classes=0)
    plain = timm.models.VisionTransformer(class_token=False, global_pool="", **options)
    assert attention_macs(plain, (64, 64)) == expected
    beit = timm.models.Beit(global_pool="", **options)  # calls linear layers as functions
    assert attention_macs(beit, (64, 64)) == expected // 16**2 * 17**2  # with class token


def test_attention_within_attention_counts_once_and_none_is_zero() -> None:
    class Layer(nn.Module):
        def __init__(self, **children: nn.Module) -> None:
            super().__init__()
            self.qkv = nn.Linear(4, 4)
            for name, child in children.items():
                setattr(self, name, child)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.qkv(x.flatten(1, 2) if x.ndim == 4 else x)  # (1, 12, 4)
            for name, child in self.named_children():
                x = child(x) if name != "qkv" else x
            return x @ x.mT @ x

    product = 2 * 12 * 12 * 4
    nested = Layer(attn=Layer(inner=Layer(w_msa=Layer())))
    assert attention_macs(nested, (4, 4)) == 3 * product
    assert attention_macs(Layer(), (4, 4)) == 0


def test_products_outside_of_any_submodule_are_not_lost() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 2, 2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).flatten(2)  # (1, 4, N)
            return torch.einsum("bcn,bdn->bcd", x, x)

    counts = count_backbone(Backbone(), (8, 6))
    assert counts.macs == {
        "backbone": 12 * (3 * 4 * 4 + 16),
        "backbone.stem": 12 * 3 * 4 * 4,
        "backbone.other": 12 * 16,
    }
    assert counts.params == {"backbone": 48, "backbone.stem": 48, "backbone.other": 0}
