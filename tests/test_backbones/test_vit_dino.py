"""DINOv2 and DINOv3 in LTMViT: timm's features reached, rotary positions of merged tokens."""

import math
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import LayerNorm, SwiGLUPacked, resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ltm_det.backbones import LTMViT
from ltm_det.backbones.common.weights import load_accounted
from ltm_det.backbones.vit.positions import RotaryPositions, rotated
from ltm_det.backbones.vit.weights import VIT
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
    randomise,
)
from tests.test_backbones.vit_cases import ROTARY, build, dense_of, make

SIZES = dict(embed_dims=16, depth=2, num_heads=2, window_size=4, global_blocks=range(2))
TIMM = dict(embed_dim=16, depth=2, num_heads=2, num_classes=0, dynamic_img_size=True)
TIMM |= dict(dynamic_img_pad=True, init_values=0.1)
# timm's models and ours, of DINOv2 at patches of 14 and of DINOv3 at patches of 16
V2 = partial(VisionTransformer, img_size=70, patch_size=14, **TIMM)
GIANT = dict(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=5.5)
V3 = partial(Eva, img_size=64, patch_size=16, rope_type="dinov3", rope_temperature=100, **TIMM)
V3 = partial(V3, rope_rotate_half=True, use_rot_pos_emb=True, use_abs_pos_emb=False)
V3 = partial(V3, num_reg_tokens=4, use_fc_norm=False, norm_layer=partial(LayerNorm, eps=1e-5))
PLUS = dict(swiglu_mlp=True, swiglu_align_to=8)
OURS2 = dict(SIZES, patch_size=14, pretrain_img_size=70, init_values=0.1, final_norm=True)
OURS3 = dict(SIZES, patch_size=16, init_values=0.1, final_norm=True, norm_eps=1e-5)
OURS3 |= dict(use_abs_pos=False, rope_base=100, prefix_tokens=5)
MODELS = {
    "v2": (V2, dict(OURS2, prefix_tokens=1)),
    "v2 registers": (
        partial(V2, reg_tokens=4, no_embed_class=True),
        dict(OURS2, prefix_tokens=5),
    ),
    "v2 giant": (
        partial(V2, **GIANT),
        dict(OURS2, prefix_tokens=1, mlp="swiglu", mlp_ratio=5.5),
    ),
    "v3": (partial(V3, qkv_bias=False), dict(OURS3, qkv_bias=False)),
    "v3 bias": (partial(V3, qkv_bias=True), OURS3),
    "v3 plus": (
        partial(V3, qkv_bias=False, **PLUS),
        dict(OURS3, qkv_bias=False, mlp="swiglu", mlp_ratio=8.0),
    ),
    "v3 packed": (
        partial(V3, qkv_bias=True, swiglu_mlp=True),
        dict(OURS3, mlp="swiglu", mlp_ratio=8.0),
    ),
}
LTM = dict(type="LTM", compression_ratio=0.5)


def load(model, state):
    return load_accounted(VIT, model, state, grid=model.pretrain_grid)


def pair(name):
    """timm's model of random weights, and ours that loaded them."""
    theirs, options = MODELS[name]
    reference = randomise(theirs())
    model = LTMViT(**options).eval()
    note = load(model, reference.state_dict())
    assert note == "" or note.endswith("left as initialised: rope_embed.periods"), note
    return reference, model


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


@pytest.mark.parametrize("size, options", [
    ("small_patch14_dinov2", dict(embed_dims=384, num_heads=6)),
    ("base_patch14_reg4_dinov2", dict(prefix_tokens=5)),
    ("large_patch14_dinov2", dict(embed_dims=1024, num_heads=16, depth=24)),
    ("giant_patch14_reg4_dinov2", dict(embed_dims=1536, num_heads=24, depth=40, mlp="swiglu",
                                       mlp_ratio=2.66667 * 2, prefix_tokens=5)),
    ("small_plus_patch16_dinov3", dict(embed_dims=384, num_heads=6, mlp="swiglu", mlp_ratio=8.0)),
    ("base_patch16_dinov3", {}),
    ("large_patch16_dinov3", dict(embed_dims=1024, num_heads=16, depth=24)),
])  # fmt: skip
def test_published_sizes(size, options):
    """timm's own models, tensor by tensor; without memory."""
    if size.endswith("dinov3"):
        own = dict(patch_size=16, use_abs_pos=False, rope_base=100, qkv_bias=False)
        own |= dict(prefix_tokens=5, init_values=1e-5)
    else:
        own = dict(patch_size=14, pretrain_img_size=518, prefix_tokens=1, init_values=1e-5)
    with torch.device("meta"):
        reference = timm.create_model(f"vit_{size}", num_classes=0)
    with torch.device("meta"):
        model = LTMViT(**{**own, "final_norm": True, **options})
    source = VIT.read(reference.state_dict(), reference.state_dict())
    given = VIT.prepare(model.state_dict(), source.state)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wanted.pop("rope_embed.periods", None)
    assert {k: tuple(v.shape) for k, v in given.items() if "pos_embed[" not in k} == wanted


