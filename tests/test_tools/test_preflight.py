"""What a run needs and does not find is named in one message with the remedy, and exit code 2."""

from collections.abc import Callable
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from ltm_det.basics.errors import InputError
from ltm_det.engine import PreflightError, advice, preflight

ROOT = Path(__file__).resolve().parents[2]
LEAF = dict(type="CocoDataset", data_root="no/coco", ann_file="a.json", data_prefix=dict(img="i/"))


def config(**settings: object) -> Config:
    return Config(dict(model=dict(type="MaskRCNN", backbone=dict(type="Swin")), **settings))


def with_data(dataset: dict, **settings: object) -> Config:
    return config(train_cfg=dict(), train_dataloader=dict(dataset=dataset), **settings)


@pytest.mark.parametrize(
    "dataset",
    [
        LEAF,
        dict(type="RepeatDataset", times=2, dataset=LEAF),
        dict(type="ConcatDataset", datasets=[LEAF, dict(LEAF, data_root="/elsewhere")]),
        dict(type="MultiImageMixDataset", dataset=dict(type="RepeatDataset", dataset=LEAF)),
    ],
    ids=["plain", "repeat", "concat", "mix of repeat"],
)
def test_missing_data_is_found_inside_any_wrapper(dataset: dict) -> None:
    with pytest.raises(PreflightError, match="train_dataloader is not there: no/coco/a.json"):
        preflight.check_data(with_data(dataset), "train", "val")


def test_present_data_passes_and_a_missing_image_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    leaf = dict(LEAF, data_root=str(tmp_path))
    with pytest.raises(PreflightError, match=f"{tmp_path}/i/"):
        preflight.check_data(with_data(leaf), "train")
    (tmp_path / "i").mkdir()
    preflight.check_data(with_data(leaf), "train")


def test_a_missing_file_among_several_datasets_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "i").mkdir()
    there = dict(LEAF, data_root=str(tmp_path))
    both = dict(type="ConcatDataset", datasets=[there, LEAF])
    with pytest.raises(PreflightError, match="no/coco/a.json"):
        preflight.check_data(with_data(both), "train")


def test_remote_data_and_splits_switched_off_are_not_looked_for() -> None:
    preflight.check_data(with_data(dict(LEAF, data_root="s3://bucket/coco")), "train", "val")
    off = config(val_cfg=None, val_dataloader=dict(dataset=LEAF))
    preflight.check_data(off, "val")


@pytest.mark.parametrize(
    ("root", "remedy"),
    [
        ("no/coco/", "data/coco/train2017/"),
        ("no/demo/", "ltm-det demo-data --out no/demo/"),
        ("no/cats/", "train_dataloader.dataset.data_root=DIR"),
    ],
)
def test_the_remedy_fits_the_data(root: str, remedy: str) -> None:
    with pytest.raises(PreflightError) as error:
        preflight.check_data(with_data(dict(LEAF, data_root=root)), "train")
    assert remedy in str(error.value)
    assert "demo-data" in str(error.value)


def test_missing_annotations_of_an_evaluator() -> None:
    cfg = config(
        test_cfg=dict(), test_dataloader=dict(dataset={}), test_evaluator=dict(ann_file="no.json")
    )
    with pytest.raises(PreflightError, match="test_evaluator.ann_file=FILE"):
        preflight.check_data(cfg, "test")


def test_missing_weights() -> None:
    cfg = config(load_from="no/start.pth")
    with pytest.raises(PreflightError, match="no load_from at no/start.pth"):
        preflight.check_weights(cfg)
    cfg = config()
    cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint="no/swin.pth")
    with pytest.raises(PreflightError, match="no/swin.pth(?s:.)*model.backbone.init_cfg=None"):
        preflight.check_weights(cfg)
    cfg.model.backbone.init_cfg.checkpoint = "https://example.org/swin.pth"
    cfg.load_from = "https://example.org/start.pth"
    preflight.check_weights(cfg)  # whether a URL answers is for the download to tell


