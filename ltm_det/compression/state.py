"""Steps of a long piece of work: each is done once, and after an interruption the rest is done.

What was done lies in ``state.json`` of the folder that the work is for, which is written whole
after each step. A step is known by its name and its inputs; with other inputs it is done again, and
so is all that was made of what it gives.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, time_ns
from typing import Any

from ltm_det.basics.errors import InputError
from ltm_det.basics.files import PART, sha256_of, write_text
from ltm_det.basics.finite import check_numbers

STATE, LOCK = "state.json", ".lock"
EARLY = {"work", "annotations", "mended_data"}  # what may be there before a step is done
VERSION = 2  # of what steps do: those of another one are done again


def digest(value: Any) -> str:
    """A short name for anything that JSON can hold: equal for equal values."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(file: str | Path) -> str:
    """A short name for a file's content."""
    return sha256_of(file)[:16]


def check_steps(about: Any, steps: Any) -> None:
    """Raises a TypeError or KeyError where a file has not what a compression writes."""
    rows = list(dict(steps).values())
    parts = [row[name] for row in rows for name in ("inputs", "result", "files")]
    if not all(isinstance(part, dict) for part in (about, steps, *rows, *parts)):
        raise TypeError("its steps are no objects")
    for row in rows:
        int(row["at"])


class Steps:
    """The steps that are done in a folder.

    Args:
        folder: Is made.
        say: Is told what goes on.

    Raises:
        InputError: The folder holds files of another kind, or a state that cannot be read.
    """

    def __init__(self, folder: Path, say: Callable[[str], Any] = print) -> None:
        self.folder, self.say = folder, say
        self.done: dict[str, dict[str, Any]] = {}
        self.about: dict[str, str] = {}
        self.used: list[str] = []  # names of the steps that were asked for, done before or now
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / STATE
        if not file.exists():
            there = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
            if set(there) - EARLY:
                raise InputError(
                    f"{folder} is not empty and has no {STATE}: it holds {there[:5]}, of something "
                    "else\nName another --out"
                )
            return
        try:
            kept = json.loads(file.read_text())
            version, self.about, self.done = kept["version"], kept["about"], kept["steps"]
            check_steps(self.about, self.done)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{file} cannot be read: {error!r}\nName another --out, or remove that folder"
            ) from error
        if version != VERSION:
            say(f"{file} was written by another version: all steps are done again")
            self.done = {}

    def about_this(self, about: Mapping[str, str]) -> None:
        """Says what all the work is of, by names that a message may show, such as the checkpoint.

        Raises:
            InputError: The folder holds work on something else.
        """
        changed = [name for name in about if self.about and self.about.get(name) != about[name]]
        if changed:
            raise InputError(
                f"{self.folder} holds the compression of another {' and '.join(changed)}\n"
                "Name another --out, or remove that folder"
            )
        self.about = dict(about)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process works in the folder.

        Raises:
            InputError: One does.
        """
        with open(self.folder / LOCK, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"another process works in {self.folder}: wait for it") from error
            for part in self.folder.glob(f".*{PART}*"):  # of a process that was killed
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            yield

    def key(self, *names: str) -> str:
        """What steps gave and were given, as an input of a step that goes on from them: another
        one once they are done again."""
        return digest([[name, self.done[name]["inputs"], self.done[name]["at"]] for name in names])

    def result(self, name: str) -> dict[str, Any]:
        return self.done[name]["result"]

    def reason(self, name: str, inputs: Mapping[str, Any]) -> str | None:
        """Why a step has to be done; None: it has been done."""
        done = self.done.get(name)
        if done is None:
            return "not done yet"
        given = json.loads(json.dumps(inputs, default=str))
        old = done["inputs"]
        changed = sorted(key for key in {*given, *old} if given.get(key) != old.get(key))
        if changed:
            words = ["what it goes on from" if key == "of" else key for key in changed]
            return f"again, since other: {', '.join(words)}"
        for file, size in done["files"].items():
            path = self.folder / file
            if not path.is_file() or path.stat().st_size != size:
                return f"again, since {file} is not what it left"
        return None

    def step(
        self,
        name: str,
        inputs: Mapping[str, Any],
        work: Callable[[], dict[str, Any]],
        files: Sequence[str | Path] = (),
    ) -> dict[str, Any]:
        """Does a step, unless it has been done with these inputs.

        Args:
            name: Of the step, as it is told.
            inputs: What its result depends on; JSON.
            work: Does it; gives its result, JSON without NaN.
            files: That it leaves in the folder, relative to it.

        Returns:
            The result.
        """
        reason = self.reason(name, inputs)
        self.used = [*(own for own in self.used if own != name), name]
        if reason is None:
            self.say(f"[{name}] done before")
            return self.result(name)
        self.say(f"[{name}]" + (f" {reason}" if reason.startswith("again") else ""))
        if self.done.pop(name, None) is not None:  # its files may be of both, if this is killed
            self.write()
        start = monotonic()
        result = work()
        check_numbers(result, f"the step {name!r}")
        seconds = monotonic() - start
        sizes = {str(file): (self.folder / file).stat().st_size for file in files}
        row = dict(inputs=dict(inputs), result=result, files=sizes, seconds=round(seconds, 2))
        row["at"] = time_ns()
        self.done[name] = json.loads(json.dumps(row, default=str))
        self.write()
        self.say(f"[{name}] {spoken(seconds)}")
        return self.result(name)

    def write(self) -> None:
        kept = dict(version=VERSION, about=self.about, steps=self.done)
        write_text(self.folder / STATE, json.dumps(kept, indent=1) + "\n")


def spoken(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
