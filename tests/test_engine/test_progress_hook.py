"""The bar of a run: on a terminal alone, with what it has to say, and gone at the end."""

import sys
from pathlib import Path

import pytest

from ltm_det.engine.progress_hook import ProgressHook
from tests.test_engine.tiny_detector import build


def bars(root: Path, folder: Path) -> ProgressHook:
    settings = dict(train_cfg__max_iters=4, train_cfg__val_interval=2)
    runner = build(root, folder, [], True, model__test_cfg__rcnn__score_thr=0.0, **settings)
    hook = ProgressHook()
    runner.register_hook(hook)
    runner.train()
    return hook


def test_a_bar_on_a_terminal(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    hook = bars(root, tmp_path)
    shown = capfd.readouterr().err
    assert "training: 100%" in shown and "4/4" in shown and " steps/s" in shown
    assert "loss=" in shown and "bbox AP=" in shown and "validation:" in shown
    assert hook.bar is None and hook.below is None


def test_no_bar_in_a_log(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    hook = bars(root, tmp_path)
    assert "training:" not in capfd.readouterr().err and not hook.told
