"""The wheel alone: no checkout, another folder, all commands from data to an exported file."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # which may name a checkout
MINE = """
_base_ = "ltm_det::demo_ltm_swin_maskrcnn.py"
train_cfg = dict(max_iters=2, val_interval=2)
model = dict(test_cfg=dict(rcnn=dict(score_thr=0.0)))
"""
IN_PYTHON = """
import ltm_det
from mmengine.hub import get_config, get_model
from pathlib import Path
assert "site-packages" in ltm_det.__file__, ltm_det.__file__
cfg = get_config("ltm_det::ltm_vit_s_maskrcnn.py")
assert cfg.model.backbone.type == "LTMViT"
print(type(get_model("ltm_det::demo_ltm_swin_maskrcnn.py")).__name__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; what it depends on is taken from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, ROOT]
    subprocess.run([*pip, *build], check=True, env=OWN)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env/bin/python"
    install = ["--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run([*pip, *install], check=True, env=OWN)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (site / "outer.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder


@pytest.fixture(scope="module")
def run(installed: Path) -> Callable[..., str]:
    """Runs a program of that environment in another folder; gives what it printed."""
    (installed / "elsewhere").mkdir()
    env = OWN | {"OMP_NUM_THREADS": "1"}

    def program(name: str, *words: object) -> str:
        command = [installed / "env/bin" / name, *map(str, words)]
        cwd = installed / "elsewhere"
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return program


@pytest.mark.slow
def test_from_data_to_an_exported_file(run: Callable, installed: Path) -> None:
    here = installed / "elsewhere"
    run("ltm-det", "demo-data", "--out", "data/demo", "--train", 8, "--val", 4)
    (here / "mine.py").write_text(MINE)
    run("ltm-det", "train", "mine.py", "--work-dir", "work")
    checkpoint = "work/iter_2.pth"
    assert "coco/segm_mAP" in run("ltm-det", "test", "mine.py", checkpoint, "--work-dir", "tested")
    run("ltm-det", "draw", "mine.py", checkpoint, "--out", "found.png", "--num", 1)
    assert (here / "found.png").stat().st_size > 1000
    counted = run("ltm-det", "flops", "ltm_det::ltm_swin_t_maskrcnn.py")
    assert "backbone" in counted and "0.779" in counted
    words = ["--part", "detector", "--shape", 112, 112, "--out", "whole.onnx"]
    run("ltm-det", "export", "mine.py", checkpoint, *words)
    assert (here / "whole.onnx").is_file()


@pytest.mark.slow
def test_configs_and_models_by_name(run: Callable, installed: Path) -> None:
    (installed / "script.py").write_text(IN_PYTHON)
    assert run("python", installed / "script.py").split()[-1] == "MaskRCNN"
