"""Small LTMSwins and mmdet's Swin of the same weights: what all tests of LTMSwin share."""

from functools import partial

from mmdet.models.backbones import SwinTransformer

from ltm_det.backbones import LTMSwin
from tests.test_backbones.harness import Family, randomise

# two stages, windows of 4, cheap in float64
MINI = dict(
    embed_dims=8,
    depths=(2, 3),
    num_heads=(1, 2),
    strides=(4, 2),
    out_indices=(0, 1),
    window_size=4,
    drop_path_rate=0.0,
)
ONE_STAGE = dict(MINI, depths=(5,), num_heads=(2,), strides=(4,), out_indices=(0,))
# three stages of odd widths
CUSTOM = dict(
    embed_dims=12, depths=(2, 1, 3), num_heads=(1, 2, 3), strides=(4, 2, 2), out_indices=(0, 2)
)
SCOPES = ["block", "stage"]


def make(merger, scope="stage", ratio=0.5, sizes=MINI, **options):
    """A small backbone; extra options go to it."""
    if merger is not None:
        merger = dict(dict(compression_ratio=ratio, scope=scope), **merger)
    return LTMSwin(merger=merger, **{**sizes, **options})


def build(*args, **options):
    """As `make`, of random weights in evaluation mode."""
    return randomise(make(*args, **options))


def reference_of(model, sizes=MINI, **options):
    """mmdet's Swin of the same weights."""
    twin = SwinTransformer(**{**sizes, **options})
    own, weights = model.state_dict(), twin.state_dict()
    twin.load_state_dict({key: own.get(key, value) for key, value in weights.items()})
    twin.eval()  # returns None
    return twin


def chain_of(stage):
    """For each merger of a stage its block, P, and whether it goes on from the one before."""
    found = {f"{i}": b.merger for i, b in enumerate(stage.blocks) if b.merger is not None}
    found.update(stage.mergers.items())
    return [(int(name), merger.tokens, merger.chained) for name, merger in found.items()]


def family(scope):
    return Family(
        make=partial(make, scope=scope),
        dense=reference_of,
        maps=lambda h, w: [(8, h, w), (16, (h + 1) // 2, (w + 1) // 2)],
        layouts={
            "start": dict(dense_blocks=0),
            "later": dict(dense_blocks=1),
            "twice": dict(dense_blocks=([1], [1])),
        },
        depth=lambda blocks: dict(sizes=dict(ONE_STAGE, depths=(blocks,))),
    )


FAMILIES = {f"swin-{scope}": family(scope) for scope in SCOPES}
