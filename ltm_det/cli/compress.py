"""Make a trained detector faster, to a budget, and write what to deploy with a report.

On your own pictures it measures the dense detector, searches where to merge and what to leave out
of the heads, converts and calibrates, with --finetune trains on beside the dense twin, exports, and
measures again. What was done is kept in --out: the same command goes on after an interruption, with
other options what they change is done again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger

from ltm_det.basics.errors import InputError
from ltm_det.cli import check_data
from ltm_det.cli.common import command, config_file, new_parser, output_folder, typed
from ltm_det.compression.estimate import dry_run
from ltm_det.compression.exporting import check_packages
from ltm_det.compression.given import Given, given
from ltm_det.compression.pipeline import Compression
from ltm_det.compression.settings import (
    FORMATS,
    GMACS,
    LATENCY,
    MAX_AP_LOSS,
    PACKAGES,
    Budget,
    Settings,
)
from ltm_det.compression.state import Steps, spoken
from ltm_det.conversion.calibration import STEPS
from ltm_det.conversion.search import RATIOS, SEARCHED
from ltm_det.datasets.own import own_data
from ltm_det.engine import preflight
from ltm_det.merging import MERGERS

EXAMPLE = "dense.py dense.pth --data DIR --budget latency=0.5 --finetune"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is compressed")
    to = parser.add_argument_group("to what")
    choices = parser.add_argument_group("what can be chosen")
    tune = parser.add_argument_group("fine-tuning")
    out = parser.add_argument_group("what is written")
    of.add_argument("config", type=config_file, help="config file of the dense detector")
    of.add_argument("checkpoint", help="its trained weights, a file")
    of.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="PATH",
        help="a COCO json or folder, a YOLO or VOC folder, or data.yaml, of the detector's classes",
    )
    to.add_argument(
        "--budget",
        type=budget,
        required=True,
        metavar="KIND=VALUE",
        help="latency=0.5: the whole detector takes half of mmdet's time; gmacs=0.6; "
        "max-ap-loss=0.5: the cheapest that loses at most half a point of AP",
    )
    to.add_argument(
        "--cost",
        choices=[LATENCY, GMACS],
        help=f"what is cheap, of --budget {MAX_AP_LOSS} (default: {LATENCY})",
    )
    choices.add_argument("--merger", choices=list(MERGERS), default="LTM", help="default: LTM")
    choices.add_argument("--merger-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    choices.add_argument(
        "--ratios", type=float, nargs="+", default=RATIOS, help=f"kept fractions {RATIOS}"
    )
    choices.add_argument(
        "--unit",
        choices=["stage", "block"],
        help="what gets its ratio in one piece (default: stage, and block where that does not meet "
        "the budget)",
    )
    choices.add_argument("--images", type=int, default=64, help="to search on (default: 64)")
    choices.add_argument(
        "--calibrate", type=int, default=128, metavar="N", help="images; 0: not (default: 128)"
    )
    choices.add_argument(
        "--calibration-steps", type=int, default=STEPS, metavar="N", help=f"default: {STEPS}"
    )
    choices.add_argument(
        "--trials", type=int, default=5, help=f"candidates of {MAX_AP_LOSS} (default: 5)"
    )
    tune.add_argument(
        "--finetune",
        type=int,
        nargs="?",
        const=-1,
        default=0,
        metavar="N",
        help="iterations (without N: 12 times through the pictures, at least 500)",
    )
    tune.add_argument("--batch", type=int, metavar="N", help="pictures a step (default: config's)")
    tune.add_argument(
        "--no-distill", action="store_true", help="do not follow the dense backbone's maps"
    )
    out.add_argument("--out", type=output_folder, metavar="DIR", help="default: in work_dirs/")
    out.add_argument("--export", choices=[*FORMATS], default="onnx", help="default: onnx")
    out.add_argument(
        "--pictures", type=int, default=10, metavar="N", help="in the report (default: 10)"
    )
    out.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and how long it takes"
    )
    of.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    check_data.add_options(of)
    args = parser.parse_args(words)
    numbers = dict(images=1, calibrate=0, calibration_steps=1, trials=1, pictures=1, batch=1)
    for name, least in numbers.items():
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, but is {value}")
    if args.finetune < -1 or args.finetune == 1:
        parser.error(f"--finetune must be 0 or at least 2, but is {args.finetune}")
    if args.cost and args.budget.kind != MAX_AP_LOSS:
        parser.error(f"--cost is of --budget {MAX_AP_LOSS}; {args.budget} says it itself")
    if taken := {"type", *SEARCHED} & {*(args.merger_options or {})}:
        parser.error(f"--merger-options: {sorted(taken)} is what is chosen by other options")
    if "://" in args.checkpoint:
        parser.error(f"{args.checkpoint} is an address: download it first")
    args.launcher = "none"
    return args


def budget(text: str) -> Budget:
    try:
        return Budget.of(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def settings_of(args: argparse.Namespace) -> Settings:
    kind = args.budget.kind
    return Settings(
        budget=args.budget,
        cost=(args.cost or LATENCY) if kind == MAX_AP_LOSS else kind,
        merger=dict(type=args.merger, **(args.merger_options or {})),
        ratios=tuple(args.ratios),
        unit=args.unit,
        images=args.images,
        calibration=args.calibrate,
        steps=args.calibration_steps,
        trials=args.trials,
        finetune=None if args.finetune == -1 else args.finetune,
        batch=args.batch,
        distill=not args.no_distill,
        export=args.export,
        pictures=args.pictures,
    )


def inputs(args: argparse.Namespace, settings: Settings, folder: Path) -> Given:
    """The detector on the data, both checked.

    Args:
        folder: For annotations that have to be written.
    """
    cfg: Config = preflight.load_config(args.config, args.cfg_options)
    cfg.launcher, cfg.work_dir = "none", str(folder)
    data = own_data(args.data)
    found = given(cfg, args.checkpoint, data, folder / "annotations", settings, print)
    check_data.before_run(found.cfg, args, "train", "val")
    found.use_files()  # which may be mended ones now
    return found


def run(args: argparse.Namespace) -> None:
    MMLogger.get_instance("mmengine", log_level="ERROR")  # not a line for every model
    settings = settings_of(args)
    check_packages(PACKAGES[settings.export])
    preflight.check_checkpoint(args.checkpoint)
    name = f"{Path(args.config).stem}_{str(settings.budget).replace('=', '_')}"
    folder = args.out or Path("work_dirs") / name
    if args.dry_run:
        dry_run(lambda where: inputs(args, settings, where), settings, folder)
        return
    start = monotonic()
    steps = Steps(folder)
    with steps.alone():
        found = inputs(args, settings, folder)
        steps.about_this(found.inputs())
        done = Compression(found, settings, steps, typed())
        done.run()
    result: dict[str, Any] = steps.result("report")
    print(
        f"{folder}: config.py, model.pth, report.html; {spoken(monotonic() - start)}\n"
        f"Budget {settings.budget}: reached {result['reached']:.3f}, "
        f"{-result['loss']:+.2f} points of AP"
        + ("" if result["met"] else ": the budget is NOT met")
    )


main = command(parse, run, preflight.PreflightError, ValueError, ImportError)
