"""Small LTMEfficientViTs: what all tests of them share."""

from functools import partial

from ltm_det.backbones import LTMEfficientViT
from tests.test_backbones.harness import Family, dense_twin, padded, randomise

# three blocks with attention on a map of stride 16, in windows of 3
SIZES = dict(widths=(8, 8, 8, 8), depths=(1, 1, 1, 3), head_dim=4, expand_ratio=2)
MINI = dict(arch=SIZES, out_indices=(2,), window_size=3)
EDGELESS = dict(padding="replicate")  # convolutions repeat the border of a map, not add zeros


def make(merger, scope="stage", ratio=0.5, padding="zeros", **options):
    """A small backbone; extra options go to it."""
    if merger is not None:
        merger = dict(dict(compression_ratio=ratio, scope=scope), **merger)
    return padded(LTMEfficientViT(merger=merger, **{**MINI, **options}), padding)


def build(*args, **options):
    """As `make`, of random weights in evaluation mode."""
    return randomise(make(*args, **options))


dense_of = partial(dense_twin, build)


def family(scope):
    return Family(
        make=partial(make, scope=scope),
        dense=dense_of,
        maps=lambda h, w: [(8, -(-h // 4), -(-w // 4))],
        layouts={
            "start": dict(dense_blocks=0),
            "later": dict(dense_blocks=1),
            "twice": dict(dense_blocks=[[1]]),
        },
        depth=lambda blocks: dict(arch=dict(SIZES, depths=(1, 1, 1, blocks))),
        equal=EDGELESS,
        local=None,
        sampled=True,
        executed=False,
        gridless=False,
        once=".context_module.main",
    )


FAMILIES = {f"efficientvit-{scope}": family(scope) for scope in ("block", "stage")}
