"""Checkpoints on the disk: whether they are whole, and which of them a run goes on from."""

import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader

from ltm_det.basics.arguments import whole
from ltm_det.basics.errors import InputError
from ltm_det.compat.checkpoint import URLS
from ltm_det.compat.weight_files import differing

POINTER = "last_checkpoint"  # mmengine's file in a work folder, which names the last checkpoint
RUN = ("message_hub", "meta", "state_dict")  # what of a checkpoint makes a run go on
OPTIMIZER = "optimizer"
ZIP = b"PK\x03\x04"  # the first bytes of torch's format


class Damaged(ValueError):
    """A checkpoint is not what was written. The message follows the file's name."""


def check_begun(file: str | Path) -> None:
    """Tells a file that was begun from one that is something else.

    Raises:
        Damaged: It is empty, or the end of torch's zip format is missing.
    """
    with open(file, "rb") as opened:
        start = opened.read(len(ZIP))
    if not start:
        raise Damaged("is empty")
    if start == ZIP and not zipfile.is_zipfile(file):
        raise Damaged("is cut short")


def check_whole(file: str | Path) -> None:
    """Reads a checkpoint of torch's zip format and compares all of it with its checksums.

    This finds files that are cut short, overwritten or changed by a bit, at the speed of CRC-32.

    Raises:
        Damaged: It is not whole, or of another format.
        OSError: It can't be read.
    """
    check_begun(file)
    try:
        if not zipfile.is_zipfile(file):
            raise Damaged("is no checkpoint: it is not of torch's zip format")
        part = differing(file)
    except (zipfile.BadZipFile, EOFError) as error:
        raise Damaged(f"is no checkpoint: {error}") from error
    if part is not None:
        raise Damaged(f"is damaged: {part} in it differs from its checksum")


def read(file: str | Path) -> dict[str, Any]:
    """A checkpoint, whose tensors stay on the disk until they are asked for.

    Raises:
        Damaged: torch can't load it, or refuses what is in it.
    """
    check_begun(file)
    try:
        # torch's former format, which can't be mapped, is loaded into memory
        checkpoint = torch.load(
            file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True
        )
    except Exception as error:  # of garbage, torch raises what its bytes happen to mean
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Damaged(f"can't be loaded: {first}") from error
    if not isinstance(checkpoint, dict):
        raise Damaged(f"holds {type(checkpoint).__name__}, not a dict")
    return checkpoint


def lacks(checkpoint: dict[str, Any], optimizer: bool) -> list[str]:
    """What it would need for a run to go on from it."""
    return [key for key in (*RUN, *[OPTIMIZER] * optimizer) if key not in checkpoint]


def check_progress(checkpoint: dict[str, Any]) -> None:
    """Looks at what mmengine reads of a checkpoint before it takes a step.

    Raises:
        Damaged: Something in it is not what a run writes.
    """
    for name in RUN:
        if not isinstance(checkpoint[name], Mapping):
            raise Damaged(f"is damaged: its {name!r} is {checkpoint[name]!r:.80}, no mapping")
    for name in ("iter", "epoch"):
        try:
            whole()(name, checkpoint["meta"].get(name))
        except InputError as error:
            raise Damaged(f"is damaged: in its 'meta' {error}") from error
    groups = checkpoint.get(OPTIMIZER, {})
    groups = groups.get("param_groups", ()) if isinstance(groups, Mapping) else None
    if not is_rows(groups) or not all(isinstance(row.get("params"), list) for row in groups):
        raise Damaged(f"is damaged: its 'optimizer' has no groups of parameters: {groups!r:.80}")
    schedules = checkpoint.get("param_schedulers", ())
    lists = schedules.values() if isinstance(schedules, Mapping) else [schedules]
    if not all(is_rows(rows) for rows in lists):
        raise Damaged(f"is damaged: its 'param_schedulers' are {schedules!r:.80}, no list of them")


def is_rows(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(row, Mapping) for row in value)


