"""Loading ViT weights: timm's features reached, each layout told apart."""

import re
from argparse import Namespace

import pytest
import torch

from ltm_det.backbones.common import weights
from ltm_det.backbones.common.accounting import resample_pos_embed
from tests.test_backbones.checkpoints import Detector, randomise
from tests.test_backbones.vit_checkpoints import (
    DEPTH,
    PATCHES,
    SOURCES,
    C,
    assert_loaded,
    body,
    load_accounted,
    source,
    vit,
    vitdet,
)

TOKENS = dict(zip(SOURCES, (1, 2, 3, 1, 5, 0)))


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
    for content in (weights.read_checkpoint(str(path)), torch.load(path)):
        model = vit(final_norm=True)
        note = load_accounted(model, content)
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
