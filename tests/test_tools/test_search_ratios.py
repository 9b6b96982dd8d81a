"""tools/analysis/search_ratios.py on tiny data, in this process."""

import json
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import load_checkpoint

from ltm_det.backbones.common.weights import read_checkpoint
from ltm_det.conversion.convert import merged_config
from ltm_det.measure.flops import (
    build_backbone,
    build_detector,
    count_backbone,
    count_macs,
    dense_twin,
)

TOOL = "analysis/search_ratios.py"
slow = partial(pytest.param, marks=pytest.mark.slow)
DATA = """
_base_ = '{base}'
train_dataloader = dict(dataset=dict(serialize_data=False))
val_dataloader = dict(dataset=dict(serialize_data=False))
test_dataloader = dict(dataset=dict(serialize_data=False))
"""
BACKBONES = dict(
    swin="model = dict(backbone=dict(depths=[1, 2, 3, 1]))\n",
    merged="""
model = dict(backbone=dict(
    type='LTMSwin', depths=[1, 2, 3, 1],
    merger=dict(type='LTM', mask='hard', compression_ratio=0.5, dense_blocks=[1, 1, [1], 1])))
""",
    vit="""
model = dict(
    backbone=dict(
        _delete_=True, type='LTMViT', embed_dims=16, depth=3, num_heads=2, patch_size=8,
        window_size=4, pretrain_img_size=64,
        init_cfg=dict(type='Pretrained', checkpoint='nowhere.pth')),
    neck=dict(
        _delete_=True, type='SimpleFPN', in_channels=16, out_channels=16,
        scales=(2.0, 1.0, 0.5, 0.25), num_outs=5))
""",
)
SMALL = ["--shape", 64, 64, "--images", 6]


@pytest.fixture(autouse=True)
def own_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool keeps mmengine's logger quiet: not that of the tests after it."""
    monkeypatch.setattr(MMLogger, "_instance_dict", OrderedDict())


@pytest.fixture(scope="module")
def detectors(tiny_config: Path) -> dict[str, tuple[Path, Path]]:
    """By the name of a backbone, config and checkpoint, with mask modules as if trained."""
    made = {}
    for name, backbone in BACKBONES.items():
        config = tiny_config.with_name(f"search_{name}.py")
        config.write_text(DATA.format(base=tiny_config) + backbone)
        torch.manual_seed(0)
        model = build_detector(Config.fromfile(config))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        made[name] = config, config.with_suffix(".pth")
        torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=3)), made[name][1])
    return made


@pytest.fixture
def found(main: Callable, detectors: dict, tmp_path: Path) -> Callable:
    """Runs the tool on a detector: the written config's path, and the numbers."""

    def run(name: str, *options: object) -> tuple[Path, dict]:
        out, numbers = tmp_path / "new" / f"{name}.py", tmp_path / "numbers" / "a.json"
        assert main(TOOL, *detectors[name], "--out", out, "--json", numbers, *SMALL, *options) == 0
        return out, json.loads(numbers.read_text())

    return run


def cost_ratio(cfg: Config) -> float:
    """GMACs of the backbone over those of its dense twin, at 64 x 64."""
    merged, dense = (
        count_backbone(build_backbone(c), (64, 64)).macs["backbone"] for c in (cfg, dense_twin(cfg))
    )
    return merged / dense


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swin", []),
        slow("swin", ["--unit", "block", "--merger", "Pool", "--ratios", 0.3]),
        slow("swin", ["--unit", "block", "--scope", "block", "--ratios", 0.3]),
        slow("vit", ["--merger-options", "mask=hard", "--ratios", 0.5, 0.3]),
    ],
    ids=["stages", "blocks", "block-scope", "vit"],
)
def test_the_written_config_meets_the_budget_and_loads_the_weights(
    found: Callable, detectors: dict, name: str, options: list, capsys
) -> None:
    config, checkpoint = detectors[name]
    out, numbers = found(name, "--budget", 0.8, *options)
    cfg = Config.fromfile(out)
    assert cost_ratio(cfg) == pytest.approx(numbers["cost_ratio"])
    assert 0.5 < numbers["cost_ratio"] <= 0.8
    expected = merged_config(Config.fromfile(config), numbers["merger"])
    assert cfg.model.backbone.merger == expected.model.backbone.merger == numbers["merger"]
    assert cfg.model.backbone.type == expected.model.backbone.type
    assert not cfg.model.backbone.get("init_cfg")
    assert cfg.custom_imports == expected.custom_imports
    assert cfg.load_from == str(checkpoint)
    model = MODELS.build(cfg.model)
    load_checkpoint(model, cfg.load_from, strict=True)
    weights = torch.load(checkpoint)["state_dict"]
    own = {k: v for k, v in model.state_dict().items() if "merger" not in k}
    assert all(torch.equal(value, weights[key]) for key, value in own.items())

    chosen = {}
    for row in numbers["units"]:
        assert row["cost"] / numbers["dense_cost"] == pytest.approx(row["cost_ratio"])
        assert (row["error"] == 0) == (row["choice"] == "dense")
        if numbers["chosen"][row["unit"]] == row["choice"]:
            chosen[row["unit"]] = row
    savings = sum(1 - row["cost_ratio"] for row in chosen.values())
    assert 1 - savings == pytest.approx(numbers["cost_ratio"], abs=1e-3)
    errors = sum(row["error"] for row in chosen.values())
    assert errors == pytest.approx(numbers["expected_error"])
    assert numbers["measured_error"] == pytest.approx(numbers["expected_error"], rel=0.5)

    text, printed = out.read_text(), capsys.readouterr().out
    assert text.startswith(f"# python {TOOL} {config} {checkpoint} --out {out}")
    line = f"{numbers['cost_ratio']:.3f} (budget 0.8)"
    assert line in text and line in printed
    line = f"{numbers['expected_error']:.5f} expected, {numbers['measured_error']:.5f} measured"
    assert f"on 6 images: {line}" in text and line in printed
    assert printed.count("<-") == len(chosen) == len(numbers["chosen"])
    assert str(config.parent) not in text.split("_base_", 1)[1].splitlines()[0]  # relative


