"""DINOv2 and DINOv3 in LTMViT: timm's features reached, rotary positions of merged tokens."""

import math
from functools import partial

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from ltm_det.backbones.vit.positions import RotaryPositions, rotated
from ltm_det.basics.errors import InputError
from ltm_det.cpu import door
from ltm_det.merging import MERGERS
from tests.test_backbones.harness import (
    assert_can_be_copied,
    assert_gradients_reach_mergers,
    assert_images_are_independent,
    assert_padded_tokens_are_not_read,
    assert_same_with_checkpoints,
    assert_works_in_half_precision,
    difference,
)
from tests.test_backbones.vit_cases import ROTARY, build, dense_of, make
from tests.test_backbones.vit_dino_cases import MODELS, pair

LTM = dict(type="LTM", compression_ratio=0.5)


@pytest.mark.parametrize("size", [(70, 84), (33, 65), (5, 100)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_features_are_timms(name, size, monkeypatch):
    """Positions are resampled as ViTDet does, without antialiasing, which timm's have."""
    plain = partial(resample_abs_pos_embed, antialias=False)
    monkeypatch.setattr("timm.models.vision_transformer.resample_abs_pos_embed", plain)
    reference, model = pair(name)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        x = reference.forward_features(images)[:, reference.num_prefix_tokens :]
        (out,) = model(images)
        assert out.std() > 0.1
        assert (out.flatten(2).transpose(1, 2) - x).abs().max() < 1e-4


@pytest.mark.parametrize("name, size", [("v2 registers", (70, 70)), ("v3 bias", (64, 96))])
def test_features_are_timms_intermediate_ones(name, size):
    """At its own size, or one without positions to resample: what forward_features calls get."""
    reference, model = pair(name)
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        (expected,) = reference.forward_intermediates(
            images, indices=1, norm=True, intermediates_only=True
        )
        assert difference(model(images), [expected]) < 1e-4


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(use_rel_pos=True), "rope_base=100.0 and use_rel_pos=True: .* set use_rel_pos=False"),
        (dict(num_heads=8), "multiple of 4 channels, .* got embed_dims / num_heads=2"),
        (dict(mlp_ratio=3.2, embed_dims=8), "makes 25 channels, .* an even number"),
        (dict(rope_base=1), "rope_base must be finite and above 1"),
        (dict(mlp="relu"), "unknown mlp 'relu'"),
        (dict(norm_eps=0), "norm_eps must lie in"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(InputError, match=message):
        make(None, **{**ROTARY, **options})


def test_angles_are_as_the_paper_says(float64):
    """Logits depend on where tokens are apart on the map, not on where they are."""
    rope = RotaryPositions(8, 100.0)
    at = torch.tensor([[0.0, 0.0], [2.0, 5.0], [1.0, 3.0], [3.0, 8.0]])
    angles = rope(at, (4, 9))
    q, k = torch.randn(2, 8)
    turned = [rotated(t.expand(1, 1, 4, 8), angles[None, None])[0, 0] for t in (q, k)]
    logits = turned[0] @ turned[1].T
    assert (logits[0, 1] - logits[2, 3]).abs() < 1e-9 < (logits[0, 1] - logits[1, 0]).abs()
    for axis, length, first in ((0, 4, 0), (1, 9, 2)):  # channels first, first + 4 turn together
        for i, period in enumerate((1.0, 10.0)):
            angle = 2 * math.pi * ((at[1, axis] + 0.5) / length * 2 - 1) / period
            one, other = q[first + i], q[first + i + 4]
            assert abs(turned[0][1, first + i] - (one * angle.cos() - other * angle.sin())) < 1e-9


class Apart(nn.Module):
    """Rotary positions that keep what they were asked for."""

    def __init__(self, rope):
        super().__init__()
        self.rope, self.seen = rope, []

    def forward(self, at, lengths):
        self.seen.append(at)
        return self.rope(at, lengths)


@pytest.mark.parametrize("kind", sorted(MERGERS))
@pytest.mark.parametrize("blocks", [(), range(5)], ids=["windows", "global"])
def test_merged_tokens_are_where_their_sources_are(kind, blocks):
    """Of every merger: places lie within their windows' real tokens, finite maps and gradients;
    and on a regular grid those of pooling are its cells' middles."""
    merger = dict(type=kind, merge_at=[1, 3], compression_ratio=[0.25, 0.1])
    model = build(merger, **ROTARY, global_blocks=blocks)
    model.rope_embed = Apart(model.rope_embed)
    images = torch.randn(2, 3, 30, 50)  # 8 x 13 tokens
    (out,) = model.train()(images)
    out.square().mean().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    dense, once, _ = model.rope_embed.seen
    assert dense.shape == (1, 8, 16, 2) and once.shape[1:] == (8, 4, 2)
    assert dense[0, 5, 6].tolist() == [5.0, 6.0]  # second row of windows, second of four
    inside = once[:, 0]
    assert inside.min() >= 0 and inside.max() <= 3
    if kind == "Pool":
        middles = [[0.5, 0.5], [0.5, 2.5], [2.5, 0.5], [2.5, 2.5]]
        torch.testing.assert_close(once[0, 0], torch.tensor(middles))
        torch.testing.assert_close(once[0, 3, 0], torch.tensor([0.5, 12.0]))  # half is padding


@pytest.mark.parametrize("merger", [dict(type="LTM", mask="soft"), dict(type="ToMe")], ids=str)
def test_properties(float64, merger, monkeypatch):
    """As every backbone with merged tokens, see test_properties.py."""
    merger = {**LTM, **merger, "merge_at": [1, 3], "compression_ratio": [0.5, 0.25]}
    model, images = build(merger, **ROTARY), torch.randn(2, 3, 37, 50)
    assert_images_are_independent(model, images)
    assert_can_be_copied(model, images)
    unread = build(merger, **ROTARY, global_blocks=(0, 1, 2, 3))
    if merger["type"] == "LTM":
        assert_gradients_reach_mergers(model, images)
        assert_padded_tokens_are_not_read(unread.eval(), images, monkeypatch)
    plain, checkpointed = (
        build(merger, **ROTARY, with_cp=cp, drop_path_rate=0.3) for cp in (False, True)
    )
    assert_same_with_checkpoints(plain, checkpointed, images)


def test_half_precision():
    assert_works_in_half_precision(build(dict(LTM), **ROTARY), torch.randn(2, 3, 37, 50))


def test_one_token_a_window_is_what_nothing_merged_is(float64):
    """Merging at the very last block keeps what its own MLP gives; ratio 1 is the dense model."""
    images = torch.randn(1, 3, 37, 50)
    model = build(dict(LTM, compression_ratio=1.0), **ROTARY)
    with torch.no_grad():
        assert difference(model(images), dense_of(model, **ROTARY)(images)) == 0


@pytest.mark.parametrize("options", [{}, dict(mlp="gelu"), dict(rope_base=None)], ids=str)
@pytest.mark.parametrize("merger", [None, LTM], ids=["dense", "merged"])
def test_the_fast_way_is_the_plain_one(merger, options, monkeypatch):
    """On a CPU: what an executor does not know is called as it is."""
    options = {**ROTARY, "prefix_tokens": 0, "embed_dims": 32, **options}
    model, images = build(merger, **options), torch.randn(2, 3, 37, 50)
    with torch.no_grad():
        fast = model(images)
        monkeypatch.setattr(door, "DTYPES", {})
        assert difference(fast, model(images)) < 1e-4
