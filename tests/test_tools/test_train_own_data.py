"""Training on one's own data by one command: what is named, what is said, and what comes out."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from ltm_det.basics.errors import InputError
from ltm_det.cli import own_data, own_run, predict, train
from ltm_det.engine import preflight
from tests.test_datasets.test_own import coco_folder, voc_folder, yolo_folder

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "configs/demo_ltm_swin_maskrcnn.py")


@pytest.mark.parametrize(
    ("make", "metric"),
    [
        (yolo_folder, "segm_mAP"),
        pytest.param(voc_folder, "bbox_mAP", marks=pytest.mark.slow),
    ],
)
def test_it_trains_and_can_be_tested(
    make: Callable, metric: str, main: Callable, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    make(tmp_path / "data")
    work = tmp_path / "work"
    words = ("--data", tmp_path / "data", "--epochs", 1, "--batch", 2, "--work-dir", work)
    assert main("train.py", DEMO, *words) == 0
    said = capfd.readouterr()
    assert "classes: 3" in said.out and metric in said.out + said.err
    (config,) = work.glob("*.py")  # what was trained, to be given to all other commands
    assert Config.fromfile(config).train_cfg.max_iters == 2
    last, following = said.out.splitlines()[-2:]
    label = "mask AP" if metric == "segm_mAP" else "box AP"
    assert f"{label} 0." in last and ("mask AP" in last) == (metric == "segm_mAP")
    for file in ("iter_2.pth", "curves.png", "predictions.png"):
        assert str(work / file) in last and (work / file).stat().st_size > 5000
    assert following.startswith(f"next: ltm-det predict {config} {work / 'iter_2.pth'} --images ")
    assert predict.parse(shlex.split(following)[3:])
    assert main("test.py", config, work / "iter_2.pth") == 0


def parsed(*words: str, say: Callable = print) -> Config:
    args = train.parse(list(words))
    cfg = preflight.load_run_config(args)
    data = own_data.use_own_data(cfg, args, say)
    own_run.set_up(cfg, args, data, say)
    return cfg


def weights(file: Path, *names: str) -> str:
    torch.save(dict(state_dict={name: torch.zeros(1) for name in names}), file)
    return str(file)


def test_a_family_is_a_config_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    coco_folder(tmp_path / "cats")
    given = ("--data", "cats", "--batch", "2", "--family", "swin_t")
    cfg = parsed(*given, "--merger", "ToMe")
    assert cfg.model.backbone.type == "LTMSwin" and cfg.model.backbone.merger.type == "ToMe"
    assert cfg.model.roi_head.bbox_head.num_classes == 3
    assert cfg.optim_wrapper.type == "OptimWrapper"  # there is no GPU
    assert cfg.work_dir == "work_dirs/cats_ltm_swin_t_maskrcnn"
    assert parsed(*given).model.backbone.merger.type == "LTM"
    assert parsed(*given, "--merger", "none").model.backbone.get("merger") is None
    given = ("--data", "cats", "--batch", "2", "--family", "vit_s")
    assert parsed(*given).model.backbone.type == "LTMViT"


def test_what_it_starts_from_is_said(tmp_path: Path) -> None:
    coco_folder(tmp_path / "cats")
    given = ("--data", str(tmp_path / "cats"), "--batch", "2", "--work-dir", str(tmp_path / "w"))
    detector = weights(tmp_path / "a.pth", "backbone.x", "roi_head.bbox_head.fc_cls.weight")
    backbone = weights(tmp_path / "b.pth", "patch_embed.proj.weight", "head.weight")
    said: list[str] = []
    cfg = parsed(*given, "--family", "swin_t", "--weights", detector, say=said.append)
    assert cfg.load_from == detector and cfg.model.backbone.init_cfg is None
    cfg = parsed(*given, "--family", "swin_t", "--weights", backbone, say=said.append)
    assert cfg.model.backbone.init_cfg.checkpoint == backbone and cfg.load_from is None
    cfg = parsed(*given, "--family", "swin_t", say=said.append)
    url = cfg.model.backbone.init_cfg.checkpoint
    cfg = parsed(*given, "--family", "swin_t", "--weights", "none", say=said.append)
    assert cfg.model.backbone.init_cfg is None and cfg.load_from is None
    starts = [line for line in said if "starts from" in line]
    assert [line.startswith(f"starts from the detector {detector}") for line in starts] == [
        True,
        False,
        False,
        False,
    ]
    assert starts[1].startswith(f"the backbone starts from {backbone},")
    assert starts[2].startswith(f"the backbone starts from {url},") and "://" in url
    assert starts[3].startswith("starts from random weights") and url in starts[3]
    with pytest.raises(InputError, match=r"gone\.pth"):
        parsed(*given, DEMO, "--weights", str(tmp_path / "gone.pth"))


def test_a_budget_sets_the_merger(tmp_path: Path) -> None:
    coco_folder(tmp_path / "cats")
    given = ("--data", str(tmp_path / "cats"), "--batch", "2", "--work-dir", str(tmp_path / "w"))
    small = ("model.backbone.depths=[1,1,2,1]", "model.backbone.out_indices=[0,1,2,3]")
    said: list[str] = []
    cfg = parsed(DEMO, *given, "--budget", "0.85", "--cfg-options", *small, say=said.append)
    (line,) = [line for line in said if "GMACs" in line]
    share = float(line.partition("has ")[2].split()[0])
    assert abs(share - 0.85) <= 0.05 and line.endswith("at 64 x 64")
    ratio = cfg.model.backbone.merger.compression_ratio
    assert isinstance(ratio, float) and f"compression_ratio={ratio}" in line
    assert cfg.model.backbone.merger.affinity == 0  # of the config's merger


def test_what_is_typed_wins(tmp_path: Path) -> None:
    coco_folder(tmp_path / "cats")
    given = ("train_cfg.max_iters=7", "default_hooks.checkpoint.interval=3")
    given += ("train_dataloader.batch_size=1", "optim_wrapper.type=AmpOptimWrapper")
    cfg = parsed(DEMO, "--data", str(tmp_path / "cats"), "--cfg-options", *given)
    assert cfg.train_cfg.max_iters == 7 and cfg.default_hooks.checkpoint.interval == 3
    assert cfg.train_dataloader.batch_size == 1
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give a config, or --data and --family"),
        (("--family", "swin_t"), "--family: of --data, which is missing"),
        ((DEMO, "--epochs", "3"), "--epochs: of --data"),
        (("--data", "cats"), "--data needs a config or --family"),
        ((DEMO, "--data", "cats", "--family", "swin_t"), "one of them"),
        ((DEMO, "--data", "cats", "--merger", "Pool"), "--merger is of --family"),
        ((DEMO, "--data", "cats", "--batch", "some"), "--batch: invalid"),
        ((DEMO, "--data", "cats", "--batch", "auto", "--launcher", "pytorch"), "give --batch N"),
        ((DEMO, "--precision", "auto"), "--precision auto goes with --data"),
        ((DEMO, "--amp", "--precision", "bfloat16"), "--amp is float16"),
        (("--data", "c", "--family", "vit_s", "--merger", "none", "--budget", "1"), "by merging"),
        ((DEMO, "--budget", "0.5"), "--budget: of --data"),
        ((DEMO, "--data", "cats", "--epochs", "0"), "--epochs must be at least 1, but is 0"),
        (("--data", "cats", "--family", "swin_x"), "invalid choice"),
    ],
)
def test_options_that_do_not_fit_are_named(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        train.parse(words)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_data_that_are_none_are_named(
    main: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main("train.py", DEMO, "--data", tmp_path / "gone", "--work-dir", tmp_path / "w") == 2
    assert "no data at" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
