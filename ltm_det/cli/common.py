"""What all commands share: how they are named, parsed, and how they end."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ltm_det.basics.errors import InputError
from ltm_det.basics.files import write_text
from ltm_det.basics.finite import check_numbers
from ltm_det.engine.preflight import is_local_main

CONSOLE = "ltm-det"
BAD_INPUT = 2  # exit code, as argparse has it

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


class Parser(argparse.ArgumentParser):
    """One whose usage names what has to be given, and leaves the options to the lines below."""

    def brief(self) -> str:
        words = [self.prog]
        for action in self._actions:
            value = action.metavar or action.dest
            if not action.option_strings:
                words.append(f"{value} ..." if action.nargs in ("+", argparse.REMAINDER) else value)
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
    path = folder / ".mim/configs" / name if folder else None
    if path is None or not path.is_file():
        there = sorted(file.name for file in folder.glob(".mim/configs/ltm*.py")) if folder else []
        hint = f": there are {', '.join(there)}" if there else ""
        raise argparse.ArgumentTypeError(f"there is no config {given}{hint}")
    return str(path)


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
        args = parse(words)
        try:
            return int(run(args) or 0)
        except (InputError, *expected) as error:
            if is_local_main(getattr(args, "launcher", "none")):
                print(f"{name()}: {error}", file=sys.stderr)
            return BAD_INPUT

    return main
