"""mmengine's complexity counter, which mmdet's get_flops.py runs, once ltm_det is imported."""

import logging

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.backbones import SwinTransformer
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info
from torch import Tensor, nn

from ltm_det.backbones import LTMSwin, LTMViT
from ltm_det.measure.flops import count_backbone
from ltm_det.merging import MERGERS

SHAPE = (60, 76)  # the windows are padded
SWIN = dict(embed_dims=16, depths=(1, 2), num_heads=(1, 2), window_size=4)
SWIN.update(strides=(4, 2), out_indices=(0, 1))
VIT = dict(embed_dims=32, depth=3, num_heads=2, patch_size=8, window_size=4, img_size=64)
VIT.update(global_blocks=(0,), use_rel_pos=True)
FAMILIES = {
    "swin-stage": lambda merger: LTMSwin(merger=merger and {**merger, "scope": "stage"}, **SWIN),
    "swin-block": lambda merger: LTMSwin(merger=merger and {**merger, "scope": "block"}, **SWIN),
    "vit": lambda merger: LTMViT(merger=merger, **VIT),
}
MATCHING = {"DTEM", "LTMP", "PiToMe", "ToFu", "ToMe"}

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit")


@pytest.fixture(autouse=True)
def _quiet():
    """It warns of every operator and module that it does not count."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def counted(model: nn.Module, *inputs: Tensor) -> dict[str, float]:
    """By operator, a multiply-add as one."""
    model.eval()
    return dict(FlopAnalyzer(model, inputs).by_operator())


def of_backbone(model: nn.Module) -> tuple[float, float]:
    """All that mmengine counts, and what of it are matrix products and convolutions."""
    counts = counted(model, torch.zeros(1, 3, *SHAPE))
    return sum(counts.values()), sum(counts.values()) - counts["layer_norm"]


class Call(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)], ids=str)
def test_fused_attention_counts_as_two_products(leading):
    n, m, d, e = 5, 7, 4, 6
    q, k, v = (torch.zeros(*leading, *size) for size in ((n, d), (m, d), (m, e)))
    bias = torch.zeros(n, m)

    def explicit(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) + bias).softmax(-1) @ v

    expected = torch.Size(leading).numel() * n * m * (d + e)
    assert sum(counted(Call(explicit), q, k, v, bias).values()) == expected
    for inputs in ((q, k, v), (q, k, v, bias)):
        fused = counted(Call(F.scaled_dot_product_attention), *inputs)
        assert fused == {"scaled_dot_product_attention": expected}


@pytest.mark.parametrize(
    "shapes, expected",
    [
        (((5, 4), (4, 3)), 60),
        (((2, 5, 4), (4, 3)), 120),
        (((5, 4), (2, 4, 3)), 120),  # one matrix for both
        (((2, 1, 5, 4), (3, 4, 3)), 360),
        (((4,), (4,)), 4),
        (((5, 4), (4,)), 20),
        (((4,), (2, 4, 3)), 24),
    ],
    ids=str,
)
def test_products_count_as_often_as_they_are_computed(shapes, expected):
    factors = [torch.zeros(shape) for shape in shapes]
    assert sum(counted(Call(torch.matmul), *factors).values()) == expected


def test_a_product_that_is_added_counts_as_a_product():
    args = torch.zeros(2, 5, 3), torch.zeros(2, 5, 4), torch.zeros(2, 4, 3)
    assert counted(Call(torch.baddbmm), *args) == {"baddbmm": 120}


def test_dense_swin_counts_as_mmdets():
    """Whose attention is not fused; ours has one layer norm more, of padded tokens too."""
    (own, products), (reference, expected) = (
        of_backbone(kind(**SWIN)) for kind in (LTMSwin, SwinTransformer)
    )
    assert products == expected
    assert own == pytest.approx(reference, rel=0.01)


@pytest.mark.parametrize("merger", [None, "LTM", "Pool", "Random"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_agrees_with_our_own_counter(family, merger):
    """Ours counts matrix products and convolutions alone. mmengine's counts layer norms, too, at 4
    or 5 a number, and neither counts softmax, activations, additions, or reading a bias off a
    table."""
    model = FAMILIES[family](merger and dict(type=merger, compression_ratio=0.5))
    total, products = of_backbone(model)
    own = count_backbone(model, SHAPE).macs["backbone"]
    assert products == pytest.approx(own, rel=1e-3)
    assert own < total < 1.1 * own


@pytest.mark.parametrize("merger", sorted(MATCHING))
@pytest.mark.parametrize("family", FAMILIES)
def test_it_counts_mergers_that_match(family, merger):
    """Near our own count: the trace leaves out what the last round of matching computes in vain,
    and with mmengine's hooks on it the projection to queries, keys and values is called whole where
    a merger reads keys (:func:`ltm_det.backbones.common.cues.mean_keys`)."""
    model = FAMILIES[family](dict(type=merger, compression_ratio=0.5))
    _, products = of_backbone(model)
    assert products == pytest.approx(count_backbone(model, SHAPE).macs["backbone"], rel=0.15)


def test_every_merger_is_counted_here():
    assert set(MERGERS) == {"LTM", "Pool", "Random"} | MATCHING, "a new one must run these tests"


def test_mmengines_report():
    """The call that mmdet's tool makes."""
    model = LTMSwin(merger=dict(type="LTM", compression_ratio=0.5), **SWIN).eval()
    report = get_model_complexity_info(
        model, None, inputs=torch.zeros(1, 3, *SHAPE), show_table=False, show_arch=False
    )
    assert report["flops"] == of_backbone(model)[0]
    assert report["params"] == sum(p.numel() for p in model.parameters())
