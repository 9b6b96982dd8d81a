"""Small LTMMobileViTs: what all tests of them share."""

from functools import partial

from ltm_det.backbones import LTMMobileViT
from tests.test_backbones.harness import Family, dense_twin, padded, randomise

# a transformer of three blocks on a map of stride 4, windows of 4 patches of 2 x 2
SIZES = dict(
    stem_channels=8,
    expand_ratio=1,
    channels=(8, 8),
    strides=(1, 2),
    residuals=(1, 1),
    dims=(0, 8),
    depths=(0, 3),
)
MINI = dict(arch=SIZES, out_indices=(1,), window_size=4)
EDGELESS = dict(padding="replicate")  # convolutions repeat the border of a map, not add zeros


def make(merger, scope="stage", ratio=0.5, padding="zeros", **options):
    """A small backbone; extra options go to it."""
    if merger is not None:
        merger = dict(dict(compression_ratio=ratio, scope=scope), **merger)
    return padded(LTMMobileViT(merger=merger, **{**MINI, **options}), padding)


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
        depth=lambda blocks: dict(arch=dict(SIZES, depths=(0, blocks))),
        equal=EDGELESS,
        local=None,
        sampled=True,
        executed=False,
    )


FAMILIES = {f"mobilevit-{scope}": family(scope) for scope in ("block", "stage")}
