"""Checkpoints that can't be lost: whole under their names, and the old deleted after the new."""

import os
from collections.abc import Callable, Mapping
from copy import copy
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import broadcast_object_list, is_main_process, master_only
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ltm_det.basics.arguments import check, choice, flag, many, optional, text
from ltm_det.basics.arguments import whole as count
from ltm_det.basics.errors import InputError
from ltm_det.basics.files import remove_parts, sync, whole, write_text
from ltm_det.engine.checkpoints import POINTER, Damaged, check_whole, to_resume
from ltm_det.engine.value_rules import interval

STATE = ("last_ckpt", "keep_ckpt_ids", "best_ckpt_path", "best_ckpt_path_dict")
SAID = ("last_ckpt", "keep_ckpt_ids", "best_")  # how the message hub calls them, and best scores
SAID_RULES = dict(
    last_ckpt=optional(text), keep_ckpt_ids=many(count(), least=0), best_ckpt=optional(text)
)
RULES = dict(
    interval=interval,
    max_keep_ckpts=interval,
    by_epoch=flag,
    save_optimizer=flag,
    save_param_scheduler=flag,
    save_last=flag,
    save_begin=count(),
    on_failure=choice(("continue", "stop")),
)


def check_state(said: Mapping[str, Any]) -> None:
    """Looks at what a resumed checkpoint says of files, some of which would be deleted.

    Raises:
        InputError: It is not what this hook writes.
    """
    check("the resumed checkpoint's message_hub", said, SAID_RULES)


