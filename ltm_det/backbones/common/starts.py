"""What weights are before any are loaded."""

from torch import nn


def as_timm(module: nn.Module) -> None:
    """As timm's ViT: truncated normal for linear layers, zero for their biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
