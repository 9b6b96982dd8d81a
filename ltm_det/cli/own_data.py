"""Options of ``ltm-det train`` for one's own data: what a config would say is read from them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device

from ltm_det.cli.common import config_file
from ltm_det.conversion.own_config import on_own_data
from ltm_det.datasets.own import own_data
from ltm_det.engine.config_files import override
from ltm_det.merging import MERGERS

FAMILIES = ("swin_t", "swin_s", "swin_b", "vit_s", "vit_b", "vit_l")
DENSE = "none"


def add_options(parser: argparse.ArgumentParser) -> None:
    of = parser.add_argument_group("your own data, in the place of the config's")
    of.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="a COCO json or folder, a YOLO or VOC folder, or data.yaml",
    )
    of.add_argument("--family", choices=FAMILIES, help="a config of ours, where none is named")
    of.add_argument("--merger", choices=[*MERGERS, DENSE], help="of --family (default: LTM)")
    of.add_argument("--epochs", type=int, metavar="N", help="times through the pictures")
    of.add_argument("--batch", type=int, metavar="N", help="pictures a step and process")
    of.add_argument("--weights", metavar="FILE", help="detector to start from; other heads are new")


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Names a config of ours where the options name a family; else there has to be one."""
    alone = ("family", "merger", "epochs", "batch", "weights")
    if args.data is None:
        if given := [f"--{name}" for name in alone if getattr(args, name) is not None]:
            parser.error(f"{', '.join(given)}: of --data, which is missing")
        if args.config is None:
            parser.error("give a config, or --data and --family")
        return
    if (args.config is None) == (args.family is None):
        parser.error("--data needs a config or --family, one of them")
    if args.merger is not None and args.family is None:
        parser.error("--merger is of --family; a config names its own")
    for name in ("epochs", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, but is {value}")
    if args.family is not None:
        args.config = config_file(f"ltm_det::ltm_{args.family}_maskrcnn.py")


def use_own_data(cfg: Config, args: argparse.Namespace, say: Callable[[str], Any]) -> None:
    """The config on the data of ``--data``, whose annotations are written into the work folder
    where they are of another form than COCO's.

    Raises:
        InputError: Data of no known form, or a detector that does not fit them.
    """
    data = own_data(args.data)
    if args.work_dir is None:
        cfg.work_dir = str(Path("work_dirs") / f"{args.data.stem}_{Path(args.config).stem}")
    files = data.write(Path(cfg.work_dir) / "annotations")
    on_own_data(cfg, data, files, args.epochs, args.batch, say)
    override(cfg, args.cfg_options or {})  # what is typed wins over what was read from the data
    if args.merger == DENSE:
        cfg.model.backbone.merger = None
    elif args.merger is not None:
        cfg.model.backbone.merger.type = args.merger
    if args.weights is not None:
        cfg.load_from = args.weights
        cfg.model.backbone.init_cfg = None  # the detector's weights would replace it
    if cfg.optim_wrapper.type == "AmpOptimWrapper" and get_device() == "cpu":
        kept = {k: v for k, v in cfg.optim_wrapper.items() if k not in ("dtype", "loss_scale")}
        cfg.optim_wrapper = ConfigDict(kept, type="OptimWrapper")
        say("no GPU is visible: training is in full precision")
