"""Checkpoints are whole, the old goes after the new, and a failed write changes nothing."""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import HOOKS
from mmengine.fileio import LocalBackend

from ltm_det.basics.errors import InputError
from ltm_det.engine.checkpoints import POINTER, check_resumable, check_whole, read
from ltm_det.engine.safe_checkpoint_hook import SafeCheckpointHook
from tests.test_engine import checkpoint_runs
from tests.test_engine.checkpoint_runs import runner


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    checkpoint_runs.register()
    yield
    checkpoint_runs.forget()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is renamed and removed, in its order."""
    seen: list[str] = []
    replace, remove = os.replace, LocalBackend.remove

    def replaced(source: Any, target: Any) -> None:
        seen.append(f"write {Path(target).name}")
        replace(source, target)

    def removed(backend: LocalBackend, path: Any) -> None:
        seen.append(f"remove {Path(path).name}")
        remove(backend, path)

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(LocalBackend, "remove", removed)
    return seen


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets writes of checkpoints, of these numbers from 1, end half-way: ``full_disk(2, 3)``."""

    def fill(*numbers: int, half: bool = False) -> None:
        put, calls = LocalBackend.put, iter(range(1, 1000))

        def full(backend: LocalBackend, content: bytes, path: Any) -> None:
            if next(calls) not in numbers:
                return put(backend, content, path)
            put(backend, content[: len(content) // 2], path)
            if not half:  # else the disk loses it without a word
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(LocalBackend, "put", full)

    return fill


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*.pth")} | {f.name for f in folder.glob(".*")}


def named(folder: Path) -> str:
    return Path((folder / POINTER).read_text()).name


def test_it_is_a_hook_of_mmdet() -> None:
    assert HOOKS.get("SafeCheckpointHook") is SafeCheckpointHook


def test_the_old_is_deleted_after_the_new_is_named(tmp_path: Path, events: list[str]) -> None:
    runner(tmp_path, max_keep_ckpts=1).train()
    rest = []
    for step in (4, 6, 8):
        rest += [f"write iter_{step}.pth", f"write {POINTER}", f"remove iter_{step - 2}.pth"]
    assert events == ["write iter_2.pth", f"write {POINTER}", *rest]
    assert names(tmp_path) == {"iter_8.pth"}
    check_whole(tmp_path / "iter_8.pth")


@pytest.mark.parametrize("keep", [-1, 1, 2, 3])
def test_as_many_are_kept_as_mmengine_keeps(tmp_path: Path, keep: int) -> None:
    runner(tmp_path, max_keep_ckpts=keep).train()
    kept = (2, 4, 6, 8)[-keep:] if keep > 0 else (2, 4, 6, 8)
    assert names(tmp_path) == {f"iter_{step}.pth" for step in kept}
    assert named(tmp_path) == "iter_8.pth"


def test_one_that_a_kill_left_over_is_deleted_by_the_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            runner(tmp_path, max_keep_ckpts=1).train()
    (tmp_path / ".iter_6.123.part.pth").write_text("half")
    (tmp_path / f".{POINTER}.123.part").write_text("half")
    (tmp_path / ".other.123.part.pth").write_text("another's")
    assert names(tmp_path) >= {"iter_2.pth", "iter_4.pth"}
    runner(tmp_path, iterations=5, max_keep_ckpts=1, save_last=False, resume=True).train()
    assert names(tmp_path) == {"iter_4.pth", ".other.123.part.pth"}


def test_a_full_disk_keeps_the_old_and_training_goes_on(
    tmp_path: Path, full_disk: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    full_disk(2, 3)
    run = runner(tmp_path, max_keep_ckpts=1, iterations=7, save_last=False)
    run.logger.addHandler(caplog.handler)
    seen = {}

    class Look(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen[run.iter + 1] = (names(tmp_path), named(tmp_path), record.getMessage())

    run.logger.addHandler(Look(level=logging.ERROR))
    run.train()
    assert sorted(seen) == [4, 6]
    for step, (there, pointer, message) in seen.items():
        assert there == {"iter_2.pth"} and pointer == "iter_2.pth"
        for word in (f"iter_{step}.pth", "No space left", "iter_2.pth", "tries again"):
            assert word in message
    hub = read(tmp_path / "iter_2.pth")["message_hub"]["runtime_info"]
    assert hub["keep_ckpt_ids"] == run.message_hub.get_info("keep_ckpt_ids") == [2]

    more = runner(tmp_path, max_keep_ckpts=1, resume=True)
    more.train()  # the fourth write of all, and later ones, succeed
    assert more.iter == 8
    assert names(tmp_path) == {"iter_8.pth"} and named(tmp_path) == "iter_8.pth"


def test_half_a_file_that_no_error_told_of_is_seen(tmp_path: Path, full_disk: Callable) -> None:
    full_disk(2, half=True)
    runner(tmp_path, max_keep_ckpts=1, iterations=5, save_last=False).train()
    assert names(tmp_path) == {"iter_2.pth"} and named(tmp_path) == "iter_2.pth"


def test_on_request_a_full_disk_ends_the_run(tmp_path: Path, full_disk: Callable) -> None:
    full_disk(2)
    run = runner(tmp_path, max_keep_ckpts=1, on_failure="stop")
    with pytest.raises(InputError, match=r"(?s)iter_4\.pth .*No space.*iter_2\.pth.*--resume"):
        run.train()
    assert run.iter + 1 == 4
    check_resumable(tmp_path / "iter_2.pth")


def test_a_run_whose_end_is_lost_does_not_end_well(tmp_path: Path, full_disk: Callable) -> None:
    full_disk(4)
    with pytest.raises(InputError, match=r"(?s)iter_8\.pth .*iter_6\.pth.*--resume"):
        runner(tmp_path, max_keep_ckpts=1).train()
    assert named(tmp_path) == "iter_6.pth"


def test_a_full_disk_at_last_checkpoint_keeps_both(tmp_path: Path, monkeypatch) -> None:
    own, calls = Path.write_text, iter(range(1, 100))

    def full(path: Path, text: str) -> int:
        if path.name.startswith(f".{POINTER}") and next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return own(path, text)

    monkeypatch.setattr(Path, "write_text", full)
    runner(tmp_path, max_keep_ckpts=1, iterations=5, save_last=False).train()
    assert names(tmp_path) == {"iter_2.pth", "iter_4.pth"} and named(tmp_path) == "iter_2.pth"
    runner(tmp_path / "more", max_keep_ckpts=1).train()
    assert names(tmp_path / "more") == {"iter_8.pth"}


def changed(file: Path, **info: Any) -> Path:
    """A checkpoint whose message hub says more."""
    content = torch.load(file, weights_only=True)  # `read` would keep the file mapped
    content["message_hub"]["runtime_info"].update(info)
    content["message_hub"]["resumed_keys"].update(dict.fromkeys(info, True))
    torch.save(content, file)
    return file


def test_a_checkpoint_names_nothing_that_is_deleted_elsewhere(tmp_path: Path) -> None:
    """Neither another run's best, nor any file by a path in the place of a number."""
    work, thesis = tmp_path / "work", tmp_path / "thesis.tex"
    thesis.write_text("three years")
    (tmp_path / "best_acc_iter_1.pth").write_text("another's")
    runner(work, iterations=2, scores=SCORES[:1], save_best="acc").train()
    for best in (thesis, tmp_path / "best_acc_iter_1.pth", work / "notes.pth"):
        best.touch()
        (work / "best_acc_iter_4.pth").unlink(missing_ok=True)
        file = changed(work / "iter_2.pth", best_ckpt=str(best), best_score=-5.0)
        more = dict(iterations=4, scores=SCORES[1:2], save_best="acc")
        runner(work, resume=True, load_from=str(file), **more).train()
        assert best.exists() and (work / "best_acc_iter_4.pth").is_file()
    for ids in (["/../../thesis"], 5):
        file = changed(work / "iter_2.pth", keep_ckpt_ids=ids)
        with pytest.raises(InputError, match="message_hub: keep_ckpt_ids"):
            runner(work, iterations=4, max_keep_ckpts=1, resume=True, load_from=str(file)).train()


def test_numbers_of_another_folder_delete_nothing(tmp_path: Path) -> None:
    runner(tmp_path / "old", iterations=2, max_keep_ckpts=1).train()
    new = tmp_path / "new"
    new.mkdir()
    (new / "iter_2.pth").write_text("mine")
    old = str(tmp_path / "old/iter_2.pth")
    runner(new, iterations=4, max_keep_ckpts=1, resume=True, load_from=old).train()
    assert names(new) == {"iter_2.pth", "iter_4.pth"}


def test_an_unknown_answer_to_failure_is_refused() -> None:
    with pytest.raises(InputError, match="on_failure 'ignore'.*continue"):
        SafeCheckpointHook(on_failure="ignore")


SCORES = [(0.1, 0.9), (0.3, 0.2), (0.2, 0.95), (0.4, 0.1)]


def test_the_best_so_far_goes_after_the_better_one(tmp_path: Path, events: list[str]) -> None:
    runner(tmp_path, scores=SCORES, save_best="acc", max_keep_ckpts=1).train()
    best = [event for event in events if "best" in event]
    assert best == [
        "write best_acc_iter_2.pth",
        "write best_acc_iter_4.pth",
        "remove best_acc_iter_2.pth",
        "write best_acc_iter_8.pth",
        "remove best_acc_iter_4.pth",
    ]
    assert names(tmp_path) == {"best_acc_iter_8.pth", "iter_8.pth"}
    hub = read(tmp_path / "iter_8.pth")["message_hub"]["runtime_info"]
    assert hub["best_ckpt"].endswith("best_acc_iter_8.pth") and hub["best_score"] == 0.4


def test_the_best_by_two_metrics(tmp_path: Path) -> None:
    runner(tmp_path, scores=SCORES, save_best=["acc", "top"], max_keep_ckpts=1).train()
    assert names(tmp_path) == {"best_acc_iter_8.pth", "best_top_iter_6.pth", "iter_8.pth"}


def test_a_best_that_fails_to_be_written_is_still_to_be_beaten(
    tmp_path: Path, full_disk: Callable
) -> None:
    """Writes are iter_2, best, iter_2 again, iter_4, then the best that fails."""
    full_disk(5)
    scores = [(0.1, 0), (0.3, 0), (0.05, 0)]
    options = dict(scores=scores, save_best="acc", max_keep_ckpts=1)
    run = runner(tmp_path, 5, save_last=False, **options)
    run.train()
    assert names(tmp_path) == {"best_acc_iter_2.pth", "iter_4.pth"}
    assert run.message_hub.get_info("best_score") == 0.1
    more = runner(
        tmp_path, scores=[(0.2, 0), (0.1, 0)], save_best="acc", max_keep_ckpts=1, resume=True
    )
    more.train()
    assert names(tmp_path) == {"best_acc_iter_6.pth", "iter_8.pth"}


def test_published_files_are_whole_too(tmp_path: Path) -> None:
    runner(tmp_path, max_keep_ckpts=1, published_keys=["state_dict", "meta"]).train()
    (published,) = names(tmp_path) - {"iter_8.pth"}
    assert published.startswith("iter_8-") and read(tmp_path / published).keys() == {
        "state_dict",
        "meta",
    }
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


def test_averaged_weights_are_saved_and_resumed(tmp_path: Path) -> None:
    hooks = [dict(type="EMAHook", momentum=0.5)]
    runner(tmp_path / "a", hooks=hooks).train()
    runner(tmp_path / "b", 4, hooks=hooks).train()
    runner(tmp_path / "b", hooks=hooks, resume=True).train()
    one, other = (read(tmp_path / name / "iter_8.pth") for name in "ab")
    for key in ("state_dict", "ema_state_dict"):
        for name, value in one[key].items():
            assert torch.equal(value, other[key][name])
    assert not torch.equal(one["state_dict"]["weight"], one["ema_state_dict"]["module.weight"])


def test_mmengines_own_way_to_resume_falls_back_too(tmp_path: Path, caplog) -> None:
    """As of a config's ``resume=True`` and mmdet's training tool."""
    runner(tmp_path, 4).train()
    file = tmp_path / "iter_4.pth"
    file.write_bytes(file.read_bytes()[:-100])
    run = runner(tmp_path, resume=True)
    run.logger.addHandler(caplog.handler)
    run.train()
    assert run.iter == 8
    assert f"{file} is cut short" in caplog.text and f"{tmp_path / 'iter_2.pth'}" in caplog.text
    check_resumable(file)
