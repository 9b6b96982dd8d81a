"""The bottleneck of a tiny detector, against one collected apart: own loop, own hooks, own maps.

Shapes: B images, W windows, N tokens in a window, P kept tokens, C channels, n boxes.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from ltm_det.engine.bottleneck import fit_centroids
from ltm_det.engine.instances import background_boxes
from ltm_det.ib import IBStatistics, assign
from ltm_det.studies.bottleneck import KINDS, load_detector, measure
from tests.test_studies.tiny_study import BLOCK, MEAN, STAGE_POINTS, STD
from tests.test_tools.conftest import SIZE

WINDOW = 4
TOLERANCE = 1e-4  # of what is collected apart


def images_by_hand(folder: Path, split: str = "val") -> tuple[list[Tensor], list[Tensor], list]:
    """Normalised images (3, h, w), their boxes (n, 4) and labels."""
    coco = json.loads((folder / f"{split}.json").read_text())
    images, boxes, labels = [], [], []
    for info in coco["images"]:
        rgb = cv2.imread(str(folder / split / info["file_name"]))[:, :, ::-1]
        images.append(torch.from_numpy((rgb - MEAN) / STD).float().permute(2, 0, 1))
        own = [a for a in coco["annotations"] if a["image_id"] == info["id"]]
        xywh = torch.tensor([a["bbox"] for a in own]).float()
        boxes.append(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1))
        labels.append([a["category_id"] - 1 for a in own])
    return images, boxes, labels


def samples_by_hand(folder: Path, batch: int = 2) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Batches (B, 3, SIZE, SIZE), their boxes (n, 5), background last, and all labels."""
    images, boxes, labels = images_by_hand(folder)
    generator = torch.Generator().manual_seed(0)
    batches, rois, known = [], [], []
    for i, (image, own) in enumerate(zip(images, boxes)):
        if i % batch == 0:
            batches.append(torch.zeros(batch, 3, SIZE, SIZE))
            rois.append(torch.zeros(0, 5))
        batches[-1][i % batch, :, : image.shape[1], : image.shape[2]] = image
        own = torch.cat([own, background_boxes(own, image.shape[1:], 1, generator)])
        rois[-1] = torch.cat([rois[-1], F.pad(own, (1, 0), value=i % batch)])
        known += [*labels[i], 2]
    return batches, rois, torch.tensor(known)


def map_by_hand(tokens: Tensor, side: int) -> Tensor:
    """(B, W, N, C) to (B, C, side, side), token by token; what lies beyond is padding."""
    b, w, n, c = tokens.shape
    across, m = math.isqrt(w), math.isqrt(n)
    out = torch.zeros(b, c, side, side)
    for y in range(side):
        for x in range(side):
            window, token = y // m * across + x // m, y % m * m + x % m
            out[:, :, y, x] = tokens[:, window, token]
    return out


