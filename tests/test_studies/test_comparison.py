"""The spec of a comparison, the configs of its cells, and its tables."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mmengine.config import DictAction

from ltm_det.engine.preflight import load_config
from ltm_det.measure.flops import build_detector, compare
from ltm_det.studies.comparison import (
    Backbone,
    Cell,
    SpecError,
    load_spec,
)
from ltm_det.studies.comparison_configs import (
    backbone_gmacs,
    conversion_options,
    model_config,
    training_config,
)
from ltm_det.studies.comparison_tables import NOT_MEASURED, markdown, summaries

ROOT = Path(__file__).resolve().parents[2]
SWIN = Backbone("configs/demo_swin_maskrcnn.py", (112, 112), (112, 112))
VIT = Backbone("configs/demo_vit_maskrcnn.py", (112, 112), (112, 112))
RATIO = "compression_ratio"
RATIOS = [0.51, 0.51, 0.51, 1.0]
SPEC = f"""
backbones:
  swin: {{config: {SWIN.config}, shape: [112, 96], time_shape: [224, 224]}}
  vit: {{config: {VIT.config}, shape: [112, 112]}}
mergers:
  LTM: {{type: LTM, mask: hard, cfg_options: {{optim_wrapper.optimizer.lr: 0.1}}}}
  Pool: {{type: Pool}}
runs:
  - {{mode: train, backbones: [swin, vit], mergers: [dense], seeds: [0, 1]}}
  - mode: finetune
    backbones: [vit]
    mergers: [dense, LTM, Pool]
    seeds: [1]
    iterations: 7
    cfg_options: {{optim_wrapper.optimizer.lr: 0.2, optim_wrapper.clip_grad.max_norm: 3}}
    settings:
      0.7: {{vit: {{compression_ratio: 0.5, merge_at: 4}}, vit/Pool: {{compression_ratio: 0.4}}}}
      low: {{vit: {{compression_ratio: 0.25}}}}
  - {{mode: calibrate, images: 9, backbones: [swin], mergers: [Pool], seeds: [0],
     settings: {{a: {{swin/Pool: {{compression_ratio: 0.5}}}}}}}}
