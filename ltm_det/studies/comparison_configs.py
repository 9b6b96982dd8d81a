"""The configs and commands that make the cells of a comparison."""

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ltm_det.conversion.convert import merged_config
from ltm_det.engine.config_check import kind_of
from ltm_det.engine.config_values import evaluators_of
from ltm_det.engine.preflight import load_config
from ltm_det.measure.flops import build_backbone, count_backbone, without_pretraining
from ltm_det.studies.comparison import Backbone, Cell, SpecError
from ltm_det.studies.runs import ROOT

FOUND = "found"  # in a cell's folder: found.bbox.json and found.segm.json


@cache
def read_config(path: Path) -> Config:
    return load_config(str(path))


def model_config(backbone: Backbone, merger: Mapping[str, Any] | None) -> Config:
    """The backbone's dense config, with this merger unless it is None.

    Raises:
        ValueError, PreflightError: The merger does not fit, or there is no such config.
    """
    cfg = copy.deepcopy(read_config(ROOT / backbone.config))
    if merger is None:
        return cfg
    merged = merged_config(cfg, merger)
    if "init_cfg" in cfg.model.backbone:
        merged.model.backbone.init_cfg = cfg.model.backbone.init_cfg
    return merged


def training_config(
    backbone: Backbone, cell: Cell, start: str | None = None, folder: Path | None = None
) -> Config:
    """The config with which a cell is trained, from the checkpoint ``start`` if it is given.

    What it finds at its last evaluation is written into ``folder``, as COCO's lists, `FOUND`.

    With ``iterations`` there is one evaluation and one checkpoint, at the end, and schedules that
    ended with the training still do.

    Raises:
        ValueError, PreflightError: As in :func:`model_config`; or ``iterations`` of a config that
            counts epochs.
    """
    cfg = model_config(backbone, cell.options.get("merger"))
    iterations = cell.options.get("iterations")
    if iterations is not None:
        old = cfg.train_cfg.get("max_iters")
        if old is None:
            raise SpecError(f"{backbone.config} counts epochs: 'iterations' needs max_iters")
        cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = iterations
        cfg.default_hooks.checkpoint.interval = iterations
        for schedule in cfg.get("param_scheduler") or []:
            for key in ("end", "T_max"):
                if schedule.get(key) == old:
                    schedule[key] = iterations
    cfg.merge_from_dict({**cell.options.get("cfg_options", {}), "randomness.seed": cell.seed})
    if folder is not None:
        for metric in coco_metrics(cfg):
            metric.outfile_prefix = str(folder / FOUND)
    if start is not None:
        cfg.load_from = start
        cfg.model = without_pretraining(cfg.model)
    return cfg


def coco_metrics(cfg: Config) -> list[Any]:
    """Those by which a training is evaluated."""
    return [metric for metric in evaluators_of(cfg, "val") if kind_of(metric) == "CocoMetric"]


def backbone_gmacs(backbone: Backbone, merger: Mapping[str, Any] | None) -> float:
    """GMACs of a cell's backbone, on one image.

    Raises:
        SpecError: There can be no such backbone.
    """
    try:
        cfg = model_config(backbone, merger)
        return count_backbone(build_backbone(cfg), backbone.shape).macs["backbone"] / 1e9
    except (TypeError, ValueError) as error:
        raise SpecError(f"{backbone.config} with merger={merger}: {error}") from error


def conversion_options(cell: Cell) -> list[str]:
    """What ltm-det convert is told of a cell's merger, and of its calibration.

    Raises:
        SpecError: An option of the merger cannot be given on a command line.
    """
    merger = dict(cell.options["merger"])
    words = ["--merger", merger.pop("type")]
    words += ["--compression-ratio", as_word(cell, merger.pop("compression_ratio"))]
    if "scope" in merger:
        words += ["--scope", merger.pop("scope")]
    if merger:
        words.append("--merger-options")
        words += [f"{key}={as_word(cell, value)}" for key, value in merger.items()]
    if "images" in cell.options:
        words += ["--calibrate", str(cell.options["images"])]
    return words


def as_word(cell: Cell, value: Any) -> str:
    """A value in the grammar of --cfg-options."""
    if isinstance(value, dict):
        raise SpecError(f"{cell.name}: a merger with {value} cannot be converted to, only trained")
    if isinstance(value, list):
        return f"[{','.join(as_word(cell, item) for item in value)}]"
    return str(value)
