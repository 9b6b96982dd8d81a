"""Make the demo dataset: handwritten digits as objects with exact masks, in COCO format."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ltm_det.datasets import DemoDataError, make_demo_data  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="data/demo", help="folder to write to")
    parser.add_argument("--train", type=int, default=2000, help="number of training images")
    parser.add_argument("--val", type=int, default=250, help="number of validation images")
    parser.add_argument("--size", type=int, default=112, help="height and width, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        written = make_demo_data(
            **vars(args), progress=lambda items, split: tqdm(items, desc=split, unit="image")
        )
    except DemoDataError as error:
        print(f"make_demo_data: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {'written' if written else 'complete already, nothing to do'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
