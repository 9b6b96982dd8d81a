"""What the command lines check before the heavy work, each failure with the remedy in its message.

The checks look at files only. Whether a URL answers is left to the download itself.
"""

import argparse
import os
import os.path as osp
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.utils import is_abs

from ltm_det.basics.errors import InputError
from ltm_det.basics.files import check_output
from ltm_det.compat.checkpoint import check_weights as check_weights_file
from ltm_det.compat.configs import inside_package
from ltm_det.engine.config_check import check_model, leaf_datasets
from ltm_det.engine.config_files import override, read_config
from ltm_det.engine.config_values import check_masks, check_values

COCO_REMEDY = """\
Put COCO 2017 where the config looks for it,
    data/coco/annotations/instances_train2017.json   data/coco/train2017/
    data/coco/annotations/instances_val2017.json     data/coco/val2017/
or link data/coco to where it is: ln -s /path/to/coco data/coco
Your own pictures, in COCO's form or another: ltm-det train CONFIG --data FOLDER
Something to try things out on: ltm-det demo-data --out data/demo, and the demo's configs"""
DEMO_REMEDY = """\
Make the demo data: ltm-det demo-data --out {root}
or go to the folder where they are: a config's paths are seen from where a command runs"""
OTHER_REMEDY = """\
Put the data there, or name another place with
    --cfg-options {loader}.dataset.data_root=DIR
To try things out without data of your own: ltm-det demo-data --out data/demo, and the demo's
configs, such as ltm_det::demo_ltm_swin_maskrcnn.py"""
CONFIG_REMEDY = """\
Configs that come with ltm-det go by ltm_det::NAME.py, mmdet's by mmdet::FOLDER/NAME.py"""
PRETRAINED_REMEDY = """\
Put the file where the config looks for it, name another one with
    --cfg-options model.backbone.init_cfg.checkpoint=FILE
or switch pretraining off with
    --cfg-options model.backbone.init_cfg=None"""
# What ltm-det train adds to a config's hooks; without effect on what is learned.
OWN_HOOKS = ("ExactResumeHook", "ExplosionGuardHook")
LOCAL_RANK = dict(
    none="LOCAL_RANK",
    pytorch="LOCAL_RANK",
    slurm="SLURM_LOCALID",
    mpi="OMPI_COMM_WORLD_LOCAL_RANK",
)


class PreflightError(InputError):
    """Something a run needs is not there. The message names it and the remedy."""


def add_shape(parser: Any) -> None:
    """The option of commands that count what one image costs; to a parser, or to a group of it."""
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        default=[800, 1280],
        metavar=("H", "W"),
        help="height and width of the image (default: 800 1280)",
    )


def is_local_main(launcher: str) -> bool:
    """Whether this process is the one of its machine that checks and reports."""
    return int(os.environ.get(LOCAL_RANK[launcher], 0)) == 0


def load_config(
    path: str, options: dict[str, Any] | None = None, any_model: bool = False
) -> Config:
    """The config of a file, overridden by ``--cfg-options``, whose model fits together, and has a
    backbone unless it may be ``any_model``.

    Raises:
        PreflightError: The config file, or one it inherits from, is missing.
        InputError: It cannot be read, an option does not fit it, or its model cannot be right.
    """
    if osp.isdir(path):
        raise PreflightError(f"{path} is a folder: give a config file in it")
    if not osp.isfile(path):
        name, remedy = osp.basename(path), CONFIG_REMEDY
        if inside_package("ltm_det", name):
            remedy = f"Did you mean ltm_det::{name}, which comes with ltm-det?"
        raise PreflightError(f"no config file at {path}\n{remedy}")
    try:
        cfg = read_config(path)
    except FileNotFoundError as error:
        raise PreflightError(f"{path} inherits from a missing file: {error}") from error
    override(cfg, options or {})
    check_values(cfg)
    check_model(cfg)
    if not any_model and "backbone" not in cfg.model:
        raise PreflightError(
            f"{path}: a {cfg.model.type} has no backbone: give a detector's config"
        )
    return cfg


def load_run_config(args: argparse.Namespace, keep: bool = False) -> Config:
    """The config of a run: :func:`load_config`, with ``--launcher`` and ``--work-dir``.

    Without ``--work-dir`` the config's own is kept, else it is ``work_dirs/<config's name>``.
    mmengine writes the config there, by the name of its file, or by the time: where that file would
    be written over, or with ``keep`` any that is there.
    """
    cfg = load_config(args.config, args.cfg_options, any_model=True)
    check_masks(cfg)
    file, cfg.launcher = osp.basename(args.config), args.launcher
    usual = osp.join("work_dirs", osp.splitext(file)[0])
    cfg.work_dir = str(args.work_dir or cfg.get("work_dir") or usual)
    if osp.exists(own := osp.join(cfg.work_dir, file)) and (keep or osp.samefile(own, args.config)):
        object.__setattr__(cfg, "_filename", None)
    if is_local_main(args.launcher):
        check_output(cfg.work_dir, folder=True)
    return cfg


def add_hook(cfg: Config, kind: str) -> None:
    """Adds one of our hooks, unless the config has it with settings of its own."""
    hooks = cfg.get("custom_hooks") or []
    if not any(str(hook["type"]).rpartition(".")[2] == kind for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type=kind)]


