"""Run a script of another project, such as mmdet's own tools, with ltm_det there from the start.

mmdet's tools import what needs compiled operators before they read a config, and so fail without
them; here ltm_det has supplied them. SCRIPT is a file, or the name of a tool that mmdet brings
along, such as analysis_tools/confusion_matrix. All that follows is the script's own.
"""

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import mmdet

from ltm_det.cli.common import command, new_parser
from ltm_det.engine.preflight import PreflightError

EXAMPLE = "analysis_tools/confusion_matrix ltm.py found.pkl pictures"
TOOLS = Path(mmdet.__file__).parent / ".mim/tools"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    parser.add_argument("script", help="a Python file, or the name of a tool of mmdet's")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="what the script is given")
    return parser.parse_args(words)


def script_of(name: str) -> Path:
    """The file of a script, or of a tool of mmdet's.

    Raises:
        PreflightError: There is neither.
    """
    tool = (TOOLS / name).with_suffix(".py")
    for file in (Path(name), tool):
        if file.is_file():
            return file
    tools = sorted(p.relative_to(TOOLS).with_suffix("").as_posix() for p in TOOLS.rglob("*.py"))
    listed = "\n  ".join(tools)
    raise PreflightError(f"no script {name}: give a file, or one of mmdet's tools\n  {listed}")


def run(args: argparse.Namespace) -> None:
    script = script_of(args.script)
    sys.argv = [str(script), *args.words]
    sys.path.insert(0, str(script.resolve().parent))  # as Python does for a script
    runpy.run_path(str(script), run_name="__main__")


main = command(parse, run, PreflightError)
