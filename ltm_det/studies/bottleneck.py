"""The information bottleneck of a trained detector, merged against dense and pooled.

All three are measured at the merge points of the merged backbone, on the same boxes: a dense
backbone has the tokens of these points as they are, Pool their area means.
"""

import copy
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.utils.data import DataLoader

from ltm_det.backbones import MergeWatch
from ltm_det.backbones.common.weights import read_checkpoint, without_mergers
from ltm_det.basics.files import whole
from ltm_det.basics.finite import check_finite
from ltm_det.engine.bottleneck import Bottleneck
from ltm_det.engine.building import building
from ltm_det.engine.instances import instance_boxes, pool_boxes
from ltm_det.measure.flops import aligned, build_backbone, build_detector, dense_twin

KINDS = ("dense", "pool", "merged")
CROP = 8  # pixels of the side to which an instance's pixels are averaged
NO_LIMIT = 2**40  # samples
MERGES_NOWHERE = (
    "the config's backbone merges nowhere: give one with a merger, and for a dense detector its "
    "checkpoint beside it"
)
Summaries = dict[str, dict[str, float]]  # by merge point, what IBStatistics.summary tells


def variant(cfg: Config, kind: str) -> Config:
    """The config with its own merger ('merged'), none ('dense'), or Pool at the same points.

    Raises:
        ValueError: If the config merges nowhere.
    """
    dense = dense_twin(cfg)
    if dense is None:
        raise ValueError(MERGES_NOWHERE)
    if kind == "dense":
        return dense
    cfg = copy.deepcopy(cfg)
    if kind == "pool":
        places = ("compression_ratio", "scope", "dense_blocks", "merge_at")
        merger = {key: cfg.model.backbone.merger[key] for key in cfg.model.backbone.merger}
        merger = {key: value for key, value in merger.items() if key in places}
        cfg.model.backbone.merger = dict(merger, type="Pool")
    return cfg


def load_detector(cfg: Config, kind: str, checkpoint: str | None, device: str) -> nn.Module:
    """The detector of a kind, in evaluation mode.

    Args:
        checkpoint: File or URL of its weights, or of another kind's: mask modules that it has no
            use for are left out, and those that it lacks start as pooling. None: weights as they
            are initialised, drawn from the config's seed, its backbone's by its init_cfg. A run
            with that seed may have started from another draw, since its data loader draws too.

    Raises:
        ValueError: If the config merges nowhere, or the checkpoint does not fit the detector.
    """
    init_default_scope(cfg.get("default_scope", "mmdet"))
    cfg = variant(cfg, kind)
    set_random_seed(cfg.get("randomness", {}).get("seed") or 0)
    if checkpoint is None:
        with building(cfg):
            model = MODELS.build(cfg.model)
        model.init_weights()
    else:
        model = build_detector(cfg)
        weights = read_checkpoint(checkpoint)["state_dict"]
        if kind != "merged":
            weights = without_mergers(weights)
        load_state_dict(model, weights, strict=True)
        check_finite(model.state_dict(), checkpoint)
    return model.to(device).eval()


def data_of(cfg: Config, split: str) -> DataLoader:
    """A split, 'train' or 'val', in its order, loaded by its own pipeline."""
    loader = copy.deepcopy(cfg[f"{split}_dataloader"])
    loader.update(
        sampler=dict(type="DefaultSampler", shuffle=False),
        batch_sampler=None,
        num_workers=0,
        persistent_workers=False,
    )
    return Runner.build_dataloader(loader, seed=0)


