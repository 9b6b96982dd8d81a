"""Draw a contact sheet of validation images: ground truth beside predicted boxes and masks."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import DictAction
from mmengine.device import get_device

from ltm_det.cli.common import (
    PICTURES,
    OutputFile,
    check_fixed,
    command,
    config_file,
    new_parser,
)
from ltm_det.deploy.detector import FORMATS
from ltm_det.engine import preflight
from ltm_det.engine.classes import check_classes
from ltm_det.pictures.predictions import contact_sheet

EXAMPLE = "ltm.py ltm.pth --out found.png"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is drawn")
    out = parser.add_argument_group("what is written")
    of.add_argument("config", type=config_file, help="config file")
    of.add_argument("checkpoint", help="checkpoint file or URL, or an exported detector")
    sheet = OutputFile(*PICTURES)
    out.add_argument("--out", type=sheet, required=True, help="picture to write, such as a.png")
    of.add_argument("--num", type=int, default=6, help="number of images")
    of.add_argument("--score-thr", type=float, default=0.5, help="least score to draw")
    of.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args(words)
    if args.num < 1:
        parser.error(f"--num must be at least 1, but is {args.num}")
    return args


def run(args: argparse.Namespace) -> int | None:
    cfg = preflight.load_config(args.config, args.cfg_options)
    if Path(args.checkpoint).suffix in FORMATS:
        check_fixed(args.checkpoint, args.cfg_options)
        preflight.check_there(args.checkpoint, "exported detector")
    else:
        preflight.check_checkpoint(args.checkpoint)
        check_classes(cfg, "val", args.checkpoint)
    preflight.check_data(cfg, "val")
    contact_sheet(cfg, args.checkpoint, args.out, args.num, args.score_thr, get_device())


main = command(parse, run, preflight.PreflightError, ImportError)
