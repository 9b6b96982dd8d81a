"""Loading Swin weights: order proven by numbers, each layout told apart."""

import re

import pytest
import timm
import torch
import torch.nn.functional as F
from mmdet.models.layers import PatchMerging

from ltm_det.backbones.common import weights
from ltm_det.backbones.swin.weights import SWIN
from tests.test_backbones.checkpoints import randomise
from tests.test_backbones.swin_checkpoints import (
    BACKBONES,
    SIZES,
    account,
    assert_same,
    load_accounted,
    swin_repository,
)


def convert(checkpoint, prefix=None):
    """The checkpoint's backbone under mmdet's names."""
    return weights.read_source(SWIN, checkpoint, prefix)[0].state


@pytest.fixture(scope="module")
def timm_swin():
    torch.manual_seed(0)
    options = dict(img_size=112, window_size=7, always_partition=True)  # detection's windows
    options |= dict(embed_dim=24, depths=SIZES["depths"], num_heads=SIZES["num_heads"])
    name = "swin_tiny_patch4_window7_224"
    return randomise(timm.create_model(name, pretrained=False, num_classes=5, **options))


@pytest.mark.parametrize("target", ["mmdet", "dense"])
@pytest.mark.parametrize("size", [(112, 112), (112, 224)])
def test_timm_features_agree(timm_swin, target, size):
    """At sizes where no shifted window is padded: timm rolls, then pads; mmdet pads, then rolls."""
    model = BACKBONES[target]()
    model.eval()
    load_accounted(model, timm_swin.state_dict())
    images = torch.randn(2, 3, *size)
    if size != (112, 112):
        timm_swin.set_input_size(size, window_size=7, always_partition=True)
    with torch.no_grad():
        theirs, ours = timm_swin.forward_intermediates(images)[1], model(images)
    if size != (112, 112):
        timm_swin.set_input_size((112, 112), window_size=7, always_partition=True)
    assert len(ours) == len(theirs) == 4
    for a, b in zip(ours, theirs):  # ours are normed, with an output norm still at its start
        b = F.layer_norm(b.permute(0, 2, 3, 1), b.shape[1:2]).permute(0, 3, 1, 2)
        assert a.std() > 0.1
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_timm_layouts_convert_alike(timm_swin):
    """Today's timm, its features_only names, and its older place of the downsampling."""
    new = timm_swin.state_dict()
    features_only = {re.sub(r"^layers\.", "layers_", k): v for k, v in new.items()}
    features_only = {k: v for k, v in features_only.items() if not re.match("norm|head", k)}
    earlier = re.compile(r"^layers\.(\d)\.downsample")
    old = {
        earlier.sub(lambda m: f"layers.{int(m[1]) - 1}.downsample", k): v for k, v in new.items()
    }
    expected = convert(new)
    for layout in (old, features_only, {"state_dict": old}):
        converted = convert(layout)
        assert_same(expected, converted)
        assert account(BACKBONES["mmdet"]().state_dict(), converted, lenient=True)


def test_timm_features_only_model():
    """The names above are those that timm really uses."""
    options = dict(embed_dim=24, depths=SIZES["depths"], num_heads=SIZES["num_heads"])
    name = "swin_tiny_patch4_window7_224"
    theirs = timm.create_model(name, pretrained=False, features_only=True, **options).state_dict()
    model = BACKBONES["dense"]()
    note = load_accounted(model, theirs)
    assert "norm0.weight" in note and "stages" not in note
    table = theirs["layers_2.blocks.1.attn.relative_position_bias_table"]
    loaded = model.state_dict()["stages.2.blocks.1.attn.w_msa.relative_position_bias_table"]
    assert torch.equal(loaded, table)


