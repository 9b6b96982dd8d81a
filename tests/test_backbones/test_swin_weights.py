"""Loading Swin weights: order proven by numbers, every key accounted for."""

import re
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from mmdet.models.backbones import SwinTransformer
from mmdet.models.layers import PatchMerging
from mmengine.runner import load_checkpoint

from ltm_det.backbones import LTMSwin
from ltm_det.backbones.common import accounting, weights
from ltm_det.backbones.common.accounting import resample_pos_embed
from ltm_det.backbones.common.weights import without_mergers
from ltm_det.backbones.swin.weights import SWIN, relative_position_index, resample_table
from tests.test_backbones.checkpoints import Detector, randomise, resample_slowly

account = partial(accounting.account, SWIN)
load_accounted = partial(weights.load_accounted, SWIN)

SIZES = dict(embed_dims=24, depths=(2, 2, 2, 1), num_heads=(1, 2, 4, 8), drop_path_rate=0.0)
STAGE = dict(type="LTM", compression_ratio=(1.0, 1.0, 0.51, 1.0), scope="stage")
BLOCK = dict(type="LTM", compression_ratio=0.51, scope="block")
BACKBONES = {
    "mmdet": lambda **kw: SwinTransformer(**{**SIZES, **kw}),
    "dense": lambda **kw: LTMSwin(**{**SIZES, **kw}),
    "stage": lambda **kw: LTMSwin(merger=STAGE, **{**SIZES, **kw}),
    "block": lambda **kw: LTMSwin(merger=BLOCK, **{**SIZES, **kw}),
}


def convert(checkpoint, prefix=None):
    """The checkpoint's backbone under mmdet's names."""
    return weights.read_source(SWIN, checkpoint, prefix)[0].state


def parameters(state):
    """Without the buffers that mmdet saves and LTMSwin doesn't."""
    return {k: v for k, v in state.items() if not k.endswith("relative_position_index")}


def assert_same(loaded, expected):
    """All of ``expected`` is in ``loaded``, bit for bit."""
    expected = parameters(expected)
    assert expected.keys() <= loaded.keys()
    assert [k for k, v in expected.items() if not torch.equal(loaded[k], v)] == []


@pytest.fixture(scope="module")
def detector_state():
    """State dict of a dense mmdet backbone, with its relative_position_index buffers."""
    torch.manual_seed(0)
    return randomise(BACKBONES["mmdet"]()).state_dict()


@pytest.fixture(scope="module")
def timm_swin():
    torch.manual_seed(0)
    options = dict(img_size=112, window_size=7, always_partition=True)  # detection's windows
    options |= dict(embed_dim=24, depths=SIZES["depths"], num_heads=SIZES["num_heads"])
    name = "swin_tiny_patch4_window7_224"
    return randomise(timm.create_model(name, pretrained=False, num_classes=5, **options))


