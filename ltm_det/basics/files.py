"""Files that are whole or not there: whoever finds one under its final name can read it."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from ltm_det.basics.errors import InputError

PART = ".part"  # how names of files end that are being written


@contextmanager
def whole(file: str | Path) -> Iterator[Path]:
    """A path to write to, which takes the place of a file once everything is on the disk.

    The path lies beside the file and has its suffix, since writers choose their format by it. Where
    writing fails it is removed, and what the file held before stays.

    Args:
        file: The final name; its folder is made.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.stem}.{os.getpid()}{PART}{file.suffix}")
    try:
        yield part
        sync(part)
        os.replace(part, file)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    sync(file.parent)


@contextmanager
def whole_set(file: str | Path) -> Iterator[Path]:
    """As :func:`whole`, for writers that put files beside theirs, which it names: OpenVINO's
    weights, those of a large ONNX file.

    What is beside it is renamed first. A former file with the final name is removed before, for
    it would not fit what lies beside it: at any time the name stands for a set that fits, or for
    none.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent, prefix=f".{file.stem}.", suffix=PART) as folder:
        part = Path(folder) / file.name
        yield part
        beside = [path for path in Path(folder).iterdir() if path != part]
        for path in (*beside, part):
            sync(path)
        if beside:
            file.unlink(missing_ok=True)
        for path in (*beside, part):
            os.replace(path, file.parent / path.name)
    sync(file.parent)


def check_apart(read: str | Path | None, *written: Path) -> None:
    """Raises InputError where a file that is read is one of those to be written."""
    for file in written:
        if read is not None and file.exists() and Path(read).exists() and file.samefile(read):
            raise InputError(f"{file} is read, and would be written over: name another --out")


def remove_parts(folder: str | Path, name: str) -> None:
    """Removes what killed processes were writing; none may write such a file at this time.

    Args:
        name: Of the files that were to be; ``*`` stands for anything.
    """
    name = Path(name)
    for part in Path(folder).glob(f".{name.stem}.*{PART}{name.suffix}"):
        part.unlink(missing_ok=True)


def sync(path: str | Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_text(file: str | Path) -> str:
    """A text in UTF-8.

    Raises:
        InputError: It is none, or can't be read.
    """
    try:
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no text in UTF-8: {error}; save it as such") from error
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror}") from error


def write_text(file: str | Path, text: str) -> None:
    """Writes a text whole."""
    with whole(file) as part:
        part.write_text(text)


def sha256_of(path: str | Path) -> str:
    """Of a file's content, in hexadecimal."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            total.update(part)
    return total.hexdigest()


def check_name(path: str | Path) -> None:
    """Checks that a name is a text: OpenCV dies of bytes that are none, and logs refuse them.

    Raises:
        InputError: It is none.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{str(path)!a} is no text in UTF-8: give it another name") from error


def check_output(path: str | Path, folder: bool = False) -> None:
    """Checks, before the work, that a file or a folder can be written; leaves nothing behind.

    Raises:
        InputError: Something else is there, or nothing can be made there.
    """
    path = Path(path)
    what = "folder" if folder else "file"
    check_name(path)
    try:
        if path.exists() and not (path.is_dir() if folder else path.is_file()):
            here = "a folder" if path.is_dir() else "a file" if path.is_file() else "no plain file"
            raise InputError(f"{path} is {here}: name a {what} to write")
        there = next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))
        if not there.exists():
            raise InputError(
                f"{path} cannot be made, since {there} is a link to nothing: name another {what}"
            )
        if there.is_file() and there != path.absolute():
            raise InputError(f"{path} cannot be made, since {there} is a file: name another {what}")
        if there.is_file() and not os.access(there, os.W_OK):
            raise InputError(f"{path} is write-protected: name another {what}")
        near = there if there.is_dir() else there.parent
        with TemporaryFile(dir=near):  # rights alone do not tell: disks can be read-only, or full
            pass
        path.with_name(path.name + PART * 3).exists()  # raises where the name is too long
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be written: {error}; name another {what}") from error
