"""What mergers read of an attention, against that attention computed token by token."""

import math

import pytest
import torch
from mmdet.models.backbones.swin import WindowMSA
from timm.layers import Attention
from torch import nn

from ltm_det.backbones.common.cues import attention_cues

READS = ("keys", "received")
NEAR = 1e-6  # the softmax is in float32


@pytest.fixture(autouse=True)
def _float64(float64):
    """In which an oracle is compared."""


def oracle(qkv, num_heads, z, valid):
    """Of one window z (N, C): keys as N lists of D numbers, received attention as N numbers."""
    n, c = z.shape
    d = c // num_heads
    projected = [qkv(token).tolist() for token in z]
    keys = [
        [sum(p[c + h * d + i] for h in range(num_heads)) / num_heads for i in range(d)]
        for p in projected
    ]
    real = [i for i in range(n) if valid[i]]
    received = [0.0] * n
    for h in range(num_heads):
        q = [p[h * d : (h + 1) * d] for p in projected]
        k = [p[c + h * d : c + (h + 1) * d] for p in projected]
        for i in real:
            logits = [sum(a * b for a, b in zip(q[i], k[j])) / math.sqrt(d) for j in real]
            total = sum(math.exp(value) for value in logits)
            for j, value in zip(real, logits):
                received[j] += math.exp(value) / total / num_heads / len(real)
    return torch.tensor(keys), torch.tensor(received)


def projection(c, bias=True):
    linear = nn.Linear(c, 3 * c, bias=bias)
    nn.init.normal_(linear.weight, std=1 / math.sqrt(c))
    if bias:
        nn.init.normal_(linear.bias)
    return linear


@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padded", [None, "windows", "images"])
def test_cues_are_the_attention_s_own(num_heads, bias, padded):
    images, windows, n, c = 2, 3, 7, 6
    qkv, z = projection(c, bias), torch.randn(images, windows, n, c)
    every = torch.ones(images, windows, n, dtype=torch.bool)
    valid = None
    if padded:
        valid = torch.rand(images if padded == "images" else 1, windows, n) < 0.5
        valid[..., 0] = True
        every = valid.expand(images, windows, n)
        valid = valid if padded == "images" else valid[0]  # (W, N), as Swin's
    cues = attention_cues(qkv, num_heads, z, READS, valid)
    assert cues.size is None
    for b in range(images):
        for w in range(windows):
            keys, received = oracle(qkv, num_heads, z[b, w], every[b, w].tolist())
            real = every[b, w]
            torch.testing.assert_close(cues.keys[b, w], keys)
            assert (cues.received[b, w] - received)[real].abs().max() < NEAR
            assert (cues.received[b, w][~real] == 0).all()
    assert (cues.received.sum(-1) - 1).abs().max() < NEAR


@pytest.mark.parametrize("host", ["timm", "mmdet"])
def test_cues_are_what_the_host_computes(host):
    """Where the position bias is zero."""
    z, seen = torch.randn(5, 16, 12), {}
    attn = Attention(12, 3, qkv_bias=True) if host == "timm" else WindowMSA(12, 3, (4, 4))
    attn.fused_attn = False  # timm's only then keeps its shares
    nn.init.normal_(attn.qkv.weight, std=0.5)
    attn.attn_drop.register_forward_hook(lambda _, args, out: seen.update(shares=args[0]))
    attn.qkv.register_forward_hook(lambda _, args, out: seen.update(qkv=out))
    if host == "mmdet":
        nn.init.zeros_(attn.relative_position_bias_table)
    attn.eval()(z)
    cues = attention_cues(attn.qkv, 3, z, READS)
    assert (cues.received - seen["shares"].mean((1, 2))).abs().max() < NEAR
    torch.testing.assert_close(cues.keys, seen["qkv"].reshape(5, 16, 3, 3, 4)[:, :, 1].mean(2))


def test_padded_tokens_neither_ask_nor_answer():
    qkv, z = projection(6), torch.randn(2, 9, 6)
    valid = torch.arange(9) < 4
    garbage = torch.where(valid[:, None], z, 100 * torch.randn(2, 9, 6))
    one, two = (attention_cues(qkv, 2, t, READS, valid).received for t in (z, garbage))
    alone = attention_cues(qkv, 2, z[:, :4], READS).received
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(one[:, :4], alone)


def test_a_window_of_padding_alone_is_finite():
    none = torch.zeros(9, dtype=torch.bool)
    received = attention_cues(projection(6), 2, torch.randn(2, 9, 6), READS, none).received
    assert (received == 0).all()


@pytest.mark.parametrize("reads", [(), ("keys",), ("received",), READS])
def test_only_what_is_read_is_computed(reads):
    size = torch.rand(2, 9)
    cues = attention_cues(projection(6), 2, torch.randn(2, 9, 6), reads, None, size)
    assert cues.size is size
    assert (cues.keys is not None) == ("keys" in reads)
    assert (cues.received is not None) == ("received" in reads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """The softmax is in float32; shares of large logits stay finite."""
    qkv, z = projection(6).float(), 10 * torch.randn(2, 9, 6).float()
    exact = attention_cues(qkv, 2, z, READS)
    low = attention_cues(qkv.to(dtype), 2, z.to(dtype), READS)
    assert low.keys.dtype == dtype and low.received.isfinite().all()
    assert (low.received.sum(-1) - 1).abs().max() < 1e-3
    assert (low.keys.float() - exact.keys).abs().max() < 0.02 * exact.keys.abs().max()
    with torch.autocast("cpu", dtype):
        cues = attention_cues(qkv.float(), 2, z, READS)
    assert cues.keys.isfinite().all() and (cues.received.sum(-1) - 1).abs().max() < 1e-3


def test_no_window_at_all():
    cues = attention_cues(projection(6), 2, torch.randn(0, 4, 9, 6), READS, torch.ones(4, 9) > 0)
    assert cues.keys.shape == (0, 4, 9, 3) and cues.received.shape == (0, 4, 9)