"""


def load(folder: Path, spec: dict | str) -> tuple[dict[str, Backbone], list[Cell]]:
    path = folder / "spec.yaml"
    path.write_text(spec if isinstance(spec, str) else yaml.safe_dump(spec, sort_keys=False))
    return load_spec(path)


def test_a_spec_stands_for_these_cells(tmp_path: Path) -> None:
    backbones, cells = load(tmp_path, SPEC)
    assert backbones["swin"] == Backbone(SWIN.config, (112, 96), (224, 224))
    assert backbones["vit"].time_shape == (112, 112)
    general = {"optim_wrapper.optimizer.lr": 0.2, "optim_wrapper.clip_grad.max_norm": 3}
    own = general | {"optim_wrapper.optimizer.lr": 0.1}
    ltm, half = dict(type="LTM", mask="hard"), dict(compression_ratio=0.5, merge_at=4)
    quarter, pool = dict(compression_ratio=0.25), dict(type="Pool")
    seven = dict(iterations=7)
    assert cells == [
        Cell("swin", "train", "dense", "1", 0, {}),
        Cell("swin", "train", "dense", "1", 1, {}),
        Cell("vit", "train", "dense", "1", 0, {}),
        Cell("vit", "train", "dense", "1", 1, {}),
        Cell("vit", "finetune", "dense", "1", 1, seven | {"cfg_options": general}),
        *(
            Cell("vit", "finetune", name, setting, 1, seven | dict(cfg_options=o, merger=merger))
            for name, setting, o, merger in (
                ("LTM", "0.7", own, ltm | half),
                ("LTM", "low", own, ltm | quarter),
                ("Pool", "0.7", general, pool | dict(compression_ratio=0.4)),
                ("Pool", "low", general, pool | quarter),
            )
        ),
        Cell("swin", "calibrate", "Pool", "a", 0, dict(images=9, merger=pool | {RATIO: 0.5})),
    ]
    assert cells[4].start == cells[5].start == cells[3].key and cells[3].start is None
    assert cells[5].name == "vit-finetune-LTM-0.7-seed1"
    assert len({cell.name for cell in cells}) == len(cells)


def test_a_cell_that_two_runs_ask_for_is_there_once(tmp_path: Path) -> None:
    spec = yaml.safe_load(SPEC)
    spec["runs"].append(copy.deepcopy(spec["runs"][0]))
    assert load(tmp_path, spec) == load(tmp_path, SPEC)
    spec["runs"][-1]["iterations"] = 5
    with pytest.raises(SpecError, match="swin-train-dense-1-seed0 is there twice.*'iterations': 5"):
        load(tmp_path, spec)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.update(runz=1), r"the spec: unknown \['runz'\], known are backbones, mergers"),
        (lambda s: s.pop("runs"), "the spec lacks runs"),
        (lambda s: s.update(runs={}), "runs must be a list, but is {}"),
        (lambda s: s.update(backbones=[1]), r"backbones must have names and entries.*\[1\]"),
        (lambda s: s["backbones"]["vit"].pop("shape"), "backbone vit lacks shape"),
        (lambda s: s["backbones"]["vit"].update(size=1), r"backbone vit: unknown \['size'\]"),
        (lambda s: s["backbones"]["vit"].update(shape=[1]), r"backbone vit: .* not \[1\]"),
        (lambda s: s["mergers"].update({"a/b": {"type": "Pool"}}), "the name 'a/b' must be"),
        (lambda s: s["mergers"].update(dense={"type": "Pool"}), "merger dense"),
        (lambda s: s["mergers"].update(X={"type": "Xyz"}), r"merger X: .*Xyz.* 'LTM', .*'Pool'"),
        (lambda s: s["mergers"].update(X="Pool"), "merger X: Pool needs a type"),
        (lambda s: s["runs"].append("train"), "run 4: unknown mode None"),
        (lambda s: s["runs"][0].update(mode="fit"), "run 1: unknown mode 'fit', known are train"),
        (lambda s: s["runs"][0].update(images=3), r"run 1, train: unknown \['images'\]"),
        (lambda s: s["runs"][0].pop("seeds"), "run 1, train lacks seeds"),
        (lambda s: s["runs"][0].update(seeds=3), "run 1, train: seeds must be a list, but is 3"),
        (lambda s: s["runs"][0].update(seeds=["a"]), "a seed must be a whole number, but is 'a'"),
        (lambda s: s["runs"][0].update(backbones=["r5"]), r"unknown backbones \['r5'\].*swin, vit"),
        (lambda s: s["runs"][0].update(mergers=["ToM"]), r"unknown mergers \['ToM'\].*dense, LTM"),
        (lambda s: s["runs"][0].update(mergers=["LTM"]), "run 1, train: LTM needs settings"),
        (lambda s: s["runs"][1].update(iterations=0), "iterations must be above 0, but is 0"),
        (lambda s: s["runs"][1].update(cfg_options=3), "cfg_options must have names.* but is 3"),
        (lambda s: s["runs"][1]["settings"]["low"].pop("vit"), "low has nothing for vit/LTM"),
        (lambda s: s["runs"][1]["settings"].update(x={"swim": {}}), r"setting x: .*\['swim'\]"),
        (lambda s: s["runs"][1]["settings"].update({"a b": {}}), "the name 'a b' must be"),
        (lambda s: s["runs"][1]["settings"]["low"].update(vit={}), r"vit/LTM at low: .*lacks"),
        (lambda s: s["runs"][2].pop("images"), "run 3, calibrate: lacks images"),
        (lambda s: s["runs"][2].update(mergers=["dense"]), "run 3, calibrate: 'dense' is what"),
    ],
)
def test_what_is_wrong_in_a_spec_is_named(
    tmp_path: Path, change: Callable[[dict], object], message: str
) -> None:
    spec = yaml.safe_load(SPEC)
    change(spec)
    with pytest.raises(SpecError, match=message):
        load(tmp_path, spec)


def test_what_is_no_spec_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=f"no spec at {tmp_path}/none.yaml"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="spec.yaml is no YAML"):
        load(tmp_path, "a: [")
    with pytest.raises(SpecError, match="the spec must have keys of .*runs.*, but is None"):
        load(tmp_path, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("compare_demo", {"train", "finetune", "convert", "calibrate"}),
        ("compare_families", {"train", "finetune"}),
    ],
)
def test_our_specs_are_some_and_their_models_are_counted(name: str, modes: set[str]) -> None:
    backbones, cells = load_spec(ROOT / f"tools/{name}.yaml")
    assert {cell.mode for cell in cells} == modes
    models = {(c.backbone, json.dumps(c.options.get("merger"))) for c in cells}
    for name, merger in sorted(models):
        merger = json.loads(merger)
        assert backbone_gmacs(backbones[name], merger) > 0


def test_gmacs_are_those_of_the_config_that_merges_alike() -> None:
    merger = dict(type="LTM", compression_ratio=RATIOS, affinity=0)
    counts = compare(load_config(str(ROOT / "configs/demo_ltm_swin_maskrcnn.py")), SWIN.shape)
    expected = {side: count.macs["backbone"] / 1e9 for side, count in counts.items()}
    assert backbone_gmacs(SWIN, merger) == pytest.approx(expected["merged"], rel=1e-9)
    assert backbone_gmacs(SWIN, None) == pytest.approx(expected["dense"], rel=1e-9)


def test_a_merger_that_cannot_be_built_is_named() -> None:
    with pytest.raises(SpecError, match="demo_swin_maskrcnn.py with merger=.*'tau': 3"):
        backbone_gmacs(SWIN, dict(type="Pool", compression_ratio=0.5, tau=3))


def test_a_training_is_shorter_and_starts_where_it_is_told() -> None:
    changes = {"param_scheduler.0.end": 9, "custom_hooks": [{"a": 1}]}
    options = dict(iterations=90, cfg_options=changes)
    options["merger"] = dict(type="Pool", compression_ratio=RATIOS)
    cell = Cell("swin", "finetune", "Pool", "a", 5, options)
    cfg = training_config(SWIN, cell, "dense.pth")
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (90, 90)
    assert cfg.default_hooks.checkpoint.interval == 90
    assert [schedule.end for schedule in cfg.param_scheduler] == [9, 90]
    assert (cfg.load_from, cfg.randomness.seed, cfg.custom_hooks) == ("dense.pth", 5, [{"a": 1}])
    assert cfg.model.backbone.type == "LTMSwin"
    assert len(build_detector(cfg).backbone.mergers_by_point()) == 3

    dense = training_config(SWIN, Cell("swin", "train", "dense", "1", 2, {}))
    untouched = load_config(str(ROOT / SWIN.config))
    assert dense.randomness.seed == 2 and dense.get("load_from") is None
    untouched.randomness.seed = 2
    assert dense.to_dict() == untouched.to_dict()


def test_pretrained_weights_stay_in_training_from_scratch_alone(tmp_path: Path) -> None:
    config = tmp_path / "pretrained.py"
    weights = dict(type="Pretrained", checkpoint="imagenet.pth")
    config.write_text(
        f"_base_ = {str(ROOT / SWIN.config)!r}\nmodel = dict(backbone=dict(init_cfg={weights}))\n"
    )
    backbone = Backbone(str(config), (112, 112), (112, 112))
    for options in ({}, dict(merger=dict(type="Pool", compression_ratio=RATIOS))):
        cell = Cell("swin", "train", "any", "a", 0, options)
        assert training_config(backbone, cell).model.backbone.init_cfg == weights
        assert training_config(backbone, cell, "dense.pth").model.backbone.init_cfg is None


def test_iterations_of_a_config_that_counts_epochs_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "epochs.py"
    loop = "dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=3)"
    config.write_text(f"_base_ = {str(ROOT / SWIN.config)!r}\ntrain_cfg = {loop}\n")
    cell = Cell("swin", "train", "dense", "1", 0, dict(iterations=3))
    with pytest.raises(SpecError, match="epochs.py counts epochs"):
        training_config(Backbone(str(config), (8, 8), (8, 8)), cell)


def test_a_vit_takes_no_scope() -> None:
    with pytest.raises(ValueError, match="scope='stage' is not for a ViT"):
        model_config(VIT, dict(type="Pool", compression_ratio=0.5, scope="stage"))


def test_a_conversion_is_told_the_merger_as_it_is() -> None:
    merger = dict(type="LTM", compression_ratio=[[0.5, 1.0], 0.25], scope="stage", mask="hard")
    more = dict(merge_at=[4, 6], temperature=0.5, flag=True, nothing=None)
    cell = Cell("swin", "calibrate", "LTM", "a", 0, dict(merger=merger | more, images=12))
    words = conversion_options(cell)
    assert words[:6] == [
        "--merger", "LTM", "--compression-ratio", "[[0.5,1.0],0.25]", "--scope", "stage"
    ]  # fmt: skip
    assert json.loads(words[3]) == merger["compression_ratio"]
    assert words[6] == "--merger-options" and words[-2:] == ["--calibrate", "12"]
    pairs = (word.split("=") for word in words[7:-2])
    told = {key: DictAction._parse_iterable(value) for key, value in pairs}
    assert told == more | dict(mask="hard")
    plain = Cell("vit", "convert", "P", "a", 0, dict(merger=dict(type="P", compression_ratio=0.5)))
    assert conversion_options(plain) == ["--merger", "P", "--compression-ratio", "0.5"]
    nested = Cell("vit", "convert", "P", "a", 0, dict(merger=dict(type="P", compression_ratio={})))
    with pytest.raises(SpecError, match="vit-convert-P-a-seed0: .*cannot be converted to"):
        conversion_options(nested)


def row(mode: str, merger: str, seed: object, box: float, mask: float, **more: object) -> dict:
    values = dict(bbox_mAP=box, segm_mAP=mask, backbone_gmacs=2.0, of_dense=0.5, timing="t")
    setting = "1" if merger == "dense" else "a"
    fixed = dict(backbone="swin", mode=mode, merger=merger, setting=setting, seed=seed)
    return fixed | values | dict(time_ratio=NOT_MEASURED) | more


ROWS = [
    row("train", "dense", 0, 0.50, 0.40, of_dense=1.0),
    row("train", "dense", 1, 0.60, 0.50, of_dense=1.0),
    row("finetune", "Pool", 0, 0.30, 0.20),
    row("convert", "Pool", "0", "0.52", "0.33", time_ratio="0.8"),
    row("convert", "Pool", "1", "0.56", "0.44", time_ratio="0.8"),
    row("convert", "Pool", 2, 0.99, 0.99, time_ratio=0.8),
]


def test_differences_are_to_dense_of_the_same_seed() -> None:
    dense, alone, converted = summaries(ROWS)
    assert dense.ap == {"bbox_mAP": [50.0, 60.0], "segm_mAP": [40.0, 50.0]}
    assert dense.time_ratio is None and dense.of_dense == 1.0
    assert alone.against_dense == {"bbox_mAP": [], "segm_mAP": []}  # no fine-tuned dense one
    assert converted.ap["bbox_mAP"] == pytest.approx([52.0, 56.0, 99.0])
    assert converted.time_ratio == 0.8
    assert converted.against_dense["bbox_mAP"] == pytest.approx([2.0, -4.0])
    assert converted.against_dense["segm_mAP"] == pytest.approx([-7.0, -6.0])


def test_the_tables_have_means_and_spreads() -> None:
    text = markdown(ROWS)
    train, finetune, convert = text.split("\n## ")[1:]
    assert train.startswith("Trained") and finetune.startswith("Fine-tuned")
    assert convert.startswith("Converted from")
    table = [line for line in convert.splitlines() if line.startswith("| swin")]
    assert table == [
        "| swin | dense | 1 | 2 | 55.0 (50.0 to 60.0) | - | 45.0 (40.0 to 50.0) | - "
        "| 2.000 | 1.00 | not measured |",
        "| swin | Pool | a | 3 | 69.0 (52.0 to 99.0) | -1.0 (-4.0 to +2.0) "
        "| 58.7 (33.0 to 99.0) | -6.5 (-7.0 to -6.0) | 2.000 | 0.50 | 0.80 |",
    ]
    (alone,) = [line for line in finetune.splitlines() if line.startswith("| swin")]
    assert "| 1 | 30.0 | not measured | 20.0 | not measured |" in alone
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {12}
