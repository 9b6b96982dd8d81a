"""Small LTMPVTv2s: what all tests of them share."""

from functools import partial

from ltm_det.backbones import LTMPVTv2
from tests.test_backbones.harness import Family, dense_twin, padded, randomise

# one stage of three blocks, whose keys are of squares of 2 x 2 tokens, in windows of 4
SIZES = dict(embed_dims=(8,), depths=(3,), num_heads=(2,), sr_ratios=(2,), mlp_ratios=(2,))
MINI = dict(arch=SIZES, out_indices=(0,), window_size=4)
EDGELESS = dict(padding="replicate")  # convolutions repeat the border of a map, not add zeros


def make(merger, scope="stage", ratio=0.5, padding="zeros", **options):
    """A small backbone; extra options go to it."""
    if merger is not None:
        merger = dict(dict(compression_ratio=ratio, scope=scope), **merger)
    return padded(LTMPVTv2(merger=merger, **{**MINI, **options}), padding)


def build(*args, **options):
    """As `make`, of random weights in evaluation mode."""
    return randomise(make(*args, **options))


dense_of = partial(dense_twin, build)


def family(scope):
    return Family(
        make=partial(make, scope=scope),
        dense=dense_of,
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
        executed=False,
        gridless=False,
        once=".norm2",  # norm1 is of queries, and of keys
    )


FAMILIES = {f"pvt-{scope}": family(scope) for scope in ("block", "stage")}
