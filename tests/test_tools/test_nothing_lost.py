"""What commands read is not written over, and what a run has left is not lost to another one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ltm_det.cli import main as console

TINY = """
_base_ = '{base}'
train_cfg = dict(max_iters=2, val_interval=20)
default_hooks = dict(checkpoint=dict(interval=2))
train_dataloader = dict(num_workers=0, persistent_workers=False)
"""
HOLD = """
import sys, time
from pathlib import Path
from ltm_det.engine.work_folder import occupied
with occupied(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def config(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "swin.py"
    file.write_text(TINY.format(base=tiny_config))
    return file


@pytest.fixture(scope="module")
def trained(config: Path) -> Path:
    """A run's folder, with its config and its checkpoint."""
    folder = config.parent / "trained"
    assert console(["train", str(config), "--work-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """The message of a command that must end with 2, in one line."""

    def run(*words: object) -> str:
        capsys.readouterr()
        try:
            code = console([*map(str, words)])
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr().err
        assert code == 2 and "Traceback" not in told, told
        return " ".join(told.split())

    return run


def test_a_test_leaves_the_runs_config_alone(trained: Path) -> None:
    config = trained / "swin.py"
    before = config.read_text()
    words = ["test", str(config), str(trained / "iter_2.pth"), "--cfg-options"]
    assert console([*words, "model.test_cfg.rcnn.score_thr=0.9"]) == 0
    assert config.read_text() == before


def test_a_training_leaves_the_config_that_it_reads_alone(trained: Path, tmp_path: Path) -> None:
    config = tmp_path / "swin.py"
    config.write_text((trained / "swin.py").read_text())
    words = ["train", str(config), "--work-dir", str(tmp_path)]
    before = config.read_text()
    assert console([*words, "--cfg-options", "optim_wrapper.optimizer.lr=1e-4"]) == 0
    assert config.read_text() == before
    (own,) = tmp_path.glob("20*.py")  # the run's, by its time
    assert "lr=0.0001" in own.read_text()


def test_pictures_of_the_data_are_not_painted_over(trained, tiny_config, refused, tmp_path) -> None:
    words = ["test", trained / "swin.py", trained / "iter_2.pth", "--work-dir", tmp_path]
    told = refused(*words, "--show-dir", tiny_config.parent / "val")
    assert "could be written over" in told


def test_a_checkpoint_is_not_exported_over(trained: Path, refused: Callable, tmp_path) -> None:
    checkpoint = tmp_path / "model.bin"
    checkpoint.write_bytes((trained / "iter_2.pth").read_bytes())
    words = ["export", trained / "swin.py", checkpoint, "--shape", 64, 64]
    assert "of something else, would be written over" in refused(
        *words, "--out", tmp_path / "model.xml"
    )
    (tmp_path / "model.xml").touch()  # as if both were of one model
    assert "is read, and would be written over" in refused(*words, "--out", tmp_path / "model.xml")
    assert checkpoint.read_bytes() == (trained / "iter_2.pth").read_bytes()


def test_a_checkpoint_is_not_converted_over(trained: Path, refused: Callable, tmp_path) -> None:
    checkpoint = tmp_path / "dense.pth"
    checkpoint.write_bytes((trained / "iter_2.pth").read_bytes())
    words = ["convert", trained / "swin.py", checkpoint, "--out", checkpoint, "--overwrite"]
    told = refused(*words, "--compression-ratio", 0.5)
    assert "is read, and would be written over" in told


def test_an_earlier_runs_checkpoints_are_put_aside(config: Path, tmp_path: Path, capsys) -> None:
    words = ["train", str(config), "--work-dir", str(tmp_path), "--cfg-options"]
    assert console([*words, "randomness.seed=1"]) == 0
    first = (tmp_path / "iter_2.pth").read_bytes()
    assert console([*words, "randomness.seed=2"]) == 0
    (aside,) = tmp_path.glob("earlier_*")
    assert (aside / "iter_2.pth").read_bytes() == first != (tmp_path / "iter_2.pth").read_bytes()
    assert f"1 checkpoints of an earlier run: they are in {aside} now" in capsys.readouterr().out


def test_one_run_at_a_time_in_a_folder(config: Path, tmp_path: Path, refused, monkeypatch) -> None:
    monkeypatch.setattr("ltm_det.engine.work_folder.PATIENCE", 1)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        words = ["train", config, "--work-dir", tmp_path]
        assert f"another run is at work in {tmp_path}" in refused(*words)
    finally:
        holder.kill()
        holder.wait()
    assert console([*map(str, words)]) == 0


def test_damaged_weights_are_not_used(trained: Path, refused: Callable, tmp_path: Path) -> None:
    file = tmp_path / "damaged.pth"
    content = bytearray((trained / "iter_2.pth").read_bytes())
    weight = torch.load(trained / "iter_2.pth", weights_only=False)["state_dict"]
    part = weight["roi_head.bbox_head.fc_cls.weight"].numpy().tobytes()
    at = content.find(part)
    assert at > 0
    content[at + 100] ^= 1
    file.write_bytes(content)
    for command in (
        ["test", trained / "swin.py", file],
        ["export", trained / "swin.py", file, "--out", tmp_path / "x.onnx", "--shape", 64, 64],
    ):
        assert "differs from its checksum" in refused(*command)


def test_weights_of_another_kind_are_not_used(trained: Path, refused, tmp_path: Path) -> None:
    state = torch.load(trained / "iter_2.pth", weights_only=False)["state_dict"]
    for dtype in (torch.int32, torch.complex64):
        file = tmp_path / "other.pth"
        torch.save({key: value.to(dtype) for key, value in state.items()}, file)
        assert f"are {dtype}, no numbers" in refused("test", trained / "swin.py", file)


def test_other_classes_are_not_taken_for_the_weights(trained: Path, refused: Callable) -> None:
    parts = [f"{split}_dataloader" for split in ("train", "val", "test")]
    settings = [f"{part}.dataset.metainfo.classes=[cat,dog]" for part in parts]
    words = ["test", trained / "swin.py", trained / "iter_2.pth", "--no-check-data"]
    told = refused(*words, "--cfg-options", *settings)
    assert "other classes than the config: (box, slab), not (cat, dog)" in told
