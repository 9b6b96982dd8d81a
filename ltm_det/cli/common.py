"""What all commands share: how they are named, parsed, and how they end."""

import argparse
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction

from ltm_det.basics.errors import TRACEBACK, InputError
from ltm_det.basics.files import check_output, write_text
from ltm_det.basics.finite import check_numbers
from ltm_det.cli.names import BAD_INPUT, CONSOLE
from ltm_det.compat.configs import inside_package
from ltm_det.engine.preflight import PreflightError, is_local_main

# As shells report the signals SIGINT and SIGPIPE.
INTERRUPTED, NOBODY_READS = 130, 141
PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".pdf", ".webp")  # of matplotlib's

Main = Callable[[Sequence[str] | None], int]


def name() -> str:
    """Of the command that runs: 'ltm-det train', or a tool's file such as 'train.py'."""
    script = Path(sys.argv[0]).name
    return " ".join([script, *sys.argv[1:2]]) if script == CONSOLE else script


def typed() -> str:
    """The command line that runs, as one types it."""
    if Path(sys.argv[0]).name == CONSOLE:
        return shlex.join([CONSOLE, *sys.argv[1:]])
    return shlex.join(["python", *sys.argv])


class Settings(DictAction):
    """mmengine's KEY=VALUE, whose errors end as argparse's do."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for value in values:
            if not value.partition("=")[1] or not value.partition("=")[0]:
                raise argparse.ArgumentError(self, f"{value!r} is not KEY=VALUE")
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError, IndexError) as error:
            raise argparse.ArgumentError(self, f"{values}: {error}") from error


class Parser(argparse.ArgumentParser):
    """One whose usage names what has to be given, and leaves the options to the lines below."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("action", DictAction, Settings)

    def brief(self) -> str:
        words = [self.prog]
        for action in self._actions:
            value = action.metavar or action.dest
            if not action.option_strings:
                more = action.nargs in ("+", argparse.REMAINDER)
                words.append(
                    f"[{value}]" if action.nargs == "?" else f"{value} ..." * more or value
                )
            elif action.required:
                words.append(f"{action.option_strings[0]} {value.upper()}")
        return " ".join([*words, "[options]"])

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        try:
            return super().parse_known_args(args, namespace)
        except (ValueError, AssertionError, IndexError) as error:  # of mmengine's DictAction
            self.error(f"settings are given as KEY=VALUE, lists as KEY=[a,b]: {error}")

    def format_usage(self) -> str:
        return f"usage: {self.brief()}\n"

    def format_help(self) -> str:
        self.usage = self.brief().replace("%", "%%")
        return super().format_help()


def check_fixed(file: str, options: Mapping[str, Any] | None) -> None:
    """Raises PreflightError where ``--cfg-options`` would change an exported detector's model."""
    fixed = [key for key in options or () if key.partition(".")[0] == "model"]
    if fixed:
        raise PreflightError(
            f"{file} is a whole detector, which {sorted(fixed)} cannot change: export it with "
            "these --cfg-options"
        )


def device(text: str) -> str:
    """Of ``--device``: one that is there."""
    try:
        kind = torch.device(text).type
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no device: give cpu or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"{text}: torch finds no CUDA device here: give cpu")
    return text


def new_parser(text: str, example: str) -> argparse.ArgumentParser:
    """A command's parser.

    Args:
        text: What the command does; help shows the first sentence.
        example: The words after the command's name.
    """
    return Parser(
        prog=name(),
        description=text.splitlines()[0],
        epilog=f"example: {name()} {example}",
        allow_abbrev=False,
    )


def write_json(file: Path | None, result: Mapping[str, Any]) -> None:
    """A command's figures, where --json names a file; JSON has neither NaN nor infinity."""
    if file is not None:
        check_numbers(result, f"{file} is not written")
        write_text(file, json.dumps(result, indent=2) + "\n")


def config_file(given: str) -> str:
    """A config's path; of 'ltm_det::NAME.py' and 'mmdet::NAME.py' the file inside that package."""
    package, mark, name = given.partition("::")
    if not mark:
        return given
    folder = Path(str(files(package))) if package in ("ltm_det", "mmdet") else None
    path = inside_package(package, name) if folder else None
    if path is None:
        there = sorted(file.name for file in folder.glob(".mim/configs/ltm*.py")) if folder else []
        hint = f": there are {', '.join(there)}" if there else ""
        raise argparse.ArgumentTypeError(f"there is no config {given}{hint}")
    return str(path)


class OutputFile:
    """The type of an option that names a file to write: found out before the work begins.

    Args:
        suffixes: Of which it must have one; none: any.
        beside: Suffixes of files that are written beside it, in the place of its own.
    """

    def __init__(self, *suffixes: str, beside: Sequence[str] = ()) -> None:
        self.suffixes, self.beside = suffixes, beside

    def __call__(self, given: str) -> Path:
        path = _named(given)
        if self.suffixes and path.suffix.lower() not in self.suffixes:
            choice = " or ".join(self.suffixes)
            raise argparse.ArgumentTypeError(f"must end in {choice}, but is {given}")
        _checked(path)
        if path.suffix.lower() == ".json" and is_annotations(path):
            raise argparse.ArgumentTypeError(f"{given} holds annotations: name another file")
        for suffix in self.beside:
            _checked(path.with_suffix(suffix) if path.name else path)
        return path


def is_annotations(path: Path) -> bool:
    """Whether a file has COCO's lists, which no result of ours is to replace."""
    try:
        there = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(there, dict) and {"images", "annotations"} <= there.keys()


def output_folder(given: str) -> Path:
    """The type of an option that names a folder to write to."""
    return _checked(_named(given), folder=True)


def _named(given: str) -> Path:
    if not given:
        raise argparse.ArgumentTypeError("is empty: give a path")
    return Path(given)


def _checked(path: Path, folder: bool = False) -> Path:
    try:
        check_output(path, folder)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def command(
    parse: Callable[[Sequence[str] | None], argparse.Namespace],
    run: Callable[[argparse.Namespace], Any],
    *expected: type[Exception],
) -> Main:
    """A command's main function: from words to an exit code.

    Args:
        parse: From words, None for those of the command line, to arguments.
        run: Does it; its exit code, None for 0.
        expected: Errors, besides InputError, that say what is wrong with the input; others show
            their traceback.
    """

    def main(words: Sequence[str] | None = None) -> int:
        args = None
        try:
            args = parse(words)
            code = int(run(args) or 0)
            sys.stdout.flush()
            return code
        except (InputError, *expected) as error:
            if os.environ.get(TRACEBACK) == "1":
                traceback.print_exc()
            if getattr(error, "of_a_process", False) or is_local_main(
                getattr(args, "launcher", "none")
            ):
                print(f"{name()}: {error}", file=sys.stderr)
            return BAD_INPUT
        except KeyboardInterrupt:
            return interrupted()
        except SyntaxError as error:  # into which mmengine turns all that comes as it writes one
            if isinstance(error.__context__, KeyboardInterrupt):
                return interrupted()
            raise
        except BrokenPipeError:  # of what reads the output, such as head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return NOBODY_READS

    return main


def interrupted() -> int:
    """Ends a command that was interrupted by Ctrl-C."""
    print(f"{name()}: interrupted", file=sys.stderr)
    return INTERRUPTED
