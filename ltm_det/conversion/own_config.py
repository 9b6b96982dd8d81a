"""A detector's config, whatever data it is written for, on a user's own data.

What the data say is set wherever a config says it: classes and their number, files, boxes without
masks, sizes of pictures. The schedule is written anew, in iterations.
"""

from collections.abc import Callable, Iterator, Mapping
from math import ceil, sqrt
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ltm_det.basics.errors import InputError
from ltm_det.datasets.own import OwnData
from ltm_det.engine.preflight import leaf_datasets

STEP = 32  # pixels, of sizes: the stride of the coarsest map
LOADERS = dict(train="train", val="val", test="val")  # by loader, the part of the data
MASKED = dict(MaskRCNN="FasterRCNN", FastMaskRCNN="FastFasterRCNN")  # and what has boxes alone
SIZED = dict(scale="scale", scales="scale", img_scale="scale", crop_size="crop")  # of transforms
EPOCHS, LEAST = 36, 2000  # mmdet's longest usual schedule; iterations below which little is learned
BASE_BATCH = 16  # pictures a step, that mmdet's learning rates are for


def on_own_data(
    cfg: Config,
    data: OwnData,
    files: tuple[Path, Path],
    epochs: int | None = None,
    batch: int | None = None,
    say: Callable[[str], Any] = print,
) -> Config:
    """The config, changed in place.

    Args:
        cfg: Of a detector of mmdet's, with its data, pipelines and optimiser.
        data: With a part for validation.
        files: Their annotations on disk.
        epochs: Times through the training pictures; None: `EPOCHS`, or as many as `LEAST`
            iterations take.
        batch: Pictures a step and process; None: the config's.
        say: Is told what was changed.

    Raises:
        InputError: The detector has no heads with a number of classes, or needs masks that the
            data do not have.
    """
    heads = set_classes(cfg.model, len(data.classes))
    if not heads:
        raise InputError(f"no part of a {cfg.model.type} has num_classes: it is no detector")
    names = ", ".join(data.classes[:10]) + ", ..." * (len(data.classes) > 10)
    say(f"{data.form} data, classes: {len(data.classes)} ({names})")
    if not data.masked:
        without_masks(cfg)
        say("the data have boxes alone, no masks: the detector finds boxes alone")
    set_data(cfg, data, files)
    longer, shorter = set_sizes(cfg, data.size())
    batch = batch or cfg.train_dataloader.batch_size
    pictures = len(data.train.coco["images"])
    steps = ceil(pictures / batch)
    epochs = epochs or max(EPOCHS, ceil(LEAST / steps))
    set_schedule(cfg, steps * epochs, batch)
    say(
        f"{pictures} pictures of about {longer} x {shorter}, {batch} a step, --epochs {epochs}: "
        f"{steps * epochs} iterations, learning rate {cfg.optim_wrapper.optimizer.lr:.3g}"
    )
    return cfg


def nodes(tree: Any) -> Iterator[dict]:
    """All dicts of a config, outer ones first."""
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for child in tree:
            yield from nodes(child)


def set_classes(model: Mapping[str, Any], number: int) -> int:
    """Sets the number of classes in all heads but those that tell objects from none, and stuff.

    Returns:
        How many heads there were.
    """
    found = 0
    for name, part in model.items():
        if name in ("rpn_head", "backbone", "neck", "data_preprocessor"):
            continue
        for node in nodes(part):
            if "num_stuff_classes" in node:  # Mask2Former's, which has one of both
                node["num_things_classes"], node["num_stuff_classes"] = number, 0
                found += 1
                weight = (node.get("loss_cls") or {}).get("class_weight")
                if isinstance(weight, list):  # one a class, and the last for none
                    node["loss_cls"]["class_weight"] = [1.0] * number + weight[-1:]
            elif "num_classes" in node:
                node["num_classes"] = number
                found += 1
    return found


def without_masks(cfg: Config) -> None:
    """A detector of boxes alone, and pipelines and metrics without masks.

    Raises:
        InputError: The detector can't do without masks.
    """
    model = cfg.model
    kind = str(model.type).removeprefix("mmdet.")
    head = model.get("roi_head") or {}
    if kind in MASKED:
        model.type = MASKED[kind]
    elif (
        kind not in ("CascadeRCNN", "FastCascadeRCNN", *MASKED.values()) and "mask" in kind.lower()
    ):
        raise InputError(
            f"a {kind} needs masks, and the data have boxes alone: give another config"
        )
    for name in ("mask_head", "mask_roi_extractor"):
        head.pop(name, None)
    for loader in LOADERS:
        for node in nodes(cfg.get(f"{loader}_dataloader")):
            if node.get("type") == "LoadAnnotations":
                node["with_mask"] = False