def test_swin_repository_patch_merging_against_loops():
    torch.manual_seed(0)
    h, w, c = 6, 4, 3
    x = torch.randn(1, h, w, c, dtype=torch.float64)
    norm_w, norm_b, weight = (
        torch.randn(*s).double() for s in [(4 * c,), (4 * c,), (2 * c, 4 * c)]
    )
    expected = torch.empty(h // 2, w // 2, 2 * c, dtype=torch.float64)
    for i in range(h // 2):
        for j in range(w // 2):
            neighbours = [(2 * i, 2 * j), (2 * i + 1, 2 * j), (2 * i, 2 * j + 1)]
            neighbours.append((2 * i + 1, 2 * j + 1))
            cell = torch.cat([x[0, row, column] for row, column in neighbours])
            cell = (cell - cell.mean()) / (cell.var(unbiased=False) + 1e-5).sqrt()
            expected[i, j] = weight @ (cell * norm_w + norm_b)

    swin = {"layers.0.blocks.0.attn.qkv.weight": torch.zeros(1)}  # what marks the layout
    swin |= {"layers.0.downsample.norm.weight": norm_w, "layers.0.downsample.norm.bias": norm_b}
    swin["layers.0.downsample.reduction.weight"] = weight
    converted = convert({"model": swin})
    prefix = "stages.0.downsample."
    merging = PatchMerging(in_channels=c, out_channels=2 * c).double()
    merging.load_state_dict(
        {k.removeprefix(prefix): v for k, v in converted.items() if k.startswith(prefix)}
    )
    out, hw = merging(x.flatten(1, 2), (h, w))
    assert hw == (3, 2)
    torch.testing.assert_close(out[0].view(3, 2, -1), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("target", BACKBONES)
def test_swin_repository_classifier(detector_state, target):
    model = BACKBONES[target]()
    note = load_accounted(model, swin_repository(detector_state))
    body = {k: v for k, v in detector_state.items() if not re.match(r"norm\d", k)}
    assert_same(model.state_dict(), body)
    # A classifier brings no output norms; the head goes; both are said.
    assert "norm0.weight" in note and "head.weight" in note
    assert ("merger" in note) == (target in ("stage", "block"))
    assert torch.equal(model.norm3.weight, torch.ones(192))


def test_swin_repository_detector_keeps_output_norms(detector_state):
    swin = swin_repository(detector_state)["model"]
    norms = {k: v for k, v in detector_state.items() if re.match(r"norm\d", k)}
    swin = {k: v for k, v in swin.items() if not re.match(r"norm\.|head", k)} | norms
    checkpoint = {"state_dict": {f"backbone.{k}": v for k, v in swin.items()}}
    checkpoint["state_dict"]["rpn_head.rpn_conv.weight"] = torch.zeros(1)
    model = BACKBONES["dense"]()
    assert load_accounted(model, checkpoint) == ""
    assert_same(model.state_dict(), detector_state)
    del checkpoint["state_dict"]["backbone.norm2.bias"]
    with pytest.raises(ValueError, match=r"1 missing: norm2\.bias"):
        load_accounted(model, checkpoint)


@pytest.mark.parametrize("target", BACKBONES)
@pytest.mark.parametrize("wrap", ["plain", "detector", "ddp", "prefix"])
def test_mmdet_weights(detector_state, target, wrap):
    whole = {f"backbone.{k}": v for k, v in detector_state.items()} | {"neck.x": torch.zeros(1)}
    checkpoint, prefix = {
        "plain": (detector_state, None),
        "detector": ({"meta": {}, "state_dict": whole, "optimizer": {}}, "backbone."),
        "ddp": ({"state_dict": {f"module.{k}": v for k, v in whole.items()}}, None),
        "prefix": ({f"student.{k}": v for k, v in whole.items()}, "student.backbone"),
    }[wrap]
    before = dict(detector_state)
    model = BACKBONES[target]()
    note = load_accounted(model, checkpoint, prefix=prefix)
    assert_same(model.state_dict(), detector_state)
    assert ("merger" in note) == (target in ("stage", "block"))
    assert before.keys() == detector_state.keys()


def test_mmpretrain_classifier(detector_state):
    """Its backbone has mmdet's names, the last output norm only, and a head beside it."""
    state = {k: v for k, v in detector_state.items() if not re.match("norm[012]", k)}
    state = {f"backbone.{k}": v for k, v in state.items()}
    head = {"head.fc.weight": torch.zeros(5, 192)}
    model = BACKBONES["dense"]()
    assert "norm0.weight" in load_accounted(model, {"state_dict": state | head})
    assert torch.equal(model.norm3.bias, detector_state["norm3.bias"])
    with pytest.raises(ValueError, match="6 missing: norm0"):
        load_accounted(model, {"state_dict": state})  # no classifier: a damaged detector


@pytest.mark.parametrize(
    "state, message",
    [
        ({"conv1.weight": torch.zeros(1)}, "Unknown checkpoint format.*conv1.weight.*Supported"),
        ({"features.1.0.attn.qkv.weight": torch.zeros(1)}, "Unknown checkpoint format"),
        ({}, "Unknown checkpoint format"),
        ({"model": {"layers.0.blocks.0.attn.logit_scale": torch.zeros(1)}}, "Swin V2"),
    ],
)
def test_unknown_format(state, message):
    with pytest.raises(ValueError, match=message):
        convert(state)


def test_missing_prefix(detector_state):
    with pytest.raises(ValueError, match="no Swin block under 'teacher.backbone.'"):
        convert(detector_state, prefix="teacher.backbone.")
