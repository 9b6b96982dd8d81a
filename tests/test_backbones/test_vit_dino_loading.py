"""Checkpoints of DINOv2 and DINOv3: timm's layout, the official one, and what does not fit."""

import math
from pathlib import Path

import pytest
import timm
import torch

from ltm_det.backbones import LTMViT
from ltm_det.backbones.vit.weights import VIT
from tests.test_backbones.harness import randomise
from tests.test_backbones.vit_dino_cases import MODELS, load


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


TRAINED = Path(__file__).parents[3] / "shared/data/weights/dinov2_vits14_imgfocus_fp16.pth"


@pytest.mark.skipif(not TRAINED.exists(), reason="a trained model, beside a checkout alone")
@pytest.mark.parametrize(
    "merger", [None, dict(type="LTM", compression_ratio=0.5, merge_at=6)], ids=["dense", "merged"]
)
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
