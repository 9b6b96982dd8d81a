"""What holds for every merger, whatever it decides."""

import re
from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ltm_det.basics.errors import InputError
from ltm_det.merging import MERGERS, NO_MERGING, Cues, Merger, build_merger, merger_options

KINDS = [
    dict(type="Pool"),
    dict(type="Random"),
    dict(type="ToMe"),
    dict(type="ToMe", proportional=False),
    dict(type="ToFu", mode="prune"),
    dict(type="ToFu", mode="merge"),
    dict(type="PiToMe"),
    dict(type="DTEM"),
    dict(type="LTMP"),
    dict(type="LTM", mask="soft"),
    dict(type="LTM", mask="soft", proportional=False),
    dict(type="LTM", mask="hard"),
    dict(type="LTM", mask="hard_soft", temperature=0.3),
    dict(type="LTM", mask="soft", update="gradient"),
    dict(type="LTM", mask="hard", update="gradient", clusters=4, classes=3, beta=5.0),
    dict(type="LTM", seeds="farthest"),
    dict(type="LTM", seeds="farthest", mask="hard", update="gradient"),
]
SHAPES = [(7, 25), (7, 16), (4, 5), (5, 7), (3, 1), (3, 9)]
DIM = 6


def name_of(kind):
    keys = ("type", "seeds", "mask", "update", "mode", "proportional")
    return "-".join(str(kind[key]) for key in keys if key in kind)


@pytest.fixture(params=KINDS, ids=name_of)
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["eval", "train"])
def training(request):
    return request.param


def build(kind, window, tokens, training=False):
    """A merger far from where it starts."""
    merger = build_merger(dim=DIM, window=window, tokens=tokens, **kind)
    for parameter in merger.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    return merger.train(training)


def some_valid(windows, window):
    """(W, N): windows cut off at the right and at the bottom, as padding leaves them."""
    rows = torch.randint(1, window + 1, (windows, 1, 1))
    columns = torch.randint(1, window + 1, (windows, 1, 1))
    at = torch.arange(window)
    return ((at[:, None] < rows) & (at < columns)).flatten(1)


def matrices(merging, window, tokens):
    """(*, P, N) that takes means and (*, N, P) that restores."""
    average = merging.average or merging.merge
    return average(torch.eye(window**2)), merging.unmerge(torch.eye(tokens))


@pytest.mark.parametrize("window, tokens", SHAPES)
def test_merging_is_a_mean_and_restoring_a_mix(kind, training, window, tokens):
    merging, _ = build(kind, window, tokens, training)(torch.randn(3, 4, window**2, DIM))
    merge, restore = matrices(merging, window, tokens)
    assert (merge >= 0).all() and (restore >= 0).all()
    sums = merge.sum(-1)
    assert torch.allclose(sums, (sums > 0.5).to(sums), atol=1e-12)  # one, or zero if empty
    torch.testing.assert_close(restore.sum(-1), torch.ones_like(restore.sum(-1)))


@pytest.mark.parametrize("window, tokens", SHAPES)
def test_padded_tokens_weigh_nothing(kind, training, window, tokens):
    valid = some_valid(4, window)
    merging, _ = build(kind, window, tokens, training)(
        torch.randn(3, 4, window**2, DIM), None, valid
    )
    merge, restore = matrices(merging, window, tokens)
    merge = merge.expand(3, 4, -1, -1)
    assert (merge.transpose(-1, -2)[:, ~valid] == 0).all()
    sums = merge.sum(-1)
    fed = sums > 0.5
    assert torch.allclose(sums, fed.to(sums), atol=1e-12)
    real = restore.expand(3, 4, -1, -1)[:, valid]  # (B, real tokens, P)
    torch.testing.assert_close(real.sum(-1), torch.ones_like(real.sum(-1)))
    # a real token draws on merged tokens that are fed alone
    empty = (~fed)[:, :, None].expand(-1, -1, window**2, -1)[:, valid]
    assert (real[empty] == 0).all()
    # exactly the tokens that nothing real feeds are shut out of attention
    bias = torch.zeros(()) if merging.key_bias is None else merging.key_bias
    bias = bias.expand(3, 4, tokens)
    size = torch.ones(()) if merging.size is None else merging.size
    size = size.expand(3, 4, tokens)
    assert ((size > 0) | ~fed).all() and (merging.size is None or (size[~fed] == 0).all())
    counted = size[fed].log() if kind.get("proportional", True) else torch.zeros(())
    torch.testing.assert_close(bias[fed], counted.expand(int(fed.sum())))
    assert (torch.exp(bias[~fed]) == 0).all() and bias.isfinite().all()


