"""Loading ViT weights: timm's features reached, every key accounted for."""

import re
from argparse import Namespace

import pytest
import timm
import torch
from mmengine.runner import load_checkpoint
from safetensors.torch import save_file
from timm.layers import resample_patch_embed
from timm.models import VisionTransformer

from ltm_det.backbones.common import weights
from ltm_det.backbones.common.accounting import resample_pos_embed
from ltm_det.backbones.common.weights import without_mergers
from ltm_det.backbones.vit.backbone import LTMViT
from ltm_det.backbones.vit.weights import VIT
from tests.test_backbones.checkpoints import Detector, randomise, resample_slowly

C, DEPTH, HEADS, PATCHES = 24, 3, 2, 16
SIZES = dict(embed_dims=C, depth=DEPTH, num_heads=HEADS, pretrain_img_size=64, img_size=64)
SIZES |= dict(window_size=3, global_blocks=[2])
TIMM = dict(img_size=64, embed_dim=C, depth=DEPTH, num_heads=HEADS, num_classes=5)
DEIT = "deit_tiny_distilled_patch16_224"
# timm's models by the tokens that they have beside the map.
SOURCES = {
    "class": lambda **kw: VisionTransformer(**TIMM, **kw),
    "distilled": lambda **kw: timm.create_model(DEIT, pretrained=False, **TIMM, **kw),
    "registers": lambda **kw: VisionTransformer(reg_tokens=2, **TIMM, **kw),
    "deit3": lambda **kw: VisionTransformer(no_embed_class=True, init_values=0.1, **TIMM, **kw),
    "dinov2": lambda **kw: VisionTransformer(no_embed_class=True, reg_tokens=4, **TIMM, **kw),
    "none": lambda **kw: VisionTransformer(
        class_token=False, global_pool="avg", fc_norm=False, **TIMM, **kw
    ),
}
TOKENS = dict(zip(SOURCES, (1, 2, 3, 1, 5, 0)))
MERGED = dict(type="LTM", compression_ratio=0.5, merge_at=1)  # 2 x 2 of 3 x 3 tokens


def vit(**options):
    return LTMViT(**{**SIZES, **options})


def load_accounted(model, checkpoint, **options):
    return weights.load_accounted(VIT, model, checkpoint, grid=model.pretrain_grid, **options)


def source(name="class", **options):
    """State dict of a timm model with random weights."""
    return randomise(SOURCES[name](**options)).state_dict()


def body(state):
    """What LTMViT takes over as it is, without a final norm."""
    return {k: v for k, v in state.items() if k.startswith(("patch_embed.", "blocks."))}


def assert_loaded(model, expected):
    """All of ``expected`` is in the model, bit for bit."""
    loaded = model.state_dict()
    assert expected and expected.keys() <= loaded.keys()
    assert [k for k, v in expected.items() if not torch.equal(loaded[k], v)] == []


@pytest.mark.parametrize("name", SOURCES)
def test_timm_features_agree(name):
    theirs = randomise(SOURCES[name]())
    options = dict(final_norm=True, init_values=1.0 if name == "deit3" else None)
    model = vit(global_blocks=range(DEPTH), prefix_tokens=TOKENS[name], **options)
    load_accounted(model, theirs.state_dict())
    model.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        (expected,) = theirs.forward_intermediates(
            images, indices=1, norm=True, intermediates_only=True
        )
        (out,) = model(images)
    assert out.std() > 0.1
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SOURCES)
def test_tokens_left_out(name):
    """As ViTDet does: the map's weights are the same, and the log says what went."""
    state = source(name)
    model = vit(init_values=1.0 if name == "deit3" else None)
    note = load_accounted(model, state)
    assert_loaded(model, body(state) | {"pos_embed": state["pos_embed"][:, -PATCHES:]})
    keys = ["cls_token", "dist_token", "reg_token", "norm.weight", "head.bias", "head_dist.bias"]
    assert [key in note for key in keys] == [key in state for key in keys]
    rows = state["pos_embed"].shape[1] - PATCHES
    assert (f"pos_embed[:, :{rows}]" in note) == (rows > 0)
    assert "left as initialised" not in note and "resampled" not in note


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dinov2_repository(dtype):
    """Its registers lie after the class token, which alone has a position."""
    state = {k: v.to(dtype) for k, v in source("dinov2").items() if not k.startswith("head.")}
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.zeros(1, C, dtype=dtype)
    state["pos_embed"] = torch.randn(1, 1 + PATCHES, C).to(dtype)
    model = vit(prefix_tokens=5)
    note = load_accounted(model, state)
    assert_loaded(model, {"pos_embed": state["pos_embed"][:, 1:].float()})
    cls = state["cls_token"].float() + state["pos_embed"][:, :1].float()  # not in half precision
    assert_loaded(model, {"prefix_tokens": torch.cat([cls, state["register_tokens"].float()], 1)})
    assert note == "in the checkpoint, not needed: norm.weight, norm.bias, mask_token"


