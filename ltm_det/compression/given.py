"""What a compression starts from: a trained detector on a user's pictures, checked."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import load_checkpoint
from torch import nn

from ltm_det.backbones.common.weights import read_checkpoint, share_weights
from ltm_det.basics.errors import InputError
from ltm_det.basics.finite import check_finite
from ltm_det.compat.checkpoint import fitting
from ltm_det.compat.state_dicts import under_own_names
from ltm_det.compression.settings import Settings
from ltm_det.compression.state import file_digest
from ltm_det.conversion.convert import merged_config
from ltm_det.conversion.own_config import nodes, read_boxes_alone, set_data
from ltm_det.datasets.own import OwnData, Split
from ltm_det.deploy.whole import WholeDetector
from ltm_det.detectors import FAST
from ltm_det.engine.building import building
from ltm_det.engine.classes import names_of
from ltm_det.engine.config_check import leaf_datasets
from ltm_det.engine.mixed_precision import FLOAT32, set_precision
from ltm_det.engine.preflight import check_checkpoint
from ltm_det.measure.benchmark_models import PEERS, model_config, our_type
from ltm_det.measure.detectors import kind_of
from ltm_det.measure.flops import build_detector


@dataclass
class Given:
    """A detector and data that fit together.

    Attributes:
        cfg: Of the dense detector as it was given, on the data.
        checkpoint: Its weights, a file.
        classes: Names of its labels, in their order.
        masked: Whether masks are evaluated.
        files: Annotations of training and validation.
        train_pictures, val_pictures: How many.
        whole: Whether the search, fast heads and the export take the whole detector.
        why_not: Otherwise the reason.
    """

    cfg: Config
    checkpoint: str
    classes: Sequence[str]
    masked: bool
    files: tuple[Path, Path]
    train_pictures: int
    val_pictures: int
    whole: bool = False
    why_not: str = ""

    def inputs(self) -> dict[str, str]:
        """What all steps depend on, by names that messages may show."""
        return dict(
            config=file_text(self.cfg),
            checkpoint=file_digest(self.checkpoint),
            training_data=file_digest(self.files[0]),
            validation_data=file_digest(self.files[1]),
        )

    def use_files(self) -> None:
        """Takes the annotations that the config names."""
        self.files = tuple(
            Path(next(leaf_datasets(self.cfg[f"{part}_dataloader"].dataset)).ann_file)
            for part in ("train", "val")
        )

    def read(self) -> dict[str, Any]:
        """The checkpoint's content, weights under the detector's own names."""
        content = read_checkpoint(self.checkpoint)
        own = build_detector(self.cfg).state_dict()
        content["state_dict"], _ = under_own_names(own, content["state_dict"])
        return content


def file_text(cfg: Config) -> str:
    """A config's text without what hangs on where and how it is run."""
    cfg = copy.deepcopy(cfg)
    for key in ("work_dir", "launcher", "mended_data"):
        cfg.pop(key, None)
    for node in nodes(cfg._cfg_dict):
        for key in ("ann_file", "data_prefix", "data_root"):  # the content has names of its own
            node.pop(key, None)
    return cfg.pretty_text


def given(
    cfg: Config,
    checkpoint: str,
    data: OwnData,
    folder: Path,
    settings: Settings,
    say: Callable[[str], Any],
) -> Given:
    """Puts a detector on the data, and checks that both and the settings fit.

    Args:
        cfg: Of the detector; its own data are left out.
        checkpoint: A file.
        data: With a part for validation.
        folder: For annotations that have another form than COCO's, or other categories.

    Raises:
        InputError: They do not.
    """
    cfg = copy.deepcopy(cfg)
    merged_config(cfg, {})  # raises on a backbone that cannot merge, or does so
    check_checkpoint(checkpoint)
    model = build_detector(cfg)
    with fitting():
        content = load_checkpoint(model, checkpoint, map_location="cpu", logger="silent")
    check_finite(model.state_dict(), checkpoint)
    classes = classes_of(cfg, names_of(content, checkpoint), data, checkpoint)
    data = with_categories(data, classes)
    say(f"{data.form} data, classes: {len(classes)}; {type(model).__name__}, {checkpoint}")
    files = data.write(folder)
    masked = data.masked and has_masks(cfg)
    set_data(cfg, data, files)
    for loader in ("train", "val", "test"):
        for leaf in leaf_datasets(cfg[f"{loader}_dataloader"].dataset):
            leaf.metainfo = dict(classes=tuple(classes))
    if has_masks(cfg) and not data.masked:
        if settings.finetune != 0:
            raise InputError(
                f"a {kind_of(cfg.model)} learns masks, and the data have boxes alone: leave "
                "--finetune out, or give data with masks"
            )
        say("the data have boxes alone, no masks: boxes are evaluated")
    if not masked:
        read_boxes_alone(cfg)
        for part in ("val", "test"):
            cfg[f"{part}_evaluator"].metric = "bbox"
    full_precision(cfg)
    assert data.val is not None
    found = Given(
        cfg,
        checkpoint,
        classes,
        masked,
        files,
        len(data.train.coco["images"]),
        len(data.val.coco["images"]),
    )
    found.whole, found.why_not = as_a_whole(cfg)
    return found


