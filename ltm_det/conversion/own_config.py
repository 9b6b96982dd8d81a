"""A detector's config, whatever data it is written for, on a user's own data.

What the data say is set wherever a config says it: classes and their number, files, boxes without
masks, sizes of pictures. The schedule is written anew, see :mod:`.own_schedule`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ltm_det.basics.errors import InputError
from ltm_det.conversion.own_schedule import base_batch, fit_schedule
from ltm_det.datasets.own import OwnData, Split
from ltm_det.engine.config_check import leaf_datasets

STEP = 32  # pixels, of sizes: the stride of the coarsest map
LOADERS = dict(train="train", val="val", test="val")  # by loader, the part of the data
MASKED = dict(MaskRCNN="FasterRCNN", FastMaskRCNN="FastFasterRCNN")  # and what has boxes alone
SIZED = dict(scale="scale", scales="scale", img_scale="scale", crop_size="crop")  # of transforms
FOUND = 100  # objects a picture, that COCO's AP is of


def on_own_data(
    cfg: Config,
    data: OwnData,
    files: tuple[Path, Path],
    epochs: int | None = None,
    batch: int | None = None,
    say: Callable[[str], Any] = print,
) -> Config:
    """The config, changed in place: :func:`fit_to_data`, then :func:`fit_schedule`.

    Args:
        cfg: Of a detector of mmdet's, with its data, pipelines and optimiser.
        data: With a part for validation.
        files: Their annotations on disk.
        epochs, batch: See :func:`fit_schedule`; a batch of None is the config's.
        say: Is told what was changed.

    Raises:
        InputError: The detector has no heads with a number of classes, or needs masks that the
            data do not have.
    """
    fit_to_data(cfg, data, files, say)
    fit_schedule(cfg, data, epochs, batch or cfg.train_dataloader.batch_size, say)
    return cfg


def same_pictures(one: Split, other: Split) -> bool:
    """Whether all pictures of a part are in another one."""
    first, second = (
        {str(part.images / str(row.get("file_name"))) for row in part.coco["images"]}
        for part in (one, other)
    )
    return second <= first


def fit_to_data(
    cfg: Config, data: OwnData, files: tuple[Path, Path], say: Callable[[str], Any] = print
) -> tuple[int, int]:
    """Classes, files, masks and sizes, as :func:`on_own_data` has them.

    Returns:
        Longer and shorter side that pictures are resized to, at most.
    """
    heads = set_classes(cfg.model, len(data.classes))
    if not heads:
        raise InputError(f"no part of a {cfg.model.type} has num_classes: it is no detector")
    assert data.val is not None
    counts = [
        f"{len(part.coco['images'])} pictures with {len(part.coco['annotations'])} objects"
        for part in (data.train, data.val)
    ]
    names = ", ".join(data.classes[:10]) + ", ..." * (len(data.classes) > 10)
    say(f"{data.form} data, classes: {len(data.classes)} ({names})")
    say(f"{counts[0]} to train on, {counts[1]} to validate on")
    if data.val is not None and same_pictures(data.train, data.val):
        say("the pictures to validate on are those to train on: AP will say too much")
    if not data.masked:
        without_masks(cfg)
        say("the data have boxes alone, no masks: the detector finds boxes alone")
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=base_batch(cfg))
    set_data(cfg, data, files)
    set_most_found(cfg, data, say)
    longer, shorter = set_sizes(cfg, data.size())
    say(
        "pictures of about {} x {} pixels, trained on at up to ".format(*data.size())
        + f"{longer} x {shorter}"
    )
    return longer, shorter


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


def set_most_found(cfg: Config, data: OwnData, say: Callable[[str], Any]) -> None:
    """Lets a detector find as many objects on a picture as the fullest one has, where the config's
    limit is lower."""
    of = Counter(row.get("image_id") for row in data.train.coco["annotations"])
    fullest = max(of.values(), default=0)
    test = cfg.model.get("test_cfg") or {}
    for part in (test, test.get("rcnn") or {}):
        if part.get("max_per_img", fullest) < fullest:
            part["max_per_img"] = fullest
            ap = f"; AP is COCO's, of the best {FOUND}" * (fullest > FOUND)
            say(f"up to {fullest} objects on a picture: as many may be found{ap}")


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
    read_boxes_alone(cfg)


def read_boxes_alone(cfg: Config) -> None:
    """Pipelines that load no masks."""
    for loader in LOADERS:
        for node in nodes(cfg.get(f"{loader}_dataloader")):
            if str(node.get("type")).rpartition(".")[2] == "LoadAnnotations":
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
    shrink = max(new / old for new, old in zip(wanted, largest, strict=True))
    for node in nodes(pipelines):
        for key, kind in SIZED.items():
            if key in node and kind == "scale":
                node[key] = fitted(node[key], largest, wanted)
            elif key in node:  # height and width of all pictures, or a range of both
                node[key] = tuple(max(1, round(side * shrink)) for side in node[key])
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
