"""Options of ``ltm-det train`` for one's own data: what a config would say is read from them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ltm_det.basics.errors import InputError
from ltm_det.cli.common import config_file
from ltm_det.compat.state_dicts import weights_of
from ltm_det.compat.weight_files import read_file
from ltm_det.conversion.budget import meet_share
from ltm_det.conversion.own_config import fit_to_data
from ltm_det.datasets.own import OwnData, own_data
from ltm_det.engine.config_files import override
from ltm_det.engine.mixed_precision import AUTO, PRECISIONS
from ltm_det.engine.preflight import check_checkpoint
from ltm_det.merging import MERGERS

FAMILIES = ("swin_t", "swin_s", "swin_b", "vit_s", "vit_b", "vit_l")
NONE = "none"
# Options that go with --data alone.
ALONE = ("family", "merger", "budget", "epochs", "batch", "weights")
# What the names of a detector's weights have in them, and those of a backbone have not.
HEADS = ("rpn_head.", "roi_head.", "bbox_head.", "mask_head.", "panoptic_head.", "decoder.")


def add_options(parser: argparse.ArgumentParser) -> None:
    of = parser.add_argument_group("your own data, in the place of the config's")
    of.add_argument(
        "--data", type=Path, metavar="PATH", help="COCO json or folder, YOLO or VOC folder"
    )
    of.add_argument("--family", choices=FAMILIES, help="a config of ours, where none is named")
    of.add_argument("--merger", choices=[*MERGERS, NONE], help="of --family (default: LTM)")
    of.add_argument(
        "--budget", type=float, metavar="R", help="merge to this share of the backbone's GMACs"
    )
    of.add_argument("--epochs", type=int, metavar="N", help="times through the pictures")
    of.add_argument(
        "--batch",
        type=batch_size,
        metavar="N",
        help="pictures a step and process (default: auto, by the memory there is)",
    )
    of.add_argument(
        "--weights", metavar="FILE", help="start: a detector's or backbone's weights, or none"
    )


def batch_size(given: str) -> int | str:
    return AUTO if given == AUTO else int(given)


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Names a config of ours where the options name a family; else there has to be one."""
    if args.precision is not None and args.amp:
        parser.error("--amp is float16: give it or --precision, not both")
    if args.data is None:
        if given := [f"--{name}" for name in ALONE if getattr(args, name) is not None]:
            parser.error(f"{', '.join(given)}: of --data, which is missing")
        if args.precision == AUTO:
            parser.error(f"--precision {AUTO} goes with --data: give one of {PRECISIONS[1:]}")
        if args.config is None:
            parser.error("give a config, or --data and --family")
        return
    if (args.config is None) == (args.family is None):
        parser.error("--data needs a config or --family, one of them")
    if args.merger is not None and args.family is None:
        parser.error("--merger is of --family; a config names its own")
    if args.merger == NONE and args.budget is not None:
        parser.error("--budget is met by merging: give another --merger than none")
    for name in ("epochs", "batch"):
        value = getattr(args, name)
        if isinstance(value, int) and value < 1:
            parser.error(f"--{name} must be at least 1, but is {value}")
    if args.batch == AUTO and args.launcher != NONE:
        parser.error("--batch auto is of one process: give --batch N with --launcher")
    if args.family is not None:
        args.config = config_file(f"ltm_det::ltm_{args.family}_maskrcnn.py")


def use_own_data(cfg: Config, args: argparse.Namespace, say: Callable[[str], Any]) -> OwnData:
    """The config on the data of ``--data``, all but its schedule. The annotations are written into
    the work folder where they are of another form than COCO's.

    Raises:
        InputError: Data of no known form, or a detector that does not fit them.
    """
    data = own_data(args.data)
    if args.work_dir is None:
        name = args.data.stem if args.data.name != "data.yaml" else args.data.absolute().parent.name
        cfg.work_dir = str(Path("work_dirs") / f"{name}_{Path(args.config).stem}")
    files = data.write(Path(cfg.work_dir) / "annotations")
    longer, shorter = fit_to_data(cfg, data, files, say)
    override(cfg, args.cfg_options or {})  # what is typed wins over what was read from the data
    if args.merger == NONE:
        cfg.model.backbone.merger = None
    elif args.merger is not None:
        cfg.model.backbone.merger.type = args.merger
    if args.budget is not None:
        found = meet_share(cfg, args.budget, (shorter, longer))
        cfg.model.backbone.merger = found.merger
        say(
            f"{found.words}: the backbone has {found.share:.2f} of the dense one's GMACs at "
            f"{longer} x {shorter}"
        )
    use_weights(cfg, args.weights, say)
    return data


def use_weights(cfg: Config, weights: str | None, say: Callable[[str], Any]) -> None:
    """What training starts from: weights of a detector or of a backbone, none, or the config's.

    Raises:
        InputError: There is no such file, or it is none of weights.
    """
    backbone = cfg.model.backbone
    given = backbone.get("init_cfg")
    own = given.get("checkpoint") if isinstance(given, dict) else None
    if weights is not None and weights != NONE:
        if is_detector(weights):
            cfg.load_from, backbone.init_cfg = weights, None  # it would be replaced
            say(f"starts from the detector {weights}; heads that do not fit it are new")
            return
        backbone.init_cfg, own = dict(type="Pretrained", checkpoint=weights), weights
    elif weights == NONE:
        backbone.init_cfg = cfg.load_from = None
        where = f"\nthose that the config names are at {own}" if own else ""
        own = None
    else:
        where = ""
    if cfg.get("load_from"):
        say(f"starts from the config's load_from, {cfg.load_from}")
    elif own:
        say(f"the backbone starts from {own}, the rest from random weights")
    else:
        say(
            "starts from random weights, which takes many more pictures and steps than from "
            f"ImageNet's: give such weights with --weights FILE{where}"
        )


def is_detector(file: str) -> bool:
    """Whether a file, or what is at a URL, has a detector's weights and not a backbone's alone."""
    if "://" in file:
        return True
    check_checkpoint(file, "weights")
    try:
        names = weights_of(read_file(file, "cpu", glance=True), file)[0]["state_dict"]
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error
    return any(f".{head}" in f".{name}" for name in names for head in HEADS)