def check_there(file: str | Path) -> None:
    """Raises InputError where a file is not there."""
    try:
        there = Path(file).is_file()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if not there:
        shown = f"{str(file)[:200]}{'...' * (len(str(file)) > 200)}"
        raise InputError(
            f"no checkpoint at {shown}: --resume alone looks for the work folder's own"
        )


def check_resumable(file: str | Path, optimizer: bool = True) -> None:
    """Checks that a run can go on from a checkpoint.

    Args:
        optimizer: Whether the optimizer's state has to be in it.

    Raises:
        InputError: It is not there, damaged, or weights alone.
    """
    other = "://" in str(file)
    if other and not str(file).startswith(URLS):
        return  # of a storage that is asked when it is read
    try:
        if other:
            checkpoint = CheckpointLoader.load_checkpoint(str(file), "cpu", logger="silent")
        else:
            check_there(file)
            checkpoint = read(file)
            if zipfile.is_zipfile(file):
                check_whole(file)
        missing = lacks(checkpoint, optimizer)
        if not missing:
            check_progress(checkpoint)
    except Damaged as error:
        raise InputError(
            f"{file} {error}\n--resume alone goes on from the newest that can be loaded"
        ) from error
    if missing:
        raise InputError(
            f"{file} has weights alone (no {', '.join(missing)}): no run goes on from it\n"
            f"Start a new one from these weights: --cfg-options load_from={file}"
        )


def newest(folders: Iterable[str | Path], optimizer: bool) -> tuple[Path | None, list[str]]:
    """The checkpoint of most iterations that a run can go on from, and words on damaged ones.

    Args:
        folders: Where they lie; subfolders are left out.
        optimizer: See :func:`check_resumable`.
    """
    found, damaged = [], []
    files = {file.resolve(): file for folder in folders for file in Path(folder).glob("*.pth")}
    for _, file in sorted(files.items()):
        if file.name.startswith("."):
            continue  # a part, left by a kill
        try:
            checkpoint = read(file)
            if lacks(checkpoint, optimizer):
                continue
            check_progress(checkpoint)
        except Damaged as error:
            damaged.append(f"{file} {error}")
            continue
        found.append((checkpoint["meta"]["iter"], file.stat().st_mtime, file))
    for _, _, file in sorted(found, reverse=True):
        try:
            if zipfile.is_zipfile(file):
                check_whole(file)
            return file, damaged
        except Damaged as error:
            damaged.append(f"{file} {error}")
    return None, damaged


def to_resume(
    work_dir: str | Path,
    folders: Sequence[str | Path] = (),
    optimizer: bool = True,
    say: Callable[[str], Any] = print,
) -> str | None:
    """The checkpoint that a run goes on from: the one that ``last_checkpoint`` names, or where that
    can't be loaded the newest that can.

    Args:
        work_dir: Of the run.
        folders: Where checkpoints lie besides.
        optimizer: See :func:`check_resumable`.
        say: Is told what is chosen, and why.

    Returns:
        None where there is no checkpoint, and none was named.

    Raises:
        InputError: There are some, or there was one, and none can be loaded.
    """
    pointer, trouble = Path(work_dir) / POINTER, []
    if pointer.exists():
        named = ""
        if pointer.is_file():
            named = pointer.read_text(errors="replace").strip("\0 \n")
        try:
            check_resumable(named, optimizer)
            return named
        except InputError as error:
            reason = str(error).splitlines()[0] if named else "it is empty"
            trouble.append(f"{pointer}: {reason.partition(': --resume')[0]}")
    file, damaged = newest([work_dir, *folders], optimizer)
    trouble += [words for words in damaged if not any(words in said for said in trouble)]
    if file is not None:
        trouble = trouble or [f"there is no {pointer}"]
        say("\n".join([*trouble, f"Going on from the newest that can be loaded: {file}"]))
        return str(file)
    if trouble:
        raise InputError(
            "\n".join([*trouble, f"{work_dir} has no checkpoint that a run can go on from"])
            + "\nName another one with --resume FILE, or start anew without --resume"
        )
    say(f"Nothing to resume: {work_dir} has no checkpoint yet, so the run starts at its beginning")
    return None
