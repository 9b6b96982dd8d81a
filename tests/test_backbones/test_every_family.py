"""No family dodges a tool: conversion, calibration, search, budget, counts, pictures, export.

`test_all_families_are_here` fails where a backbone is registered that has no case.
"""

import re

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

import ltm_det.backbones
from ltm_det.backbones import MergeWatch
from ltm_det.compression.delivery_steps import merge_places
from ltm_det.conversion import ratio_search
from ltm_det.conversion.budget import placement
from ltm_det.conversion.calibration import calibrate
from ltm_det.conversion.convert import MERGED, merged_config
from ltm_det.deploy.export import relative_errors, sample_size, save
from ltm_det.deploy.runtime import load_runner
from ltm_det.engine.config_check import backbone_channels
from ltm_det.measure import benchmark_models
from ltm_det.measure.flops import build_backbone, count_backbone
from ltm_det.pictures.merge_views import view_of
from tests.test_backbones import (
    convnext_cases,
    efficientvit_cases,
    mobilevit_cases,
    pvt_cases,
    swin_cases,
    vit_cases,
)
from tests.test_backbones.harness import difference, randomise

# Small models of every class, dense, and channels of their maps.
SWIN = {key: value for key, value in swin_cases.MINI.items() if key != "strides"}  # as peers have
VIT = vit_cases.MINI | dict(prefix_tokens=0, pretrain_img_size=24, final_norm=True)
CASES = dict(
    LTMSwin=(SWIN, [8, 16]),
    LTMViT=(VIT, [8]),
    LTMMobileViT=(mobilevit_cases.MINI, [8]),
    LTMEfficientViT=(efficientvit_cases.MINI, [8]),
    LTMPVTv2=(pvt_cases.MINI, [8]),
    LTMConvNeXt=(convnext_cases.MINI, [8]),
)
BY_BLOCK = ("LTMConvNeXt",)  # whose MLPs alone are merged, in no other scope
POOL = dict(type="Pool", compression_ratio=0.5)
LTM = dict(type="LTM", compression_ratio=0.5)


@pytest.fixture(params=CASES)
def cfg(request):
    backbone = dict(type=request.param, **CASES[request.param][0])
    return Config(dict(default_scope="mmdet", model=dict(type="FasterRCNN", backbone=backbone)))


def built(cfg):
    return randomise(build_backbone(cfg))


def images(*size):
    return torch.randn(2, 3, *(size or (37, 50)), generator=torch.Generator().manual_seed(0))


def test_all_families_are_here():
    ours = {name for name in ltm_det.backbones.__all__ if name in MODELS.module_dict}
    ours -= {"HSTViT"}  # which holds one of them
    assert ours == set(CASES) == set(MERGED.values()) == set(benchmark_models.PEERS)


def test_converted_model_has_the_dense_weights_and_merges(cfg):
    merged = merged_config(cfg, LTM)
    assert merged.model.backbone.merger.type == "LTM"
    dense, model = built(cfg), built(merged)
    note = model.load_state_dict(dense.state_dict())  # what lacks is mask modules alone
    assert not note.unexpected_keys and all("merger" in key for key in note.missing_keys)
    assert model.mergers_by_point().keys() <= model.dense_points().keys()
    with torch.no_grad():
        assert 1e-4 < difference(model(images()), dense(images()))


def test_ratio_one_is_dense(cfg):
    one = built(merged_config(cfg, dict(LTM, compression_ratio=1.0)))
    assert not one.mergers_by_point()
    with torch.no_grad():
        assert difference(one(images()), built(cfg)(images())) == 0


def test_calibration_brings_the_maps_nearer(cfg):
    dense, merged = built(cfg), build_backbone(merged_config(cfg, LTM))
    merged.load_state_dict(dense.state_dict())
    merged.eval()
    first, *_ = ratio_search.sensitivities(dense, [merged], [images()])
    calibrate(merged, dense, [images()], steps=8, lr=3e-3)
    last, *_ = ratio_search.sensitivities(dense, [merged.eval()], [images()])
    assert last < first


def test_search_has_units_of_every_merge_point(cfg):
    dense = built(cfg)
    space = ratio_search.space_of(dense, dict(type="LTM"), [0.5, 0.25])
    assert space.units
    for choices in space.units.values():
        first, *others = choices.values()
        assert space.merger(first) is None and others
        for ratios in others:
            assert built(merged_config(cfg, space.merger(ratios))).mergers_by_point()


def test_budget_has_places(cfg):
    arguments, last = placement(built(cfg), dict(LTM))
    assert last > 0
    assert len(built(merged_config(cfg, {**LTM, **arguments(1, last)})).mergers_by_point()) == 1


def test_flops_fall_and_channels_are_known(cfg):
    dense, merged = built(cfg), built(merged_config(cfg, POOL))
    shape = (64, 64)
    counts = [count_backbone(model, shape).macs["backbone"] for model in (dense, merged)]
    assert counts[1] < counts[0]
    channels = CASES[cfg.model.backbone.type][1]
    assert backbone_channels(cfg.model.backbone) == channels
    assert [m.shape[1] for m in dense(images())] == channels


def test_peers_have_our_maps(cfg):
    merged = merged_config(cfg, POOL)
    names = benchmark_models.known_models(merged)
    models = benchmark_models.build_models(
        {name: benchmark_models.model_config(merged, name) for name in names}, "cpu"
    )
    notes = benchmark_models.check_peers(models, (64, 64))
    assert {note.split()[0] for note in notes} == set(names) & {"mmdet", "timm", "torchvision"}


def test_what_merges_is_drawn_and_told(cfg):
    model, shape = built(merged_config(cfg, LTM)), (64, 96)
    with MergeWatch(model) as watch:
        model(images(*shape)[:1])
        assert set(watch.seen) == set(model.mergers_by_point())
        for name, point in watch.seen.items():
            assert point.merged_map().shape[0] == 1
            view = view_of(name, point, (1.0, 1.0), shape)
            sums = view.weights.sum(-1)  # 0 where a merged token would be of padding alone
            assert ((abs(sums) < 1e-3) | (abs(sums - 1) < 1e-3)).all() and sums.max() > 0.5
    kept = [share for place in merge_places(model) for share in place["kept"]]
    assert min(kept) < 1 and max(kept) <= 1
    block = re.sub(r"\.(ffn|mlp|local_module)$", "", list(model.dense_points())[-1])
    merged, dense = (m.grid_of_block(block, shape) for m in (model, built(cfg)))
    if cfg.model.backbone.type in BY_BLOCK:
        assert merged == dense
    else:
        assert merged.window < dense.window and merged.width < dense.width


@pytest.mark.slow
def test_exported_file_has_the_maps_at_any_size(cfg, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = built(merged_config(cfg, dict(LTM, affinity=1.0)))
    file = tmp_path / "backbone.onnx"
    save(model, torch.randn(2, 3, *sample_size(model)), file, dynamic=True)
    run, _ = load_runner(file)
    for size in (sample_size(model), (96, 64), (77, 131)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            assert max(relative_errors(run(x), model(x))) < 1e-3
