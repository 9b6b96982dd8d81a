"""Count the GMACs and parameters of a config's detector, dense and merged side by side.

The figures and their conventions are those of ltm_det.measure.flops: one image of the given
shape, 1000 boxes for each box head, 100 for each mask head; 1 GMAC is 2 GFLOP.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ltm_det  # noqa: E402, F401  first: it makes mmdet's models importable

# isort: split
from mmengine.config import DictAction  # noqa: E402

from ltm_det.engine import preflight  # noqa: E402
from ltm_det.measure.flops import MASK_ROIS, PROPOSALS, as_table, compare  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config file")
    preflight.add_shape(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts here too")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args()
    try:
        cfg = preflight.load_config(args.config, args.cfg_options)
    except preflight.PreflightError as error:
        print(f"flops.py: {error}", file=sys.stderr)
        return 2
    counts = compare(cfg, tuple(args.shape))
    print("{} at {} x {}".format(args.config, *args.shape))
    print(as_table(counts))
    if args.json is not None:
        result = dict(
            command=shlex.join(["python", *sys.argv]),
            config=args.config,
            shape=args.shape,
            proposals=PROPOSALS,
            mask_rois=MASK_ROIS,
            **{side: count._asdict() for side, count in counts.items()},
        )
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