@pytest.mark.parametrize("window, tokens", SHAPES)
@pytest.mark.parametrize("padded", [False, True])
def test_equal_tokens_are_merged_without_loss(kind, training, window, tokens, padded):
    valid = some_valid(4, window) if padded else torch.ones(4, window**2, dtype=torch.bool)
    x = torch.randn(3, 4, 1, DIM).expand(-1, -1, window**2, -1)
    x = torch.where(valid[..., None], x, torch.randn(3, 4, window**2, DIM))
    merging, _ = build(kind, window, tokens, training)(x, None, valid if padded else None)
    for f in (lambda t: t, torch.sin):
        back = merging.unmerge(f(merging.merge(x)))
        assert (back - f(x))[:, valid].abs().max() < 1e-9


@pytest.mark.parametrize("window, tokens", SHAPES)
def test_garbage_in_padded_tokens_changes_nothing(kind, window, tokens):
    merger, valid = build(kind, window, tokens), some_valid(4, window)
    x = torch.randn(3, 4, window**2, DIM)
    garbage = torch.where(valid[..., None], x, 1e6 * torch.randn(x.shape))
    y = torch.randn(3, 4, tokens, DIM)
    (one, _), (two, _) = merger(x, None, valid), merger(garbage, None, valid)
    assert (one.merge(x) - two.merge(garbage)).abs().max() < 1e-9
    assert (one.unmerge(y) - two.unmerge(y)).expand(x.shape)[:, valid].abs().max() < 1e-9
    torch.testing.assert_close(one.key_bias, two.key_bias, rtol=0, atol=0)


def test_a_window_does_not_depend_on_others(kind):
    merger, x = build(kind, 7, 25), torch.randn(3, 4, 49, DIM)
    together, alone = merger(x)[0], merger(x[1, 2])[0]
    y = torch.randn(25, DIM)
    assert (together.merge(x)[1, 2] - alone.merge(x[1, 2])).abs().max() < 1e-9
    unmerged = together.unmerge(y.expand(3, 4, -1, -1))[1, 2]
    assert (unmerged - alone.unmerge(y)).abs().max() < 1e-9


def test_all_tokens_valid_is_no_padding(kind):
    merger, x = build(kind, 5, 9), torch.randn(2, 25, DIM)
    one, _ = merger(x)
    two, _ = merger(x, None, torch.ones(25, dtype=torch.bool))
    assert (one.merge(x) - two.merge(x)).abs().max() < 1e-9
    y = torch.randn(2, 9, DIM)
    assert (one.unmerge(y) - two.unmerge(y)).abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_keep_their_dtype(kind, training, dtype):
    merger = build(kind, 7, 25, training).to(dtype)
    x, valid = torch.randn(4, 49, DIM).to(dtype), some_valid(4, 7)
    for v in (None, valid):
        merging, _ = merger(x, None, v)
        merged = merging.merge(x)
        back = merging.unmerge(merged)
        assert merged.dtype == back.dtype == dtype
        assert merged.isfinite().all() and back.isfinite().all()
        if merging.key_bias is not None:
            assert merging.key_bias.dtype == dtype and merging.key_bias.isfinite().all()


