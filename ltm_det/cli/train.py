"""Train a detector. The options are those of mmdet's own training tool."""

import argparse
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ltm_det.cli import check_data, own_data, own_run
from ltm_det.cli.common import command, config_file, new_parser, output_folder
from ltm_det.compat.checkpoint import BACKBONE, WHOLE, fitting
from ltm_det.engine import preflight
from ltm_det.engine.advice import busy_advice
from ltm_det.engine.building import building
from ltm_det.engine.classes import check_classes
from ltm_det.engine.config_values import check_training
from ltm_det.engine.mixed_precision import PRECISIONS, float16_advice, set_precision
from ltm_det.engine.progress_hook import ProgressHook
from ltm_det.engine.resuming import disk_errors_named, resume, use_safe_checkpoints
from ltm_det.engine.work_folder import occupied, put_aside

EXAMPLE = "configs/ltm_swin_s_maskrcnn.py --amp"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is trained")
    runs = parser.add_argument_group("the run")
    where = parser.add_argument_group("several processes")
    of.add_argument("config", type=config_file, nargs="?", help="config file")
    runs.add_argument("--work-dir", type=output_folder, help="folder for logs and checkpoints")
    of.add_argument("--amp", action="store_true", help="train in float16, a GPU's")
    of.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="number format of training (default: with --data auto, the faster one; else the "
        "config's)",
    )
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
        help="resume from this checkpoint, or with none named from the work folder's latest that "
        "can be loaded; where there is none, start",
    )
    of.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override settings of the config, such as train_dataloader.batch_size=4; "
        'lists as key="[a,b]", without white space',
    )
    check_data.add_options(of)
    own_data.add_options(parser)
    where.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    where.add_argument("--local_rank", "--local-rank", type=int, default=0)
    args = parser.parse_args(words)
    own_data.check_options(parser, args)
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
    use_safe_checkpoints(cfg)
    for own in preflight.OWN_HOOKS:
        preflight.add_hook(cfg, own)


def train(args: argparse.Namespace) -> None:
    cfg = preflight.load_run_config(args)
    local_main = preflight.is_local_main(args.launcher)
    say = print if local_main else lambda words: None
    data = own_data.use_own_data(cfg, args, say) if args.data is not None else None
    check_training(cfg)
    apply_options(cfg, args)
    resume(cfg, args.resume, say)
    check_data.before_run(cfg, args, "train", "val")
    if data is not None:
        own_run.set_up(cfg, args, data, say)
    elif args.precision is not None:
        set_precision(cfg, args.precision)
    for advice in filter(None, (float16_advice(cfg), busy_advice())):
        say(advice)
    if local_main:
        preflight.check_weights(cfg)
        if cfg.get("resume") and cfg.get("load_from"):
            check_classes(cfg, "train", cfg.load_from)
        preflight.check_amp(cfg)
    part = WHOLE if cfg.get("resume") else BACKBONE  # heads may have other classes at a start
    folder = Path(cfg.work_dir)
    with (
        occupied(folder) if local_main else nullcontext(),
        preflight.launched(cfg),
        fitting(part),
        disk_errors_named(cfg),
        building(cfg),
    ):
        if local_main and not cfg.get("resume"):
            put_aside(folder, say)
        runner = RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
        progress = ProgressHook()
        runner.register_hook(progress)
        try:
            runner.train()
        finally:
            progress.close()
        if data is not None and is_main_process():
            own_run.finish(cfg, runner, say)


main = command(parse, train, preflight.PreflightError)
