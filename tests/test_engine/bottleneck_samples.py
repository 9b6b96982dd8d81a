"""Samples for a bottleneck, and a bottleneck of them."""

import torch
from torch import Tensor

from ltm_det.engine.bottleneck import Bottleneck

CLASSES, CLUSTERS, BETA = 4, 5, 6.0
WIDTHS = dict(one=7, two=3)


def draw(number: int, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Labels, inputs and features of samples in clusters that tell of their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (number,), generator=generator)

    def features(channels: int) -> Tensor:
        centres = torch.randn(CLASSES, channels, generator=torch.Generator().manual_seed(channels))
        return centres[labels] + 0.7 * torch.randn(number, channels, generator=generator)

    inputs = features(11)
    return labels, inputs, {name: features(channels) for name, channels in WIDTHS.items()}


def new(capacity: int = 1000, **options) -> Bottleneck:
    given = dict(points=WIDTHS, classes=CLASSES, clusters=CLUSTERS, beta=BETA, capacity=capacity)
    return Bottleneck(**given | options)


def filled(*numbers: int, **options) -> Bottleneck:
    bottleneck = new(**options)
    for seed, number in enumerate(numbers):
        bottleneck.add(*draw(number, seed))
    return bottleneck


def assert_equal(one, other, near: float = 0.0) -> None:
    """Of dicts, tensors and numbers."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key], near)
    elif isinstance(one, Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.numel() == 0 or (one - other).abs().max() <= near
    else:
        assert one == other or abs(one - other) <= near
