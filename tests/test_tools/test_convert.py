"""tools/convert.py on tiny data, in this process, and the unlabelled images it calibrates on."""

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import MMLogger

from ltm_det.conversion.calibration import relative_error
from ltm_det.conversion.convert import dense_backbone
from ltm_det.conversion.unlabelled import unlabelled_batches
from ltm_det.measure.flops import build_backbone, build_detector, count_backbone
from tests.test_tools.detectors import saved_detector

SWIN = """
_base_ = '{base}'
model = dict(backbone=dict(depths=[1, 2, 1, 2]))
"""
VIT = """
_base_ = '{base}'
model = dict(
    backbone=dict(
        _delete_=True, type='LTMViT', embed_dims=16, depth=4, num_heads=2, patch_size=8,
        window_size=4, pretrain_img_size=64),
    neck=dict(_delete_=True, type='SimpleFPN', in_channels=16, out_channels=16, num_outs=5))
"""
HALF = ["--compression-ratio", 0.5, "--shape", 64, 96]


@pytest.fixture(autouse=True)
def own_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool keeps mmengine's logger quiet: not that of the tests after it."""
    monkeypatch.setattr(MMLogger, "_instance_dict", OrderedDict())


@pytest.fixture(scope="module")
def swin(tiny_config: Path) -> tuple[Path, Path]:
    return saved_detector(tiny_config, "dense_swin", SWIN)


@pytest.fixture(scope="module")
def vit(tiny_config: Path) -> tuple[Path, Path]:
    return saved_detector(tiny_config, "dense_vit", VIT)


@pytest.fixture
def convert(main: Callable, tmp_path: Path, capsys) -> Callable[..., tuple[Config, dict, str]]:
    """Runs the tool: the config and the weights it writes, and what it prints."""

    def run(*options: object) -> tuple[Config, dict, str]:
        out = tmp_path / "new" / "merged.pth"
        assert main("convert.py", *options, "--out", out, "--overwrite") == 0
        weights = torch.load(out, weights_only=True)["state_dict"]
        return Config.fromfile(out.with_suffix(".py")), weights, capsys.readouterr().out

    return run


