"""Helpers of the tests that load checkpoints."""

import torch
from torch import nn


class Detector(nn.Module):
    """The least that has a detector's names."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Linear(3, 3)


def randomise(model):
    """Every parameter at random, norms too: at their start of ones any order would do."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1).add_(0.3 * (parameter.ndim == 1))
    model.eval()  # mmdet's returns None
    return model


def cubic(t):
    """Cubic convolution kernel with a = -0.75, as in bicubic interpolation (Keys, 1981)."""
    t = abs(t)
    if t <= 1:
        return 1.25 * t**3 - 2.25 * t**2 + 1
    return -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def resample_slowly(grid, size):
    """(h, w) to ``size``, one cell at a time; edges repeat, cell centres stay aligned."""
    out = torch.zeros(size, dtype=torch.float64)
    (h, w), (new_h, new_w) = grid.shape, size
    for i in range(new_h):
        for j in range(new_w):
            y, x = (i + 0.5) * h / new_h - 0.5, (j + 0.5) * w / new_w - 0.5
            for row in range(int(y // 1) - 1, int(y // 1) + 3):
                for column in range(int(x // 1) - 1, int(x // 1) + 3):
                    value = grid[min(max(row, 0), h - 1), min(max(column, 0), w - 1)]
                    out[i, j] += cubic(y - row) * cubic(x - column) * value
    return out
