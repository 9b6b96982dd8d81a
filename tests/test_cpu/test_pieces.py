"""MLP, attention and whole backbones in pieces against torch's own layers, gradients included."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ltm_det.backbones.swin.layers import LTMPatchMerging
from ltm_det.cpu import door, layers, merging, patches, pieces, products, swin
from ltm_det.merging import LTM
from ltm_det.merging.ltm import MASKS
from tests.test_backbones.swin_cases import MINI, build, reference_of

pytestmark = pytest.mark.skipif(not products.HAS_ONEDNN, reason="torch was built without oneDNN")


BACKBONES = [
    None,
    dict(type="Pool"),
    dict(type="ToMe"),
    dict(type="LTM", affinity=1),
    dict(type="LTM", affinity=1, scope="block"),
]


@pytest.fixture(params=[1, 3, 1000], ids="{} rows".format)
def piece(request, monkeypatch):
    """Tokens or windows in a piece, up to rounding; the layers here have 64 numbers a token."""
    monkeypatch.setattr(pieces, "PIECE", request.param * 64)


def assert_same(ours, theirs, near=1e-4):
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() <= near * b.abs().max()


def with_gradients(run, x, learned):
    """What run(x) gives without and with gradients, and those of x and of ``learned``."""
    with torch.no_grad():
        plain = run(x)
    x = x.clone().requires_grad_()
    out = run(x)
    return [plain, out, *torch.autograd.grad(out.square().sum(), [x, *learned])]


def test_mlp(piece):
    fc1, fc2 = nn.Linear(16, 64), nn.Linear(64, 16)
    x, learned = torch.randn(3, 5, 16), [*fc1.parameters(), *fc2.parameters()]
    ours = with_gradients(lambda x: layers.mlp(x, fc1, fc2), x, learned)
    assert_same(ours, with_gradients(lambda x: fc2(F.gelu(fc1(x))), x, learned))


@pytest.mark.parametrize("shape", [None, (6, 4, 4), (6, 1, 4), (3, 4, 4), (6, 2, 4, 4)], ids=str)
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_window_attention(piece, shape, qkv_bias):
    """Two images of three windows; masks of each window, of keys, and the same for both images."""
    qkv, proj = nn.Linear(16, 48, bias=qkv_bias), nn.Linear(16, 16)
    bias = torch.randn(2, 4, 4, requires_grad=True)
    mask = None if shape is None else torch.randn(shape)
    learned = [bias, *qkv.parameters(), *proj.parameters()]
    if shape is not None and len(mask) == 6:
        learned.append(mask.requires_grad_())

    def slow(x):
        q, k, v = qkv(x).view(6, 4, 3, 2, 8).permute(2, 0, 3, 1, 4)
        logits = 0.3 * q @ k.transpose(-1, -2) + bias
        if mask is not None:
            full = mask if mask.ndim == 4 else mask[:, None]
            logits = logits + full.repeat(6 // len(mask), 1, 1, 1)
        return proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(6, 4, 16))

    def ours(x):
        return swin.window_attention(x, mask, bias, qkv, proj, 2, 0.3)

    x = torch.randn(6, 4, 16)
    assert_same(with_gradients(ours, x, learned), with_gradients(slow, x, learned))


def test_what_is_not_asked_for_has_no_gradient(piece):
    fc1, fc2 = nn.Linear(16, 64), nn.Linear(64, 16).requires_grad_(False)
    layers.mlp(torch.randn(5, 16), fc1, fc2).sum().backward()
    assert fc1.weight.grad is not None and fc2.weight.grad is None


@pytest.mark.parametrize("with_cp", [False, True])
@pytest.mark.parametrize("merger", BACKBONES, ids=str)
def test_backbone(piece, merger, with_cp, monkeypatch):
    """Features and gradients as without pieces, padding and shifts included."""
    model = build(merger, with_cp=with_cp)
    learned = [p for p in model.parameters() if p.requires_grad]
    images = torch.randn(2, 3, 38, 53)

    def run(x):
        return torch.cat([m.flatten() for m in model(x)])

    ours = with_gradients(run, images, learned)
    monkeypatch.setattr(door, "DTYPES", {})
    assert_same(ours, with_gradients(run, images, learned), near=1e-3)


@pytest.mark.skipif(not products.HAS_BFLOAT16, reason="no bfloat16 in oneDNN on this CPU")
@pytest.mark.parametrize("merger", BACKBONES, ids=str)
def test_backbone_in_bfloat16(merger, monkeypatch):
    """As near to the float32 features as it is without pieces, up to a third."""
    model, images = build(merger), torch.randn(2, 3, 38, 53)

    def features(dtype):
        with torch.no_grad():
            return torch.cat([m.flatten().float() for m in model.to(dtype)(images.to(dtype))])

    exact = features(torch.float32)
    apart = (features(torch.bfloat16) - exact).norm() / exact.norm()
    monkeypatch.setattr(door, "DTYPES", {})
    plain = (features(torch.bfloat16) - exact).norm() / exact.norm()
    assert 0 < apart < max(1.33 * plain, 0.01)


def test_stochastic_depth_draws_as_without_pieces(piece, monkeypatch):
    model = build(dict(type="Pool"), drop_path_rate=0.5).train()
    learned = [p for p in model.parameters() if p.requires_grad]
    images, found = torch.randn(4, 3, 38, 53), []
    for dtypes in (door.DTYPES, {}):
        monkeypatch.setattr(door, "DTYPES", dtypes)
        torch.manual_seed(0)
        out = torch.cat([m.flatten() for m in model(images)])
        found.append([out, *torch.autograd.grad(out.square().sum(), learned)])
    assert_same(*found, near=1e-3)
    assert (model(images)[0] - model(images)[0]).abs().max() > 0.1


@pytest.mark.parametrize("module", ["attn", "attn.w_msa.qkv", "norm2", "ffn", "ffn.layers.1"])
def test_what_is_watched_runs_as_a_module(module):
    """A hook inside a block is called, and what it returns counts."""
    model, images = build(None), torch.randn(1, 3, 38, 53)
    watched = model.stages[0].blocks[1].get_submodule(module)
    with torch.no_grad():
        before, seen = model(images)[1], []
        handle = watched.register_forward_hook(lambda *args: seen.append(args[2]))
        assert_same([model(images)[1]], [before])
        handle.remove()
        watched.register_forward_hook(lambda module, inputs, out: 2 * out)
        assert (model(images)[1] - before).abs().max() > 1e-2
    assert len(seen) == 1


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("options", [dict(), dict(proportional=False), dict(detail=0)], ids=str)
def test_merging(piece, mask, padded, options):
    """Two images of three windows; a chain of two mergers, of which either may go in pieces."""
    place = dict(dim=16, window=4, tokens=9, mask=mask, affinity=1.0, **options)
    first, second = (LTM(chained=chained, **place).eval() for chained in (False, True))
    for parameter in [*first.parameters(), *second.parameters()]:
        nn.init.normal_(parameter, std=0.3)
    valid = None
    if padded:
        valid = (torch.arange(16) % 4 < 2) | torch.tensor([[True], [False], [True]])
    x, y = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 9, 16)

    def chain(*ways):
        state = None
        for way, merger in zip(ways, (first, second)):
            found, state = way(merger, x, state, valid)
        fields = [found.key_bias, found.size]
        fields = [f if f is None else f.expand(2, 3, 9) for f in fields]
        if fields[0] is not None and not fields[0].any():
            fields[0] = None
        return [
            found.merge(x),
            found.unmerge(y),
            found.mean_of(x),
            found.update(x, y),
            *fields,
        ]

    def whole(merger, *args):
        return merger(*args)

    with torch.no_grad():
        expected = chain(whole, whole)
        assert_same(chain(merging.run, merging.run), expected)
        assert_same(chain(merging.run, whole), expected)
        assert_same(chain(whole, merging.run), expected)


def test_dense_backbone_is_mmdets(piece):
    model = build(None)
    images = torch.randn(2, 3, 38, 53)
    with torch.no_grad():
        assert_same(model(images), reference_of(model, MINI)(images))


@pytest.mark.parametrize("way", ["plain", "fast"])
@pytest.mark.parametrize("size", [(38, 53), (64, 64), (33, 32)], ids=str)
def test_patch_merging_is_mmdets(size, way):
    ours = build(None).stages[0].downsample
    theirs = reference_of(build(None)).stages[0].downsample
    assert isinstance(ours, LTMPatchMerging) and not isinstance(theirs, LTMPatchMerging)
    x = torch.randn(2, size[0] * size[1], 8)
    out, hw = ours(x, size) if way == "plain" else patches.run_patch_merging(ours, x, size)
    expected, their_hw = theirs(x, size)
    assert tuple(hw) == tuple(int(n) for n in their_hw)
    assert_same([out], [expected])
