"""Run a script of timm's, such as its train.py or validate.py, with our classifiers there.

timm's scripts are in its repository, not in its package: SCRIPT is the path to one. What follows it
is the script's own, such as --model ltm_mobilevit_s --model-kwargs compression_ratio=0.5.
"""

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ltm_det.basics.errors import InputError
from ltm_det.classifiers import IBLoss

BAD_INPUT = 2
COMMAND = "python -m ltm_det.classifiers"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    ib = parser.add_argument_group("the information bottleneck in the loss, see IBLoss")
    ib.add_argument("--ib-weight", type=float, metavar="W", help="0: it is measured alone")
    ib.add_argument("--ib-begin", type=int, metavar="STEPS", help="before it counts (0)")
    ib.add_argument("--ib-interval", type=int, metavar="STEPS", help="between refreshes")
    ib.add_argument("--ib-clusters", type=int, metavar="K", help="(32)")
    parser.add_argument("script", help="a Python file")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="what the script is given")
    args = parser.parse_args(words)
    if (args.ib_weight is None) != (args.ib_interval is None):
        parser.error("--ib-weight and --ib-interval go together: an epoch's steps are the paper's")
    if args.ib_weight is None and (args.ib_begin, args.ib_clusters) != (None, None):
        parser.error("--ib-begin and --ib-clusters are nothing without --ib-weight")
    return args


def add_bound(settings: dict[str, Any]) -> None:
    """Puts an `IBLoss` round the loss of the task that timm's train.py makes of it and a model.

    Args:
        settings: Of `IBLoss`.

    Raises:
        InputError: This timm has no tasks.
    """
    try:
        import timm.task
    except ImportError:
        raise InputError(
            f"--ib-weight needs timm 1.0.23 or later, but this is {timm.__version__}: install "
            "that, or put an IBLoss round the loss in your copy of train.py"
        ) from None

    class BottleneckTask(timm.task.ClassificationTask):
        def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
            super().__init__(model, *args, **kwargs)
            self.criterion = IBLoss(self.criterion, model, **settings)

    timm.task.ClassificationTask = BottleneckTask


def run(args: argparse.Namespace) -> None:
    """Raises InputError where there is no such script, or of a model's arguments."""
    script = Path(args.script)
    if not script.is_file():
        raise InputError(
            f"no script {script}: give the path to train.py or validate.py in a copy of timm's "
            f"repository, of the version that is installed, {timm.__version__}"
        )
    if args.ib_weight is not None:
        settings = dict(weight=args.ib_weight, interval=args.ib_interval)
        given = dict(begin=args.ib_begin, num_clusters=args.ib_clusters)
        add_bound(settings | {name: value for name, value in given.items() if value is not None})
    sys.argv = [str(script), *args.words]
    sys.path.insert(0, str(script.resolve().parent))  # as Python does for a script
    runpy.run_path(str(script), run_name="__main__")


def main(words: Sequence[str] | None = None) -> int:
    """From words, None for those of the command line, to an exit code: 0, or 2 for bad input."""
    try:
        run(parse(words))
    except InputError as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