def full_precision(cfg: Config) -> None:
    """Without a GPU mmengine has no mixed precision."""
    optim = cfg.get("optim_wrapper") or {}
    if optim.get("type") == "AmpOptimWrapper" and get_device() == "cpu":
        set_precision(cfg, FLOAT32)


def classes_of(cfg: Config, known: Sequence[str], data: OwnData, checkpoint: str) -> list[str]:
    """The detector's classes: its checkpoint's, or else its config's, or else the data's.

    Raises:
        InputError: The data have others, or there are more or fewer than heads say.
    """
    if not known:
        leaves = [*leaf_datasets(cfg.test_dataloader.dataset)] if "test_dataloader" in cfg else []
        known = ((leaves[0].get("metainfo") or {}) if leaves else {}).get("classes") or ()
    numbers = {n["num_classes"] for n in nodes(cfg.model) if n.get("num_classes", 1) > 1}
    if known and numbers and len(known) not in numbers:
        known = ()  # of a config that was written for other data
    known = list(known or data.classes)
    train = f"train it on these data first: ltm-det train CONFIG --data DIR --weights {checkpoint}"
    if unknown := [name for name in data.classes if name not in known]:
        raise InputError(
            f"{checkpoint} knows {len(known)} classes ({', '.join(known[:5])}, ...), and not "
            f"{', '.join(unknown[:5])} of the data\nRename them in the data, or {train}"
        )
    if numbers and len(known) not in numbers:
        raise InputError(
            f"the detector's heads are for {sorted(numbers)} classes, the data have {len(known)}\n"
            f"Give the detector that was trained on them, or {train}"
        )
    return known


def with_categories(data: OwnData, classes: Sequence[str]) -> OwnData:
    """The data with the detector's classes as categories, where they have fewer."""
    missing = [name for name in classes if name not in data.classes]
    if not missing:
        return data

    def more(split: Split) -> Split:
        rows = list(split.coco["categories"])
        free = max((row["id"] for row in rows), default=0) + 1
        rows += [dict(id=free + i, name=name) for i, name in enumerate(missing)]
        return Split({**split.coco, "categories": rows}, split.images)

    assert data.val is not None
    return replace(data, train=more(data.train), val=more(data.val))


def has_masks(cfg: Config) -> bool:
    """Whether a detector finds masks, and learns them."""
    metrics = cfg.get("test_evaluator") or {}
    metrics = metrics if isinstance(metrics, (list, tuple)) else [metrics]
    asked = any("segm" in str(metric.get("metric")) for metric in metrics)
    return "mask_head" in (cfg.model.get("roi_head") or {}) or asked


def as_a_whole(cfg: Config) -> tuple[bool, str]:
    """Whether there is a faster form of the whole detector, and a file of it; or why not."""
    kind = kind_of(cfg.model)
    if kind not in FAST:
        return False, f"there are faster heads of {', '.join(FAST)}, not of a {kind}"
    try:
        WholeDetector(build_detector(compressed_config(cfg, None, {}, True)))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        return False, str(error).splitlines()[0]
    return True, ""


def compressed_config(cfg: Config, merger: Any, lean: Any, whole: bool) -> Config:
    """The config of a detector with this merger and recipe, each None or empty for none.

    Args:
        cfg: Of the dense detector.
        whole: Whether it has fast heads, see :class:`Given`.
    """
    new = merged_config(cfg, merger or dict(type="LTM"))
    if not merger:
        new.model.backbone.merger = None
    if whole:
        new.model.type = FAST[kind_of(cfg.model)]
        new.model.pop("lean", None)
        if lean:
            new.model.lean = dict(lean)
    return new


def loaded(cfg: Config, checkpoint: str, device: str = "cpu") -> nn.Module:
    """A detector of these weights in evaluation mode; mergers that have none are as they start, the
    same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_detector(cfg)
    with fitting():
        load_checkpoint(model, checkpoint, map_location="cpu", logger="silent")
    return model.to(device).eval()


def mmdets(found: Given, dense: nn.Module, device: str) -> tuple[str, nn.Module]:
    """The detector that times are compared with, of the same weights: mmdet's own heads, and its
    Swin; of a ViT, which mmdet has none of, timm's, or ours where that has not its options.

    Args:
        dense: Ours, without mergers.

    Returns:
        What it is called, and the detector.
    """
    kind = our_type(found.cfg)
    peer = next(iter(PEERS[kind]))
    cfg = model_config(found.cfg, peer)
    cfg.model.type = kind_of(cfg.model)
    cfg.model.pop("lean", None)
    if peer == "mmdet":
        return "mmdet's", loaded(cfg, found.checkpoint, device)
    try:
        model = build_detector(cfg)
        share_weights(dense.backbone, model.backbone)
        name = f"mmdet's, with {peer}'s backbone"
    except (ValueError, RuntimeError, TypeError):
        own = model_config(found.cfg, "dense")
        own.model.type = cfg.model.type
        own.model.pop("lean", None)
        model, name = MODELS.build(own.model), "mmdet's, with our backbone"
        model.backbone = dense.backbone
    heads = {k: v for k, v in dense.state_dict().items() if not k.startswith("backbone.")}
    with building(cfg):
        model.load_state_dict({**model.state_dict(), **heads})
    return name, model.to(device).eval()