class WholeRunner:
    """A runner that writes its checkpoints to a temporary file, and reads them before they count.

    On a file system alone: other storages of mmengine replace an object at once by themselves.
    """

    def __init__(self, runner: Runner, local: bool) -> None:
        self.runner, self.local = runner, local

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **options: Any) -> None:
        if not (self.local and is_main_process()):
            return self.runner.save_checkpoint(out_dir, filename, *args, **options)
        with whole(Path(out_dir) / filename) as part:
            self.runner.save_checkpoint(out_dir, part.name, *args, **options)
            check_whole(part)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` for runs that are left alone: whenever the run is killed, its
    work folder has a whole checkpoint, and ``last_checkpoint`` names one.

    A checkpoint is written to a temporary file beside its final name, read back and compared with
    its checksums, synced to the disk and renamed. Then ``last_checkpoint`` is replaced, and only
    then is the oldest deleted: the disk needs room for one more than ``max_keep_ckpts``. The best
    checkpoints and published ones are written in this way too.

    A resumed run goes on from the checkpoint that ``last_checkpoint`` names, or where that can't be
    loaded from the newest that can, and says so; all processes from the one the first chose.

    Args:
        on_failure: What follows where a checkpoint can't be written, as on a full disk: 'continue'
            keeps the old one and tries again at the next interval, 'stop' ends the run with
            :class:`InputError`, as it ends where the last checkpoint of all can't be written.
        options: Those of mmengine's hook.
    """

    def __init__(self, *args: Any, on_failure: str = "continue", **options: Any) -> None:
        given = dict(zip(("interval", "by_epoch"), args)) | options | dict(on_failure=on_failure)
        check(type(self).__name__, given, RULES)
        super().__init__(*args, **options)
        self.on_failure = on_failure

    def before_run(self, runner: Runner) -> None:
        """The first process chooses what is resumed, so that all go on from the same."""
        choice = [runner._resume, runner._load_from]
        if is_main_process() and runner._resume and runner._load_from is None:
            folders = [Path(self.out_dir) / Path(runner.work_dir).name] if self.out_dir else []
            try:
                file = to_resume(
                    runner.work_dir, folders, self.save_optimizer, runner.logger.warning
                )
                choice = [file is not None, file]
            except InputError as error:
                choice = [error, None]
        broadcast_object_list(choice)
        if isinstance(choice[0], InputError):
            raise choice[0]
        runner._resume, runner._load_from = choice

    def before_train(self, runner: Runner) -> None:
        check_state(runner.message_hub.runtime_info)
        super().before_train(runner)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids: list[int] = list(self.keep_ckpt_ids)
            if runner._resume and not self.is_own(str(runner._load_from)):
                self.keep_ckpt_ids = []  # numbers of another folder's
        # The strategies of mmengine's FlexibleRunner write as they like, a file or a folder.
        self.local = isinstance(self.file_backend, LocalBackend) and isinstance(runner, Runner)
        if is_main_process():
            remove_parts(runner.work_dir, POINTER)
            if self.local:
                remove_parts(self.out_dir, self.filename_tmpl.format("*"))
                remove_parts(self.out_dir, f"best_*_{self.filename_tmpl.format('*')}")

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        if not self.tried(runner, path, step, partial(self.write, runner, path, step, meta)):
            return
        pointer = Path(runner.work_dir) / POINTER
        point = partial(write_text, pointer, path)
        if not is_main_process() or self.tried(runner, pointer, step, point):
            self.delete_oldest(runner)

    def write(self, runner: Runner, path: str, step: int, meta: dict) -> None:
        self.last_ckpt = path
        runner.message_hub.update_info("last_ckpt", path)
        if self.max_keep_ckpts > 0:
            # The oldest is still named: a run that is killed before it is deleted will delete it
            # when it is resumed.
            self.keep_ckpt_ids = [other for other in self.keep_ckpt_ids if other != step] + [step]
            runner.message_hub.update_info("keep_ckpt_ids", self.keep_ckpt_ids)
        self.whole(runner).save_checkpoint(
            self.out_dir,
            Path(path).name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )

    def delete_oldest(self, runner: Runner) -> None:
        if self.max_keep_ckpts > 0:
            while len(self.keep_ckpt_ids) > self.max_keep_ckpts:
                name = self.filename_tmpl.format(self.keep_ckpt_ids.pop(0))
                self.delete(runner, self.file_backend.join_path(self.out_dir, name))
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))

    def is_own(self, path: str) -> bool:
        """Whether a path is where this run's checkpoints are; of other storages none is asked."""
        if not isinstance(self.file_backend, LocalBackend):
            return True
        return Path(path).parent.resolve() == Path(self.out_dir).resolve()

    @master_only
    def delete(self, runner: Runner, path: str) -> None:
        name, kinds = Path(path).name, (self.filename_tmpl.format("*"), "best_*")
        if not self.is_own(path) or not any(fnmatch(name, kind) for kind in kinds):
            runner.logger.warning(f"{path} is no checkpoint of this run: it stays")
            return
        try:
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # as deepspeed writes them
                self.file_backend.rmtree(path)
        except OSError as error:
            runner.logger.warning(f"{path} can't be deleted: {error}")

    @property
    def best(self) -> dict[str | None, str | None]:
        """Files of the best checkpoints by metric, None where there is none."""
        if len(self.key_indicators) > 1:
            return dict(self.best_ckpt_path_dict)
        return {None: self.best_ckpt_path}

    @best.setter
    def best(self, files: dict[str | None, str | None]) -> None:
        if len(self.key_indicators) > 1:
            self.best_ckpt_path_dict = files
        else:
            (self.best_ckpt_path,) = files.values()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        before, step = self.best, runner.epoch if self.by_epoch else runner.iter
        save = super()._save_best_checkpoint

        def write() -> None:
            # mmengine deletes the files it knows before it writes: so it knows none meanwhile
            self.best = dict.fromkeys(before)
            try:
                save(self.whole(runner), metrics)
            except (OSError, Damaged):
                for path in {*self.best.values()} - {*before.values(), None}:
                    self.delete(runner, path)
                raise

        if self.tried(runner, "the best checkpoint", step, write):
            after = self.best
            self.best = {key: after[key] or old for key, old in before.items()}
            for key, old in before.items():
                if old and after[key] not in (None, old):
                    self.delete(runner, old)

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        if not self.local:
            return super()._publish_model(runner, ckpt_path)
        folder, name = os.path.split(ckpt_path)
        with TemporaryDirectory(dir=folder, prefix=".published") as own:
            os.link(ckpt_path, os.path.join(own, name))
            super()._publish_model(runner, os.path.join(own, name))
            for file in Path(own).iterdir():
                if file.name != name:
                    sync(file)
                    file.replace(Path(folder) / file.name)

    def whole(self, runner: Runner | WholeRunner) -> WholeRunner:
        return runner if isinstance(runner, WholeRunner) else WholeRunner(runner, self.local)

    def tried(self, runner: Runner, what: object, step: int, write: Callable[[], None]) -> bool:
        """Whether something could be written; if not, all is as before, and the user is told.

        Args:
            step: Iterations, or epochs, that are done.

        Raises:
            InputError: It could not, and the run is to stop then.
        """
        said = runner.message_hub.runtime_info
        state = {name: copy(value) for name, value in vars(self).items() if name in STATE}
        before = {name: copy(value) for name, value in said.items() if name.startswith(SAID)}
        try:
            write()
        except (OSError, Damaged) as error:
            vars(self).update(state)
            for name in [name for name in said if name.startswith(SAID)]:
                del said[name]
            said.update(before)
            words = f"{what} could not be written: {error}\n" + (
                f"The last checkpoint stays: {self.last_ckpt}"
                if self.last_ckpt
                else "There is no checkpoint yet"
            )
            end = runner.max_epochs if self.by_epoch else runner.max_iters
            if self.on_failure == "stop" or step >= end:
                remedy = "Make room there, and go on with --resume"
                raise InputError(f"{words}\n{remedy}") from error
            runner.logger.error(f"{words}\nTraining goes on, and tries again at the next interval")
            return False
        return True