@pytest.mark.parametrize("key", ["head.mlp.0.weight", "head.bias", "head_dist.weight",
                                 "fc_norm.bias", "pre_logits.fc.weight", "attn_pool.latent",
                                 "decoder_pos_embed", "decoder_blocks.0.norm1.bias",
                                 "decoder_pred.weight", "mask_token", "masked_embed"])  # fmt: skip
def test_pretraining_only(key):
    """Left out where backbone weights are asked for, an error in a detector."""
    model, state = vit(), vit().state_dict() | {key: torch.zeros(7)}
    assert load_accounted(model, state) == f"in the checkpoint, not needed: {key}"
    with pytest.raises(ValueError, match=rf"1 unexpected: {re.escape(key)} \(7,\)"):
        model.load_state_dict(state)
    with pytest.raises(ValueError, match=f"1 unexpected: x{re.escape(key)}"):
        load_accounted(model, vit().state_dict() | {f"x{key}": torch.zeros(7)})


def test_mae():
    state = {k: v for k, v in source().items() if not k.startswith("head.")}
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, C)}
    model = vit()
    note = load_accounted(model, {"model": state | decoder})
    assert_loaded(model, body(state) | {"pos_embed": state["pos_embed"][:, 1:]})
    assert "mask_token" in note and "decoder_embed.weight" in note
    fine_tuned = {re.sub("^norm", "fc_norm", k): v for k, v in source().items()}
    load_accounted(model, {"model": fine_tuned})
    assert_loaded(model, body(fine_tuned))
    with pytest.raises(ValueError, match=r"(?s)missing: norm\.weight, .*remedy: set final_norm=F"):
        load_accounted(vit(final_norm=True), {"model": fine_tuned})


@pytest.mark.parametrize("ddp", ["", "module."])
def test_dino(tmp_path, ddp):
    """The whole training checkpoint, as a file with the script's arguments in it."""
    teacher, student = ({k: v for k, v in source().items() if "head" not in k} for _ in range(2))
    heads = {"head.last_layer.weight_g": torch.ones(7, 1)}
    checkpoint = {
        name: {f"{ddp}{k}": v for k, v in heads.items()}
        | {f"{ddp}backbone.{k}": v for k, v in state.items()}
        for name, state in (("student", student), ("teacher", teacher))
    }
    path = tmp_path / "dino.pth"
    torch.save(checkpoint | {"args": Namespace(arch="vit_small"), "epoch": 100}, path)
    read = weights.read_checkpoint(str(path))
    model = vit(final_norm=True)
    note = load_accounted(model, read)
    assert_loaded(model, body(teacher) | {"norm.weight": teacher["norm.weight"]})
    assert note.startswith("took 'teacher' of student, teacher, args, epoch; ")
    load_accounted(model, student)  # a plain state dict
    assert_loaded(model, body(student))


def test_mocov3():
    state, other = source(), source()
    checkpoint = {f"module.base_encoder.{k}": v for k, v in state.items()}
    checkpoint |= {f"module.momentum_encoder.{k}": v for k, v in other.items()}
    checkpoint["module.predictor.0.weight"] = torch.zeros(7)
    for prefix in ("module.base_encoder.", "base_encoder"):
        model = vit()
        load_accounted(model, {"state_dict": checkpoint}, prefix=prefix)
        assert_loaded(model, body(state))