def set_data(cfg: Config, data: OwnData, files: tuple[Path, Path]) -> None:
    """Datasets and evaluators on these files; pipelines stay, and what wraps a dataset too."""
    assert data.val is not None
    metainfo = dict(classes=data.classes)
    parts = dict(train=(files[0], data.train), val=(files[1], data.val))
    for loader, part in LOADERS.items():
        file, split = parts[part]
        own = cfg[f"{loader}_dataloader"]
        leaves = list(leaf_datasets(own.dataset))
        new = dict(
            type="CocoDataset",
            metainfo=metainfo,
            data_root="",
            ann_file=str(file.resolve()),
            data_prefix=dict(img=f"{split.images.resolve()}/"),
            pipeline=leaves[0].get("pipeline"),
        )
        new |= (
            dict(test_mode=True)
            if loader != "train"
            else dict(filter_cfg=dict(filter_empty_gt=True))
        )
        if len(leaves) > 1:
            own.dataset = ConfigDict(new)
        else:
            leaves[0].clear()
            leaves[0].update(ConfigDict({key: value for key, value in new.items() if value}))
    metric = ["bbox", "segm"] if data.masked else "bbox"
    for part in ("val", "test"):
        cfg[f"{part}_evaluator"] = dict(
            type="CocoMetric", ann_file=str(files[1].resolve()), metric=metric
        )


def set_sizes(cfg: Config, size: tuple[int, int]) -> tuple[int, int]:
    """Sizes in pipelines by that of the pictures, where these are smaller than the config's.

    Args:
        cfg: Its transforms may have scales and crops.
        size: Longer and shorter side of the pictures.

    Returns:
        Longer and shorter side that pictures are resized to, at most.
    """
    pipelines = [
        leaf.get("pipeline")
        for name in LOADERS
        for leaf in leaf_datasets(cfg[f"{name}_dataloader"].dataset)
    ]
    scales = [
        (max(scale), min(scale))
        for node in nodes(pipelines)
        for key, kind in SIZED.items()
        if kind == "scale" and key in node
        for scale in scales_of(node[key])
    ]
    if not scales:
        return size
    largest = max(scale[0] for scale in scales), max(scale[1] for scale in scales)
    if size[0] >= largest[0] or size[1] >= largest[1]:
        return largest
    wanted = tuple(max(STEP, round(side / STEP) * STEP) for side in size)
    for node in nodes(pipelines):
        for key in SIZED:
            if key in node:
                node[key] = fitted(node[key], largest, wanted)
    before = cfg.model.get("data_preprocessor") or {}
    if before.get("pad_size_divisor", 1) > wanted[0]:  # a ViT's, which pads to one size
        before["pad_size_divisor"] = wanted[0]
    return wanted


def scales_of(given: Any) -> list[tuple[int, int]]:
    """The sizes in a transform's argument, which is one or a list of them."""
    return [given] if isinstance(given[0], (int, float)) else list(given)


def fitted(given: Any, largest: tuple[int, int], wanted: tuple[int, ...]) -> Any:
    """A size, or a list of them, smaller by what the largest has to shrink."""
    if not isinstance(given[0], (int, float)):
        return [fitted(one, largest, wanted) for one in given]
    sides = [
        max(1, round(side * new / old))
        for side, old, new in zip((max(given), min(given)), largest, wanted, strict=True)
    ]
    longer, shorter = max(sides), min(sides)  # a crop's range has to stay one, on square pictures
    return (longer, shorter) if given[0] >= given[1] else (shorter, longer)


def set_schedule(cfg: Config, iterations: int, batch: int) -> None:
    """So many iterations: a warm-up, then a cosine to zero; AP ten times; the learning rate by the
    square root of the batch, as Adam's scales (arXiv 2205.10287), from the one that the config has
    for its own batch (`BASE_BATCH` where it does not say)."""
    base = (cfg.get("auto_scale_lr") or {}).get("base_batch_size", BASE_BATCH)
    optimizer = cfg.optim_wrapper.optimizer
    optimizer.lr = optimizer.lr * sqrt(batch / base)
    warm_up, interval = max(1, min(500, iterations // 10)), max(1, iterations // 10)
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=iterations, val_interval=interval)
    cfg.param_scheduler = [
        dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=warm_up),
        dict(
            type="CosineAnnealingLR",
            by_epoch=False,
            begin=warm_up,
            end=iterations,
            T_max=max(1, iterations - warm_up),
            eta_min=0,
        ),
    ]
    cfg.train_dataloader.batch_size = batch
    cfg.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
    cfg.default_hooks.checkpoint = {
        **cfg.default_hooks.checkpoint,
        "by_epoch": False,
        "interval": interval,
        "max_keep_ckpts": 2,
    }
    cfg.log_processor = {**(cfg.get("log_processor") or {}), "by_epoch": False}
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=batch)
