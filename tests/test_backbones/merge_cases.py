"""Backbones by where they merge, and what is seen there."""

import torch
from torch import Tensor, nn

from ltm_det.backbones import MergePoint, MergeWatch
from tests.test_backbones import swin_cases, vit_cases
from tests.test_backbones.harness import MASKS

STAGES = dict(sizes=dict(swin_cases.ONE_STAGE, depths=(5,)))
# By name: module of the family, the merger's layout, options of the backbone, the points.
CASES = {
    "stage": (
        swin_cases,
        dict(dense_blocks=1),
        {},
        ["stages.0.blocks.1", "stages.1.blocks.1"],
    ),
    "spans": (
        swin_cases,
        dict(dense_blocks=[[0, 3]]),
        STAGES,
        ["stages.0.blocks.1", "stages.0.blocks.4"],
    ),
    "sides": (
        swin_cases,
        dict(dense_blocks=0, compression_ratio=[[0.5, 0.25, 0.25, 1.0, 0.5]]),
        STAGES,
        ["stages.0.blocks.0", "stages.0.blocks.1", "stages.0.blocks.4"],
    ),
    "block": (
        swin_cases,
        dict(dense_blocks=1, scope="block"),
        {},
        ["stages.0.blocks.1.ffn", "stages.1.blocks.1.ffn", "stages.1.blocks.2.ffn"],
    ),
    "block-spans": (
        swin_cases,
        dict(dense_blocks=[[0, 2]], scope="block"),
        STAGES,
        ["stages.0.blocks.1.ffn", "stages.0.blocks.3.ffn", "stages.0.blocks.4.ffn"],
    ),
    "vit": (vit_cases, dict(merge_at=1), {}, ["blocks.1"]),
    "vit-twice": (
        vit_cases,
        dict(merge_at=[2, 4], compression_ratio=[0.5, 0.25]),
        {},
        ["blocks.2", "blocks.4"],
    ),
}


def build(case: str, merger: dict | None = MASKS[0], **more):
    cases, layout, options, _ = CASES[case]
    return cases.build(merger and {**layout, **merger}, **options, **more)


def points_of(case: str) -> list[str]:
    return CASES[case][3]


def see(model: nn.Module, images: Tensor, names=None) -> dict[str, MergePoint]:
    with torch.no_grad(), MergeWatch(model, names) as watch:
        model(images)
        return dict(watch.seen)


def paste(point: MergePoint, windows: Tensor) -> Tensor:
    """(B, W, N, C) to (B, C, H, W), a token at a time."""
    height, width, m = point.grid
    out = windows.new_zeros(len(windows), windows.shape[-1], height, width)
    for y in range(height):
        for x in range(width):
            window = y // m * -(-width // m) + x // m
            out[:, :, y, x] = windows[:, window, y % m * m + x % m]
    return out


def gradients(model: nn.Module, images: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Of a loss on the features and on every merged map; nothing is seen in the backward pass."""
    model.train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    with MergeWatch(model, names) as watch:
        loss = sum(out.square().mean() for out in model(images))
        loss = loss + sum((p.merged_map() ** 3).mean() for p in watch.seen.values())
        watch.seen.clear()
        loss.backward()
        assert watch.seen == {}
    return {name: p.grad for name, p in model.named_parameters()}