def backbones_of(cfg: Config, weights: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The merged backbone, and its dense twin."""
    detector = build_detector(cfg)
    detector.load_state_dict(weights)
    return detector.eval().backbone, dense_backbone(cfg, detector)


@pytest.mark.parametrize("kind", ["swin", pytest.param("vit", marks=pytest.mark.slow)])
def test_the_converted_detector_is_evaluated_by_the_test_tool(
    kind: str, main: Callable, request, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "it's" / "merged.pth"
    options = request.getfixturevalue(kind)
    assert main("convert.py", *options, *HALF, "--calibrate", 4, "--steps", 2, "--out", out) == 0
    printed, progress = capsys.readouterr()
    assert "calibrate: 100%" in progress and "2/2" in progress
    command = printed.splitlines()[-1]
    assert command == (
        f"Evaluate it: ltm-det test '{tmp_path}/it'\"'\"'s/merged.py' "
        f"'{tmp_path}/it'\"'\"'s/merged.pth'"
    )
    assert main("test.py", out.with_suffix(".py"), out, "--work-dir", tmp_path / "tested") == 0
    (scores,) = (tmp_path / "tested").glob("*/*.json")
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= json.loads(scores.read_text()).keys()


@pytest.mark.parametrize("kind", ["swin", pytest.param("vit", marks=pytest.mark.slow)])
def test_it_prints_macs_and_errors_and_calibration_helps(
    kind: str, convert: Callable, request
) -> None:
    files = request.getfixturevalue(kind)
    cfg, weights, printed = convert(*files, *HALF)
    merged, twin = backbones_of(cfg, weights)
    macs = [count_backbone(model, (64, 96)).macs["backbone"] / 1e9 for model in (twin, merged)]
    expected = "Backbone at 64 x 96: {:.2f} GMACs dense, {:.2f} merged, ratio {:.3f}\n"
    assert expected.format(*macs, macs[1] / macs[0]) in printed
    assert macs[1] < macs[0] and "Relative error" not in printed

    options = ["--calibrate", 3, "--batch-size", 2, "--steps", 30, "--lr", 0.005]
    cfg, fitted, printed = convert(*files, *HALF, *options)
    (line,) = (line for line in printed.splitlines() if "Relative error" in line)
    assert "2 held-out images" in line  # 3 are two batches, beside which there is one
    held_out = unlabelled_batches(cfg, 6, 2)[2:]
    errors = [relative_error(*backbones_of(cfg, w), held_out) for w in (weights, fitted)]
    assert f"{errors[0]:.4f} before calibration, {errors[1]:.4f} after" in line
    assert errors[1] < errors[0]
    for key, value in weights.items():
        assert torch.equal(value, fitted[key]) == ("merger" not in key), key


def test_merger_options_reach_the_backbone(convert: Callable, swin: tuple, vit: tuple) -> None:
    ratios = ["--compression-ratio", "[1,[1,0.3],1,0.5]", "--scope", "block"]
    options = ["--merger-options", "mask=hard", "dense_blocks=[0,0,0,[1]]"]
    shown = ["--shape", 64, 64, "--cfg-options", "test_evaluator.metric=[bbox]"]
    cfg, _, _ = convert(*swin, *ratios, *options, *shown)
    assert cfg.model.backbone.merger == dict(
        type="LTM",
        compression_ratio=[1, [1, 0.3], 1, 0.5],
        scope="block",
        mask="hard",
        dense_blocks=[0, 0, 0, [1]],
    )
    points = build_backbone(cfg).mergers_by_point()
    assert list(points) == ["stages.1.blocks.1.ffn", "stages.3.blocks.0.ffn"]
    assert cfg.test_evaluator.metric == ["bbox"]
    cfg, _, _ = convert(*vit, *HALF, "--merger-options", "merge_at=2")
    assert list(build_backbone(cfg).mergers_by_point()) == ["blocks.2"]


def test_pool_is_converted_but_not_calibrated(convert: Callable, swin: tuple) -> None:
    cfg, weights, printed = convert(*swin, *HALF, "--merger", "Pool", "--calibrate", 4)
    assert "Not calibrated: nothing to calibrate: Pool has no parameters" in printed
    assert cfg.model.backbone.merger.type == "Pool"
    assert not any("merger" in key for key in weights)


def test_a_calibration_that_does_not_help_is_said_so(convert: Callable, vit: tuple) -> None:
    options = ["--calibrate", 2, "--batch-size", 2, "--steps", 2, "--lr", 1e30]
    _, weights, printed = convert(*vit, *HALF, *options)
    assert "It did not help" in printed and "--lr" in printed
    _, start, _ = convert(*vit, *HALF)
    assert all(torch.equal(weights[key], start[key]) for key in start)


def test_what_is_there_is_not_overwritten_unasked(
    main: Callable, swin: tuple, tmp_path: Path, capsys
) -> None:
    for there in ("a.pth", "a.py"):
        out = tmp_path / there.partition(".")[2] / "a.pth"
        out.parent.mkdir()
        kept = out.with_name(there)
        kept.write_text("mine")
        assert main("convert.py", *swin, *HALF, "--out", out) == 2
        error = capsys.readouterr().err
        assert f"{kept} exist" in error and "--overwrite" in error
        assert kept.read_text() == "mine" and list(out.parent.iterdir()) == [kept]


def test_what_is_missing_or_unfit_is_named(
    main: Callable, swin: tuple, vit: tuple, tiny_config: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "new" / "a.pth"

    def error(*options: object) -> str:
        assert main("convert.py", *options, "--out", out) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("convert.py: ") and "Traceback" not in printed
        assert not out.parent.exists()
        return printed

    config, checkpoint = swin
    assert "ltm_det::NAME.py" in error("no.py", checkpoint, *HALF)
    assert "no checkpoint at no.pth" in error(config, "no.pth", *HALF)
    gone = ["--cfg-options", "train_dataloader.dataset.data_root=gone"]
    found = error(*swin, *HALF, "--calibrate", 4, *gone)
    assert "train_dataloader.dataset.data_root=DIR" in found
    assert "16 images are wanted, but train has 8" in error(*swin, *HALF, "--calibrate", 8)
    assert "does not fit" in error(tiny_config, checkpoint, *HALF)
    assert "merge_at" in error(*vit, *HALF, "--scope", "stage")
    assert "colour" in error(*swin, *HALF, "--merger-options", "colour=red")
    assert "(0, 1]" in error(*swin, "--compression-ratio", 2)
    refused = ["http://127.0.0.1:9/none.pth", *HALF]
    assert "cannot download http://127.0.0.1:9/none.pth" in error(config, *refused)


@pytest.mark.parametrize(
    "options",
    [
        ["--compression-ratio", "half"],
        ["--compression-ratio", '"0.5"'],
        ["--compression-ratio", 0.5, "--merger", "Blur"],
        ["--compression-ratio", 0.5, "--scope", "window"],
        ["--compression-ratio", 0.5, "--calibrate", 0],
        ["--compression-ratio", 0.5, "--steps", 0],
        ["--compression-ratio", 0.5, "--batch-size", -1],
        ["--compression-ratio", 0.5, "--lr", 0],
        ["--compression-ratio", 0.5, "--merger-options", "type=Pool"],
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_bad_options_are_refused_before_anything_is_read(
    main: Callable, capsys, options: list
) -> None:
    with pytest.raises(SystemExit) as end:
        main("convert.py", "no.py", "no.pth", "--out", "no/a.pth", *options)
    assert end.value.code == 2
    assert options[-2] in capsys.readouterr().err.splitlines()[-1]


def test_unlabelled_images_are_those_of_a_test(tiny_config: Path) -> None:
    cfg = Config.fromfile(tiny_config)
    preprocessor = MODELS.build(copy.deepcopy(cfg.model.data_preprocessor))
    pipeline = Compose([step for step in cfg.load + list(cfg.test_dataloader.dataset.pipeline)])
    root = tiny_config.parent / "train"
    expected = []
    for path in sorted(root.iterdir()):
        number = int(path.stem)
        data = pipeline(dict(img_path=str(path), img_id=number, instances=[]))
        batch = dict(inputs=[data["inputs"]], data_samples=[data["data_samples"]])
        expected.append(preprocessor(batch, training=False)["inputs"][0])
    batches = unlabelled_batches(cfg, 8, 1)
    assert [batch.shape[0] for batch in batches] == [1] * 8
    found = [batch[0] for batch in batches]
    for image in expected:
        assert sum(image.equal(other) for other in found) == 1  # each once
    assert {(3, 64, 64)} == {tuple(image.shape) for image in found}  # padded to 32


def test_unlabelled_images_are_drawn_by_the_seed(tiny_config: Path) -> None:
    cfg = Config.fromfile(tiny_config)
    first, again, other = (unlabelled_batches(cfg, 7, 3, seed=seed) for seed in (0, 0, 1))
    assert [len(batch) for batch in first] == [3, 3, 1]
    assert all(map(torch.equal, first, again)) and not all(map(torch.equal, first, other))
    fewer = torch.cat(unlabelled_batches(cfg, 5, 2))
    assert torch.equal(torch.cat(first)[:5], fewer)
    assert len(torch.cat(unlabelled_batches(cfg, 4, split="val"))) == 4


def test_unlabelled_images_of_wrapped_data_and_without_objects(tiny_config: Path) -> None:
    cfg = Config.fromfile(tiny_config)
    plain = torch.cat(unlabelled_batches(cfg, 8))
    leaf = cfg.train_dataloader.dataset
    leaf.filter_cfg = dict(min_size=1000)  # of training alone
    val = dict(copy.deepcopy(cfg.val_dataloader.dataset))
    twice = dict(type="RepeatDataset", times=2, dataset=dict(leaf))
    cfg.train_dataloader.dataset = dict(type="ConcatDataset", datasets=[twice, val])
    both = torch.cat(unlabelled_batches(cfg, 12))
    assert sum(any(image.equal(other) for other in plain) for image in both) == 8
    with pytest.raises(ValueError, match="13 images are wanted, but train has 12"):
        unlabelled_batches(cfg, 13)


def test_bad_wishes_for_unlabelled_images_are_named(tiny_config: Path) -> None:
    cfg = Config.fromfile(tiny_config)
    with pytest.raises(ValueError, match="5 images are wanted, but val has 4"):
        unlabelled_batches(cfg, 5, split="val")
    with pytest.raises(ValueError, match="images=0"):
        unlabelled_batches(cfg, 0)
    with pytest.raises(ValueError, match="batch_size=0"):
        unlabelled_batches(cfg, 1, 0)
    with pytest.raises(ValueError, match="split 'none'"):
        unlabelled_batches(cfg, 1, split="none")
    cfg.test_dataloader = cfg.val_dataloader = None
    with pytest.raises(ValueError, match="split 'val'"):
        unlabelled_batches(cfg, 1, split="val")
    with pytest.raises(ValueError, match="no test_dataloader or val_dataloader"):
        unlabelled_batches(cfg, 1)


def test_safetensors_are_written_and_tested(
    main: Callable, swin: tuple, tmp_path: Path, capsys
) -> None:
    for name, option in (("a.safetensors", []), ("b.pth", ["--safetensors"])):
        out = (tmp_path / name).with_suffix(".safetensors")
        assert main("convert.py", *swin, *HALF, "--out", tmp_path / name, *option) == 0
        assert f"{out}" in capsys.readouterr().out and not (tmp_path / "b.pth").exists()
        assert main("test.py", out.with_suffix(".py"), out, "--work-dir", tmp_path / "t") == 0
