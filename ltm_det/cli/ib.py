"""Table and plot of the information bottleneck at every merge point: merged, dense and pooled.

IB = I(X~;X) - I(X~;Y) in nats, as ltm_det.studies.bottleneck measures it, over the instances of a
split and as many boxes of background as it has images. Without --dense and --pool, dense and pooled
are the checkpoint's own weights, with nothing merged and with area pooling at the same points.
"""

import argparse
from collections.abc import Sequence

from mmengine.config import DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger

from ltm_det.basics.finite import check_numbers
from ltm_det.cli.common import (
    PICTURES,
    OutputFile,
    command,
    config_file,
    new_parser,
    typed,
    write_json,
)
from ltm_det.engine import preflight
from ltm_det.studies.bottleneck import KINDS, as_table, draw, measure

EXAMPLE = "ltm.py ltm.pth --untrained --out bottleneck.png"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is measured")
    on = parser.add_argument_group("on what")
    out = parser.add_argument_group("what is written")
    of.add_argument("config", type=config_file, help="config file of the merged detector")
    of.add_argument("checkpoint", help="its checkpoint, file or URL")
    of.add_argument("--dense", metavar="FILE", help="checkpoint for the dense row")
    of.add_argument("--pool", metavar="FILE", help="checkpoint for the pooled row")
    of.add_argument("--rows", nargs="+", choices=KINDS, default=list(KINDS))
    of.add_argument("--untrained", action="store_true", help="each also as before training")
    on.add_argument("--split", choices=["val", "train"], default="val")
    on.add_argument("--images", type=int, help="of the split, rounded up to whole batches")
    on.add_argument("--clusters", type=int, default=32)
    on.add_argument(
        "--beta",
        type=float,
        nargs="+",
        default=[10.0],
        help="inverse temperature of the assignments to clusters, one or more; inf: hard clusters",
    )
    out.add_argument("--out", type=OutputFile(*PICTURES), metavar="PNG", help="write the plot here")
    out.add_argument("--json", type=OutputFile(), metavar="FILE", help="write the numbers here")
    of.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args(words)
    if args.clusters < 2 or (args.images is not None and args.images < 1):
        parser.error("--clusters must be 2 or more, --images 1 or more")
    if not all(beta > 0 for beta in args.beta) or len(set(args.beta)) < len(args.beta):
        parser.error("--beta must be above 0, and each be given once")
    return args


def run(args: argparse.Namespace) -> int | None:
    checkpoints = dict(
        dense=args.dense or args.checkpoint,
        pool=args.pool or args.checkpoint,
        merged=args.checkpoint,
    )
    MMLogger.get_instance("mmengine", log_level="ERROR")  # not a line for every parameter
    cfg = preflight.load_config(args.config, args.cfg_options)
    preflight.check_data(cfg, args.split)
    for kind in args.rows:
        preflight.check_checkpoint(checkpoints[kind])
    if args.untrained:
        preflight.check_weights(cfg)
    measured: dict[str, dict] = {f"{beta:g}": {} for beta in args.beta}
    for kind in args.rows:
        states = {kind: checkpoints[kind]}
        if args.untrained:
            states = {f"{kind}, untrained": None} | states
        for name, checkpoint in states.items():
            summaries = measure(
                cfg,
                kind,
                checkpoint,
                args.split,
                args.images,
                args.clusters,
                args.beta,
                get_device(),
            )
            check_numbers(dict(zip(measured, summaries, strict=True)), f"the report of {name}")
            for rows, summary in zip(measured.values(), summaries, strict=True):
                rows[name] = summary
    for beta, rows in measured.items():
        samples = next(iter(next(iter(rows.values())).values()))["samples"]
        title = f"{samples} samples of {args.split}, {args.clusters} clusters, beta {beta}"
        print(f"{title}\n{as_table(rows)}")
    if args.json is not None:
        result = dict(command=typed(), split=args.split, beta=measured)
        write_json(args.json, result)
    if args.out is not None:
        draw(measured, f"{args.config}: {samples} samples of {args.split}", args.out)


main = command(parse, run, preflight.PreflightError, ValueError)
