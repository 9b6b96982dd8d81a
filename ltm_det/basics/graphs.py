"""Whether torch runs a pass, or makes a graph of it."""

import torch


def tracing() -> bool:
    """Whether a graph is being made for other inputs than these, by compilation or export."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