@pytest.mark.parametrize("norm", ["ln", "norm"])
def test_mmpretrain(norm):
    state = source("deit3")
    names = {
        "ls1.gamma": "attn.gamma1.weight",
        "ls2.gamma": "ffn.gamma2.weight",
        "mlp.fc1": "ffn.layers.0.0",
        "mlp.fc2": "ffn.layers.1",
        "patch_embed.proj.": "patch_embed.projection.",
        "blocks.": "layers.",
    }
    theirs = {}
    for key, value in state.items():
        key = re.sub(r"^norm\.", f"{norm}1.", re.sub(r"norm([12])", rf"{norm}\1", key))
        for ours, name in names.items():
            key = key.replace(ours, name)
        if not key.startswith("head."):
            theirs[f"backbone.{key}"] = value
    assert f"backbone.layers.2.{norm}2.bias" in theirs and f"backbone.{norm}1.weight" in theirs
    theirs["backbone.ln2.weight"] = torch.ones(C)  # behind average pooling
    theirs["head.layers.head.weight"] = torch.zeros(5, C)
    model = vit(final_norm=True, init_values=1.0)
    note = load_accounted(model, {"meta": {}, "state_dict": theirs})
    assert_loaded(model, body(state) | {"norm.bias": state["norm.bias"]})
    assert note == "in the checkpoint, not needed: cls_token, fc_norm.weight"


def vitdet():
    """State dict of a ViTDet with relative positions, and with the class token's position."""
    state = randomise(vit(use_rel_pos=True)).state_dict()
    return state | {"pos_embed": torch.randn(1, 1 + PATCHES, C)}


@pytest.mark.parametrize("layout", ["mmdet", "mmdet without class position", "detectron2"])
def test_vitdet(layout):
    state, prefix = vitdet(), None
    if layout == "mmdet without class position":
        state["pos_embed"] = state["pos_embed"][:, 1:]
    checkpoint = {"state_dict": {f"backbone.{k}": v for k, v in state.items()}}
    checkpoint["state_dict"]["neck.lateral_convs.0.weight"] = torch.zeros(1)
    if layout == "detectron2":
        prefix = "backbone.net."
        checkpoint = {"model": {f"backbone.net.{k}": v for k, v in state.items()}}
        checkpoint["model"]["backbone.simfp_2.0.weight"] = torch.zeros(1)
    model = vit(use_rel_pos=True)
    note = load_accounted(model, checkpoint, prefix=prefix)
    assert_loaded(model, state | {"pos_embed": state["pos_embed"][:, -PATCHES:]})
    without = layout == "mmdet without class position"
    assert note == ("" if without else "in the checkpoint, not needed: pos_embed[:, :1]")


def test_vitdet_through_load_from():
    """A whole detector of mmdet's project: only the class position goes."""
    state, detector = vitdet(), Detector(vit(use_rel_pos=True))
    neck = {k: v for k, v in detector.state_dict().items() if k.startswith("neck")}
    theirs = neck | {f"backbone.{k}": v for k, v in state.items()}
    detector.load_state_dict(theirs)
    assert_loaded(detector.backbone, state | {"pos_embed": state["pos_embed"][:, 1:]})
    detector = Detector(vit(use_rel_pos=True, pretrain_img_size=(48, 112)))
    detector.load_state_dict(theirs)
    expected = resample_pos_embed(state["pos_embed"][:, 1:], 21, (3, 7))
    assert_loaded(detector.backbone, {"pos_embed": expected})


def linear_slowly(column, rows):
    """(R,) to (rows,), linearly; ends repeat, cell centres stay aligned."""
    out = torch.zeros(rows, dtype=torch.float64)
    for i in range(rows):
        y = min(max((i + 0.5) * len(column) / rows - 0.5, 0), len(column) - 1)
        low = min(int(y), len(column) - 2)
        out[i] = (1 - (y - low)) * column[low] + (y - low) * column[low + 1]
    return out