@torch.no_grad()
def measure(
    cfg: Config,
    kind: str,
    checkpoint: str | None,
    split: str = "val",
    images: int | None = None,
    clusters: int = 32,
    betas: Sequence[float] = (10.0,),
    device: str = "cpu",
) -> list[Summaries]:
    """IB, its bound and what belongs to it at every merge point, over a split's instances.

    Args:
        cfg: Of the merged detector and its data.
        kind: 'merged', or 'dense' or 'pool' in its place.
        checkpoint: See :func:`load_detector`.
        split: 'train' or 'val'. A training pipeline's augmentations are drawn from a fixed seed.
        images: How many of the split's images, in whole batches; None for all.
        clusters: K, of the merged features and of the pixels alike.
        betas: Inverse temperatures of the assignments, see :func:`ltm_det.ib.assign`.
        device: Where the detector runs.

    Returns:
        For each of ``betas``, on the same samples and clusters.

    Raises:
        ValueError: If the config merges nowhere, the checkpoint does not fit, or there are fewer
            samples, that is instances and boxes of background, than clusters.
    """
    model = load_detector(cfg, kind, checkpoint, device)
    points = list(build_backbone(cfg).mergers_by_point())
    if not points:
        raise ValueError(MERGES_NOWHERE)
    loader = data_of(cfg, split)
    classes = len(loader.dataset.metainfo["classes"]) + 1
    bottleneck = Bottleneck(points, classes, clusters, betas[0], capacity=NO_LIMIT)
    set_random_seed(0)
    generator = torch.Generator().manual_seed(0)
    wanted = None if images is None else -(-images // loader.batch_size)  # batches
    with MergeWatch(model.backbone, points) as watch:
        for batch in islice(loader, wanted):
            batch = model.data_preprocessor(batch)
            model.backbone(batch["inputs"])
            rois, labels = instance_boxes(
                batch["data_samples"], 1, classes - 1, generator, rescale=split == "val"
            )
            features = {
                name: pool_boxes(point.merged_map(), rois, point.stride)
                for name, point in watch.seen.items()
            }
            bottleneck.add(labels, pool_boxes(batch["inputs"], rois, 1, CROP), features)
    if len(bottleneck.labels) < clusters:
        raise ValueError(
            f"{len(bottleneck.labels)} samples are too few for {clusters} clusters: take more "
            "images, or fewer clusters"
        )
    summaries = []
    for beta in betas:
        once = copy.copy(bottleneck)  # refreshing forgets the samples
        once.beta = beta
        summaries.append(once.refresh())
    return summaries


def as_table(measured: dict[str, Summaries]) -> str:
    """One line for each row's name, such as 'merged', and merge point; in nats."""
    columns = ("ib", "information_x", "information_y", "bound", "input_term", "softness")
    rows = [["", "merge point", "IB", "I(X~;X)", "I(X~;Y)", "bound", "constant", "softness"]]
    for name, summaries in measured.items():
        for point, summary in summaries.items():
            rows.append([name, point, *(f"{summary[column]:.3f}" for column in columns)])
    return aligned(rows)


def draw(measured: dict[str, dict[str, Summaries]], title: str, out: Path) -> None:
    """Writes bars of IB and its two parts at every merge point; the suffix chooses the format.

    Args:
        measured: By beta, one column of panels each, and by the name of a row.
        title: Of the figure.
        out: File to write.
    """
    panels = dict(ib="IB = I(X~;X) - I(X~;Y)", information_x="I(X~;X)", information_y="I(X~;Y)")
    points = list(next(iter(next(iter(measured.values())).values())))
    size = (1.5 + (1 + 2.2 * len(points)) * len(measured), 8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), len(measured), sharex=True, sharey="row", squeeze=False)
    for axis, label in zip(axes[:, 0], panels.values()):
        axis.set_ylabel(f"{label}  [nats]")
    for column, (beta, rows) in zip(axes.T, measured.items()):
        column[0].set_title("hard clusters" if beta == "inf" else f"beta {beta}", fontsize=9)
        for axis, key in zip(column, panels):
            bars(axis, {n: [rows[n][point][key] for point in points] for n in rows})
            axis.set_xticks(np.arange(len(points)), points)
        entropy = next(iter(rows.values()))[points[0]]["label_entropy"]
        column[-1].axhline(entropy, color="grey", linestyle="--", linewidth=1, label="H(Y)")
    handles, labels = axes[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, fontsize=10)
    with whole(out) as part:
        figure.savefig(part, dpi=120)


def bars(axis: Axes, heights: dict[str, list[float]]) -> None:
    """Groups of bars, one of each name at 0, 1, ..., with their heights written on them."""
    width = 0.84 / len(heights)
    for i, (name, values) in enumerate(heights.items()):
        at = np.arange(len(values)) + (i - (len(heights) - 1) / 2) * width
        kind = KINDS.index(name.partition(",")[0])
        faint = 0.4 if "untrained" in name else 1.0
        drawn = axis.bar(at, values, 0.92 * width, label=name, color=f"C{kind}", alpha=faint)
        axis.bar_label(drawn, fmt="%.2f", fontsize=6, padding=2)
    axis.margins(y=0.15)
    axis.axhline(0, color="black", linewidth=0.8)
