"""Count the GMACs and parameters of a config's detector, dense and merged side by side.

The figures and their conventions are those of ltm_det.measure.flops: one image of the given
shape, 1000 boxes for each box head, 100 for each mask head; 1 GMAC is 2 GFLOP.
"""

import argparse
from collections.abc import Sequence

from mmengine.config import DictAction

from ltm_det.cli.common import OutputFile, command, config_file, new_parser, typed, write_json
from ltm_det.engine import preflight
from ltm_det.measure.flops import MASK_ROIS, PROPOSALS, as_table, compare

EXAMPLE = "configs/ltm_swin_s_maskrcnn.py --shape 800 1280"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is counted")
    out = parser.add_argument_group("what is written")
    of.add_argument("config", type=config_file, help="config file")
    preflight.add_shape(of)
    out.add_argument("--json", type=OutputFile(), metavar="FILE", help="write the counts here too")
    of.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args(words)
    if min(args.shape) < 1:
        parser.error(f"--shape must be two positive numbers, got {args.shape}")
    return args


def run(args: argparse.Namespace) -> int | None:
    cfg = preflight.load_config(args.config, args.cfg_options)
    counts = compare(cfg, tuple(args.shape))
    print("{} at {} x {}".format(args.config, *args.shape))
    print(as_table(counts))
    if args.json is not None:
        result = dict(
            command=typed(),
            config=args.config,
            shape=args.shape,
            proposals=PROPOSALS,
            mask_rois=MASK_ROIS,
            **{side: count._asdict() for side, count in counts.items()},
        )
        write_json(args.json, result)


main = command(parse, run, preflight.PreflightError, ValueError)
