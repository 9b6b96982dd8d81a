"""Images of a config's data without their labels, as the detector sees them in a test."""

import copy

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor
from torch.utils.data import ConcatDataset

from ltm_det.engine.config_check import leaf_datasets

SPLITS = ("train", "val", "test")


def unlabelled_batches(
    cfg: Config, images: int, batch_size: int = 8, split: str = "train", seed: int = 0
) -> list[Tensor]:
    """A random subset of a split's images, normalised and padded as in a test; on the CPU.

    The data sets inside any wrappers are read in test mode, so that images without objects count
    too, and through the config's test pipeline less its steps that load annotations.

    Args:
        cfg: Of the detector and its data.
        images: How many, drawn without replacement. All are held in memory.
        batch_size: B; the last batch may be smaller.
        split: 'train', 'val' or 'test'.
        seed: Equal seeds draw equal images in equal order; more images go on where fewer stop.

    Returns:
        Batches (B, 3, H, W) in float32, each of its own height and width.

    Raises:
        ValueError: If a number or the split is bad, the config lacks the split or a pipeline of
            val or test, or the split has fewer images.
    """
    if images < 1 or batch_size < 1:
        raise ValueError(f"images={images} and batch_size={batch_size} must be 1 or more")
    if split not in SPLITS or cfg.get(f"{split}_dataloader") is None:
        raise ValueError(f"split {split!r}: give one of {SPLITS} whose dataloader the config has")
    init_default_scope(cfg.get("default_scope", "mmdet"))
    pipeline = unlabelled_pipeline(cfg)
    datasets = []
    for leaf in leaf_datasets(cfg[f"{split}_dataloader"].dataset):
        leaf = dict(copy.deepcopy(leaf), pipeline=pipeline, test_mode=True)
        datasets.append(DATASETS.build(leaf))
    data = ConcatDataset(datasets)
    if len(data) < images:
        raise ValueError(f"{images} images are wanted, but {split} has {len(data)}: take fewer")
    preprocessor = MODELS.build(copy.deepcopy(cfg.model.data_preprocessor))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    batches = []
    for part in order[:images].split(batch_size):
        loaded = [data[index] for index in part.tolist()]
        batch = {key: [item[key] for item in loaded] for key in ("inputs", "data_samples")}
        batches.append(preprocessor(batch, training=False)["inputs"])
    return batches


def unlabelled_pipeline(cfg: Config) -> list:
    """The pipeline of the config's test, or else validation data, without loading annotations.

    Raises:
        ValueError: If the config has neither.
    """
    for name in ("test_dataloader", "val_dataloader"):
        if cfg.get(name) is not None:
            (leaf, *_) = leaf_datasets(cfg[name].dataset)
            return [
                copy.deepcopy(step) for step in leaf.pipeline if "Annotations" not in str(step.type)
            ]
    raise ValueError("the config has no test_dataloader or val_dataloader to take the pipeline of")
