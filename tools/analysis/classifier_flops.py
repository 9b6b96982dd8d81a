"""Count the GMACs and parameters of a classifier for timm, dense and merged side by side.

Whole models, heads included, by the conventions of ltm_det.measure.flops.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import timm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ltm_det.classifiers import MODELS, Classifier  # noqa: E402
from ltm_det.cli.common import OutputFile, command, new_parser, typed, write_json  # noqa: E402
from ltm_det.measure.flops import Counts, as_table, count_backbone  # noqa: E402

EXAMPLE = "ltm_mobilevit_s --side 256"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--side", type=int, default=224, help="of the image, in pixels")
    parser.add_argument("--json", type=OutputFile(), metavar="FILE", help="write the counts here")
    return parser.parse_args(words)


def count(model: Classifier, shape: tuple[int, int]) -> Counts:
    """Of the whole, under 'model', and of its parts."""
    counts = count_backbone(model, shape)
    return Counts(
        *({f"model{name.removeprefix('backbone')}": n for name, n in c.items()} for c in counts)
    )


def run(args: argparse.Namespace) -> None:
    shape = (args.side, args.side)
    counts = {
        side: count(timm.create_model(args.model, merger=merger), shape)
        for side, merger in (("dense", False), ("merged", True))
    }
    print(f"{args.model} at {args.side} x {args.side}")
    print(as_table(counts))
    kept = {side: count._asdict() for side, count in counts.items()}
    write_json(args.json, dict(command=typed(), model=args.model, shape=shape, **kept))


main = command(parse, run)

if __name__ == "__main__":
    sys.exit(main())
