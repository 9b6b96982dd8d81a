"""What the tests of LTM's step from the bound share: modules away from their start."""

from functools import partial

import torch

from ltm_det.merging import LTM, BottleneckStep

DIM = 5
PaperLTM = partial(LTM, affinity=0, detail=0)  # the step alone


def randomise(step: BottleneckStep, rate: float = 0.3) -> BottleneckStep:
    for parameter in step.parameters():
        torch.nn.init.normal_(parameter)
    step.rate.data.fill_(rate)
    return step


def build(window, tokens, rate=0.3, dim=DIM, clusters=6, classes=3, **options) -> LTM:
    """A mask module far from where it starts, in evaluation mode."""
    options = dict(clusters=clusters, classes=classes, update="gradient") | options
    ltm = PaperLTM(dim, window, tokens, **options).eval()
    randomise(ltm.step, rate)
    if ltm.initial_logits is not None:
        torch.nn.init.normal_(ltm.initial_logits)
    return ltm
