"""Training on one's own data by one command: what is named, what is said, and what comes out."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config

from ltm_det.cli import own_data, train
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
    assert main("test.py", config, work / "iter_2.pth") == 0


def parsed(*words: str) -> Config:
    args = train.parse([*words, "--cfg-options", "model.backbone.init_cfg=None"])
    cfg = preflight.load_run_config(args)
    own_data.use_own_data(cfg, args, print)
    return cfg


def test_a_family_is_a_config_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    coco_folder(tmp_path / "cats")
    given = ("--data", "cats", "--family", "swin_t")
    cfg = parsed(*given, "--merger", "ToMe", "--weights", "mine.pth")
    assert cfg.model.backbone.type == "LTMSwin" and cfg.model.backbone.merger.type == "ToMe"
    assert cfg.load_from == "mine.pth" and cfg.model.roi_head.bbox_head.num_classes == 3
    assert cfg.optim_wrapper.type == "OptimWrapper"  # there is no GPU
    assert cfg.work_dir == "work_dirs/cats_ltm_swin_t_maskrcnn"
    assert parsed(*given).model.backbone.merger.type == "LTM"
    assert parsed(*given, "--merger", "none").model.backbone.get("merger") is None
    assert parsed("--data", "cats", "--family", "vit_s").model.backbone.type == "LTMViT"


def test_what_is_typed_wins(tmp_path: Path) -> None:
    coco_folder(tmp_path / "cats")
    given = ("train_cfg.max_iters=7", "default_hooks.checkpoint.interval=3")
    args = train.parse([DEMO, "--data", str(tmp_path / "cats"), "--cfg-options", *given])
    cfg = preflight.load_run_config(args)
    own_data.use_own_data(cfg, args, print)
    assert cfg.train_cfg.max_iters == 7 and cfg.default_hooks.checkpoint.interval == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give a config, or --data and --family"),
        (("--family", "swin_t"), "--family: of --data, which is missing"),
        ((DEMO, "--epochs", "3"), "--epochs: of --data"),
        (("--data", "cats"), "--data needs a config or --family"),
        ((DEMO, "--data", "cats", "--family", "swin_t"), "one of them"),
        ((DEMO, "--data", "cats", "--merger", "Pool"), "--merger is of --family"),
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
