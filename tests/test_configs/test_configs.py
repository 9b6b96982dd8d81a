"""Every config in configs/ builds, runs one training step and one prediction."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper

# Names of every backbone's tensors in release 0.1.0, whose checkpoints are still around. Numbers in
# them are '#', and stand beside the name, a group for each tensor.
NAMES = json.loads((Path(__file__).parent / "parameter_names.json").read_text())
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
# What takes long: the larger sizes, Cascades of other sizes than the demo's, and DINO's patches.
LARGE = re.compile(r"_[bl]_|_s_cascade|_t_cascade|mobilevit_s_|_b1_|pvtv2_b|convnext_t|dinov")


def build(config: Config) -> torch.nn.Module:
    register_all_modules()
    for part in filter(None, (config.model.backbone, config.model.backbone.get("vit"))):
        part.init_cfg = None
    if config.model.data_preprocessor.get("pad_size_divisor", 1) > 32:
        config.model.data_preprocessor.pad_size_divisor = 32  # ViTDet pads to 1024
    stages = config.model.train_cfg.get("rcnn") or []
    for rcnn in stages if isinstance(stages, list) else [stages]:
        rcnn.sampler.num = 16  # of regions a step: less work, the same path
    model = MODELS.build(config.model)
    model.init_weights()
    return model


def inputs(model: torch.nn.Module, num_classes: int) -> dict:
    return demo_mm_inputs(
        2, [(3, 96, 128), (3, 70, 101)], num_items=[2, 1], num_classes=num_classes, with_mask=True
    )


def head(model: torch.nn.Module) -> torch.nn.Module:
    if not hasattr(model, "roi_head"):
        return model.bbox_head
    bbox_head = model.roi_head.bbox_head
    return bbox_head[-1] if isinstance(bbox_head, torch.nn.ModuleList) else bbox_head


def names_of(model: torch.nn.Module) -> dict[str, str]:
    number, found = re.compile(r"(?<![a-z_])\d+(?=\.)"), {}
    for name in model.state_dict():
        found.setdefault(number.sub("#", name), []).append(".".join(number.findall(name)))
    return {name: " ".join(numbers) for name, numbers in found.items()}


def frozen_names(config: str) -> dict[str, str]:
    (group,) = (group for group in NAMES if config in group["configs"])
    return group["names"]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] * bool(LARGE.search(path.stem)))
        for path in CONFIGS
    ],
    ids=lambda path: path.stem,
)
def test_config_trains_and_predicts(path: Path) -> None:
    config = Config.fromfile(path)
    model = build(config)
    assert names_of(model.backbone) == frozen_names(path.stem)
    before = [p.detach().clone() for p in model.backbone.parameters()]
    config.optim_wrapper.type = "OptimWrapper"  # AMP needs a GPU
    optim_wrapper = build_optim_wrapper(model, config.optim_wrapper)
    data = inputs(model, head(model).num_classes)
    losses = model.train().train_step(data, optim_wrapper)
    assert {"loss_rpn_cls" if hasattr(model, "roi_head") else "loss_cls", "loss"} <= losses.keys()
    assert all(torch.isfinite(value).all() for value in losses.values())
    after = list(model.backbone.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))

    model.eval()
    if hasattr(model, "roi_head"):
        model.test_cfg.rpn.max_per_img = 16
    last = model.test_cfg.get("rcnn", model.test_cfg)
    last.score_thr = 0.0  # so that an untrained model reports something
    with torch.no_grad():
        predictions = model.test_step(inputs(model, head(model).num_classes))
    for sample in predictions:
        found = sample.pred_instances
        assert len(found) > 0 and torch.isfinite(found.bboxes).all()
        if hasattr(model, "roi_head"):
            assert found.masks.shape[-2:] == sample.ori_shape[:2]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_a_delta(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 35


@pytest.mark.parametrize("path", [p for p in CONFIGS if "ltm" in p.stem], ids=lambda p: p.stem)
def test_merged_config_differs_from_its_twin_in_merging_alone(path: Path) -> None:
    merged = Config.fromfile(path)
    twin = path.with_name(path.name.replace("ltm_", "").replace("_ib_", "_"))
    dense = Config.fromfile(twin) if twin.exists() else get_config(base_of(path))
    assert merged.model.backbone.pop("merger").type == "LTM"
    assert merged.optim_wrapper.paramwise_cfg.custom_keys.pop("merger").decay_mult == 0.0
    merged_type = merged.model.backbone.pop("type")
    dense_type = "SwinTransformer" if merged_type == "LTMSwin" else merged_type
    assert dense.model.backbone.pop("type") == dense_type
    for part in ("model", "train_dataloader", "param_scheduler", "train_cfg"):
        assert without_scope(merged[part]) == without_scope(dense[part])


def without_scope(node):
    """The config without mmengine's mark ``_scope_`` of a base from another package."""
    if isinstance(node, dict):
        return {key: without_scope(value) for key, value in node.items() if key != "_scope_"}
    return [without_scope(value) for value in node] if isinstance(node, list | tuple) else node


def base_of(path: Path) -> str:
    """What the config names as its ``_base_``: mmdet's config, where that is the dense twin."""
    line = next(row for row in path.read_text().splitlines() if row.startswith("_base_"))
    return line.split('"')[1]


def test_inferencer_runs_on_a_saved_checkpoint(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "configs/demo_ltm_swin_maskrcnn.py"
    config = Config.fromfile(path)
    model = build(config)
    meta = dict(dataset_meta=dict(classes=config.classes))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / "demo.pth")
    inferencer = DetInferencer(str(path), str(tmp_path / "demo.pth"), device="cpu")
    image = torch.randint(0, 255, (100, 90, 3), dtype=torch.uint8).numpy()
    result = inferencer(image, no_save_pred=True, return_datasamples=True)["predictions"][0]
    assert result.pred_instances.masks.shape[-2:] == (100, 90)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_guarded_against_explosion(path: Path) -> None:
    """In mmdet's own training tool too."""
    assert dict(type="ExplosionGuardHook") in Config.fromfile(path).custom_hooks