@pytest.mark.parametrize(
    "low",
    [
        torch.bfloat16,
        torch.float16,
    ],
)
def test_shutting_out_stays_finite_in_every_dtype_of_attention(low):
    """Under autocast features come in float32, while attention runs in half precision."""
    x, valid = torch.randn(4, 49, DIM).float(), some_valid(4, 7)
    bias = build(dict(type="Pool"), 7, 25).float()(x, None, valid)[0].key_bias
    assert (bias < 0).any()
    assert bias.to(low).isfinite().all()


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_features_keep_their_dtype_under_autocast(kind, training, low):
    """So that updates add up in full precision."""
    x, merger = torch.randn(4, 49, DIM).float(), build(kind, 7, 25, training).float()
    with torch.autocast("cpu", low):
        merging, _ = merger(x, None, some_valid(4, 7))
        merged = merging.merge(x)
        assert merged.dtype == merging.unmerge(merged).dtype == torch.float32


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["ToMe", "ToFu", "PiToMe", "DTEM", "LTMP"])
def test_tokens_of_different_regions_are_not_matched(name, training):
    half = torch.arange(6) // 3
    regions = F.one_hot((2 * half[:, None] + half).flatten(), 4)
    x = torch.randn(8, 36, DIM) + 3
    merger = MERGERS[name](DIM, 6, 12).train(training)

    def purity(cues):
        """Least share of its largest region among those that take a merged token's update."""
        takers = merger(x, cues=cues)[0].unmerge(torch.eye(12))  # (8, N, P)
        shares = takers.transpose(-1, -2) @ regions.to(x.dtype)  # (8, P, 4)
        return (shares.amax(-1) / shares.sum(-1)).min()

    assert purity(Cues(regions=regions)) > 0.999 > purity(Cues())


def test_no_merging_is_a_merging():
    x = torch.randn(2, 49, DIM)
    assert NO_MERGING.merge(x) is x and NO_MERGING.unmerge(x) is x
    assert NO_MERGING.key_bias is None


def test_no_window_at_all(kind):
    x = torch.randn(0, 4, 49, DIM)
    merging, _ = build(kind, 7, 25)(x)
    assert merging.merge(x).shape == (0, 4, 25, DIM)
    assert merging.unmerge(torch.randn(0, 4, 25, DIM)).shape == x.shape


def test_the_host_need_not_wait_for_the_device(kind):
    """Nothing decides on values: tensors that have none go through, in fixed shapes."""
    merger = build(kind, 7, 25)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, valid = torch.randn(3, 4, 49, DIM), torch.rand(4, 49) < 0.5
        for v in (None, valid):
            merging, _ = merger(x, None, v)
            assert merging.unmerge(merging.merge(x)).shape == x.shape
        with pytest.raises(DataDependentOutputException):
            valid.sum().item()


@pytest.mark.parametrize("tokens", [0, -1, 50])
def test_impossible_numbers_of_tokens(kind, tokens):
    with pytest.raises(ValueError, match=f"7x7 tokens cannot be merged into {tokens}: keep bet"):
        build_merger(dim=DIM, window=7, tokens=tokens, **kind)


def test_options_of_a_backbone():
    given = MappingProxyType(dict(type="LTM", compression_ratio=0.5, mask="hard"))
    options = merger_options(given)
    assert type(options) is dict and options == given
    options.pop("type")
    assert "type" in given  # it was a copy


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "merger={} lacks ['compression_ratio', 'type']"),
        (dict(type="LTM", ratio=0.5), "'ratio': 0.5} lacks ['compression_ratio']"),
        (dict(compression_ratio=0.5), "lacks ['type']"),
        ("LTM", "must be None or a dict with type and compression_ratio: 'LTM'"),
        (0.5, "must be None or a dict with type and compression_ratio: 0.5"),
        ([("type", "LTM")], "must be None or a dict with type and compression_ratio: [("),
    ],
    ids=str,
)
def test_options_that_lack_something(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        merger_options(given)


def test_unknown_type():
    with pytest.raises(ValueError, match=r"unknown merger type 'Tome'.*'LTM'.*'Pool'.*'ToMe'"):
        build_merger("Tome", dim=DIM, window=7, tokens=25)


def test_unknown_option(kind):
    with pytest.raises(InputError, match="has no argument 'maks'"):
        build_merger(dim=DIM, window=7, tokens=25, maks="soft", **kind)


def test_a_merger_must_decide():
    with pytest.raises(NotImplementedError):
        Merger(DIM, 7, 25)(torch.randn(49, DIM))


def test_repr_tells_what_is_kept(kind):
    text = repr(build(kind, 7, 25))
    assert "tokens=25/49 (0.510 kept)" in text and kind["type"] in text
    assert all(str(value) in text for value in kind.values())


def test_every_merger_is_in_the_registry(kind):
    assert type(build(kind, 7, 25)) is MERGERS[kind["type"]]
    assert set(MERGERS) == {k["type"] for k in KINDS}, "a new merger must run these tests"
