"""The command ``ltm-det``: one name for all that the tools do."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from ltm_det.basics.host import EXTRAS, missing
from ltm_det.cli.names import BAD_INPUT, CONSOLE

# By name, in the order in which one meets them: what a command does.
COMMANDS = {
    "demo-data": "make a small COCO data set, of handwritten digits on photographs",
    "check-data": "look for faults in COCO data before training meets them",
    "train": "train a detector",
    "test": "box and mask AP of a checkpoint, or of an exported file",
    "predict": "find objects on pictures, in folders and in videos",
    "demo": "show on a local web page what a detector finds, beside a dense one",
    "draw": "draw what a detector finds beside the truth",
    "convert": "turn a trained detector into a merged one, without training",
    "search": "find ratios, and a lean recipe, for a budget of GMACs or time",
    "compress": "make a trained detector faster, to a budget, with a report",
    "export": "write a detector or its backbone as one file",
    "flops": "count multiply-accumulates and parameters, part by part",
    "memory": "measure peak memory",
    "benchmark": "time a backbone or a whole detector beside others of its weights",
    "price": "measure what a lean recipe costs in AP",
    "compare": "train or convert several mergers by one schedule and compare them",
    "ib": "measure the information bottleneck of a trained detector",
    "visualize": "draw what merges where",
    "run": "run a tool of mmdet's own, or another script, with ltm_det there",
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        f"usage: {CONSOLE} COMMAND ...",
        "",
        f"'{CONSOLE} COMMAND --help' has the options.",
        "",
    ]
    return "\n".join([*lines, *(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())])


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        words: Its name and its options; None: those of the command line.

    Returns:
        The exit code: 0, or 2 where the input is wrong.
    """
    words = sys.argv[1:] if words is None else list(words)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else BAD_INPUT
    if words[0] == "--version":
        print(f"{CONSOLE} {version('ltm_det')}")
        return 0
    if words[0] not in COMMANDS:
        print(f"{CONSOLE}: no command {words[0]!r}\n\n{usage()}", file=sys.stderr)
        return BAD_INPUT
    if gone := missing():
        print(f"{CONSOLE}: {' and '.join(gone)} not installed: {EXTRAS}", file=sys.stderr)
        return BAD_INPUT
    sys.argv = [CONSOLE, *words]  # what commands call themselves, and write into their results
    try:
        return import_module(f"ltm_det.cli.{words[0].replace('-', '_')}").main(words[1:])
    except KeyboardInterrupt:  # while it is imported
        from ltm_det.cli.common import interrupted

        return interrupted()