@pytest.mark.parametrize(
    "error",
    [
        URLError("no route"),
        HTTPError("https://example.org/swin.pth", 404, "Not Found", {}, None),
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
        IncompleteRead(b""),
    ],
    ids=lambda e: type(e).__name__,
)
def test_network_errors_name_the_url(error: Exception, tmp_path: Path, monkeypatch) -> None:
    def download(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for ending in ("pth", "safetensors?download=true"):
        url = f"https://example.org/swin.{ending}"
        with pytest.raises(InputError) as named:
            CheckpointLoader.load_checkpoint(url)
        assert f"cannot download {url}" in str(named.value)
        assert "model.backbone.init_cfg=None" in str(named.value)


def test_what_is_no_config_of_a_detector(tmp_path: Path) -> None:
    for name, text, message in (
        ("syntax", "model = (", r"syntax\.py: syntax error"),
        ("name", "model = nothing", r"name\.py.*nothing"),
        ("data", "x = 1", "has no 'model'"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(InputError, match=message):
            preflight.load_config(str(tmp_path / f"{name}.py"))
    (tmp_path / "a.py").write_text("model = dict(type='A', parts=[1])")
    with pytest.raises(InputError, match=r"--cfg-options model.parts.7=1: .*list of 1"):
        preflight.load_config(str(tmp_path / "a.py"), {"model.parts.7": 1})


def test_missing_config_and_missing_base(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="no config file at no.py"):
        preflight.load_config("no.py")
    (tmp_path / "heir.py").write_text('_base_ = "./gone.py"')
    with pytest.raises(PreflightError, match="gone.py"):
        preflight.load_config(str(tmp_path / "heir.py"))


@pytest.fixture
def fails(main: Callable, capsys: pytest.CaptureFixture) -> Callable:
    """Runs a tool that is to fail; gives its message."""

    def run(name: str, *options: object) -> str:
        assert main(name, *options) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{name}: ")
        assert "Traceback" not in error
        return error

    return run


def test_train_without_coco(fails: Callable, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = fails("train.py", ROOT / "configs/ltm_swin_s_maskrcnn.py")
    assert "data/coco/annotations/instances_train2017.json" in error
    assert "demo-data" in error
    assert not list(tmp_path.iterdir())


def test_train_with_missing_weights(fails: Callable, tiny_config: Path, tmp_path: Path) -> None:
    weights = "model.backbone.init_cfg.checkpoint=no/swin.pth"
    options = ["--cfg-options", "model.backbone.init_cfg.type=Pretrained", weights]
    assert "no/swin.pth" in fails("train.py", tiny_config, "--work-dir", tmp_path, *options)
    assert "no/c.pth" in fails("train.py", tiny_config, "--resume", "no/c.pth")
    assert not list(tmp_path.iterdir())


def test_only_the_first_process_of_a_machine_speaks(
    main: Callable, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main("train.py", "no.py", "--launcher", "pytorch") == 2
    assert capsys.readouterr().err == ""


def test_test_without_checkpoint_or_data(fails: Callable, tiny_config: Path, tmp_path) -> None:
    assert "no checkpoint at no.pth" in fails("test.py", tiny_config, "no.pth")
    checkpoint = tmp_path / "c.pth"
    torch.save(dict(weight=torch.zeros(1)), checkpoint)
    moved = ["--cfg-options", "test_dataloader.dataset.data_root=no/data"]
    assert "no/data/val.json" in fails("test.py", tiny_config, checkpoint, *moved)
    assert "no config file" in fails("test.py", "no.py", checkpoint)


def test_amp_and_auto_scale_lr_say_what_they_need(
    fails: Callable, tiny_config: Path, monkeypatch
) -> None:
    monkeypatch.setattr(preflight, "get_device", lambda: "cpu")
    assert "needs a GPU" in fails("train.py", tiny_config, "--amp")
    assert "base_batch_size" in fails("train.py", tiny_config, "--auto-scale-lr")


@pytest.mark.parametrize(
    ("device", "threads", "load", "told"),
    [("cpu", 2, 99.0, True), ("cpu", 2, 0.1, False), ("cpu", 1, 99.0, False), ("cuda", 2, 99.0, 0)],
)
def test_a_busy_machine_is_told(device, threads, load, told, monkeypatch) -> None:
    monkeypatch.setattr(advice, "get_device", lambda: device)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(advice.os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(advice.os, "cpu_count", lambda: 4)
    words = advice.busy_advice()
    assert bool(words) == bool(told)
    assert not told or "load 99.0" in words and "OMP_NUM_THREADS=1" in words


@pytest.mark.slow
def test_unreachable_url_ends_in_one_message(tool: Callable, tiny_config: Path, tmp_path) -> None:
    """The whole way, in a process of its own; nothing listens on port 9 of this machine."""
    weights = "http://127.0.0.1:9/swin.pth"
    options = ["model.backbone.init_cfg.type=Pretrained"]
    options += [f"model.backbone.init_cfg.checkpoint={weights}"]
    done = tool("train.py", tiny_config, "--work-dir", tmp_path / "w", "--cfg-options", *options)
    assert done.returncode == 2
    assert f"train.py: cannot download {weights}" in done.stderr
    assert "model.backbone.init_cfg=None" in done.stderr
    assert "Traceback" not in done.stderr
