"""Numbers and choices of a run that mmengine and mmdet take as they are: what is wrong with one
shows in a step or at the first checkpoint, or trains nothing without a word."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mmdet.registry import MODELS, TASK_UTILS

from ltm_det.basics.arguments import (
    Rule,
    arguments_of,
    choice,
    flag,
    is_number,
    many,
    number,
    optional,
    text,
    whole,
)
from ltm_det.basics.errors import InputError
from ltm_det.detectors import FAST
from ltm_det.engine.config_check import kind_of, leaf_datasets
from ltm_det.engine.value_rules import (
    detections,
    ends,
    folder_name,
    level,
    limit,
    location,
    mapping,
    metainfo,
    metrics,
    never,
    no_thresholds,
    overlap,
    parts,
    pipeline,
    prefixes,
    steps,
    typed,
)

POSITIVE = many(number(above=0))
# Arguments of mmdet's parts by their names, wherever in a model.
PARTS = dict(
    target_means=many(number(), least=4),
    target_stds=many(number(above=0), least=4),
    finest_scale=number(above=0),
    sampling_ratio=whole(-1),
)
PARTS_OF = {
    "AnchorGenerator": dict(scales=POSITIVE, ratios=POSITIVE),
    "RandomSampler": dict(num=whole(1), pos_fraction=number(0, most=1)),
}
SCORED = dict(
    ann_file=optional(folder_name),
    iou_thrs=no_thresholds,
    proposal_nums=detections,
)
# By several processes, where AP is that of the last number.
SCORED_BY_MANY = SCORED | dict(proposal_nums=many(whole(1)))
PROPOSALS = dict(nms_pre=limit, max_per_img=limit, nms=overlap, min_bbox_size=number(0))
LOADER = dict(batch_size=whole(1), num_workers=whole(), dataset=typed, sampler=typed)
DATASET = dict(
    metainfo=optional(metainfo),
    data_root=optional(folder_name),
    ann_file=optional(folder_name),
    data_prefix=optional(prefixes),
    filter_cfg=optional(mapping),
    pipeline=pipeline,
)
SPLITS = ("train", "val", "test")
# Rules by the paths of values; where a config has none, mmengine's default holds.
RULES: dict[str, Rule] = {
    "log_level": level,
    "randomness": mapping,
    "randomness.seed": optional(whole()),
    "randomness.deterministic": flag,
    "env_cfg": mapping,
    "default_hooks": optional(parts),
    "custom_hooks": optional(many(mapping, least=0)),
    "load_from": location,
    "resume": flag,
    "work_dir": optional(text),
    "launcher": choice(("none", "pytorch", "slurm", "mpi")),
    "default_hooks.logger.interval": whole(1),
    "default_hooks.visualization.interval": whole(1),
    "train_cfg.max_epochs": whole(1),
    "train_cfg.max_iters": steps,
    "train_cfg.val_begin": whole(),
    "train_cfg.val_interval": steps,
    "optim_wrapper.clip_grad": optional(mapping),
    "optim_wrapper.clip_grad.max_norm": number(above=0),
    "optim_wrapper.accumulative_counts": whole(1),
    "optim_wrapper.optimizer.lr": number(0),
    "optim_wrapper.optimizer.weight_decay": number(0),
    "auto_scale_lr.base_batch_size": whole(1),
    **{f"{split}_dataloader": optional(mapping) for split in SPLITS},
    **{f"{split}_dataloader.{name}": rule for split in SPLITS for name, rule in LOADER.items()},
    "model.data_preprocessor.mean": optional(many(number())),
    "model.data_preprocessor.std": optional(POSITIVE),
    "model.data_preprocessor.pad_size_divisor": whole(1),
    **{f"{split}_dataloader.sampler": ends for split in SPLITS[1:]},
    **{f"{split}_dataloader.drop_last": never for split in SPLITS[1:]},
    **{f"{split}_dataloader.num_batch_per_epoch": never for split in SPLITS[1:]},
    **{f"{split}_dataloader.dataset.indices": never for split in SPLITS[1:]},
    **{f"{split}_evaluator": optional(metrics) for split in SPLITS[1:]},
    **{f"model.test_cfg.rpn.{name}": rule for name, rule in PROPOSALS.items()},
    **{f"model.train_cfg.rpn_proposal.{name}": rule for name, rule in PROPOSALS.items()},
    "model.test_cfg.rcnn.max_per_img": limit,
    "model.test_cfg.rcnn.score_thr": number(0, most=1),
    "model.test_cfg.rcnn.nms": overlap,
    "model.test_cfg.rcnn.mask_thr_binary": number(most=1),
}


def check_values(cfg: Any) -> None:
    """That a config's values are such as a run can use.

    Raises:
        InputError: One is not; its path, value and what is allowed.
    """
    whole_config = getattr(cfg, "_cfg_dict", cfg)
    for path, rule in RULES.items():
        for value in values_at(whole_config, path.split(".")):
            rule(path, value)
    for split in SPLITS:
        for leaf in leaf_datasets((cfg.get(f"{split}_dataloader") or {}).get("dataset")):
            for name, rule in DATASET.items():
                if name in leaf:
                    rule(f"{split}_dataloader.dataset.{name}", leaf[name])
    for split in SPLITS[1:]:
        for metric in evaluators_of(cfg, split):
            if kind_of(metric) != "CocoMetric":
                continue
            for name, rule in (SCORED_BY_MANY if metric.get("use_mp_eval") else SCORED).items():
                if name in metric:
                    rule(f"{split}_evaluator.{name}", metric[name])
    model = cfg.get("model")
    check_parts(model)
    check_numbers("model", model)


def check_masks(cfg: Any) -> None:
    """That a two-stage detector of boxes is not asked for masks, which shows after all pictures.

    Raises:
        InputError: It is.
    """
    model = cfg.get("model")
    head = model.get("roi_head") if kind_of(model) in (*FAST, *FAST.values()) else None
    if not isinstance(head, Mapping) or head.get("mask_head") is not None:
        return
    for split in SPLITS[1:]:
        for metric in evaluators_of(cfg, split):
            wanted = metric.get("metric")
            if "segm" in (wanted if isinstance(wanted, (list, tuple)) else [wanted]):
                raise InputError(
                    f"{split}_evaluator.metric={wanted!r}, but model.roi_head has no mask_head: "
                    "take 'bbox'"
                )


def evaluators_of(cfg: Any, split: str) -> list[Any]:
    """The metrics of a split, of which there may be one alone."""
    given = cfg.get(f"{split}_evaluator") or []
    return list(given) if isinstance(given, (list, tuple)) else [given]


def values_at(part: Any, names: list[str]) -> Iterator[Any]:
    """The value at a path, if it is there."""
    for name in names:
        if not isinstance(part, Mapping) or name not in part:
            return
        part = part[name]
    yield part


def check_training(cfg: Any) -> None:
    """That there is all that training takes.

    Raises:
        InputError: Something is switched off.
    """
    for name in ("train_dataloader", "train_cfg", "optim_wrapper"):
        if not isinstance(cfg.get(name), Mapping):
            raise InputError(
                f"{name}={cfg.get(name)!r}: training takes a dict, as configs/ltm_*.py inherit it"
            )


def check_parts(model: Any) -> None:
    """That a two-stage detector has its parts; mmdet's own find out in the first step."""
    if kind_of(model) in (*FAST, *FAST.values()):
        for name in (
            "data_preprocessor",
            "backbone",
            "rpn_head",
            "roi_head",
            "train_cfg",
            "test_cfg",
        ):
            if not isinstance(model.get(name), Mapping):
                raise InputError(
                    f"model.{name}={model.get(name)!r}: {kind_of(model)} takes a dict, as the "
                    "configs of its kind have it"
                )


def check_numbers(path: str, part: Any) -> None:
    """That no part of a model has a text where its class has, or asks for, a number."""
    if isinstance(part, (list, tuple)):
        for i, value in enumerate(part):
            check_numbers(f"{path}.{i}", value)
    if not isinstance(part, Mapping):
        return
    wanted = numbers_of(part.get("type"))
    for name, value in part.items():
        if name in wanted and isinstance(value, str):
            raise InputError(f"{path}.{name}={value!r}: {part['type']} takes a number")
        rule = (PARTS | PARTS_OF.get(kind_of(part), {})).get(name)
        if rule is not None and value is not None:
            rule(f"{path}.{name}", value)
        check_numbers(f"{path}.{name}", value)


def numbers_of(kind: Any) -> set[str]:
    """The arguments of a registered class that are numbers, by annotation or by default."""
    cls = None
    if isinstance(kind, str):
        cls = next(filter(None, (r.get(kind) for r in (MODELS, TASK_UTILS))), None)
    if not isinstance(cls, type):
        return set()
    asked = inspect.signature(cls.__init__).parameters
    named = {name for name, one in asked.items() if one.annotation in (int, float)}
    return named | {name for name, default in arguments_of(cls).items() if is_number(default)}
