"""LTMViT is timm's ViT where all blocks are global, and loses nothing where tokens are equal."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

from ltm_det.backbones import LTMViT
from ltm_det.cpu import door, pieces
from ltm_det.cpu import vit as cpu_vit
from tests.test_backbones.harness import LAYOUTS, difference, mergers_of, randomise
from tests.test_backbones.vit_cases import FAMILIES, MINI, build, dense_of, weights_of

(FAMILY,) = FAMILIES.values()
SIZES = {"vit_small_patch16_224": dict(embed_dims=384, num_heads=6), "vit_base_patch16_224": {}}
RATIO_ONE = [
    dict(type="LTM", compression_ratio=1.0),
    dict(type="Pool", compression_ratio=[1, 0.98], merge_at=[0, 1]),  # 13.9 of 14 is 14
]
IMAGE_SIZES = [(97, 131), (33, 65), (8, 200), (3, 5)]


@pytest.fixture
def timm_without_antialiasing(monkeypatch):
    """Positions resampled as in ViTDet."""
    name = "timm.models.vision_transformer.resample_abs_pos_embed"
    monkeypatch.setattr(name, partial(resample_abs_pos_embed, antialias=False))


def features_of(reference, images):
    """timm's, without the prefix tokens, as a map."""
    x = reference.forward_features(images)[:, reference.num_prefix_tokens :]
    hw = reference.patch_embed.dynamic_feat_size(images.shape[2:])
    return [x.transpose(1, 2).unflatten(2, hw)]


FULL = [pytest.param(own, marks=[pytest.mark.slow] * ("base" in own)) for own in SIZES]


@pytest.fixture(scope="module", params=FULL)
def full_size(request):
    """timm's ViT, and the LTMViT of the same tensors."""
    reference = timm.create_model(
        request.param, num_classes=0, dynamic_img_size=True, dynamic_img_pad=True
    )
    options = dict(prefix_tokens=1, final_norm=True, global_blocks=range(12))
    model = LTMViT(**SIZES[request.param], **options).eval()
    weights = weights_of(randomise(reference))
    assert model.load_state_dict(weights, assign=True) == ([], [])
    return reference, model


@pytest.mark.parametrize("size", [(224, 224), *IMAGE_SIZES], ids=str)
def test_dense_equals_timm_in_full_size(full_size, size, timm_without_antialiasing):
    reference, model = full_size
    images = torch.randn(3 if max(size) < 100 else 1, 3, *size)
    with torch.no_grad():
        assert difference(model(images), features_of(reference, images)) < 1e-4


# timm's arguments and ours
VARIANTS = {
    "class": (dict(), dict(prefix_tokens=1, final_norm=True)),
    "none": (
        dict(class_token=False, global_pool="", final_norm=False, init_values=0.1, qkv_bias=False),
        dict(init_values=0.1, qkv_bias=False),
    ),
    "registers": (
        dict(reg_tokens=3, no_embed_class=True, final_norm=False, mlp_ratio=2.5),
        dict(prefix_tokens=4, mlp_ratio=2.5),
    ),
    "distilled": (
        dict(reg_tokens=1, patch_size=8, num_heads=1),
        dict(prefix_tokens=2, patch_size=8, num_heads=1, final_norm=True),
    ),
    "no positions": (
        dict(pos_embed="none", in_chans=5),
        dict(use_abs_pos=False, in_channels=5, prefix_tokens=1, final_norm=True),
    ),
}


def variant(name, theirs=(), ours=()):
    """A small ViT of timm's, with random weights, and the LTMViT of the same."""
    options, own = VARIANTS[name]
    sizes = dict(img_size=(24, 40), patch_size=4, embed_dim=12, depth=3, num_heads=3, num_classes=0)
    options = {**sizes, "dynamic_img_size": True, "dynamic_img_pad": True, **options}
    reference = randomise(VisionTransformer(**{**options, **dict(theirs)}))
    sizes = dict(pretrain_img_size=(24, 40), patch_size=4, embed_dims=12, depth=3, num_heads=3)
    model = LTMViT(**{**sizes, "global_blocks": range(3), **own, **dict(ours)}).eval()
    model.load_state_dict(weights_of(reference))
    return reference, model


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (23, 37), (97, 131), (1, 1), (3, 50)])
@pytest.mark.parametrize("name", VARIANTS)
def test_dense_equals_timm_whatever_the_arguments(name, size, timm_without_antialiasing):
    reference, model = variant(name)
    images = torch.randn(2, reference.in_chans, *size)
    with torch.no_grad():
        assert difference(model(images), features_of(reference, images)) < 1e-4


