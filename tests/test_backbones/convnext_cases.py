"""Small LTMConvNeXts: what all tests of them share."""

from functools import partial

from ltm_det.backbones import LTMConvNeXt
from tests.test_backbones.harness import Family, dense_twin, padded, randomise

# one stage of three blocks, in windows of 4
SIZES = dict(dims=(8,), depths=(3,))
MINI = dict(arch=SIZES, out_indices=(0,), window_size=4)
EDGELESS = dict(padding="replicate")  # convolutions repeat the border of a map, not add zeros


def make(merger, ratio=0.5, padding="zeros", **options):
    """A small backbone; extra options go to it."""
    if merger is not None:
        merger = dict(dict(compression_ratio=ratio), **merger)
    return padded(LTMConvNeXt(merger=merger, **{**MINI, **options}), padding)


def build(*args, **options):
    """As `make`, of random weights in evaluation mode."""
    return randomise(make(*args, **options))


FAMILIES = {
    "convnext": Family(
        make=make,
        dense=partial(dense_twin, build),
        maps=lambda h, w: [(8, h, w)],
        layouts={
            "start": dict(dense_blocks=0),
            "later": dict(dense_blocks=1),
            "twice": dict(dense_blocks=[[1]]),
        },
        depth=lambda blocks: dict(arch=dict(SIZES, depths=(blocks,))),
        equal=EDGELESS,
        local=None,
        sampled=True,
        once=".norm",
        executed=False,
        attends=False,
        tokens=lambda side: max(1, side // 4),  # what fills no patch is left out
    )
}
