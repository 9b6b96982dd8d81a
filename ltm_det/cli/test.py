"""Test a detector: box and mask AP. The options are those of mmdet's own test tool, less --tta.

mmdet's test-time augmentation merges boxes only, so it cannot evaluate masks. In the place of a
checkpoint a file of ltm-det export --part detector can be tested, with the config's data. Fast
heads give masks as the run lengths that COCO's evaluation reads, unless they are to be painted.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ltm_det.basics.files import whole
from ltm_det.cli.check_data import add_options, before_run
from ltm_det.cli.common import (
    OutputFile,
    check_fixed,
    command,
    config_file,
    new_parser,
    output_folder,
)
from ltm_det.compat.checkpoint import fitting
from ltm_det.deploy.detector import FORMATS
from ltm_det.detectors import FAST, check_lean
from ltm_det.engine import preflight
from ltm_det.engine.building import building
from ltm_det.engine.classes import check_classes, check_labels
from ltm_det.engine.config_check import kind_of
from ltm_det.engine.config_values import evaluators_of
from ltm_det.prediction.sources import check_apart, pictures_of

EXAMPLE = "configs/ltm_swin_s_maskrcnn.py work_dirs/ltm_swin_s_maskrcnn/epoch_36.pth"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is tested")
    out = parser.add_argument_group("what is written and shown")
    where = parser.add_argument_group("several processes")
    of.add_argument("config", type=config_file, help="config file")
    of.add_argument("checkpoint", help="checkpoint file or URL, or an exported detector")
    out.add_argument("--work-dir", type=output_folder, help="folder for the log and the metrics")
    found = OutputFile(".pkl", ".pickle")
    out.add_argument("--out", type=found, help="pickle file to write the predictions to (.pkl)")
    out.add_argument("--show", action="store_true", help="show the predictions in a window")
    out.add_argument(
        "--show-dir", help="paint the predictions into this folder, under the work folder"
    )
    out.add_argument("--wait-time", type=float, default=2, help="seconds each image is shown for")
    of.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override settings of the config, such as test_dataloader.batch_size=4; "
        'lists as key="[a,b]", without white space',
    )
    add_options(of)
    where.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    where.add_argument("--local_rank", "--local-rank", type=int, default=0)
    args = parser.parse_args(words)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def build_runner(cfg: Config, exported: bool) -> Runner:
    """The config's runner.

    Raises:
        PreflightError: What was exported is no detector, or its runtime is missing.
    """
    try:
        return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
    except (ValueError, ImportError) as error:
        if not exported:
            raise
        raise preflight.PreflightError(str(error)) from error


def check_pictures(runner: Runner, show_dir: str) -> None:
    """That none of the data's pictures is painted over, see mmdet's ``DetVisualizationHook``.

    Raises:
        InputError: One lies in the folder to paint into.
    """
    files = pictures_of(runner.test_loop.dataloader.dataset)
    check_apart(files, Path(runner.work_dir) / runner.timestamp / show_dir)


def check_model(model: ConfigDict) -> None:
    """Before anything is built.

    Raises:
        PreflightError: A lean recipe that there is not.
    """
    try:
        check_lean(model)
    except ValueError as error:
        raise preflight.PreflightError(str(error)) from error


def use_file(cfg: Config, args: argparse.Namespace) -> None:
    """An exported detector in the place of the config's, whose hooks may look for a backbone.

    Raises:
        PreflightError: What was asked for has been fixed when the file was written, or several
            processes.
    """
    check_fixed(args.checkpoint, args.cfg_options)
    if args.launcher != "none":
        raise preflight.PreflightError(
            "an exported detector is tested in one process: no --launcher"
        )
    masks = mask_format(cfg, args)
    cfg.model = ConfigDict(type="ExportedDetector", file=args.checkpoint, mask_format=masks)
    cfg.load_from, cfg.resume, cfg.custom_hooks = None, False, []


def mask_format(cfg: Config, args: argparse.Namespace) -> str:
    """Run lengths where COCO's evaluation alone reads the masks, maps of the images otherwise."""
    kinds = {kind_of(metric) for metric in evaluators_of(cfg, "test")}
    draws = ((cfg.get("default_hooks") or {}).get("visualization") or {}).get("draw", False)
    read = args.out is not None or args.show or args.show_dir or draws
    return "rle" if kinds == {"CocoMetric"} and not read else "bitmap"


class WholeDump(DumpDetResults):
    """Predictions in a file that is whole or not there."""

    def compute_metrics(self, results: list) -> dict:
        with whole(self.out_file_path) as part:
            self.out_file_path, file = str(part), self.out_file_path
            metrics = super().compute_metrics(results)
        self.out_file_path = file
        return metrics


def test(args: argparse.Namespace) -> None:
    cfg = preflight.load_run_config(args, keep=True)
    exported = Path(args.checkpoint).suffix in FORMATS
    if exported:
        use_file(cfg, args)
    else:
        check_model(cfg.model)
        cfg.load_from = args.checkpoint
        preflight.add_hook(cfg, "ExplosionGuardHook")
        if cfg.model.type in FAST.values():
            cfg.model.test_cfg.rcnn.setdefault("mask_format", mask_format(cfg, args))
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    if preflight.is_local_main(args.launcher):
        if exported:
            preflight.check_there(args.checkpoint)
        else:
            preflight.check_checkpoint(args.checkpoint)
            check_classes(cfg, "test", args.checkpoint)
    before_run(cfg, args, "test")
    with preflight.launched(cfg), fitting(), building(cfg):
        runner = build_runner(cfg, exported)
        if exported:
            names = runner.model.predictor.about["classes"] or ()
            check_labels(cfg, "test", args.checkpoint, names)
        if args.show_dir:
            check_pictures(runner, args.show_dir)
        if args.out is not None:
            runner.test_evaluator.metrics.append(WholeDump(out_file_path=str(args.out)))
        runner.test()


main = command(parse, test, preflight.PreflightError)
