"""What the training command goes on from, and what it says where it can't."""

import errno
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from ltm_det.basics.errors import InputError
from ltm_det.cli import train
from ltm_det.engine.resuming import disk_errors_named, resume, use_safe_checkpoints

SAFE = "mmdet.SafeCheckpointHook"


def save(file: Path, iteration: object = 2, **more: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    meta = dict(epoch=0, iter=iteration)
    torch.save(dict(meta=meta, state_dict={}, message_hub={}, optimizer={}) | more, file)
    return file


def config(work_dir: Path, **more: object) -> Config:
    return Config(dict(work_dir=str(work_dir), launcher="none", default_hooks={}) | more)


def resumed(cfg: Config, wanted: str | None = "auto") -> tuple[bool | None, str | None, str]:
    """What is resumed, from which file, and what was said."""
    said: list[str] = []
    resume(cfg, wanted, said.append)
    return cfg.get("resume"), cfg.get("load_from"), "\n".join(said)


@pytest.mark.parametrize("kind", ["CheckpointHook", "mmengine.CheckpointHook"])
def test_mmengines_hook_is_replaced_with_its_options(kind: str) -> None:
    cfg = Config(dict(default_hooks=dict(checkpoint=dict(type=kind, interval=3))))
    use_safe_checkpoints(cfg)
    assert cfg.default_hooks.checkpoint == dict(type=SAFE, interval=3)


def test_where_a_config_says_nothing_of_checkpoints_too() -> None:
    cfg = Config(dict(custom_hooks=[dict(type="CheckpointHook"), dict(type="EMAHook")]))
    use_safe_checkpoints(cfg)
    assert cfg.default_hooks.checkpoint == dict(type=SAFE)
    assert [hook["type"] for hook in cfg.custom_hooks] == [SAFE, "EMAHook"]


def test_hooks_of_the_users_own_and_none_are_left(tmp_path: Path) -> None:
    for own in (None, dict(type="TheirCheckpointHook")):
        cfg = config(tmp_path, default_hooks=dict(checkpoint=own))
        use_safe_checkpoints(cfg)
        assert cfg.default_hooks.checkpoint == own
    assert resumed(cfg)[:2] == (None, None)


def test_the_newest_is_resumed_in_place_of_the_configs_weights(tmp_path: Path) -> None:
    file = str(save(tmp_path / "iter_2.pth"))
    (tmp_path / "last_checkpoint").write_text(file)
    assert resumed(config(tmp_path, load_from="coco.pth")) == (True, file, "")


def test_with_nothing_to_resume_the_configs_weights_are_loaded(tmp_path: Path) -> None:
    on, file, said = resumed(config(tmp_path, load_from="coco.pth"))
    assert not on and file == "coco.pth" and "Nothing to resume" in said


def test_checkpoints_in_the_hooks_own_folder_are_found(tmp_path: Path) -> None:
    file = save(tmp_path / "out" / "run" / "iter_2.pth")
    hook = dict(type=SAFE, out_dir=str(tmp_path / "out"))
    cfg = config(tmp_path / "run", default_hooks=dict(checkpoint=hook))
    assert resumed(cfg)[1] == str(file)


def test_a_run_that_is_done_is_told_so(tmp_path: Path) -> None:
    file = str(save(tmp_path / "iter_2.pth"))
    for limit, more in dict(max_iters=3, max_epochs=1).items():
        assert resumed(config(tmp_path, train_cfg={limit: more}), file)[2] == ""
    said = resumed(config(tmp_path, train_cfg=dict(max_iters=2)), file)[2]
    assert "trained 2 of train_cfg.max_iters=2: nothing is left to train" in said


def test_a_broken_checkpoint_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path / "iter_4.pth", "4")
    file = str(save(tmp_path / "iter_2.pth"))
    on, found, said = resumed(config(tmp_path))
    assert on and found == file and "iter_4.pth is damaged: in its 'meta' iter must be" in said


def test_a_restart_goes_on_without_being_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    own = str(save(tmp_path / "else" / "iter_9.pth", 9))
    cfg = dict(launcher="pytorch", load_from="coco.pth")
    # before the first checkpoint: as the first start did
    assert resumed(config(tmp_path / "a", **cfg), None)[:2] == (None, "coco.pth")
    assert resumed(config(tmp_path / "a", **cfg), own)[:2] == (True, own)
    file = str(save(tmp_path / "a" / "iter_2.pth"))
    for wanted in (None, own, "auto"):
        on, found, said = resumed(config(tmp_path / "a", **cfg), wanted)
        assert on and found == file and "Restart 1 of 3" in said
    # of another launcher's
    assert resumed(config(tmp_path / "a"), None)[:2] == (None, None)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda file: file.unlink(), "no checkpoint at"),
        (lambda file: os.truncate(file, 300), "is cut short"),
        (lambda file: file.write_text(""), "is empty"),
        (lambda file: file.write_text("<html>"), "can't be loaded"),
        (lambda file: torch.save([1], file), "holds list"),
        (lambda file: torch.save(dict(state_dict={}), file), "weights alone"),
        (lambda file: save(file, "x"), "iter must be a whole number from 0 on, got 'x'"),
        (lambda file: save(file, -1), "iter must be a whole number"),
        (lambda file: save(file, meta=dict(iter=1)), "epoch must be a whole number"),
        (lambda file: save(file, meta=3), "its 'meta' is 3, no mapping"),
        (lambda file: save(file, message_hub=None), "its 'message_hub' is None, no mapping"),
        (lambda file: save(file, optimizer=[1]), "has no groups of parameters"),
        (lambda file: save(file, optimizer=dict(param_groups=[{}])), "no groups of parameters"),
        (lambda file: save(file, param_schedulers="x"), "its 'param_schedulers' are 'x'"),
        (lambda file: torch.save(dict(weight=torch.ones(2)), file), "load_from="),
    ],
)
def test_train_ends_with_2_and_names_what_it_cant_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch, harm, words: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    needed = "train_dataloader = train_cfg = optim_wrapper = {}\n"
    (tmp_path / "config.py").write_text(f"model = dict(type='SoleDetector')\n{needed}")
    file = save(tmp_path / "iter_2.pth")
    harm(file)
    given = [str(tmp_path / "config.py"), "--work-dir", str(tmp_path), "--resume", str(file)]
    assert train.main(given) == 2
    error = capsys.readouterr().err
    assert words in error and str(file) in error and "Traceback" not in error


def test_a_full_disk_is_named_and_other_errors_are_let_through(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    with pytest.raises(InputError, match=rf"log\.txt.*{tmp_path}"), disk_errors_named(cfg):
        raise OSError(errno.ENOSPC, "No space left on device", "log.txt")
    with pytest.raises(PermissionError), disk_errors_named(cfg):
        raise PermissionError(errno.EACCES, "no", "log.txt")
