"""Counts of detectors against figures worked out by hand, and against the published ones."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config
from torch import nn

from ltm_det.measure import flops
from ltm_det.measure.flops import Counts, count_macs
from tests.test_measure.by_hand import DEPTHS, HEADS, HEIGHT, WIDTH, WINDOW, C, swin_by_hand

ROOT = Path(__file__).resolve().parents[2]
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
