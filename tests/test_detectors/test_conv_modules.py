"""mmcv's convolution modules that go the fast way: what theirs give, in one where that can be."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.models import RPNHead
from torch import nn

from ltm_det.cpu import convolutions, products
from ltm_det.detectors import FastConv2d, FastConvModule, use_fast_convolutions
from ltm_det.detectors.rpn import FastRPNHead

pytestmark = pytest.mark.skipif(not products.HAS_ONEDNN, reason="torch was built without oneDNN")

NORMS = {
    "no norm": None,
    "BN": dict(type="BN"),
    "SyncBN": dict(type="SyncBN"),
    "BN without weights": dict(type="BN", affine=False),
    "BN without statistics": dict(type="BN", track_running_stats=False),
    "GN": dict(type="GN", num_groups=4),
}
JOINED = {"no norm", "BN", "SyncBN", "BN without weights"}


def module(norm="BN", act="ReLU", bias="auto", order=("conv", "norm", "act")):
    own = ConvModule(
        24,
        32,
        3,
        padding=1,
        bias=bias,
        norm_cfg=NORMS[norm],
        act_cfg=None if act is None else dict(type=act),
        order=order,
    )
    if "BN" in norm and own.norm.running_mean is not None:
        own.norm.running_mean.normal_()
        own.norm.running_var.uniform_(0.5, 2)
    for parameter in own.parameters():
        nn.init.normal_(parameter)
    return own.float().eval()


def twin(own):
    whole = nn.Sequential(copy.deepcopy(own))
    use_fast_convolutions(whole)
    assert type(whole[0]) is FastConvModule and type(whole[0].conv) is FastConv2d
    assert list(whole[0].state_dict()) == list(own.state_dict())
    return whole[0]


@pytest.fixture
def joined(monkeypatch):
    """Whether each convolution that went fast had its ReLU with it."""
    seen, run = [], convolutions.conv3x3

    def noted(x, weight, bias, relu=False):
        seen.append(relu)
        return run(x, weight, bias, relu)

    monkeypatch.setattr(convolutions, "conv3x3", noted)
    return seen


def compare(own, fast, *args):
    x = torch.randn(2, 24, 37, 40).float()
    with torch.no_grad():
        want, got = own(x, *args), fast(x, *args)
    assert (want - got).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize("act", ["ReLU", "GELU", None])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_it_is_mmcvs(norm, bias, act, joined) -> None:
    own = module(norm, act, bias)
    compare(own, twin(own))
    assert joined == [norm in JOINED and act == "ReLU"]


@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_norm_and_activation_can_be_left_out(norm, activate, joined) -> None:
    own = module()
    compare(own, twin(own), activate, norm)
    assert joined == [activate]


def test_another_order_is_kept(joined) -> None:
    own = ConvModule(24, 24, 3, padding=1, norm_cfg=dict(type="BN"), order=("act", "conv", "norm"))
    own = own.float().eval()
    compare(own, twin(own))
    assert joined == [False]


@pytest.mark.parametrize("part", ["conv", "norm", "activate"])
def test_hooks_are_called(part, joined) -> None:
    own, seen = module(), []
    fast = twin(own)
    getattr(fast, part).register_forward_hook(lambda *_: seen.append(part))
    compare(own, fast)
    assert seen == [part] and joined == [False]


def test_in_training_a_norm_has_the_batchs_statistics(joined) -> None:
    own = module().train()
    fast = twin(own)
    compare(own, fast)
    assert joined == [False]
    for name, value in own.norm.state_dict().items():
        torch.testing.assert_close(fast.norm.state_dict()[name], value)


def test_gradients_are_mmcvs(joined) -> None:
    own = module()
    fast, x = twin(own), torch.randn(2, 24, 37, 40).float()
    for model in (own, fast):
        model(x).square().mean().backward()
    for mine, theirs in zip(fast.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert not joined


@pytest.mark.parametrize("watched", [False, True])
def test_region_proposals_have_their_relu_with_the_convolution(watched, joined) -> None:
    own, fast, seen = RPNHead(24, feat_channels=32), FastRPNHead(24, feat_channels=32), []
    fast.load_state_dict(own.state_dict())
    use_fast_convolutions(fast)
    if watched:
        fast.rpn_conv.register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(2, 24, 37, 40)
    with torch.no_grad():
        for got, want in zip(fast.float().forward_single(x.float()), own.forward_single(x)):
            torch.testing.assert_close(got.to(want.dtype), want, rtol=1e-4, atol=1e-5)
    assert joined == [not watched] and bool(seen) == watched


def test_relu_alone(joined) -> None:
    conv = nn.Sequential(nn.Conv2d(24, 32, 3, padding=1)).float()
    x = torch.randn(2, 24, 37, 40).float()
    use_fast_convolutions(conv)
    torch.testing.assert_close(conv[0].then_relu(x), F.relu(conv(x)), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(conv[0].then_relu(x), F.relu(conv(x)), rtol=1e-4, atol=1e-5)
    assert joined == [True, False]
