"""LTMSwin is mmdet's Swin at ratio 1, and shares an MLP without loss among equal tokens."""

import itertools

import pytest
import torch
from mmdet.models.backbones import SwinTransformer

from ltm_det.backbones import LTMSwin
from ltm_det.backbones.common.windows import WindowGrid
from tests.test_backbones.harness import assert_padded_tokens_are_not_read, difference, randomise
from tests.test_backbones.swin_cases import CUSTOM, SCOPES, build, reference_of

TINY = dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
SMALL = dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
DENSE = [None] + [dict(type="LTM", compression_ratio=1.0, scope=scope) for scope in SCOPES]
IMAGE_SIZES = [(224, 224), (97, 131), (33, 65), (8, 200)]


@pytest.fixture(scope="module", params=[TINY, SMALL], ids=["T", "S"])
def full_size(request):
    """mmdet's Swin, and the LTMSwins that must equal it, all of the same tensors."""
    reference = randomise(SwinTransformer(**request.param))
    weights = {
        key: value
        for key, value in reference.state_dict().items()
        if not key.endswith("relative_position_index")
    }
    twins = [LTMSwin(merger=merger, **request.param).eval() for merger in DENSE]
    for twin in twins:
        assert twin.load_state_dict(weights, assign=True) == ([], [])
    return reference, twins


@pytest.mark.parametrize("size", IMAGE_SIZES, ids=str)
def test_ratio_one_equals_mmdet_in_full_size(full_size, size):
    reference, twins = full_size
    batch = 3 if size in [(33, 65), (8, 200)] else 1
    images = torch.randn(batch, 3, *size)
    with torch.no_grad():
        expected = reference(images)
        for twin in twins:
            assert difference(twin(images), expected) < 1e-4


VARIANTS = [
    dict(window_size=7),
    dict(window_size=5, qkv_bias=False),
    dict(window_size=4, patch_norm=False, mlp_ratio=2),
    dict(window_size=12, qk_scale=0.3),
    dict(window_size=1),
    dict(patch_size=2, strides=(2, 2, 2), act_cfg=dict(type="ReLU"), in_channels=5),
]


@pytest.mark.parametrize("merger", DENSE, ids=["none", "block", "stage"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_ratio_one_equals_mmdet_whatever_the_arguments(merger, options):
    model = randomise(LTMSwin(merger=merger, **{**CUSTOM, **options}))
    reference = reference_of(model, CUSTOM, **options)
    for size, batch in itertools.product(IMAGE_SIZES, (1, 3)):
        images = torch.randn(batch, options.get("in_channels", 3), *size)
        with torch.no_grad():
            assert difference(model(images), reference(images)) < 1e-4


@pytest.mark.parametrize("merger", DENSE, ids=["none", "block", "stage"])
def test_ratio_one_trains_as_mmdet(float64, merger):
    """Features and gradients, with the same paths dropped."""
    model = build(merger, ratio=1.0, drop_path_rate=0.4)
    reference = reference_of(model, drop_path_rate=0.4)
    images, results = torch.randn(6, 3, 37, 50), []
    for net in (model, reference):
        net.train()
        torch.manual_seed(3)
        outs = net(images)
        sum(m.square().mean() for m in outs).backward()
        results.append([m.detach() for m in outs])
    assert difference(*results) < 1e-9
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        assert (parameter.grad - expected[name].grad).abs().max() < 1e-9, name


def test_sizes_as_mmdet():
    model = build(None, sizes=dict(CUSTOM, window_size=3))
    reference = reference_of(model, dict(CUSTOM, window_size=3))
    for size in [(1, 1), (3, 5), (4, 9), (31, 33)]:
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert difference(model(images), reference(images)) < 1e-4


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_windows_of_equal_tokens_share_an_mlp_without_loss(float64, merger, training):
    """Block scope, after attention: a window's tokens are equal, windows and images are not."""
    model = build(dict(merger, dense_blocks=0), "block", 0.3)
    block, dense = model.stages[0].blocks[0], reference_of(model).stages[0].blocks[0]
    for attention in (block.attn.w_msa, dense.attn.w_msa):  # attention adds nothing
        attention.proj.weight.data.zero_()
        attention.proj.bias.data.zero_()
    grid = WindowGrid(6, 9, 4)
    x = grid.reverse(torch.randn(2, 6, 1, 8).expand(-1, -1, 16, -1))
    with torch.no_grad():
        out, _ = block.train(training)(grid.partition(x), grid)
        assert (grid.reverse(out) - dense(x, (6, 9))).abs().max() < 1e-9


def test_padded_tokens_are_not_read_without_merging(float64, monkeypatch):
    assert_padded_tokens_are_not_read(build(None), torch.randn(2, 3, 37, 50), monkeypatch)
