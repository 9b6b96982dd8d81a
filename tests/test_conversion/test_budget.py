"""A share of the dense backbone's GMACs: what comes out is what a count says."""

import pytest
from mmengine.config import Config

from ltm_det.basics.errors import InputError
from ltm_det.conversion.budget import FAR, last_within, meet_share
from ltm_det.measure.flops import build_backbone, count_backbone

SHAPE = (64, 96)
SWIN = dict(
    type="LTMSwin",
    embed_dims=32,
    depths=[1, 4, 2],
    num_heads=[1, 2, 4],
    strides=[4, 2, 2],
    out_indices=[0, 1, 2],
    window_size=4,
    merger=dict(type="LTM", compression_ratio=0.5),
)
VIT = dict(
    type="LTMViT",
    embed_dims=64,
    depth=6,
    num_heads=2,
    img_size=64,
    window_size=4,
    merger=dict(type="Pool", merge_at=1, compression_ratio=0.5),
)


def config(backbone: dict, **merger: object) -> Config:
    own = dict(backbone["merger"], **merger)
    return Config(dict(model=dict(backbone=dict(backbone, merger=own))))


def counted(cfg: Config, merger: object) -> int:
    cfg = Config(dict(model=dict(backbone=dict(cfg.model.backbone, merger=merger))))
    return count_backbone(build_backbone(cfg), SHAPE).macs["backbone"]


@pytest.mark.parametrize(("backbone", "share"), [(SWIN, 0.8), (VIT, 0.6), (VIT, 0.85)])
def test_the_share_is_what_a_count_says(backbone: dict, share: float) -> None:
    cfg = config(backbone)
    found = meet_share(cfg, share, SHAPE)
    dense = counted(cfg, None)
    assert counted(cfg, found.merger) / dense == pytest.approx(found.share, rel=1e-9)
    assert abs(found.share - share) <= FAR
    assert found.merger["type"] == backbone["merger"]["type"]
    assert cfg.model.backbone.merger.compression_ratio == 0.5  # it is the caller's to write
    assert "=" in found.words


def test_what_a_config_leaves_dense_stays_dense() -> None:
    found = meet_share(config(SWIN, compression_ratio=[1.0, 0.5, 1.0]), 0.9, SHAPE)
    dense_blocks = found.merger["dense_blocks"]
    assert dense_blocks[0] == 1 and dense_blocks[2] == 2 and dense_blocks[1] in (1, 2, 3)


def test_what_can_t_be_met_is_named_with_what_can() -> None:
    with pytest.raises(InputError, match=r"--budget 0.05 is out of reach .* comes to 0\.\d\d at"):
        meet_share(config(SWIN), 0.05, SHAPE)
    for share in (0, 1, 1.5, -1, float("nan")):
        with pytest.raises(InputError, match="give a share"):
            meet_share(config(SWIN), share, SHAPE)
    for backbone in (dict(SWIN, merger=None), dict(type="SwinTransformer")):
        with pytest.raises(InputError, match="has no merger: give --family, or a config with one"):
            meet_share(Config(dict(model=dict(backbone=backbone))), 0.5, SHAPE)


def test_the_last_place_that_fits() -> None:
    for last in range(8):
        for border in range(last + 1):
            assert last_within(lambda place: place <= border, last) == border  # noqa: B023
