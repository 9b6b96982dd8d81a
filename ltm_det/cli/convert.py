"""Turn a trained dense detector into a merged one, without training.

The weights stay as they are, and every key of the checkpoint is accounted for. With --calibrate the
mergers are fitted so that the merged backbone's maps come near the dense one's, on images of the
training data, without their labels. What is written is a checkpoint and beside it its config.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger
from torch import nn
from tqdm import tqdm

from ltm_det.basics.files import check_apart
from ltm_det.cli.common import OutputFile, command, config_file, new_parser
from ltm_det.compat.weight_files import SAFETENSORS
from ltm_det.conversion import calibration
from ltm_det.conversion.convert import (
    convert,
    dense_backbone,
    save_converted,
    written_files,
)
from ltm_det.conversion.unlabelled import unlabelled_batches
from ltm_det.engine import preflight
from ltm_det.measure.flops import count_backbone
from ltm_det.merging import MERGERS
from ltm_det.studies.runs import as_typed

EXAMPLE = "dense.py dense.pth --merger LTM --compression-ratio 0.51 --calibrate 256 --out ltm.pth"

HELD_OUT = 4  # one image beside so many fitted ones


def ratios(text: str) -> float | list:
    """A compression ratio, or lists of them as --cfg-options takes them: [1,1,0.51,1]."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, (int, float, list)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a list of numbers")
    return value


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is converted")
    into = parser.add_argument_group("into what")
    fit = parser.add_argument_group("the fit to the dense backbone")
    out = parser.add_argument_group("what is written")
    of.add_argument(
        "config",
        type=config_file,
        help="config file of the dense detector: with mmdet's Swin, or any backbone of ltm_det",
    )
    of.add_argument("checkpoint", help="its checkpoint, file or URL")
    into.add_argument("--merger", choices=sorted(MERGERS), default="LTM")
    into.add_argument(
        "--compression-ratio",
        type=ratios,
        required=True,
        metavar="RATIO",
        help='kept fraction in (0, 1], or a list as "[1,1,0.51,1]", without white space',
    )
    into.add_argument("--scope", choices=["stage", "block"], help="not of a ViT (default: stage)")
    into.add_argument(
        "--merger-options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="further settings of the merger, such as mask=hard, or merge_at=4 for a ViT",
    )
    weights = OutputFile(".pth", SAFETENSORS, beside=[".py"])
    out.add_argument(
        "--out",
        type=weights,
        required=True,
        metavar="FILE",
        help="checkpoint to write (.safetensors or .pth)",
    )
    out.add_argument(
        "--safetensors", action="store_true", help="as .safetensors, whatever --out ends in"
    )
    out.add_argument("--overwrite", action="store_true", help="replace what is there")
    fit.add_argument(
        "--calibrate",
        type=int,
        metavar="N_IMAGES",
        help="fit the mergers on so many of the config's training images, rounded up to whole "
        "batches; a quarter as many others tell whether it helps",
    )
    default = "(default: %(default)s)"
    steps = f"of a batch each, whatever N_IMAGES is {default}"
    fit.add_argument("--steps", type=int, default=calibration.STEPS, help=steps)
    fit.add_argument("--lr", type=float, default=calibration.LEARNING_RATE, help=default)
    fit.add_argument("--batch-size", type=int, default=8, help=default)
    preflight.add_shape(of)
    of.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args(words)
    if args.safetensors:
        args.out = weights(str(args.out.with_suffix(SAFETENSORS)))
    if min(args.shape) < 1:
        parser.error(f"--shape must be two positive numbers, got {args.shape}")
    for name in ("calibrate", "steps", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    if not args.lr > 0:
        parser.error("--lr must be above 0")
    named = {"type", "compression_ratio", "scope"} & args.merger_options.keys()
    if named:
        parser.error(f"--merger-options: {sorted(named)} have options of their own")
    return args


def calibrate(cfg: Config, detector: nn.Module, teacher: nn.Module, args: argparse.Namespace):
    """Fits the mergers in place and says whether it helped."""
    try:
        calibration.merger_parameters(detector.backbone)
    except ValueError as error:
        print(f"Not calibrated: {error}")
        return
    size = min(args.batch_size, args.calibrate)
    fitted = -(-args.calibrate // size)  # batches
    batches = unlabelled_batches(cfg, (fitted + -(-fitted // HELD_OUT)) * size, size)
    done = calibration.calibrate_if_better(
        detector.backbone,
        teacher,
        batches[:fitted],
        batches[fitted:],
        steps=args.steps,
        lr=args.lr,
        progress=partial(tqdm, desc="calibrate", unit="step"),
    )
    print(
        f"Relative error of the maps on {sum(map(len, batches[fitted:]))} held-out images: "
        f"{done.before:.4f} before calibration, {done.after:.4f} after"
    )
    if not done.kept:
        print("It did not help: the mergers stay as they start. Try a lower --lr, or more images")


def run(args: argparse.Namespace) -> None:
    MMLogger.get_instance("mmengine", log_level="ERROR")  # not a line for every parameter
    there = [str(path) for path in written_files(args.out) if path.exists()]
    if there and not args.overwrite:
        raise preflight.PreflightError(
            f"{' and '.join(there)} exist already\nName another --out, or give --overwrite"
        )
    cfg = preflight.load_config(args.config, args.cfg_options)
    preflight.check_checkpoint(args.checkpoint)
    check_apart(args.checkpoint, *written_files(args.out))
    check_apart(args.config, *written_files(args.out))
    if args.calibrate:
        try:
            preflight.check_data(cfg, "train")
        except preflight.PreflightError as error:
            raise preflight.PreflightError(
                f"{error}\nAfter ltm-det train CONFIG --data FOLDER, give the config in its work "
                "folder, which knows these data; without --calibrate none are needed"
            ) from error
    merger = dict(type=args.merger, compression_ratio=args.compression_ratio)
    merger |= dict(scope=args.scope) if args.scope else {}
    cfg, detector = convert(cfg, args.checkpoint, merger | args.merger_options)
    detector.to(get_device())
    teacher = dense_backbone(cfg, detector)
    dense, merged = (
        count_backbone(model, tuple(args.shape)).macs["backbone"] / 1e9
        for model in (teacher, detector.backbone)
    )
    print(
        "Backbone at {} x {}: {:.2f} GMACs dense, {:.2f} merged, ratio {:.3f}".format(
            *args.shape, dense, merged, merged / dense
        )
    )
    if args.calibrate:
        calibrate(cfg, detector, teacher, args)
    save_converted(cfg, detector, args.out)
    checkpoint, config = written_files(args.out)
    print("Evaluate it:", as_typed(["test", str(config), str(checkpoint)]))


main = command(parse, run, preflight.PreflightError, ValueError)
