"""LTMSwin's own hooks: init_weights and _load_from_state_dict."""

import re

import pytest
import torch
from mmengine.runner import load_checkpoint

from ltm_det.backbones.common.weights import without_mergers
from tests.test_backbones.checkpoints import Detector, randomise
from tests.test_backbones.swin_checkpoints import BACKBONES, assert_same, swin_repository


@pytest.mark.parametrize("layout", ["swin", "mmdet"])
@pytest.mark.parametrize("target", ["dense", "stage", "block"])
def test_init_weights(detector_state, tmp_path, layout, target):
    path = tmp_path / "swin.pth"
    torch.save(swin_repository(detector_state) if layout == "swin" else detector_state, path)
    init_cfg = dict(type="Pretrained", checkpoint=str(path))
    model = BACKBONES[target](init_cfg=init_cfg, convert_weights=layout == "swin")
    model.init_weights()
    body = {k: v for k, v in detector_state.items() if not re.match(r"norm\d", k)}
    assert_same(model.state_dict(), body if layout == "swin" else detector_state)


def test_init_weights_options(tmp_path):
    merged = randomise(BACKBONES["stage"]())
    path = tmp_path / "detector.pth"
    torch.save({"state_dict": {f"a.{k}": v for k, v in merged.state_dict().items()}}, path)
    init_cfg = dict(type="Pretrained", checkpoint=str(path), prefix="a.")
    with pytest.raises(ValueError, match="drop_mergers=True"):
        BACKBONES["dense"](init_cfg=init_cfg).init_weights()
    model = BACKBONES["dense"](init_cfg=init_cfg | dict(drop_mergers=True))
    model.init_weights()
    assert_same(model.state_dict(), without_mergers(merged.state_dict()))


@pytest.mark.parametrize("target", ["dense", "stage", "block"])
def test_whole_detector_through_mmengine(detector_state, tmp_path, target):
    """load_from of a dense mmdet detector: nothing but mask modules is new, and it says so."""
    source = Detector(BACKBONES["mmdet"]())
    source.backbone.load_state_dict(detector_state)
    path = tmp_path / "detector.pth"
    torch.save({"meta": {}, "state_dict": source.state_dict()}, path)
    detector = Detector(BACKBONES[target]())
    load_checkpoint(detector, str(path), map_location="cpu", strict=True)
    assert_same(detector.state_dict(), source.state_dict())

    state = torch.load(path)["state_dict"]
    del state["backbone.norm1.weight"]
    torch.save({"state_dict": state}, path)
    with pytest.raises(ValueError, match=r"1 missing: norm1\.weight"):
        load_checkpoint(detector, str(path), map_location="cpu")
    torch.save({"state_dict": {"neck.weight": torch.zeros(3, 3)}}, path)
    with pytest.raises(ValueError, match="holds nothing under 'backbone.'"):
        load_checkpoint(detector, str(path), map_location="cpu")


@pytest.mark.parametrize("target", ["dense", "stage", "block"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_plain_torch_loading(detector_state, target, wrapped):
    wrap = Detector if wrapped else lambda backbone: backbone
    prefix = "backbone." if wrapped else ""
    # Its own weights, as in resume and EMA.
    source, model = wrap(randomise(BACKBONES[target]())), wrap(BACKBONES[target]())
    assert model.load_state_dict(source.state_dict(), strict=True) == ([], [])
    assert_same(model.state_dict(), source.state_dict())
    # A dense mmdet backbone's, strictly: mask modules stay as they are.
    model = wrap(BACKBONES[target]())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    dense = {k: v for k, v in before.items() if not k.startswith(prefix)} | {
        prefix + k: v for k, v in detector_state.items()
    }
    assert model.load_state_dict(dense, strict=True) == ([], [])
    after = model.state_dict()
    assert_same(after, dense)
    assert_same(after, {k: v for k, v in before.items() if k not in dense})
    assert all(p.requires_grad for p in model.parameters())
    # What doesn't belong raises, strict or not.
    with pytest.raises(ValueError, match="1 unexpected: stages.0.blocks.0.gamma"):
        key = f"{prefix}stages.0.blocks.0.gamma"
        model.load_state_dict(dense | {key: torch.zeros(1)}, strict=False)


def test_swin_repository_detector_through_load_from(detector_state):
    swin = swin_repository(detector_state)["model"]
    norms = {k: v for k, v in detector_state.items() if re.match(r"norm\d", k)}
    swin = {k: v for k, v in swin.items() if not re.match(r"norm\.|head", k)} | norms
    model = Detector(BACKBONES["stage"]())
    neck = {k: v for k, v in model.state_dict().items() if k.startswith("neck")}
    model.load_state_dict(neck | {f"backbone.{k}": v for k, v in swin.items()})
    assert_same(model.backbone.state_dict(), detector_state)
