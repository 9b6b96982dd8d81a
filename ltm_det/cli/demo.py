"""Show on a local web page what a detector finds, beside a dense one, and how long both take."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ltm_det.basics.errors import InputError
from ltm_det.cli.common import command, config_file, device, new_parser
from ltm_det.deploy import FORMATS
from ltm_det.prediction import Detector
from ltm_det.prediction.page import gradio, page, served
from ltm_det.prediction.sources import PICTURES, files_of

EXAMPLE = "merged.py merged.pth --dense dense.py dense.pth --images data/demo/val"
MOST = 24  # pictures to pick from


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what finds")
    on = parser.add_argument_group("where")
    of.add_argument(
        "model", type=config_file, help="an exported detector, .onnx or .xml, or a config file"
    )
    of.add_argument("checkpoint", nargs="?", help="trained weights of a config, file or URL")
    of.add_argument(
        "--dense",
        nargs="+",
        metavar="MODEL",
        help="the detector to set beside it: as the first, a file, or a config and its checkpoint",
    )
    of.add_argument("--score-thr", type=float, default=0.3, help="least score (default: 0.3)")
    of.add_argument(
        "--device", type=device, help="of configs' detectors (default: a GPU if there is one)"
    )
    of.add_argument("--threads", type=int, metavar="N", help="of exported detectors")
    of.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="whose median is the time (default: 3)"
    )
    on.add_argument(
        "--images",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help=f"pictures, or folders with them, to pick from; the first {MOST} are shown",
    )
    on.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; others than the default let other machines in",
    )
    on.add_argument(
        "--port", type=int, metavar="N", help="(default: the first from 7860 on that is free)"
    )
    args = parser.parse_args(words)
    if args.dense and len(args.dense) > 2:
        parser.error(f"--dense takes a file, or a config and a checkpoint, not {len(args.dense)}")
    if not 0 <= args.score_thr <= 1:
        parser.error(f"--score-thr must be 0 to 1, but is {args.score_thr}")
    for name in ("rounds", "threads", "port"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, but is {value}")
    if args.dense:
        try:
            args.dense[0] = config_file(args.dense[0])
        except argparse.ArgumentTypeError as error:
            parser.error(f"--dense: {error}")
    return args


def name_of(model: str) -> str:
    """What stands over a detector's picture: its file's name; of a config without the ending."""
    return Path(model).name if Path(model).suffix in FORMATS else Path(model).stem


def detectors_of(args: argparse.Namespace) -> dict[str, Detector]:
    """The dense one first, to which times are compared."""
    given = [("merged", [args.model, args.checkpoint])]
    if args.dense:
        given.insert(0, ("dense", [*args.dense, None][:2]))
    return {
        f"{name}: {name_of(model)}" if args.dense else name_of(model): Detector(
            model, checkpoint, 0.0, args.device, args.threads
        )
        for name, (model, checkpoint) in given
    }


def run(args: argparse.Namespace) -> None:
    files = files_of(args.images)
    gradio()  # says before all else that it is not installed
    examples = [file for file in files if file.suffix.lower() in PICTURES][:MOST]
    blocks = page(detectors_of(args), examples, args.score_thr, args.rounds)
    try:
        address = served(blocks, args.host, args.port)
    except OSError as error:
        raise InputError(f"no page at {args.host}, port {args.port or 'any'}: {error}") from error
    print(f"the page is at {address} until Ctrl-C", flush=True)
    try:
        blocks.block_thread()
    finally:
        blocks.close()


main = command(parse, run, ImportError)
