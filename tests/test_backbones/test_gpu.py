"""Every family and merger on a GPU: the CPU's features and gradients, half precision, one graph."""

import copy

import pytest
import torch

from ltm_det.merging import MERGERS
from tests.test_backbones.harness import difference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

KINDS = {None: None} | {kind: dict(type=kind) for kind in MERGERS}
# With a strong affinity a rounding grows a hundredfold from round to round.
KINDS["LTM"]["affinity"] = 1.0


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch):
    """Products of float32 in float32, not in TF32."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=KINDS, ids=str)
def model(request, family):
    merger = KINDS[request.param]
    return family.build(merger and {**merger, **family.layouts["later"]})


@pytest.fixture
def images():
    return torch.randn(2, 3, 37, 50)


def relative(outs, expected):
    """The largest error of a map, as a share of the map's own size."""
    pairs = zip(outs, expected, strict=True)
    return max(((o.float() - e).norm() / e.norm()).item() for o, e in pairs)


def test_features_and_gradients_of_the_cpu(model, images) -> None:
    found = []
    for device in ("cpu", "cuda"):
        own = copy.deepcopy(model).to(device)
        x = images.to(device, copy=True).requires_grad_()
        maps = own(x)
        sum(m.square().mean() for m in maps).backward()
        gradients = [x.grad, *(p.grad for p in own.parameters() if p.grad is not None)]
        gradients = [g / g.abs().max().clamp(min=1e-3) for g in gradients]
        found.append([[t.detach().cpu() for t in tensors] for tensors in (maps, gradients)])
    (maps, gradients), (on_gpu, gradients_on_gpu) = found
    assert difference(maps, on_gpu) < 1e-3
    assert difference(gradients, gradients_on_gpu) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_step_under_autocast(dtype, model, images) -> None:
    """Near float32, with finite gradients. Which tokens match may turn on a rounding: the bound is
    that of features which agree in the main."""
    model, images = model.cuda(), images.cuda()
    with torch.no_grad():
        expected = model(images)
    with torch.autocast("cuda", dtype):
        maps = model(images)
    assert relative([m.detach() for m in maps], expected) < 0.3
    sum(m.float().square().mean() for m in maps).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_no_pass_waits_for_the_device(model, images) -> None:
    model, images = model.cuda(), images.cuda()
    with torch.no_grad():
        model(images)  # fills the caches, which may wait
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(images)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_one_compiled_graph(model, images) -> None:
    model, images = model.cuda(), images.cuda()
    with torch.no_grad():
        expected = model(images)
        maps = torch.compile(model, fullgraph=True, dynamic=False)(images)
    assert relative(maps, expected) < 1e-3
    torch._dynamo.reset()
