"""Counts against figures worked out by hand, against the published ones, and against the CPU."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from mmdet.models import SwinTransformer
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from torch import nn

from ltm_det.measure import flops
from ltm_det.measure.flops import (
    Counts,
    attention_macs,
    count_backbone,
    count_call,
    count_macs,
)

ROOT = Path(__file__).resolve().parents[2]
C, HEIGHT, WIDTH, WINDOW = 8, 64, 96, 4
DEPTHS, HEADS = (2, 1, 1, 1), (2, 2, 2, 2)
SWIN = dict(embed_dims=C, depths=DEPTHS, num_heads=HEADS, window_size=WINDOW)
MERGED = dict(depths=(2, 2, 4, 2), num_heads=(2, 2, 2, 2), window_size=WINDOW)


def swin_by_hand(height: int, width: int, channels: int, depths: tuple, window: int) -> dict:
    """Macs of each part of a Swin Transformer; height and width in multiples of 4."""
    h, w = height // 4, width // 4
    macs = {"patch_embed": h * w * 3 * 4 * 4 * channels}
    for i, depth in enumerate(depths):
        c = channels * 2**i
        padded = -(-h // window) * window * -(-w // window) * window
        linear = padded * 4 * c * c  # queries, keys, values and projection
        attention = 2 * padded * window**2 * c  # scores and their use
        mlp = 2 * h * w * 4 * c * c
        macs[f"stages.{i}"] = depth * (linear + attention + mlp)
        if i < 3:
            h, w = -(-h // 2), -(-w // 2)
            macs[f"stages.{i}"] += h * w * 4 * c * 2 * c
    return macs


def merged_swin_by_hand(height: int, width: int, c: int, kept: int, scope: str) -> dict:
    """Macs of each part of MERGED, c channels in stage 1, with LTM in all but a stage's first
    block."""
    depths, n, (h, w) = MERGED["depths"], WINDOW**2, (height // 4, width // 4)
    macs = swin_by_hand(height, width, c, depths, WINDOW)
    for i, depth in enumerate(depths):
        windows, own = -(-h // WINDOW) * -(-w // WINDOW), c // 4
        # the step, two rounds of merging and comparing, merging and restoring
        mask = windows * n * kept * c * (1 + 2 * 2 + 2)
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


DETECTOR = f"""
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py']
model = dict(
    backbone=dict(_delete_=True, type='LTMSwin', embed_dims={C}, depths={DEPTHS},
        num_heads={HEADS}, window_size={WINDOW}, merger=None,
        init_cfg=dict(type='Pretrained', checkpoint='https://example.org/swin.pth')),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels={C}),
    rpn_head=dict(in_channels={C}, feat_channels={C},
        anchor_generator=dict(scales=[8], ratios=[1.0])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels={C}),
        bbox_head=dict(in_channels={C}, fc_out_channels=16, num_classes=2),
        mask_roi_extractor=dict(out_channels={C}),
        mask_head=dict(num_convs=1, in_channels={C}, conv_out_channels={C}, num_classes=2)))