@pytest.mark.parametrize("name", ["class", "none", "registers", "distilled"])
def test_dense_trains_as_timm(float64, name):
    """Features and gradients, with the same features and paths dropped. (timm's drops no features
    before the first block where it has no positions.)"""
    theirs = dict(pos_drop_rate=0.1, proj_drop_rate=0.1)
    both = dict(drop_path_rate=0.4, attn_drop_rate=0.1)
    reference, model = variant(name, {**theirs, **both}, dict(drop_rate=0.1, **both))
    images, results = torch.randn(6, reference.in_chans, 24, 40), []
    with torch.no_grad():  # nothing is dropped in evaluation
        assert difference(model(images), features_of(reference, images)) < 1e-9
    for net in (model, reference):
        net.train()
        torch.manual_seed(3)
        outs = net(images) if net is model else features_of(net, images)
        outs[0].square().mean().backward()
        results.append([outs[0].detach()])
    assert difference(*results) < 1e-9
    for parameter in reference.parameters():
        parameter.data = parameter.grad
    if not reference.no_embed_class:  # a token's gradient is that of its position
        for name in {"cls_token", "reg_token"} & dict(reference.named_parameters()).keys():
            getattr(reference, name).data.zero_()
    gradients = weights_of(reference)
    for key, parameter in model.named_parameters():
        assert (parameter.grad - gradients[key]).abs().max() < 1e-9, key


@pytest.mark.parametrize("size", IMAGE_SIZES, ids=str)
@pytest.mark.parametrize("merger", RATIO_ONE, ids=["LTM", "Pool"])
def test_ratio_one_is_dense(merger, size):
    """The very same parameters and numbers."""
    images = torch.randn(2, 3, *size)
    model, dense = build(merger, window_size=14), build(None, window_size=14)
    assert not mergers_of(model) and model.state_dict().keys() == dense.state_dict().keys()
    with torch.no_grad():
        assert difference(model(images), dense(images)) == 0


def of_one_colour(rows, columns, side):
    """Two images whose windows, of so many pixels a side, are of one colour each."""
    colours = torch.randn(2, 3, rows, columns)
    return colours.repeat_interleave(side, 2).repeat_interleave(side, 3)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_of_one_colour_are_merged_without_loss(float64, merger, layout, training):
    """Tokens that attend within their window alone stay equal there."""
    model = build({**merger, **FAMILY.layouts[layout]}, **FAMILY.local)
    images = of_one_colour(4, 2, 16)
    with torch.no_grad():
        expected = dense_of(model, **FAMILY.local)(images)
        assert difference(model.train(training)(images), expected) < 1e-9


@pytest.mark.parametrize("merger", [dict(type="LTM"), dict(type="Pool")], ids=["soft", "Pool"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_global_attention_weighs_windows_of_one_colour_as_before(float64, merger, layout):
    """Every window is as many keys as any other, before merging and after; where they are is left
    out, and so are prefix tokens, which stay one key each."""
    options = dict(FAMILY.equal, use_rel_pos=False)
    model = build({**merger, **FAMILY.layouts[layout]}, **options)
    images = of_one_colour(2, 3, 16)
    with torch.no_grad():
        assert difference(model(images), dense_of(model, **options)(images)) < 1e-9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_of_windows_is_nothing_to_global_attention(float64, merger, layout):
    """In windows cut off by the map's end: of one colour, merged without loss."""
    options = dict(FAMILY.equal, global_blocks=range(5))
    model = build({**merger, **FAMILY.layouts[layout]}, **options)
    images = torch.randn(2, 3, 1, 1).expand(-1, -1, 40, 52)
    with torch.no_grad():
        assert difference(model(images), dense_of(model, **options)(images)) < 1e-9


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_updates_add_up_in_full_precision_under_autocast(merger, layout, low):
    """On merged tokens as on all: only what makes an update is in half precision."""
    model = build({**merger, **FAMILY.layouts[layout]}, prefix_tokens=0)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    with torch.no_grad(), torch.autocast("cpu", low):
        (out,) = model(torch.randn(2, 3, 37, 50))
    assert len(seen) == MINI["depth"] and out.dtype == torch.float32
    assert {x.dtype for pair in seen for x in pair} == {torch.float32}


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("merger", [dict(type="LTM"), dict(type="Pool")], ids=["soft", "Pool"])
def test_pieces_change_nothing(monkeypatch, merger, prefix, rel_pos, training):
    """Features and gradients in float32 on the CPU: some windows, some queries at a time or all."""
    model = build(
        {**merger, "merge_at": 1}, embed_dims=16, prefix_tokens=prefix, use_rel_pos=rel_pos
    )
    images, results = torch.randn(2, 3, 37, 50), []
    monkeypatch.setattr(pieces, "PIECE", 1 << 11)
    monkeypatch.setattr(cpu_vit, "QUERIES", 12)
    for there in (True, False):
        monkeypatch.setattr(door, "DTYPES", door.DTYPES if there else {})
        x = images.clone().requires_grad_()
        model.train(training).zero_grad()
        (out,) = model(x)
        out.square().mean().backward()
        with torch.no_grad():
            assert difference(model(images), [out.detach()]) < 1e-5
        results.append([out.detach(), x.grad, *(p.grad for p in model.parameters())])
        for gradient in results[-1][2:]:
            gradient /= gradient.abs().max().clamp(min=1e-3)
    assert difference(*results) < 1e-4
