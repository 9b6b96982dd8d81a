"""What breaks in the first steps of a run is told as a part of the config; later, it is a bug."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmdet.models import FPN
from torch import nn

from ltm_det.cli import main as console
from ltm_det.engine.first_step import by_type, in_model, named

CODER = "model.roi_head.bbox_head.bbox_coder"
FIRST = "failed in training step 1"
# Settings that build and cannot run, and what the message has to say.
SETTINGS = {
    f"{CODER}.target_stds=[1,2,3,4,5]": rf"{CODER} \(DeltaXYWHBBoxCoder\) {FIRST}: .*tensor",
    "model.train_cfg.rcnn.sampler.num=None": rf"model.roi_head \(RandomSampler\) {FIRST}: ",
    "model.train_cfg.rcnn.mask_size=0": rf"model.roi_head.mask_head \(FCNMaskHead\) {FIRST}",
    "train_dataloader.dataset.pipeline.5.meta_keys=None": (
        rf"train_dataloader.dataset.pipeline.5 \(PackDetInputs\) {FIRST}: TypeError"
    ),
    "model.test_cfg.rpn=x": r"model.rpn_head \(RPNHead\) failed in test step 1: Attribute",
}
SHORT = """
_base_ = '{base}'
train_cfg = dict(max_iters=20, val_interval=1)
train_dataloader = dict(num_workers={workers}, persistent_workers=False)
"""


@pytest.fixture
def short(tiny_config: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Config of a run of steps that are each followed by a validation."""

    def write(workers: int = 0) -> Path:
        file = tmp_path / "short.py"
        file.write_text(SHORT.format(base=tiny_config, workers=workers))
        return file

    return write


def ends(capsys: pytest.CaptureFixture, config: Path, *settings: str) -> str:
    """The message of a run that ends with 2, in one line."""
    words = ["train", str(config), "--work-dir", str(config.with_suffix("")), "--cfg-options"]
    capsys.readouterr()
    assert console([*words, *(settings or ["randomness.seed=1"])]) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_that_cannot_run(setting: str, short: Callable, capsys) -> None:
    told = ends(capsys, short(), setting)
    assert re.search(SETTINGS[setting], told) and "Traceback" not in told
    assert "LTM_DET_TRACEBACK=1" in told


def test_in_a_worker_of_the_loader(short: Callable, capsys) -> None:
    """Of its error there is but a text, which ends with what it was."""
    told = ends(capsys, short(1), "train_dataloader.dataset.pipeline.5.meta_keys=None")
    assert f"a worker of the data loader {FIRST}: TypeError: 'NoneType' object is not" in told
    assert "Traceback" not in told


def breaks(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The neck in one of its calls, counted from 1."""
    own, calls = FPN.forward, []

    def forward(self: FPN, maps: object) -> object:
        calls.append(1)
        if len(calls) == call:
            raise ValueError("a bug")
        return own(self, maps)

    monkeypatch.setattr(FPN, "forward", forward)


def test_the_traceback_can_be_asked_for(short: Callable, capsys, monkeypatch) -> None:
    breaks(monkeypatch, call=1)
    monkeypatch.setenv("LTM_DET_TRACEBACK", "1")
    told = ends(capsys, short())
    assert "in forward" in told and f"model.neck (FPN) {FIRST}: a bug" in told


@pytest.mark.parametrize("step", [2, 11])
def test_a_bug_keeps_its_traceback(step: int, short: Callable, capsys, monkeypatch) -> None:
    """The first ten steps show whether a config can be run."""
    breaks(monkeypatch, call=step)
    config = short()
    config.write_text(config.read_text().replace("val_interval=1", "val_interval=20"))
    if step == 2:
        told = ends(capsys, config)
        assert "model.neck (FPN) failed in training step 2: a bug" in told
        return
    with pytest.raises(ValueError, match="^a bug$"):
        console(["train", str(config), "--work-dir", str(config.with_suffix(""))])


def test_a_resumed_run_has_first_steps_too(short: Callable, capsys) -> None:
    config = short()
    text = config.read_text().replace(
        "max_iters=20, val_interval=1", "max_iters=12, val_interval=50"
    )
    config.write_text(text + "default_hooks = dict(checkpoint=dict(interval=12))\n")
    words = ["train", str(config), "--work-dir", str(config.with_suffix(""))]
    assert console(words) == 0
    capsys.readouterr()
    settings = ["train_cfg.max_iters=14", "model.train_cfg.rcnn.mask_size=0"]
    assert console([*words, "--resume", "--cfg-options", *settings]) == 2
    assert "(FCNMaskHead) failed in training step 1: " in capsys.readouterr().err


class Coder:
    """What a head holds, and is no module."""


def test_names_of_what_a_module_holds() -> None:
    head = nn.Linear(2, 2)
    head.offsets, head.coder = torch.zeros(3), Coder()
    names = named(nn.Sequential(head))
    assert names[id(head.coder)] == "0.coder" and names[id(head)] == "0"
    assert id(True) not in names


def test_paths() -> None:
    cfg = dict(
        model=dict(roi_head=dict(bbox_head=[dict(type="A"), dict(type="A", loss=dict(type="L"))])),
        train_loader=dict(pipeline=[dict(type="T")]),
        val_loader=dict(pipeline=[dict(type="mmdet.T")]),
    )
    assert in_model("roi_head.bbox_head.1.loss.other", cfg) == "model.roi_head.bbox_head.1.loss"
    assert in_model("backbone.stages.0", cfg) == "model"
    assert by_type("T", cfg, "val") == "val_loader.pipeline.0"
    assert by_type("T", cfg, "train") == by_type("T", cfg, "test") == "train_loader.pipeline.0"
    assert by_type("X", cfg, "") is None


RANKS = """
import os
from mmdet.registry import TRANSFORMS

@TRANSFORMS.register_module()
class BadInOneProcess:
    def __call__(self, results):
        if os.environ["RANK"] == "1":
            raise ValueError("a bad picture")
        return results
"""


@pytest.mark.slow
def test_each_process_says_what_it_failed_of(short: Callable, tmp_path: Path) -> None:
    """And the other one not that a part of the config had."""
    config = short()
    (tmp_path / "ranks.py").write_text(RANKS)
    with open(config, "a") as file:
        file.write("custom_imports = dict(imports=['ltm_det', 'ranks'])\n")
        file.write("env_cfg = dict(dist_cfg=dict(backend='gloo'))\n")
    words = ["torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "ltm_det.cli"]
    words += ["train", str(config), "--work-dir", str(tmp_path / "w"), "--launcher=pytorch"]
    words += ["--cfg-options", "train_dataloader.dataset.pipeline.4.type=BadInOneProcess"]
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    run = subprocess.run(
        [sys.executable, "-m", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode
    assert "(BadInOneProcess) failed in training step 1: a bad picture" in run.stderr
    assert "DistributedDataParallel" not in run.stderr.partition("LTM_DET_TRACEBACK")[0]
