"""Train a detector. The options are those of mmdet's own training tool."""

import argparse
import os
from collections.abc import Sequence

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ltm_det.cli.check_data import add_options, before_run
from ltm_det.cli.common import command, config_file, new_parser
from ltm_det.engine import preflight

EXAMPLE = "configs/ltm_swin_s_maskrcnn.py --amp"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is trained")
    runs = parser.add_argument_group("the run")
    where = parser.add_argument_group("several processes")
    of.add_argument("config", type=config_file, help="config file")
    runs.add_argument("--work-dir", help="folder for logs and checkpoints")
    of.add_argument("--amp", action="store_true", help="train in mixed precision")
    of.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate with the batch size, from the base the config names",
    )
    runs.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="resume from this checkpoint, or with none named from the work folder's latest",
    )
    of.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override settings of the config, such as train_dataloader.batch_size=4; "
        'lists as key="[a,b]", without white space',
    )
    add_options(of)
    where.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    where.add_argument("--local_rank", "--local-rank", type=int, default=0)
    args = parser.parse_args(words)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
    """Writes the options into the config.

    Raises:
        PreflightError: ``--auto-scale-lr`` without a base batch size in the config.
    """
    if args.amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise preflight.PreflightError(
                "--auto-scale-lr needs the batch size that the learning rate was chosen for\n"
                "Give it with --cfg-options auto_scale_lr.base_batch_size=N"
            )
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    hooks = cfg.get("custom_hooks") or []
    if not any(hook["type"] == "ExactResumeHook" for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type="ExactResumeHook")]


def train(args: argparse.Namespace) -> None:
    cfg = preflight.load_run_config(args)
    apply_options(cfg, args)
    before_run(cfg, args, "train", "val")
    if preflight.is_local_main(args.launcher):
        preflight.check_weights(cfg)
        preflight.check_amp(cfg)
    with preflight.launched(cfg), preflight.network_errors_named(cfg):
        runner = RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
        runner.train()


main = command(parse, train, preflight.PreflightError)