def sure(checkpoint: Path) -> Path:
    """A checkpoint beside it of a detector that is sure of what it finds."""
    state = torch.load(checkpoint)["state_dict"]
    state["roi_head.bbox_head.fc_cls.bias"][-1] -= 1000  # the background's
    torch.save(dict(state_dict=state), path := checkpoint.with_name("sure.pth"))
    return path


@pytest.mark.slow
def test_a_whole_detector_gets_ratios_and_a_recipe(
    main: Callable, detectors: dict, tmp_path: Path, capsys
) -> None:
    config, checkpoint = detectors["swin"]
    out, numbers = tmp_path / "whole.py", tmp_path / "a.json"
    words = [config, sure(checkpoint), "--part", "detector", "--budget", 0.7, "--out", out]
    assert main(TOOL, *words, *SMALL, "--ratios", 0.3, "--json", numbers) == 0
    found, cfg = json.loads(numbers.read_text()), Config.fromfile(out)
    assert cfg.model.type == "FastMaskRCNN" and cfg.model.lean == found["lean"] != {}
    assert found["measured_error"] >= 0 and found["part"] == "detector"
    exact = cfg.copy()
    exact.model = dict(cfg.model, lean=None, backbone=dict(cfg.model.backbone, merger=None))
    costs = [count_macs(build_detector(c), (64, 64)).macs["detector"] for c in (cfg, exact)]
    assert costs[0] / costs[1] == pytest.approx(found["cost_ratio"]) and costs[0] <= 0.7 * costs[1]
    assert "Error of its objects on 6 images" in capsys.readouterr().out
    load_checkpoint(build_detector(cfg), cfg.load_from, strict=True)
    words = [out, cfg.load_from, "--part", "detector", "--budget", 0.99]  # one with a recipe
    assert main(TOOL, *words, "--out", tmp_path / "again.py", *SMALL, "--ratios", 0.3) == 0


@pytest.mark.slow
def test_options_and_weights_of_a_merger_are_kept(found: Callable, detectors: dict) -> None:
    config, checkpoint = detectors["merged"]
    out, numbers = found("merged", "--budget", 0.85)
    assert numbers["merger"]["mask"] == "hard" and numbers["merger"]["type"] == "LTM"
    assert list(numbers["chosen"]) == ["stages.1", "stages.2"]
    cfg = Config.fromfile(out)
    assert cfg.model.backbone.merger == numbers["merger"]
    for ratios in cfg.model.backbone.merger.compression_ratio[2:3]:
        assert ratios == 1.0 or ratios[1] == 1.0 > ratios[0] == ratios[2]  # its refresh point
    assert cfg.load_from == str(out.with_suffix(".pth"))
    state = torch.load(cfg.load_from, weights_only=False)
    whole = read_checkpoint(str(checkpoint))["state_dict"]
    assert state["meta"] == dict(epoch=3)
    assert state["state_dict"].keys() == {key for key in whole if "mergers" not in key}
    load_checkpoint(MODELS.build(cfg.model), cfg.load_from, strict=True)
    assert cost_ratio(cfg) == pytest.approx(numbers["cost_ratio"])


