"""Exported backbones give what the backbones give: at the exported size, and where free at any."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS

from ltm_det import deploy
from tests.test_backbones import swin_cases, vit_cases
from tests.test_backbones.harness import difference

CASES = dict(swin=swin_cases, vit=vit_cases)
FEW_BLOCKS = dict(
    swin=dict(sizes=dict(swin_cases.ONE_STAGE, depths=(2,))),
    vit=dict(depth=2, global_blocks=(1,)),
)
SIZES = [(2, 3, 64, 96), (1, 3, 37, 50), (3, 3, 18, 133)]  # no padding; odd; one window of some


def save(model: torch.nn.Module, file: Path) -> None:
    deploy.save(model, torch.randn(2, 3, *deploy.sample_size(model)), file, dynamic=True)


def assert_right_for_any_batch_and_size(model: torch.nn.Module, file: Path) -> None:
    save(model, file)
    run = deploy.load(file)
    for shape in SIZES:
        images = torch.randn(shape)
        with torch.no_grad():
            assert difference(run(images), model(images)) < 1e-4, shape


@pytest.mark.slow
def test_one_file_is_right_for_any_batch_and_size(tmp_path: Path) -> None:
    sizes = dict(swin_cases.ONE_STAGE, depths=(2,))
    model = swin_cases.build(dict(type="Pool", dense_blocks=0), sizes=sizes)
    assert_right_for_any_batch_and_size(model, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind, merger", [("swin", "LTM"), ("vit", "ToMe")])
def test_so_is_that_of_other_mergers(kind: str, merger: str, tmp_path: Path) -> None:
    model = CASES[kind].build(dict(type=merger), **FEW_BLOCKS[kind])
    assert_right_for_any_batch_and_size(model, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "dtype, tolerance", [("float32", 1e-5), pytest.param("bfloat16", 0.05, marks=pytest.mark.slow)]
)
def test_openvino_computes_in_the_dtype_of_the_file(
    dtype: str, tolerance: float, tmp_path: Path
) -> None:
    model = swin_cases.build(dict(type="Pool"), sizes=swin_cases.ONE_STAGE)
    images = torch.randn(1, 3, 37, 50)
    file = tmp_path / "model.xml"
    deploy.save(model, images, file, dtype=dtype)
    run = deploy.load(file, threads=1)
    with torch.no_grad():
        assert max(deploy.relative_errors(run(images), model(images))) < tolerance
    with pytest.raises(ValueError, match=r"\[1, 3, 37, 50\], got \[1, 3, 64, 64\].*--dynamic"):
        run(torch.randn(1, 3, 64, 64))


RELEASED = """
import os, signal
from ltm_det import deploy

first, second = (deploy.load(FILE, threads=1) for _ in range(2))
signal.signal(signal.SIGCHLD, lambda *_: print("signalled"))
del first
del second
if os.fork() == 0:
    os._exit(0)
os.wait()
print("alive")
"""


def test_signals_reach_what_outlives_its_files(tmp_path: Path, run_python: Callable) -> None:
    """OpenVINO gives signals another stack while a core lives: see `openvino_core`."""
    model = swin_cases.build(dict(type="Pool"), sizes=swin_cases.ONE_STAGE)
    file = tmp_path / "model.xml"
    deploy.save(model, torch.randn(1, 3, 37, 50), file)
    ran = run_python(RELEASED.replace("FILE", repr(str(file))))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["signalled", "alive"]


def test_a_file_takes_the_backbones_place(tmp_path: Path) -> None:
    model = swin_cases.build(None, sizes=dict(swin_cases.ONE_STAGE, depths=(1,)))
    images = torch.randn(1, 3, 16, 16)
    deploy.save(model, images, tmp_path / "model.onnx")
    file = str(tmp_path / "model.onnx")
    own = dict(type="mmdet.ExportedBackbone", file=file, threads=1)  # whatever scope is left
    twin = MODELS.build(own).eval()
    with torch.no_grad():
        assert difference(twin(images), model(images)) < 1e-4
        batch = torch.randn(3, 3, 16, 16)  # of which the file takes one at a time
        assert difference(twin(batch), model(batch)) < 1e-4
    assert not list(twin.parameters())
    with pytest.raises(RuntimeError, match="train the one it came from"):
        twin.train()(images)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.pt ends in none of \['.onnx', '.xml'\]"):
        deploy.load("model.pt")
    with pytest.raises(FileNotFoundError, match="none.onnx: make it with ltm-det export"):
        deploy.load(tmp_path / "none.onnx")
    model, images = swin_cases.build(None), torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match="model.pt ends in none of"):
        deploy.save(model, images, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"no bfloat16 in .onnx: choose one of \('float32',\)"):
        deploy.save(model, images, tmp_path / "model.onnx", dtype="bfloat16")
    with pytest.raises(ValueError, match="ResNet is not exported for any size"):
        deploy.sample_size(ResNet(18))
    assert not list(tmp_path.iterdir())


def test_a_missing_runtime_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").touch()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime.*ltm_det\[deploy\]"):
        deploy.load(tmp_path / "model.onnx")