def check_data(cfg: Config, *splits: str) -> None:
    """Checks that the annotations and image folders of these splits are on disk.

    Args:
        splits: Of 'train', 'val', 'test'. One that the config has switched off is passed over.

    Raises:
        PreflightError: A file or folder is missing.
    """
    for split in splits:
        loader = f"{split}_dataloader"
        if cfg.get(f"{split}_cfg") is None or cfg.get(loader) is None:
            continue
        for dataset in leaf_datasets(cfg[loader].dataset):
            for path in dataset_paths(dataset):
                if not osp.exists(path):
                    raise missing_data(path, loader, dataset.get("data_root") or "")
        evaluators = cfg.get(f"{split}_evaluator") or []
        for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
            path = evaluator.get("ann_file")
            if path and "://" not in path and not osp.exists(path):
                raise PreflightError(
                    f"the annotations of {split}_evaluator are not there: {path}\n"
                    f"Name another place with --cfg-options {split}_evaluator.ann_file=FILE"
                )


def dataset_paths(dataset: dict) -> Iterator[str]:
    """The annotation file and the data folders of a dataset's config; remote ones left out."""
    root = dataset.get("data_root") or ""
    prefix = dataset.get("data_prefix") or {}
    for path in [dataset.get("ann_file"), *prefix.values()]:
        path = path if path is None or is_abs(path) else osp.join(root, path)
        if path and "://" not in path and ":s3" not in path:
            yield path


def missing_data(path: str, loader: str, root: str) -> PreflightError:
    remedy = OTHER_REMEDY
    if "coco" in path.lower():
        remedy = COCO_REMEDY
    elif "demo" in path.lower():
        remedy = DEMO_REMEDY
    return PreflightError(
        f"the data of {loader} is not there: {path}\n{remedy.format(root=root, loader=loader)}"
    )


def check_weights(cfg: Config) -> None:
    """Checks that ``load_from`` and every ``init_cfg`` checkpoint on local paths are on disk.

    Raises:
        PreflightError: A checkpoint is missing.
    """
    check_checkpoint(cfg.get("load_from"), "load_from")
    for path in pretrained_checkpoints(cfg.model):
        if "://" not in path and not osp.exists(path):
            raise PreflightError(f"no pretrained weights at {path}\n{PRETRAINED_REMEDY}")
        check_checkpoint(path)


def check_checkpoint(path: str | None, what: str = "checkpoint") -> None:
    """Checks that a checkpoint, unless it is None or a URL, is on disk, and looks like one.

    Raises:
        PreflightError: It is missing.
        InputError: It is something else, or a part of one.
    """
    if path is None or "://" in path:
        return
    check_there(path, what)
    check_weights_file(path)


def check_there(path: str, what: str = "checkpoint") -> None:
    """Raises PreflightError where a file is not on disk."""
    if not osp.isfile(path) and not osp.isdir(path):
        remedy = "A training run leaves its checkpoints in its --work-dir"
        raise PreflightError(f"no {what} at {path}\n{remedy}")


def pretrained_checkpoints(node: Any) -> Iterator[str]:
    """The checkpoint of every ``init_cfg`` in a model's config."""
    if isinstance(node, dict):
        if node.get("type") in ("Pretrained", "PretrainedInit") and node.get("checkpoint"):
            yield node["checkpoint"]
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from pretrained_checkpoints(child)


def check_amp(cfg: Config) -> None:
    """Checks that mixed precision is asked for only where mmengine has it.

    Raises:
        PreflightError: The config trains with ``AmpOptimWrapper`` and there is no GPU.
    """
    if cfg.optim_wrapper.type == "AmpOptimWrapper" and get_device() == "cpu":
        raise PreflightError(
            "mixed precision (AmpOptimWrapper) needs a GPU, and none is visible\n"
            "Train in full precision: leave out --amp, and give --precision float32 where the "
            "config itself asks for mixed precision"
        )


@contextmanager
def name_slurm_processes() -> None:
    """Gives torch what it asks the environment for, of what Slurm gives its tasks."""
    of = os.environ
    of.update(RANK=of["SLURM_PROCID"], WORLD_SIZE=of["SLURM_NTASKS"])
    of.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in of:
        words = ["scontrol", "show", "hostnames", of["SLURM_NODELIST"]]
        listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        of["MASTER_ADDR"] = listed.splitlines()[0]


def join(backend: str) -> None:
    """Joins the group of processes, after a restart under names of its own: torchrun's store keeps
    the addresses of the processes that are gone, and to wait for those would take for ever."""
    store, rank, size = next(torch.distributed.rendezvous("env://"))
    store = torch.distributed.PrefixStore(f"start_{restarts()}", store)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size)


def restarts() -> int:
    """How often torchrun has started the run again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


@contextmanager
def launched(cfg: Config) -> Iterator[None]:
    """What a launcher's process needs around mmengine's own set-up; nothing without a launcher.

    ``--launcher pytorch`` and ``slurm`` run on a machine without a GPU too, on the gloo backend:
    mmengine would pick a CUDA device there, for the process and for the wrapper. At the end the
    process group is closed, since one left to the interpreter's exit aborts the process now and
    then.
    """
    if cfg.launcher in ("pytorch", "slurm") and get_device() == "cpu":
        if cfg.launcher == "slurm":
            name_slurm_processes()
        join("gloo")
        cfg.setdefault(
            "model_wrapper_cfg",
            dict(
                type="MMDistributedDataParallel",
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=cfg.get("find_unused_parameters", False),
            ),
        )
    elif cfg.launcher == "pytorch" and restarts():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        join(cfg.get("env_cfg", {}).get("dist_cfg", {}).get("backend", "nccl"))
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
