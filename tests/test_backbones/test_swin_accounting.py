"""Loading Swin weights: every key accounted for, tables of other sizes resampled."""

import re

import pytest
import torch

from ltm_det.backbones import LTMSwin
from ltm_det.backbones.common.accounting import resample_pos_embed
from ltm_det.backbones.common.weights import without_mergers
from ltm_det.backbones.swin.weights import SWIN, relative_position_index, resample_table
from tests.test_backbones.checkpoints import randomise, resample_slowly
from tests.test_backbones.swin_checkpoints import (
    BACKBONES,
    SIZES,
    STAGE,
    account,
    assert_same,
    load_accounted,
    parameters,
)


@pytest.mark.parametrize("target", BACKBONES)
def test_unaccounted_keys_raise(detector_state, target):
    own = BACKBONES[target]().state_dict()
    lacking = dict(detector_state)
    del lacking["stages.1.blocks.0.attn.w_msa.qkv.bias"], lacking["patch_embed.norm.weight"]
    with pytest.raises(ValueError, match=r"2 missing: patch_embed.norm.weight, stages.1.*qkv.bias"):
        account(own, lacking)
    with pytest.raises(ValueError, match=r"1 unexpected: stages.0.blocks.0.gamma \(7,\)"):
        account(own, detector_state | {"stages.0.blocks.0.gamma": torch.zeros(7)})
    key = "stages.1.blocks.0.ffn.layers.1.weight"
    with pytest.raises(ValueError, match=rf"{key}: \(48, 48\) in the checkpoint, \(48, 192\) in"):
        account(own, detector_state | {key: torch.zeros(48, 48)})
    with pytest.raises(ValueError, match="float, not a tensor"):
        account(own, detector_state | {key: 1.0})
    # A head or final norm is only a classifier's to have.
    with pytest.raises(ValueError, match="1 unexpected: head.weight"):
        account(own, detector_state | {"head.weight": torch.zeros(5, 192)})
    # Everything that is wrong is in one message.
    with pytest.raises(ValueError, match=r"(?s)in 3 keys.*1 missing.*1 unexpected.*1 do not fit"):
        state = detector_state | {key: torch.zeros(1), "x": torch.zeros(1)}
        account(own, {k: v for k, v in state.items() if k != "norm0.bias"})


@pytest.mark.parametrize(
    "sizes, message",
    [
        (dict(depths=(2, 2, 3, 1)), r"missing: .*checkpoint: .*depths=\(2, 2, 2, 1\).*model: "),
        (dict(depths=(2, 2, 1, 1)), r"unexpected.*checkpoint: .*depths=\(2, 2, 2, 1\).*model: "),
        (dict(depths=(2, 2, 2), num_heads=(1, 2, 4), strides=(4, 2, 2), out_indices=(0, 1, 2)),
         r"18 unexpected: stages.2.downsample.*depths=\(2, 2, 2\), "),
        (dict(embed_dims=48, num_heads=(2, 4, 8, 16)), r"do not fit.*embed_dims=24.*embed_dims=48"),
        (dict(num_heads=(1, 2, 8, 8)), r"2 do not fit: .*table: \(169, 4\).*\(169, 8\) in the mod"),
    ],
)  # fmt: skip
def test_wrong_sizes_raise(detector_state, sizes, message):
    with pytest.raises(ValueError, match=f"(?s){message}.*remedy: give the model the checkpoint's"):
        account(BACKBONES["dense"](**sizes).state_dict(), detector_state)


def test_unused_output_norm(detector_state):
    """A Mask R-CNN backbone (four outputs) in a detector that takes the last three."""
    model = BACKBONES["dense"](out_indices=(1, 2, 3))
    assert "not needed: norm0.weight, norm0.bias" in load_accounted(model, detector_state)


def test_long_lists_are_cut(detector_state):
    with pytest.raises(ValueError, match=r"\.\.\. \(111 in all\)") as error:
        account(detector_state, {"norm0.bias": detector_state["norm0.bias"]})
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("window", [1, 2, 5, 7])
def test_relative_position_index_is_mmdets(window):
    model = BACKBONES["mmdet"](window_size=window)
    index = model.stages[0].blocks[0].attn.w_msa.relative_position_index
    assert torch.equal(relative_position_index(window), index)


def test_unusual_index_raises(detector_state):
    key = "stages.2.blocks.1.attn.w_msa.relative_position_index"
    own = BACKBONES["dense"]().state_dict()
    for other in (detector_state[key].T.contiguous(), relative_position_index(6)):
        with pytest.raises(ValueError, match=rf"{key}: not the usual index of a 7x7 window"):
            account(own, detector_state | {key: other})


@pytest.mark.parametrize("old, new", [(12, 7), (7, 12), (5, 5), (1, 3)])
def test_resample_table_against_loops(old, new):
    table = torch.randn((2 * old - 1) ** 2, 2)
    resampled = resample_table(table, (2 * new - 1) ** 2)
    assert resampled.shape == ((2 * new - 1) ** 2, 2)
    for head in range(2):
        grid = table[:, head].view(2 * old - 1, -1).double()
        expected = resample_slowly(grid, (2 * new - 1, 2 * new - 1))
        got = resampled[:, head].view(2 * new - 1, -1).double()
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    if old == new:
        assert torch.equal(resampled, table)


