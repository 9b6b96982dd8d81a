"""Damage of any kind is seen, and the newest checkpoint without it is what a run goes on from."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ltm_det.basics.errors import InputError
from ltm_det.engine.checkpoints import POINTER, Damaged, check_resumable, check_whole, to_resume

WEIGHT = torch.arange(1000.0)


def save(file: Path, iteration: int, *without: str, **options) -> Path:
    whole = dict(
        meta=dict(epoch=0, iter=iteration),
        state_dict=dict(weight=WEIGHT),
        message_hub=dict(runtime_info={}),
        optimizer=dict(state={0: dict(exp_avg=torch.ones(1000))}),
    )
    torch.save({key: value for key, value in whole.items() if key not in without}, file, **options)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A work folder with checkpoints of iterations 2, 4 and 10, which names the last."""
    for step in (2, 4, 10):
        save(tmp_path / f"iter_{step}.pth", step)
    save(tmp_path / "best_bbox_iter_10.pth", 10, "optimizer")
    (tmp_path / "epoch_1.pth.tmp").write_text("no checkpoint")
    (tmp_path / ".iter_12.1.part.pth").write_text("half")
    (tmp_path / POINTER).write_text(str(tmp_path / "iter_10.pth"))
    return tmp_path


def test_a_file_cut_anywhere_is_seen(tmp_path: Path) -> None:
    file = save(tmp_path / "a.pth", 1)
    check_whole(file)
    content, draw = file.read_bytes(), random.Random(0)
    for length in (0, 1, 100, len(content) - 1, *draw.sample(range(len(content)), 40)):
        file.write_bytes(content[:length])
        with pytest.raises(Damaged):
            check_whole(file)


def test_changed_bytes_are_seen_wherever_a_tensor_lies(tmp_path: Path) -> None:
    file = save(tmp_path / "a.pth", 1)
    content, draw = file.read_bytes(), random.Random(0)
    at = content.index(WEIGHT.numpy().tobytes())
    for place in draw.sample(range(at, at + 4000), 20):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(Damaged, match="checksum"):
            check_whole(file)
    file.write_bytes(content[:at] + bytes(len(content) - at))  # as after a loss of power
    with pytest.raises(Damaged):
        check_whole(file)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 5000, b"<html>not found</html>", b"\x80\x02}q\0."]
)
def test_what_is_no_checkpoint_is_no_run_to_go_on_with(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{file}"):
        check_resumable(file)


def test_torchs_former_format_is_taken(tmp_path: Path) -> None:
    check_resumable(save(tmp_path / "a.pth", 1, _use_new_zipfile_serialization=False))


@pytest.mark.parametrize("without", ["message_hub", "optimizer", "meta"])
def test_weights_alone_are_refused_with_a_hint(tmp_path: Path, without: str) -> None:
    file = save(tmp_path / "a.pth", 1, without)
    with pytest.raises(InputError, match=rf"(?s)no {without}.*load_from={file}"):
        check_resumable(file)


def test_without_the_optimizer_where_the_run_saves_none(tmp_path: Path) -> None:
    check_resumable(save(tmp_path / "a.pth", 1, "optimizer"), optimizer=False)


def test_what_last_checkpoint_names_is_taken_without_a_word(folder: Path) -> None:
    said: list[str] = []
    (folder / POINTER).write_text(f"{folder / 'iter_4.pth'}\n")
    assert to_resume(folder, say=said.append) == str(folder / "iter_4.pth")
    assert said == []


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def spoil(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(WEIGHT.numpy().tobytes()) + 99] ^= 255
    file.write_bytes(content)


TROUBLE: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "empty": (lambda d: (d / POINTER).write_text(""), 10, "empty"),
    "missing": (lambda d: (d / POINTER).unlink(), 10, "there is no"),
    "zeros": (lambda d: (d / POINTER).write_bytes(b"\0" * 40), 10, "empty"),
    "garbage": (lambda d: (d / POINTER).write_bytes(b"\xff\0\xfe"), 10, "no checkpoint at"),
    "a deleted file": (lambda d: (d / "iter_10.pth").unlink(), 4, "no checkpoint at"),
    "one of another folder": (lambda d: (d / POINTER).write_text("/gone/a.pth"), 10, "/gone/a.pth"),
    "one that is cut": (lambda d: cut(d / "iter_10.pth"), 4, "iter_10.pth is cut short"),
    "one that is empty": (lambda d: (d / "iter_10.pth").write_text(""), 4, "iter_10.pth is empty"),
    "one that is spoilt": (lambda d: spoil(d / "iter_10.pth"), 4, "iter_10.pth is damaged"),
    "the best": (lambda d: (d / POINTER).write_text(str(d / "best_bbox_iter_10.pth")), 10, "alone"),
    "one but the last": (lambda d: (cut(d / "iter_10.pth"), spoil(d / "iter_4.pth")), 2, "iter_4"),
}


@pytest.mark.parametrize(("harm", "iteration", "words"), TROUBLE.values(), ids=TROUBLE)
def test_the_newest_that_can_be_loaded_is_taken(
    folder: Path, harm: Callable[[Path], object], iteration: int, words: str
) -> None:
    harm(folder)
    said: list[str] = []
    file = to_resume(folder, say=said.append)
    assert file == str(folder / f"iter_{iteration}.pth")
    (message,) = said
    assert words in message and message.endswith(f"iter_{iteration}.pth")


def test_checkpoints_may_lie_in_another_folder(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    file = save(other / "iter_2.pth", 2)
    (tmp_path / POINTER).write_text("")
    assert to_resume(tmp_path, [other], say=lambda words: None) == str(file)


def test_nothing_to_resume_is_said_and_is_no_error(tmp_path: Path) -> None:
    said: list[str] = []
    assert to_resume(tmp_path / "new", say=said.append) is None
    assert "Nothing to resume" in said[0] and "new" in said[0]


def test_no_run_starts_anew_where_one_has_been(folder: Path) -> None:
    for step in (2, 4, 10):
        cut(folder / f"iter_{step}.pth")
    with pytest.raises(InputError, match=r"(?s)iter_10.*iter_2.*iter_4.*--resume FILE"):
        to_resume(folder)
    for file in folder.glob("*.pth"):
        file.unlink()
    with pytest.raises(InputError, match="no checkpoint at .*iter_10"):
        to_resume(folder)


def test_other_storages_are_left_to_mmengine(tmp_path: Path) -> None:
    (tmp_path / POINTER).write_text("s3://bucket/iter_2.pth")
    assert to_resume(tmp_path) == "s3://bucket/iter_2.pth"
