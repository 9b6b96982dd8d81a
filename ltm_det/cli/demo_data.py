"""Make the demo dataset: handwritten digits as objects with exact masks, in COCO format."""

import argparse
from collections.abc import Sequence

from tqdm import tqdm

from ltm_det.cli.common import command, new_parser, output_folder
from ltm_det.datasets import DemoDataError, make_demo_data

EXAMPLE = "--out data/demo"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("the pictures")
    out = parser.add_argument_group("what is written")
    out.add_argument("--out", type=output_folder, default="data/demo", help="folder to write to")
    of.add_argument("--train", type=int, default=2000, help="number of training images")
    of.add_argument("--val", type=int, default=250, help="number of validation images")
    of.add_argument("--size", type=int, default=112, help="height and width, in pixels")
    of.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    return args


def run(args: argparse.Namespace) -> int | None:
    written = make_demo_data(
        **vars(args), progress=lambda items, split: tqdm(items, desc=split, unit="image")
    )
    print(f"{args.out}: {'written' if written else 'complete already, nothing to do'}")


main = command(parse, run, DemoDataError)