def merged_by_hand(merging, tokens: Tensor) -> Tensor:
    """G times the normed G^T Z, (B, W, N, C), with both matrices written out."""
    z = tokens - tokens.mean(-1, keepdim=True)
    z = z / (z.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    if merging is None:
        return z
    b, w, n, c = z.shape
    gather = merging.merge(torch.eye(n).expand(b, w, n, n))  # (B, W, P, N)
    restore = merging.unmerge(torch.eye(gather.shape[2]).expand(b, w, -1, -1))  # (B, W, N, P)
    assert gather.shape[2] < n
    return torch.einsum("bwnp,bwpm,bwmc->bwnc", restore, gather, z)


class Ear:
    """Own hooks: (B, W, N, C) tokens and their merging at each of the points."""

    def __init__(self, backbone: nn.Module, modules: dict[str, str]) -> None:
        self.heard: dict[str, tuple] = {}
        for point, path in modules.items():
            module = backbone.get_submodule(path)
            module.register_forward_hook(lambda m, args, out, p=point: self.hear(p, args[0], out))

    def hear(self, point: str, tokens: Tensor, out: object) -> None:
        merging = None if isinstance(out, Tensor) or not hasattr(out[0], "merge") else out[0]
        if tokens.ndim == 3:  # (B, L, C), of a square map: cut into windows, zeros beyond it
            side = math.isqrt(tokens.shape[1])
            across = -(-side // WINDOW)
            windows = torch.zeros(len(tokens), across**2, WINDOW**2, tokens.shape[2])
            for i in range(tokens.shape[1]):
                y, x = divmod(i, side)
                at = y // WINDOW * across + x // WINDOW, y % WINDOW * WINDOW + x % WINDOW
                windows[:, at[0], at[1]] = tokens[:, i]
            tokens = windows
        self.heard[point] = tokens.clone(), merging


BLOCK_POINTS = ("stages.1.blocks.1.ffn", "stages.3.blocks.1.ffn")
SWIN_SIDES, VIT_SIDES = (8, 2), (8,)  # of the maps of SIZE pixels at the points
CASES = {  # name, options, kind, modules to hook at the points, sides
    f"stage {kind}": ("swin", {}, kind, dict(zip(STAGE_POINTS, modules)), SWIN_SIDES)
    for kind, modules in dict(
        dense=STAGE_POINTS,
        pool=("stages.1.mergers.1", "stages.3.mergers.1"),
        merged=("stages.1.mergers.1", "stages.3.mergers.1"),
    ).items()
}
CASES |= {
    f"block {kind}": ("swin", {BLOCK: "block"}, kind, dict(zip(BLOCK_POINTS, modules)), SWIN_SIDES)
    for kind, modules in dict(
        dense=("stages.1.blocks.1.norm2", "stages.3.blocks.1.norm2"),
        merged=("stages.1.blocks.1.merger", "stages.3.blocks.1.merger"),
    ).items()
}
CASES |= {
    "vit dense": ("vit", {}, "dense", {"blocks.2": "blocks.2"}, VIT_SIDES),
    "vit merged": ("vit", {}, "merged", {"blocks.2": "mergers.2"}, VIT_SIDES),
}


def summaries_by_hand(
    model: nn.Module,
    folder: Path,
    modules: dict[str, str],
    sides: Sequence[int],
    clusters: int,
    beta: float,
) -> dict[str, dict[str, float]]:
    ear = Ear(model.backbone, modules)
    batches, rois, labels = samples_by_hand(folder)
    pixels, features = [], {point: [] for point in modules}
    for batch, boxes in zip(batches, rois):
        model.backbone(batch)
        pixels.append(roi_align(batch, boxes, 8, 1.0, -1, aligned=True).flatten(1))
        for (point, (tokens, merging)), side in zip(ear.heard.items(), sides, strict=True):
            features[point].append(
                roi_align(
                    map_by_hand(merged_by_hand(merging, tokens), side),
                    boxes,
                    output_size=1,
                    spatial_scale=side / SIZE,
                    sampling_ratio=-1,
                    aligned=True,
                ).flatten(1)
            )
    pixels = torch.cat(pixels)
    phi_in = assign(pixels, fit_centroids(pixels, clusters), beta)
    summaries = {}
    for point in modules:
        x = torch.cat(features[point])
        phi = assign(x, fit_centroids(x, clusters), beta)
        statistics = IBStatistics(clusters, clusters, 3).update(phi, phi_in, labels)
        summaries[point] = statistics.summary()
    return summaries


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_it_is_what_features_collected_apart_give(
    config: Callable, saved: Callable, folder: Path, case: str
) -> None:
    name, options, kind, modules, sides = CASES[case]
    cfg = config(name, **options)
    path = saved(cfg)
    found = measure(cfg, kind, path, clusters=4, betas=(2.0, 10.0))
    model = load_detector(cfg, kind, path, "cpu")
    for summaries, beta in zip(found, (2.0, 10.0), strict=True):
        expected = summaries_by_hand(model, folder, modules, sides, 4, beta)
        assert list(summaries) == list(expected) == list(modules)
        for point in modules:
            assert summaries[point] == pytest.approx(expected[point], abs=TOLERANCE)
            assert summaries[point]["samples"] == 12
            assert summaries[point]["label_entropy"] == pytest.approx(math.log(3))


def test_kinds_differ_and_masks_count(config: Callable, saved: Callable) -> None:
    """By far more than the tolerance of the comparison above, which else would say little."""
    path = saved(config())
    kinds = [measure(config(), kind, path, clusters=4)[0] for kind in KINDS]
    for one, other in itertools.combinations(kinds, 2):
        for point in STAGE_POINTS:
            assert abs(one[point]["bound"] - other[point]["bound"]) > 10 * TOLERANCE
        last = STAGE_POINTS[-1]
        assert abs(one[last]["softness"] - other[last]["softness"]) > 0.05