@pytest.mark.parametrize("rows, new", [(168, 169), (169, 170), (196, 169), (169, 196)])
def test_resample_table_refuses_other_windows(rows, new):
    with pytest.raises(ValueError, match=f"table of {rows} rows for {new}"):
        resample_table(torch.zeros(rows, 3), new)


@pytest.mark.parametrize("old, new", [(12, 7), (7, 12)])
@pytest.mark.parametrize("target", ["mmdet", "stage"])
def test_other_window(old, new, target):
    source = randomise(BACKBONES["mmdet"](window_size=old)).state_dict()
    model = BACKBONES[target](window_size=new)
    assert "resampled" in load_accounted(model, source)
    key = "stages.1.blocks.1.attn.w_msa.relative_position_bias_table"
    loaded = model.state_dict()
    assert torch.equal(loaded[key], resample_table(source[key], (2 * new - 1) ** 2))
    assert_same(loaded, {k: v for k, v in source.items() if "relative_position" not in k})
    if target == "mmdet":  # which keeps its own index, of its own window
        index = loaded[key.replace("bias_table", "index")]
        assert torch.equal(index, relative_position_index(new))


def test_resample_pos_embed_against_loops():
    square = torch.randn(1, 25, 3)
    maps = torch.randn(1, 3, 5, 4)  # the Swin repository's detectors: (1, C, h, w)
    for embed, grids in ((square, square[0].T.view(3, 5, 5)), (maps, maps[0])):
        resampled = resample_pos_embed(embed, 24, (4, 6))
        assert resampled.shape == (1, 24, 3)
        for channel in range(3):
            expected = resample_slowly(grids[channel].double(), (4, 6))
            got = resampled[0, :, channel].view(4, 6).double()
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert torch.equal(resample_pos_embed(square, 25), square)
    with pytest.raises(ValueError, match="24 patches do not form a grid"):
        resample_pos_embed(square, 24)
    with pytest.raises(ValueError, match="24 patches, not a square"):
        resample_pos_embed(torch.zeros(1, 24, 3), 25)


def test_absolute_pos_embed_of_another_size():
    source = randomise(BACKBONES["mmdet"](use_abs_pos_embed=True, pretrain_img_size=32))
    source = source.state_dict()
    options = dict(use_abs_pos_embed=True, pretrain_img_size=(16, 96))
    model = BACKBONES["dense"](**options)
    load_accounted(model, source, grid=(4, 24))
    expected = resample_pos_embed(source["absolute_pos_embed"], 96, (4, 24))
    assert torch.equal(model.absolute_pos_embed.data, expected)


def test_absolute_pos_embed_is_never_optional(detector_state):
    with_embed = BACKBONES["dense"](use_abs_pos_embed=True, pretrain_img_size=32).state_dict()
    with pytest.raises(ValueError, match="1 missing: absolute_pos_embed"):
        account(with_embed, detector_state)
    with pytest.raises(ValueError, match="1 missing: absolute_pos_embed"):
        account(with_embed, detector_state, lenient=True)
    with pytest.raises(ValueError, match=r"1 unexpected: absolute_pos_embed \(1, 64, 24\)"):
        account(parameters(detector_state), with_embed)


@pytest.mark.parametrize("source, target", [("stage", "dense"), ("block", "dense"),
                                            ("stage", "block"), ("block", "stage")])  # fmt: skip
def test_merged_checkpoint_in_another_model(source, target):
    """Mask modules are never dropped in silence: the error says which merging they belong to."""
    source_state = randomise(BACKBONES[source]()).state_dict()
    model = BACKBONES[target]()
    setting = rf"checkpoint: .*scope='{source}', keeps 25 of 49 tokens"
    with pytest.raises(ValueError, match=f"(?s)unexpected.*{setting}.*remedy.*drop_mergers=True"):
        load_accounted(model, source_state)
    note = load_accounted(model, source_state, drop_mergers=True)
    assert_same(model.state_dict(), without_mergers(source_state))
    assert ("merger" in note) == (target != "dense")


def test_part_of_the_mask_modules_is_another_schedule():
    merger = dict(STAGE, compression_ratio=(1.0, 1.0, 0.51, 1.0))
    one = randomise(LTMSwin(merger=merger, **SIZES)).state_dict()
    two = LTMSwin(merger=dict(merger, compression_ratio=(1.0, 0.51, 0.51, 1.0)), **SIZES)
    with pytest.raises(ValueError, match=r"(?s)missing: stages\.1\.mergers.*remedy") as error:
        load_accounted(two, one)
    assert "sizes" not in str(error.value).split("remedy")[1]
    smaller = LTMSwin(merger=dict(merger, compression_ratio=(1.0, 1.0, 0.33, 1.0)), **SIZES)
    with pytest.raises(ValueError, match=r"(?s)do not fit: .*mergers.*keeps 25.*keeps 16"):
        load_accounted(smaller, one)


def test_describe():
    text = SWIN.describe(BACKBONES["stage"](window_size=12).state_dict())
    assert "embed_dims=24, depths=(2, 2, 2, 1), num_heads=(1, 2, 4, 8), window_size=12" in text
    assert "use_abs_pos_embed=False" in text
    assert re.search(r"stages\.2\.mergers\.\d \(scope='stage', keeps 81 of 144 tokens\)", text)
    assert SWIN.describe(BACKBONES["dense"]().state_dict()).endswith("mask modules: none")
