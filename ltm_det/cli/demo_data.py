"""Make the demo dataset: handwritten digits as objects with exact masks, in COCO format."""

import argparse
from collections.abc import Sequence

from tqdm import tqdm

from ltm_det.cli.common import command, new_parser
from ltm_det.datasets import DemoDataError, make_demo_data

EXAMPLE = "--out data/demo"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    parser.add_argument("--out", default="data/demo", help="folder to write to")
    parser.add_argument("--train", type=int, default=2000, help="number of training images")
    parser.add_argument("--val", type=int, default=250, help="number of validation images")
    parser.add_argument("--size", type=int, default=112, help="height and width, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    return args


def run(args: argparse.Namespace) -> int | None:
    written = make_demo_data(
        **vars(args), progress=lambda items, split: tqdm(items, desc=split, unit="image")
    )
    print(f"{args.out}: {'written' if written else 'complete already, nothing to do'}")


main = command(parse, run, DemoDataError)
