"""LTMViT's own checkpoints, mask modules and hooks: init_weights, _load_from_state_dict; files."""

import pytest
import torch
from mmengine.runner import load_checkpoint
from safetensors.torch import save_file

from ltm_det.backbones.common import weights
from ltm_det.backbones.common.accounting import resample_pos_embed
from ltm_det.backbones.common.weights import without_mergers
from ltm_det.backbones.vit.weights import VIT
from tests.test_backbones.checkpoints import Detector, randomise
from tests.test_backbones.vit_checkpoints import C, assert_loaded, body, load_accounted, source, vit

MERGED = dict(type="LTM", compression_ratio=0.5, merge_at=1)  # 2 x 2 of 3 x 3 tokens


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
    """Two files of one name, as all of a hub's are."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_file({name: torch.ones(1)}, tmp_path / name / "model.safetensors")
    urls = [(tmp_path / name / "model.safetensors").as_uri() for name in ("a", "b")]

    def names(url: str) -> list[str]:
        return list(weights.read_checkpoint(url)["state_dict"])

    assert [names(url) for url in urls] == [["a"], ["b"]]

    def download(url, path):
        save_file({url: torch.ones(1)}, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    url = "https://hub.invalid/model.safetensors?download=true"
    assert names(url) == [url]


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