def swin_repository(state):
    """mmdet's backbone state dict in the Swin repository's classifier layout, by slow loops."""
    renames = (
        (r"^stages", "layers"),
        (r"^patch_embed\.projection", "patch_embed.proj"),
        (r"attn\.w_msa", "attn"),
        (r"ffn\.layers\.0\.0", "mlp.fc1"),
        (r"ffn\.layers\.1", "mlp.fc2"),
    )
    swin = {}
    for key, value in state.items():
        if re.match(r"norm\d", key):
            continue
        if ".downsample." in key:
            channels = value.shape[-1] // 4
            other = torch.empty_like(value)
            for place, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
                for c in range(channels):
                    other[..., place * channels + c] = value[..., c * 4 + row * 2 + column]
            value = other
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        swin[key] = value
    swin["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    swin |= {"norm.weight": torch.ones(192), "norm.bias": torch.zeros(192)}
    swin |= {"head.weight": torch.ones(5, 192), "head.bias": torch.zeros(5)}
    return {"model": swin, "epoch": 3}


@pytest.mark.parametrize("target", ["mmdet", "dense"])
@pytest.mark.parametrize("size", [(112, 112), (112, 224)])
def test_timm_features_agree(timm_swin, target, size):
    """At sizes where no shifted window is padded: timm rolls, then pads; mmdet pads, then rolls."""
    model = BACKBONES[target]()
    model.eval()
    load_accounted(model, timm_swin.state_dict())
    images = torch.randn(2, 3, *size)
    if size != (112, 112):
        timm_swin.set_input_size(size, window_size=7, always_partition=True)
    with torch.no_grad():
        theirs, ours = timm_swin.forward_intermediates(images)[1], model(images)
    if size != (112, 112):
        timm_swin.set_input_size((112, 112), window_size=7, always_partition=True)
    assert len(ours) == len(theirs) == 4
    for a, b in zip(ours, theirs):  # ours are normed, with an output norm still at its start
        b = F.layer_norm(b.permute(0, 2, 3, 1), b.shape[1:2]).permute(0, 3, 1, 2)
        assert a.std() > 0.1
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_timm_layouts_convert_alike(timm_swin):
    """Today's timm, its features_only names, and its older place of the downsampling."""
    new = timm_swin.state_dict()
    features_only = {re.sub(r"^layers\.", "layers_", k): v for k, v in new.items()}
    features_only = {k: v for k, v in features_only.items() if not re.match("norm|head", k)}
    earlier = re.compile(r"^layers\.(\d)\.downsample")
    old = {
        earlier.sub(lambda m: f"layers.{int(m[1]) - 1}.downsample", k): v for k, v in new.items()
    }
    expected = convert(new)
    for layout in (old, features_only, {"state_dict": old}):
        converted = convert(layout)
        assert_same(expected, converted)
        assert account(BACKBONES["mmdet"]().state_dict(), converted, lenient=True)


def test_timm_features_only_model():
    """The names above are those that timm really uses."""
    options = dict(embed_dim=24, depths=SIZES["depths"], num_heads=SIZES["num_heads"])
    name = "swin_tiny_patch4_window7_224"
    theirs = timm.create_model(name, pretrained=False, features_only=True, **options).state_dict()
    model = BACKBONES["dense"]()
    note = load_accounted(model, theirs)
    assert "norm0.weight" in note and "stages" not in note
    table = theirs["layers_2.blocks.1.attn.relative_position_bias_table"]
    loaded = model.state_dict()["stages.2.blocks.1.attn.w_msa.relative_position_bias_table"]
    assert torch.equal(loaded, table)


def test_swin_repository_patch_merging_against_loops():
    torch.manual_seed(0)
    h, w, c = 6, 4, 3
    x = torch.randn(1, h, w, c, dtype=torch.float64)
    norm_w, norm_b, weight = (
        torch.randn(*s).double() for s in [(4 * c,), (4 * c,), (2 * c, 4 * c)]
    )
    expected = torch.empty(h // 2, w // 2, 2 * c, dtype=torch.float64)
    for i in range(h // 2):
        for j in range(w // 2):
            neighbours = [(2 * i, 2 * j), (2 * i + 1, 2 * j), (2 * i, 2 * j + 1)]
            neighbours.append((2 * i + 1, 2 * j + 1))
            cell = torch.cat([x[0, row, column] for row, column in neighbours])
            cell = (cell - cell.mean()) / (cell.var(unbiased=False) + 1e-5).sqrt()
            expected[i, j] = weight @ (cell * norm_w + norm_b)

    swin = {"layers.0.blocks.0.attn.qkv.weight": torch.zeros(1)}  # what marks the layout
    swin |= {"layers.0.downsample.norm.weight": norm_w, "layers.0.downsample.norm.bias": norm_b}
    swin["layers.0.downsample.reduction.weight"] = weight
    converted = convert({"model": swin})
    prefix = "stages.0.downsample."
    merging = PatchMerging(in_channels=c, out_channels=2 * c).double()
    merging.load_state_dict(
        {k.removeprefix(prefix): v for k, v in converted.items() if k.startswith(prefix)}
    )
    out, hw = merging(x.flatten(1, 2), (h, w))
    assert hw == (3, 2)
    torch.testing.assert_close(out[0].view(3, 2, -1), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("target", BACKBONES)
def test_swin_repository_classifier(detector_state, target):
    model = BACKBONES[target]()
    note = load_accounted(model, swin_repository(detector_state))
    body = {k: v for k, v in detector_state.items() if not re.match(r"norm\d", k)}
    assert_same(model.state_dict(), body)
    # A classifier brings no output norms; the head goes; both are said.
    assert "norm0.weight" in note and "head.weight" in note
    assert ("merger" in note) == (target in ("stage", "block"))
    assert torch.equal(model.norm3.weight, torch.ones(192))


def test_swin_repository_detector_keeps_output_norms(detector_state):
    swin = swin_repository(detector_state)["model"]
    norms = {k: v for k, v in detector_state.items() if re.match(r"norm\d", k)}
    swin = {k: v for k, v in swin.items() if not re.match(r"norm\.|head", k)} | norms
    checkpoint = {"state_dict": {f"backbone.{k}": v for k, v in swin.items()}}
    checkpoint["state_dict"]["rpn_head.rpn_conv.weight"] = torch.zeros(1)
    model = BACKBONES["dense"]()
    assert load_accounted(model, checkpoint) == ""
    assert_same(model.state_dict(), detector_state)
    del checkpoint["state_dict"]["backbone.norm2.bias"]
    with pytest.raises(ValueError, match=r"1 missing: norm2\.bias"):
        load_accounted(model, checkpoint)


@pytest.mark.parametrize("target", BACKBONES)
@pytest.mark.parametrize("wrap", ["plain", "detector", "ddp", "prefix"])
def test_mmdet_weights(detector_state, target, wrap):
    whole = {f"backbone.{k}": v for k, v in detector_state.items()} | {"neck.x": torch.zeros(1)}
    checkpoint, prefix = {
        "plain": (detector_state, None),
        "detector": ({"meta": {}, "state_dict": whole, "optimizer": {}}, "backbone."),
        "ddp": ({"state_dict": {f"module.{k}": v for k, v in whole.items()}}, None),
        "prefix": ({f"student.{k}": v for k, v in whole.items()}, "student.backbone"),
    }[wrap]
    before = dict(detector_state)
    model = BACKBONES[target]()
    note = load_accounted(model, checkpoint, prefix=prefix)
    assert_same(model.state_dict(), detector_state)
    assert ("merger" in note) == (target in ("stage", "block"))
    assert before.keys() == detector_state.keys()


def test_mmpretrain_classifier(detector_state):
    """Its backbone has mmdet's names, the last output norm only, and a head beside it."""
    state = {k: v for k, v in detector_state.items() if not re.match("norm[012]", k)}
    state = {f"backbone.{k}": v for k, v in state.items()}
    head = {"head.fc.weight": torch.zeros(5, 192)}
    model = BACKBONES["dense"]()
    assert "norm0.weight" in load_accounted(model, {"state_dict": state | head})
    assert torch.equal(model.norm3.bias, detector_state["norm3.bias"])
    with pytest.raises(ValueError, match="6 missing: norm0"):
        load_accounted(model, {"state_dict": state})  # no classifier: a damaged detector


@pytest.mark.parametrize(
    "state, message",
    [
        ({"conv1.weight": torch.zeros(1)}, "Unknown checkpoint format.*conv1.weight.*Supported"),
        ({"features.1.0.attn.qkv.weight": torch.zeros(1)}, "Unknown checkpoint format"),
        ({}, "Unknown checkpoint format"),
        ({"model": {"layers.0.blocks.0.attn.logit_scale": torch.zeros(1)}}, "Swin V2"),
    ],
)
def test_unknown_format(state, message):
    with pytest.raises(ValueError, match=message):
        convert(state)


def test_missing_prefix(detector_state):
    with pytest.raises(ValueError, match="no Swin block under 'teacher.backbone.'"):
        convert(detector_state, prefix="teacher.backbone.")


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
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
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
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
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


# LTMSwin's own hooks: init_weights and _load_from_state_dict.


@pytest.mark.parametrize("layout", ["swin", "mmdet"])
@pytest.mark.parametrize("target", ["dense", "stage", "block"])
def test_init_weights(detector_state, tmp_path, layout, target):
    path = tmp_path / "swin.pth"
    torch.save(swin_repository(detector_state) if layout == "swin" else detector_state, path)
    init_cfg = dict(type="Pretrained", checkpoint=str(path))
    model = BACKBONES[target](init_cfg=init_cfg, convert_weights=layout == "swin")
    model.init_weights()
    body = {k: v for k, v in detector_state.items() if not re.match(r"norm\d", k)}
    assert_same(model.state_dict(), body if layout == "swin" else detector_state)


def test_init_weights_options(tmp_path):
    merged = randomise(BACKBONES["stage"]())
    path = tmp_path / "detector.pth"
    torch.save({"state_dict": {f"a.{k}": v for k, v in merged.state_dict().items()}}, path)
    init_cfg = dict(type="Pretrained", checkpoint=str(path), prefix="a.")
    with pytest.raises(ValueError, match="drop_mergers=True"):
        BACKBONES["dense"](init_cfg=init_cfg).init_weights()
    model = BACKBONES["dense"](init_cfg=init_cfg | dict(drop_mergers=True))
    model.init_weights()
    assert_same(model.state_dict(), without_mergers(merged.state_dict()))


@pytest.mark.parametrize("target", ["dense", "stage", "block"])
def test_whole_detector_through_mmengine(detector_state, tmp_path, target):
    """load_from of a dense mmdet detector: nothing but mask modules is new, and it says so."""
    source = Detector(BACKBONES["mmdet"]())
    source.backbone.load_state_dict(detector_state)
    path = tmp_path / "detector.pth"
    torch.save({"meta": {}, "state_dict": source.state_dict()}, path)
    detector = Detector(BACKBONES[target]())
    load_checkpoint(detector, str(path), map_location="cpu", strict=True)
    assert_same(detector.state_dict(), source.state_dict())

    state = torch.load(path)["state_dict"]
    del state["backbone.norm1.weight"]
    torch.save({"state_dict": state}, path)
    with pytest.raises(ValueError, match=r"1 missing: norm1\.weight"):
        load_checkpoint(detector, str(path), map_location="cpu")
    torch.save({"state_dict": {"neck.weight": torch.zeros(3, 3)}}, path)
    with pytest.raises(ValueError, match="holds nothing under 'backbone.'"):
        load_checkpoint(detector, str(path), map_location="cpu")


@pytest.mark.parametrize("target", ["dense", "stage", "block"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_plain_torch_loading(detector_state, target, wrapped):
    wrap = Detector if wrapped else lambda backbone: backbone
    prefix = "backbone." if wrapped else ""
    # Its own weights, as in resume and EMA.
    source, model = wrap(randomise(BACKBONES[target]())), wrap(BACKBONES[target]())
    assert model.load_state_dict(source.state_dict(), strict=True) == ([], [])
    assert_same(model.state_dict(), source.state_dict())
    # A dense mmdet backbone's, strictly: mask modules stay as they are.
    model = wrap(BACKBONES[target]())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    dense = {k: v for k, v in before.items() if not k.startswith(prefix)} | {
        prefix + k: v for k, v in detector_state.items()
    }
    assert model.load_state_dict(dense, strict=True) == ([], [])
    after = model.state_dict()
    assert_same(after, dense)
    assert_same(after, {k: v for k, v in before.items() if k not in dense})
    assert all(p.requires_grad for p in model.parameters())
    # What doesn't belong raises, strict or not.
    with pytest.raises(ValueError, match="1 unexpected: stages.0.blocks.0.gamma"):
        key = f"{prefix}stages.0.blocks.0.gamma"
        model.load_state_dict(dense | {key: torch.zeros(1)}, strict=False)


def test_swin_repository_detector_through_load_from(detector_state):
    swin = swin_repository(detector_state)["model"]
    norms = {k: v for k, v in detector_state.items() if re.match(r"norm\d", k)}
    swin = {k: v for k, v in swin.items() if not re.match(r"norm\.|head", k)} | norms
    model = Detector(BACKBONES["stage"]())
    neck = {k: v for k, v in model.state_dict().items() if k.startswith("neck")}
    model.load_state_dict(neck | {f"backbone.{k}": v for k, v in swin.items()})
    assert_same(model.backbone.state_dict(), detector_state)