def official(name):
    """A state dict in the layout of the hub of DINOv2 or DINOv3, and in timm's."""
    state = randomise(MODELS[name][0]()).state_dict()
    theirs = {}
    for key, value in state.items():
        key = key.replace("gamma_", "ls") + ".gamma" * (".gamma_" in key)
        if name == "v3 plus":
            key = key.replace("fc1_g", "w1").replace("fc1_x", "w2").replace("fc2", "w3")
        if name == "v2 giant":
            key = key.replace("fc1", "w12").replace("fc2", "w3")
        theirs[key] = value
    theirs["mask_token"] = torch.zeros(1, 16)
    if name.startswith("v3"):
        theirs["storage_tokens"] = theirs.pop("reg_token")
        theirs["rope_embed.periods"] = torch.tensor([1.0, 9.0])
    if name == "v3 bias":
        for i in range(2):
            q, v = (theirs.pop(f"blocks.{i}.attn.{which}_bias") for which in "qv")
            theirs[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.full_like(q, math.nan), v])
            mask = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(16)
            theirs[f"blocks.{i}.attn.qkv.bias_mask"] = mask
    return theirs, state


@pytest.mark.parametrize("name", ["v2 giant", "v3", "v3 bias", "v3 plus"])
def test_official_layout(name):
    """The same as timm's, but for periods, of which the checkpoint's are taken."""
    theirs, state = official(name)
    model, expected = (LTMViT(**MODELS[name][1]) for _ in range(2))
    assert load(model, theirs) == "in the checkpoint, not needed: mask_token"
    load(expected, state)
    if name.startswith("v3"):
        assert model.rope_embed.periods.tolist() == [1.0, 9.0]
        model.rope_embed.periods.copy_(expected.rope_embed.periods)
    expected = expected.state_dict()
    assert [k for k, v in model.state_dict().items() if not torch.equal(v, expected[k])] == []


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("v3", dict(rope_base=None), r"unexpected: rope_embed.periods .*remedy: set rope_base=100"),
        ("v3", dict(qkv_bias=True), r"missing: .*qkv\.bias.*remedy: set qkv_bias=False"),
        ("v3 bias", dict(qkv_bias=False), r"unexpected: .*remedy: set qkv_bias=True"),
        ("v3 plus", dict(mlp="gelu", mlp_ratio=4.0), r"remedy: set mlp='swiglu' or 'gelu'"),
        ("v3", dict(use_abs_pos=True), r"missing: pos_embed.*remedy: set use_abs_pos=False"),
    ],
)
def test_checkpoints_that_do_not_fit(name, options, message):
    theirs, _ = official(name)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load(LTMViT(**{**MODELS[name][1], **options}), theirs)


def test_half_a_layer_is_reported():
    """A gate without values, a bias without its fellows."""
    theirs, _ = official("v3 plus")
    del theirs["blocks.0.mlp.w2.weight"]
    with pytest.raises(ValueError, match=r"(?s)missing: blocks\.0\.mlp\.fc1\.weight.*fc1_g\.we"):
        load(LTMViT(**MODELS["v3 plus"][1]), theirs)


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


TRAINED = Path(__file__).parents[3] / "shared/data/weights/dinov2_vits14_imgfocus_fp16.pth"


@pytest.mark.skipif(not TRAINED.exists(), reason="a trained model, beside a checkout alone")
@pytest.mark.parametrize("merger", [None, dict(LTM, merge_at=6)], ids=["dense", "merged"])
def test_a_trained_model_loads(merger):
    """Key by key; dense, and merged as it is."""
    options = dict(embed_dims=384, num_heads=6, patch_size=14, pretrain_img_size=518)
    options |= dict(prefix_tokens=1, final_norm=True, init_values=1e-5, global_blocks=range(12))
    model = LTMViT(
        **options, merger=merger, init_cfg=dict(type="Pretrained", checkpoint=str(TRAINED))
    )
    model.init_weights()
    with torch.no_grad():
        (out,) = model.eval()(torch.randn(1, 3, 70, 98))
    assert out.shape == (1, 384, 5, 7) and out.isfinite().all() and out.std() > 0.1
