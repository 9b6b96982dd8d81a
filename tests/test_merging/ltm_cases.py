"""What the tests of LTM's mask module share: a module, part of a window, the tokens' own path."""

import torch

from ltm_det.merging import LTM

DIM = 5
PLAIN = dict(affinity=0, detail=0, proportional=False)  # the paper's step alone


def build(window, tokens, **options):
    """A mask module far from where it starts, in evaluation mode."""
    ltm = LTM(DIM, window, tokens, **options).eval()
    for parameter in ltm.parameters():
        torch.nn.init.normal_(parameter)
    return ltm


def own_path(merging, x, y):
    """What restoring adds to x (*, N, C) beside the merged tokens' change y (*, P, C)."""
    return merging.update(x, y) - x - merging.unmerge(y)


def cut(window, rows, columns):
    """(N,): False beyond so many real rows and columns."""
    at = torch.arange(window)
    return ((at[:, None] < rows) & (at < columns)).flatten()