def test_another_merger_takes_over_the_places_only(found: Callable) -> None:
    _, numbers = found("merged", "--budget", 0.85, "--merger", "Pool")
    assert numbers["merger"].keys() == {"type", "compression_ratio", "dense_blocks"}
    assert list(numbers["chosen"]) == ["stages.1", "stages.2"]


@pytest.mark.slow
def test_a_budget_of_time(found: Callable) -> None:
    # global attention among 48 x 48 tokens takes long
    large = ["--shape", 384, 384, "--ratios", 0.06]
    _, numbers = found("vit", "--budget", 0.9, "--cost", "latency", *large)
    assert numbers["unit"] == "ms"
    assert numbers["cost"] <= 0.9 * numbers["dense_cost"]
    assert all(0.01 < row["cost"] < 1000 for row in numbers["units"])


@pytest.mark.slow
def test_the_written_config_can_be_tested(
    found: Callable, main: Callable, detectors: dict, tmp_path: Path
) -> None:
    out, _ = found("swin", "--budget", 0.85, "--ratios", 0.3)
    options = ["--work-dir", tmp_path / "work", "--cfg-options", "model.test_cfg.rcnn.score_thr=0"]
    assert main("test.py", out, detectors["swin"][1], *options) == 0
    (scalars,) = (tmp_path / "work").glob("*/*.json")
    assert "coco/bbox_mAP" in json.loads(scalars.read_text())


@pytest.mark.slow
def test_what_is_there_is_not_overwritten_unasked(
    main: Callable, detectors: dict, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "a.py"
    out.write_text("mine = 1")
    options = [*detectors["swin"], "--budget", 0.9, "--out", out, "--ratios", 0.3, *SMALL]
    assert main(TOOL, *options) == 2
    assert f"{out} exists: give another --out, or --overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine = 1"
    assert main(TOOL, *options, "--overwrite") == 0
    assert "merger" in Config.fromfile(out).model.backbone
    merged = tmp_path / "b.py"
    merged.with_suffix(".pth").touch()  # where the weights without mask modules would go
    assert main(TOOL, *detectors["merged"], "--budget", 0.9, "--out", merged, *SMALL) == 2
    assert "b.pth exists" in capsys.readouterr().err


@pytest.mark.slow
def test_errors_name_the_remedy(main: Callable, detectors: dict, tmp_path: Path, capsys) -> None:
    out = tmp_path / "a.py"

    def error(name: str, *options: object, weights: object = None) -> str:
        config, checkpoint = detectors[name]
        where = ["--out", out, "--budget", 0.8, *SMALL]
        assert main(TOOL, config, weights or checkpoint, *where, *options) == 2
        found = capsys.readouterr().err
        assert "search_ratios.py: " in found and "Traceback" not in found
        assert not out.exists()
        return found

    found = error("swin", "--budget", 0.2, "--ratios", 0.3)
    assert "--budget 0.2 cannot be met: the least cost within reach is 0." in found
    assert "--unit block" in found
    assert "no checkpoint at no.pth" in error("swin", weights="no.pth")
    assert "Unknown checkpoint format" in error("swin", weights=detectors["vit"][1])
    assert "leave --unit out" in error("vit", "--unit", "block")
    assert "scope" in error("vit", "--scope", "block")
    assert "no argument 'masks': did you mean 'mask'?" in error(
        "swin", "--merger-options", "masks=hard"
    )
    weights = detectors["swin"][1]  # of random ones nothing is above 0.3
    whole = ["--part", "detector", "--cfg-options", "model.test_cfg.rcnn.score_thr=0.9"]
    assert "is its checkpoint a trained one" in error("swin", *whole, weights=weights)
    assert "99 images are wanted" in error("swin", "--images", 99)
    assert "got 1.5" in error("swin", "--ratios", 0.5, 1.5)
    gone = ["--cfg-options", "train_dataloader.dataset.data_root=gone"]
    assert "train_dataloader.dataset.data_root=DIR" in error("swin", *gone)
    assert "cannot be converted" in error("swin", "--cfg-options", "model.backbone.type=ResNet")


@pytest.mark.parametrize(
    "options",
    [
        ["--budget", 0],
        ["--budget-ms", 100],
        ["--budget", 1],
        ["--budget", "nan"],
        ["--out", "a.txt"],
        ["--out", "no.py"],
        ["--images", 0],
        ["--shape", 0, 64],
        ["--merger", "Best"],
        ["--unit", "layer"],
        ["--merger-options", "compression_ratio=0.5"],
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_bad_options_are_refused_before_anything_is_read(
    main: Callable, capsys, options: list
) -> None:
    with pytest.raises(SystemExit) as end:
        main(TOOL, "no.py", "no.pth", "--budget", 0.5, "--out", "a.py", *options)
    assert end.value.code == 2
    assert options[0] in capsys.readouterr().err.splitlines()[-1]