"""


def bbox_head_by_hand(side: int = 7, width: int = 16, classes: int = 2) -> int:
    """Macs of the box head on one RoI: two layers, then classes + background and boxes."""
    return C * side**2 * width + width * width + width * (classes + 1) + width * classes * 4


def mask_head_by_hand(side: int = 14, classes: int = 2) -> int:
    """Macs of the mask head on one RoI: a 3x3 convolution, 2x2 upsampling, 1x1 to the classes."""
    return side**2 * (9 * C * C + 4 * C * C) + (2 * side) ** 2 * C * classes


@pytest.fixture
def tiny_config(tmp_path: Path) -> Path:
    """Config of a tiny Mask R-CNN: C channels in the FPN, two classes, one anchor a place."""
    path = tmp_path / "tiny.py"
    path.write_text(DETECTOR)
    return path


@pytest.fixture
def tiny(tiny_config: Path) -> Config:
    return Config.fromfile(tiny_config)


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


def test_mask_rcnn_is_counted_as_by_hand(tiny: Config) -> None:
    counts = count_macs(flops.build_detector(tiny), (HEIGHT, WIDTH))
    sizes = [(HEIGHT // s, WIDTH // s) for s in (4, 8, 16, 32)]
    places = [h * w for h, w in sizes]
    rpn_places = sum(places) + 1 * 2  # the fifth level takes every second place of the fourth
    expected = {
        "backbone": sum(swin_by_hand(HEIGHT, WIDTH, C, DEPTHS, WINDOW).values()),
        "neck": sum(n * C * (C * 2**i + 9 * C) for i, n in enumerate(places)),
        "rpn_head": rpn_places * (9 * C * C + C * 1 + C * 4),
        "roi_head": 1000 * bbox_head_by_hand() + 100 * mask_head_by_hand(),
    }
    assert {name: counts.macs[name] for name in expected} == expected
    assert counts.macs["detector"] == sum(expected.values())
    assert counts.params["detector"] == sum(counts.params[name] for name in expected)


def test_a_cascade_runs_every_head(tiny: Config) -> None:
    head = tiny.model.roi_head
    box, loss = head.bbox_head, head.bbox_head.loss_bbox
    head.update(type="CascadeRoIHead", num_stages=3, stage_loss_weights=[1, 1, 1])
    head.bbox_head = [dict(box, loss_bbox=loss) for _ in range(3)]
    assigner = tiny.model.train_cfg.rcnn
    tiny.model.train_cfg.rcnn = [assigner] * 3
    tiny.model.type = "CascadeRCNN"
    counts = count_macs(flops.build_detector(tiny), (HEIGHT, WIDTH))
    assert counts.macs["roi_head"] == 3 * (1000 * bbox_head_by_hand() + 100 * mask_head_by_hand())


def test_a_single_stage_detector_and_one_that_is_neither(tiny: Config) -> None:
    retina = get_config("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py")
    counts = count_macs(flops.build_detector(retina), (64, 64))
    assert set(counts.macs) >= {"detector", "backbone", "neck", "bbox_head", "backbone.layer1"}
    with pytest.raises(TypeError, match="count_backbone"):
        count_macs(nn.Linear(2, 2), (64, 64))


def test_the_model_is_left_as_it_was(tiny: Config) -> None:
    model = flops.build_detector(tiny).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_macs(model, (HEIGHT, WIDTH))
    assert model.training
    assert not any("forward" in vars(module) for module in model.modules())
    after = model.state_dict()
    assert all(value.equal(after[name]) for name, value in before.items())


def test_compare_counts_both_sides_only_where_there_is_a_merger(tiny: Config) -> None:
    assert set(flops.compare(tiny, (HEIGHT, WIDTH))) == {"dense"}
    tiny.model.backbone.depths = (2, 2, 4, 2)
    dense = flops.compare(tiny, (HEIGHT, WIDTH))["dense"]
    tiny.model.backbone.merger = dict(type="LTM", compression_ratio=0.25)
    both = flops.compare(tiny, (HEIGHT, WIDTH))
    assert both["dense"] == dense
    assert both["merged"].macs["backbone"] < dense.macs["backbone"]
    for part in ("neck", "rpn_head", "roi_head"):
        assert both["merged"].macs[part] == dense.macs[part]
    assert tiny.model.backbone.init_cfg.checkpoint  # the caller's config is not changed


def test_without_pretraining_spares_other_initialisation() -> None:
    model = dict(
        backbone=dict(init_cfg=dict(type="Pretrained", checkpoint="a.pth"), depths=[1]),
        heads=[dict(init_cfg=dict(type="Pretrained", checkpoint="b.pth")), dict(init_cfg=[1])],
        neck=dict(init_cfg=dict(type="Xavier")),
    )
    assert flops.without_pretraining(model) == dict(
        backbone=dict(init_cfg=None, depths=[1]),
        heads=[dict(init_cfg=None), dict(init_cfg=[1])],
        neck=dict(init_cfg=dict(type="Xavier")),
    )


@pytest.mark.parametrize(
    ("config", "backbone", "published"), [("swin_s", 187.6, 359), ("swin_t", 95.6, 267)]
)
def test_published_figures_of_mask_rcnn(config: str, backbone: float, published: float) -> None:
    """Whole detectors as in Swin Transformer's table: 359 and 267 G at 1280 x 800."""
    cfg = Config.fromfile(ROOT / f"configs/ltm_{config}_maskrcnn.py")
    dense = count_macs(flops.build_detector(flops.dense_twin(cfg)), (800, 1280))
    assert dense.macs["backbone"] / 1e9 == pytest.approx(backbone, rel=0.01)
    assert dense.macs["detector"] / 1e9 == pytest.approx(published, rel=0.01)


def test_table_is_aligned() -> None:
    dense = Counts(
        {"detector": 3 * 10**9, "backbone.x": 10**9}, {"detector": 10**6, "backbone.x": 0}
    )
    merged = dense._replace(macs={"detector": 15 * 10**8, "backbone.x": 5 * 10**8})
    assert flops.as_table(dict(dense=dense, merged=merged)).splitlines() == [
        "          dense GMACs  merged GMACs  ratio  dense M params  merged M params",
        "detector         3.00          1.50  0.500            1.00             1.00",
        "  x              1.00          0.50  0.500            0.00             0.00",
    ]
    assert "ratio" not in flops.as_table(dict(dense=dense))


def test_tool_prints_and_writes_json(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    out = tmp_path / "new" / "flops.json"
    options = ["--shape", "64", "96", "--json", str(out), "--cfg-options"]
    merger = ["model.backbone.merger.type=Pool", "model.backbone.merger.compression_ratio=0.25"]
    config = tiny_config.read_text().replace("merger=None", "merger=dict(type='LTM')")
    tiny_config.write_text(config)
    monkeypatch.setattr(sys, "argv", ["flops.py", str(tiny_config), *options, *merger])
    main = runpy.run_path(str(ROOT / "tools/analysis/flops.py"), run_name="tool")["main"]
    assert main() == 0
    assert "merged GMACs" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["shape"] == [64, 96]
    assert result["merged"]["macs"]["detector"] < result["dense"]["macs"]["detector"]
    assert result["proposals"] == 1000 and result["mask_rois"] == 100
    monkeypatch.setattr(sys, "argv", ["flops.py", "no.py"])
    assert main() == 2
    assert "no config file at no.py" in capsys.readouterr().err