def test_relative_positions_of_another_size():
    """Of another window in window blocks, of another map (h != w) in the global ones."""
    state = vitdet()
    model = vit(use_rel_pos=True, window_size=4, img_size=(32, 96))
    note = load_accounted(model, state)
    rows = {"blocks.0.attn.rel_pos_h": 7, "blocks.2.attn.rel_pos_h": 3}
    rows |= {"blocks.1.attn.rel_pos_w": 7, "blocks.2.attn.rel_pos_w": 11}
    loaded = model.state_dict()
    for key, length in rows.items():
        assert key in note and loaded[key].shape == (length, C // HEADS)
        for i in range(C // HEADS):
            expected = linear_slowly(state[key][:, i].double(), length)
            torch.testing.assert_close(loaded[key][:, i].double(), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"rel_pos_h: \(5, 12\) in the checkpoint, \(5, 24\) in"):
        load_accounted(vit(use_rel_pos=True, num_heads=1), state)


@pytest.mark.parametrize(
    "name, prefix_tokens", [("class", 0), ("class", 1), ("deit3", 0), ("deit3", 1), ("none", 0)]
)
def test_absolute_positions_of_another_grid(name, prefix_tokens):
    state = source(name)
    model = vit(
        pretrain_img_size=(48, 112),
        prefix_tokens=prefix_tokens,
        init_values=1.0 if name == "deit3" else None,
    )
    assert "resampled to the model's size: pos_embed" in load_accounted(model, state)
    loaded = model.pos_embed.detach()
    assert loaded.shape == (1, 21, C)
    for channel in range(C):
        grid = state["pos_embed"][0, -PATCHES:, channel].view(4, 4).double()
        expected = resample_slowly(grid, (3, 7))
        got = loaded[0, :, channel].view(3, 7).double()
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    if prefix_tokens:
        cls = state["cls_token"]
        cls = cls + state["pos_embed"][:, :1] if name == "class" else cls
        assert_loaded(model, {"prefix_tokens": cls})


def test_grid_that_is_no_square():
    """It is taken where the model has as many patches, which also tells the class position."""
    state = source() | {"pos_embed": torch.randn(1, 1 + 21, C)}
    model = vit(pretrain_img_size=(48, 112))
    load_accounted(model, state)
    assert_loaded(model, {"pos_embed": state["pos_embed"][:, 1:]})
    with pytest.raises(ValueError, match="pos_embed: 21 patches, not a square"):
        load_accounted(vit(), state)


@pytest.mark.parametrize(
    "rows, tokens, patches, first",
    [
        (17, 1, 16, 1),
        (16, 1, 16, 0),
        (17, 0, 16, 1),
        (17, 5, 16, 1),
        # Not a square, but the model's.
        (21, 1, 21, 0),
        (22, 5, 21, 1),
        # Two squares: the model's, else the one that gives all tokens a position.
        (9, 5, 4, 5),
        (9, 5, 9, 0),
        (9, 5, 16, 5),
        (10, 1, 16, 1),
        # None.
        (22, 1, 16, 1),
        (22, 1, 0, 1),
    ],
)
def test_rows_that_are_no_patches(rows, tokens, patches, first):
    state = {"pos_embed": torch.randn(1, rows, 2), "reg_token": torch.zeros(1, tokens, 2)}
    state = {k: v for k, v in state.items() if v.numel()}
    own = {"pos_embed": torch.zeros(1, patches, 2)} if patches else {}
    prepared = VIT.prepare(own, state)
    assert torch.equal(prepared["pos_embed"], state["pos_embed"][:, first:])
    left = prepared.get(f"pos_embed[:, :{first}]", torch.zeros(1, 0, 2))
    assert torch.equal(left, state["pos_embed"][:, :first])


def test_another_patch_size():
    state, model = source(patch_size=16), vit(patch_size=8, pretrain_img_size=32)
    assert "resampled to the model's size: patch_embed.proj.weight" in load_accounted(model, state)
    key = "patch_embed.proj.weight"
    assert_loaded(model, {key: resample_patch_embed(state[key], [8, 8])})
    with pytest.raises(ValueError, match=r"weight: \(24, 3, 16, 16\) in the .*, \(24, 4, 16, 16\)"):
        load_accounted(vit(in_channels=4), state)
    with pytest.raises(
        ValueError, match=r"(?s)weight: \(24, 768\) in the .*embed_dims=24, .*size="
    ):
        load_accounted(vit(), state | {key: state[key].flatten(1)})


def test_relative_positions_may_lack_all_together():
    """In weights of a backbone: pretraining has none. Not a part of them, not in a detector."""
    state, model = source(), vit(use_rel_pos=True)
    note = load_accounted(model, state)
    assert "left as initialised: blocks.0.attn.rel_pos_h" in note and "(6 in all)" not in note
    assert model.blocks[1].attn.rel_pos_w.abs().max() == 0
    some = vitdet()
    del some["blocks.1.attn.rel_pos_w"]
    with pytest.raises(ValueError, match=r"(?s)1 missing: blocks.1.attn.rel_pos_w.*use_rel_pos=F"):
        load_accounted(model, some)
    none = vit().state_dict()
    with pytest.raises(ValueError, match=r"(?s)6 missing: blocks.0.attn.rel_pos_h.*init_cfg, whi"):
        Detector(model).load_state_dict({f"backbone.{k}": v for k, v in none.items()})


WRONG = {
    "two tokens for one": (
        "distilled",
        dict(prefix_tokens=1),
        r"prefix_tokens: \(1, 2, 24\) in the checkpoint, \(1, 1, 24\) in.*checkpoint: .*prefix_tok"
        r"ens=2, .*model: .*prefix_tokens=1, .*remedy: set prefix_tokens to the number",
    ),
    "no token for one": (
        "none",
        dict(prefix_tokens=1),
        "1 missing: prefix_tokens.*remedy: set prefix_tokens to the number",
    ),
    "layer scale": (
        "deit3",
        {},
        r"6 unexpected: blocks.0.ls1.gamma \(24,\).*layer scale True.*set init_values=1e-5",
    ),
    "no layer scale": ("class", dict(init_values=1.0), "6 missing: .*ls2.*set init_values=None"),
    "no positions": (
        "class",
        dict(use_abs_pos=False),
        r"2 unexpected: pos_embed \(1, 16, 24\), pos_embed\[:, :1\] .*set use_abs_pos=True",
    ),
    "no qkv bias": (
        "class",
        dict(qkv_bias=False),
        r"3 unexpected: blocks.0.attn.qkv.bias \(72,\).*qkv_bias=True, .*remedy: set qkv_bias=True",
    ),
    "width": (
        "class",
        dict(embed_dims=48),
        r"pos_embed: \(1, 16, 24\) in the checkpoint, \(1, 16, 48\) in.*embed_dims=24, .*"
        "embed_dims=48, .*remedy: give the model the checkpoint's sizes",
    ),
    "deeper": ("class", dict(depth=4), "12 missing: blocks.3.*depth=3, .*depth=4, .*'s sizes"),
    "shallower": (
        "class",
        dict(depth=2, global_blocks=[1]),
        "12 unexpected: blocks.2.*depth=3, .*depth=2, .*'s sizes",
    ),
    "MLP": ("class", dict(mlp_ratio=2.0), r"\(96, 24\) in the .*\(48, 24\) in.*MLP width 96.*h 48"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_sizes_raise(wrong):
    name, options, message = WRONG[wrong]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_accounted(vit(**options), source(name))


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("^pos_embed", "1 missing: pos_embed.*remedy: set use_abs_pos=False"),
        (r"qkv\.bias", "3 missing: blocks.0.attn.qkv.bias.*remedy: set qkv_bias=False"),
        (r"^norm\.", r"2 missing: norm\.weight, norm\.bias.*remedy: set final_norm=False"),
        ("^cls_token", "1 missing: prefix_tokens.*remedy: set prefix_tokens"),
        (r"blocks\.1\.mlp\.fc2\.bias", r"1 missing: blocks\.1\.mlp\.fc2\.bias.*'s sizes"),
    ],
)
def test_lacking_keys_raise(pattern, message):
    state = {k: v for k, v in source().items() if not re.search(pattern, k)}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_accounted(vit(final_norm=True, prefix_tokens=1), state)


@pytest.mark.parametrize("key, value", [
    ("cls_token", 1.0), ("cls_token", torch.zeros(C)), ("cls_token", torch.zeros(1, 1, C + 1)),
    ("pos_embed", "x"), ("pos_embed", torch.zeros(1, C, 4, 4)), ("blocks.0.norm1.bias", [0.0]),
])  # fmt: skip
def test_malformed_tensors_are_reported(key, value):
    with pytest.raises(ValueError, match=rf"(?s)does not fit.*{key}.*checkpoint: embed_dims=24"):
        load_accounted(vit(prefix_tokens=1), source() | {key: value})


def test_unknown_keys_raise():
    state = source() | {"norm_pre.weight": torch.zeros(C), "blocks.0.mlp.w12.bias": torch.zeros(7)}
    message = r"(?s)in 2 keys.*2 unexpected: norm_pre.weight \(24,\), blocks.0.mlp.w12.bias \(7,\)"
    with pytest.raises(ValueError, match=message):
        load_accounted(vit(), state)


@pytest.mark.parametrize(
    "key",
    [
        "conv1.weight",
        "layers.0.blocks.0.attn.qkv.weight",
        "stages.0.blocks.0.attn.w_msa.qkv.weight",
        "blocks.0.0.attn.qkv.weight",
        "net.blocks.0.attn.qkv.weight",
    ],
)
def test_unknown_format(key):
    with pytest.raises(ValueError, match=rf"no ViT block under ''.*{key}.*Supported: .*prefix"):
        load_accounted(vit(), {key: torch.zeros(1)})


def test_two_names_for_one_tensor():
    """Neither is dropped in silence."""
    with pytest.raises(ValueError, match="has norm.weight under two names"):
        load_accounted(vit(), source() | {"ln1.weight": torch.zeros(C)})
    own = vit(prefix_tokens=1).state_dict() | {"cls_token": torch.zeros(1, 1, C)}
    with pytest.raises(ValueError, match="1 unexpected: cls_token"):
        load_accounted(vit(prefix_tokens=1), own)


# Mask modules, and LTMViT's own checkpoints.


def test_own_checkpoint():
    merger = dict(MERGED, merge_at=[1, 2], compression_ratio=[0.5, 0.1])
    options = dict(use_rel_pos=True, prefix_tokens=2, final_norm=True, init_values=1.0)
    own = randomise(vit(merger=merger, **options))
    model = vit(merger=merger, **options)
    assert "mergers.2.step" in model.state_dict()
    assert load_accounted(model, {"state_dict": own.state_dict()}) == ""
    assert_loaded(model, own.state_dict())
    # Its tokens are taken whole, or left out whole.
    state = own.state_dict()
    note = load_accounted(vit(merger=merger, **options | dict(prefix_tokens=0)), state)
    assert note == "in the checkpoint, not needed: prefix_tokens"
    with pytest.raises(ValueError, match=r"prefix_tokens: \(1, 2, 24\) in .*, \(1, 1, 24\) in"):
        load_accounted(vit(merger=merger, **options | dict(prefix_tokens=1)), state)
    # All its positions are patches', even where one less would be a square.
    with pytest.raises(ValueError, match="pos_embed: 17 patches, not a square"):
        load_accounted(model, state | {"pos_embed": torch.zeros(1, 17, C)})


@pytest.mark.parametrize("merger", [MERGED, dict(MERGED, type="Pool")])
def test_dense_weights_in_a_merged_model(merger):
    state, model = source(), vit(merger=merger)
    before = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("mergers")}
    note = load_accounted(model, state)
    assert_loaded(model, body(state) | before)
    assert ("mergers.1.step" in note) == (merger["type"] == "LTM")


def test_merged_checkpoint_in_another_model():
    """Mask modules are never dropped in silence: the error says which merging they belong to."""
    state = randomise(vit(merger=MERGED)).state_dict()
    setting = r"checkpoint: .*before block 1 \(keeps 4 of 9 tokens\)"
    with pytest.raises(
        ValueError, match=f"(?s)5 unexpected: merg.*{setting}.*drop_mergers=True"
    ) as error:
        load_accounted(vit(), state)
    assert "sizes" not in str(error.value).split("remedy")[1]
    model = vit()
    load_accounted(model, state, drop_mergers=True)
    assert_loaded(model, without_mergers(state))
    with pytest.raises(
        ValueError, match=r"(?s)missing: mergers\.2.*unexpected: mergers\.1.*remedy"
    ):
        load_accounted(vit(merger=dict(MERGED, merge_at=2)), state)
    with pytest.raises(ValueError, match=r"5 missing: mergers\.2"):  # a part of another schedule
        load_accounted(
            vit(merger=dict(MERGED, merge_at=[1, 2], compression_ratio=[0.5, 0.1])), state
        )


def test_describe():
    options = dict(use_rel_pos=True, prefix_tokens=2, final_norm=True, init_values=1.0)
    assert VIT.describe(vit(merger=MERGED, **options).state_dict()) == (
        "embed_dims=24, depth=3, patch_size=16, MLP width 96, qkv_bias=True, use_abs_pos=True "
        "(16 patches), use_rel_pos=True, prefix_tokens=2, final_norm=True, layer scale True, "
        "mask modules: before block 1 (keeps 4 of 9 tokens)"
    )
    assert VIT.describe(vit(use_abs_pos=False, qkv_bias=False).state_dict()) == (
        "embed_dims=24, depth=3, patch_size=16, MLP width 96, qkv_bias=False, use_abs_pos=False, "
        "use_rel_pos=False, prefix_tokens=0, final_norm=False, layer scale False, "
        "mask modules: none"
    )


# LTMViT's own hooks: init_weights and _load_from_state_dict; files.


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_init_weights(tmp_path, suffix):
    state = source()
    path = tmp_path / f"vit.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save({"model": state}, path)
    init_cfg = dict(type="Pretrained", checkpoint=str(path))
    model = vit(merger=MERGED, init_cfg=init_cfg, pretrain_img_size=(48, 112))
    model.init_weights()
    expected = resample_pos_embed(state["pos_embed"][:, 1:], 21, (3, 7))
    assert_loaded(model, body(state) | {"pos_embed": expected})


def test_init_weights_options(tmp_path):
    merged = randomise(vit(merger=MERGED)).state_dict()
    path = tmp_path / "detector.pth"
    torch.save({"state_dict": {f"a.{k}": v for k, v in merged.items()}}, path)
    init_cfg = dict(type="Pretrained", checkpoint=str(path), prefix="a")
    with pytest.raises(ValueError, match="drop_mergers=True"):
        vit(init_cfg=init_cfg).init_weights()
    model = vit(init_cfg=init_cfg | dict(drop_mergers=True))
    model.init_weights()
    assert_loaded(model, without_mergers(merged))
    with pytest.raises(ValueError, match="LTMViT takes type='Pretrained' or None"):
        vit(init_cfg=dict(type="Normal", layer="Linear")).init_weights()
    before = {k: v.clone() for k, v in model.state_dict().items() if "qkv" not in k}
    model.init_cfg = None
    model.init_weights()
    assert_loaded(model, before)


def test_safetensors_from_a_url(tmp_path, monkeypatch):
    """Two files of one name, as all of a hub's are; each is fetched once."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_file({name: torch.ones(1)}, tmp_path / name / "model.safetensors")
    urls = [(tmp_path / name / "model.safetensors").as_uri() for name in ("a", "b")]
    assert [list(weights.read_checkpoint(url)) for url in urls] == [["a"], ["b"]]
    (tmp_path / "a" / "model.safetensors").unlink()
    assert list(weights.read_checkpoint(urls[0])) == ["a"]

    def download(url, path):
        save_file({url: torch.ones(1)}, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    url = "https://hub.invalid/model.safetensors?download=true"
    assert list(weights.read_checkpoint(url)) == [url]


@pytest.mark.parametrize("merger", [None, MERGED])
def test_whole_detector_through_mmengine(tmp_path, merger):
    options = dict(use_rel_pos=True, prefix_tokens=1, final_norm=True)
    theirs = Detector(randomise(vit(**options))).state_dict()
    path = tmp_path / "detector.pth"
    torch.save({"meta": {}, "state_dict": theirs}, path)
    detector = Detector(vit(merger=merger, **options))
    load_checkpoint(detector, str(path), map_location="cpu", strict=True)
    assert_loaded(detector, theirs)

    def refused(state, message):
        torch.save({"state_dict": state}, path)
        with pytest.raises(ValueError, match=f"(?s){message}"):
            load_checkpoint(detector, str(path), map_location="cpu")

    damaged = {k: v for k, v in theirs.items() if k != "backbone.norm.bias"}
    refused(damaged, r"1 missing: norm\.bias")
    refused({"neck.weight": torch.zeros(3, 3)}, "holds nothing under 'backbone.'")
    refused(theirs | {"backbone.x": torch.zeros(1)}, r"1 unexpected: x \(1,\)")
    detector = Detector(vit(merger=merger, use_rel_pos=True))
    refused(
        theirs, r"3 unexpected: .*prefix_tokens.*remedy: set prefix_tokens.*set final_norm=True"
    )
    detector = Detector(vit(merger=merger, prefix_tokens=1, final_norm=True))
    refused(theirs, r"6 unexpected: .*rel_pos_h.*remedy: set use_rel_pos=True")


@pytest.mark.parametrize("wrapped", [False, True])
def test_plain_torch_loading(wrapped):
    wrap = Detector if wrapped else lambda backbone: backbone
    # Its own weights, as in resume and EMA.
    theirs, model = wrap(randomise(vit(merger=MERGED))), wrap(vit(merger=MERGED))
    assert model.load_state_dict(theirs.state_dict(), strict=True) == ([], [])
    assert_loaded(model, theirs.state_dict())
    # A dense one's, strictly: mask modules stay as they are.
    dense, model = wrap(randomise(vit())).state_dict(), wrap(vit(merger=MERGED))
    before = {k: v.clone() for k, v in model.state_dict().items() if k not in dense}
    assert model.load_state_dict(dense, strict=True) == ([], [])
    assert_loaded(model, dense | before)
    assert any("mergers" in key for key in before)
