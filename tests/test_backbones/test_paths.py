"""The plain and the fast way of every family: the same features and the same gradients."""

import pytest
import torch

from ltm_det import cpu
from ltm_det.cpu import door, pieces, products
from ltm_det.merging import MERGERS
from tests.test_backbones.conftest import EXECUTED as FAMILIES
from tests.test_backbones.harness import difference

pytestmark = pytest.mark.skipif(not products.HAS_ONEDNN, reason="torch was built without oneDNN")

KINDS = {None: None} | {kind: dict(type=kind) for kind in MERGERS}
# With a strong affinity a rounding grows a hundredfold from round to round.
KINDS["LTM"]["affinity"] = 1.0
KINDS["LTM seeds"] = dict(type="LTM", seeds="farthest", affinity=1.0)
OPTIONS = {
    "plain": {},
    "with_cp": dict(with_cp=True),
    "drop_path": dict(drop_path_rate=0.4),
    "no qkv bias": dict(qkv_bias=False),
    "frozen": dict(frozen_stages=1),
}


@pytest.fixture
def taken(monkeypatch):
    """Names of the executors that ran, in order."""
    names = []

    def noted(executor):
        def run(module, *args):
            names.append(type(module).__name__)
            return executor.run(module, *args)

        return executor._replace(run=run)

    choose = door.choose
    monkeypatch.setattr(
        cpu, "choose", lambda own, x: choose({kind: noted(e) for kind, e in own.items()}, x)
    )
    return names


def both_ways(model, images, monkeypatch):
    """Maps, and gradients of images and parameters, on the plain and on the fast way."""
    found = []
    for dtypes in ({}, door.DTYPES):
        monkeypatch.setattr(door, "DTYPES", dtypes)
        torch.manual_seed(0)
        model.zero_grad()
        x = images.clone().requires_grad_()
        maps = model(x)
        sum(m.square().mean() for m in maps).backward()
        gradients = [x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
        found.append(
            ([m.detach() for m in maps], [g / g.abs().max().clamp(min=1e-3) for g in gradients])
        )
    return found


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_features_and_gradients(name, kind, training, monkeypatch, two_threads, taken):
    """Some windows to a piece, pieces on two threads; padding and shifts included."""
    family, merger = FAMILIES[name], KINDS[kind]
    if merger is not None:
        merger = {**merger, **family.layouts["later"]}
    model = family.build(merger, **family.fast)
    monkeypatch.setattr(pieces, "PIECE", 1 << 11)
    images = torch.randn(2, 3, 37, 50)
    plain, fast = both_ways(model.train(training), images, monkeypatch)
    assert taken
    assert difference(plain[0], fast[0]) < 1e-4
    assert difference(plain[1], fast[1]) < 1e-3
    with torch.no_grad():
        model.eval()
        again = model(images)
        monkeypatch.setattr(door, "DTYPES", {})
        assert difference(model(images), again) < 1e-4


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_options(name, options, monkeypatch, two_threads, taken):
    family = FAMILIES[name]
    merger = dict(type="LTM", affinity=1.0, **family.layouts["later"])
    model = family.build(merger, **family.fast, **options).train()
    monkeypatch.setattr(pieces, "PIECE", 1 << 11)
    plain, fast = both_ways(model, torch.randn(2, 3, 37, 50), monkeypatch)
    assert taken
    assert difference(plain[0], fast[0]) < 1e-4
    assert difference(plain[1], fast[1]) < 1e-3


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", [None, "LTM", "ToMe"], ids=str)
def test_second_gradients(name, kind, monkeypatch, two_threads, taken):
    """Of a penalty on the gradient of the images, as in a double backward pass."""
    family, merger = FAMILIES[name], KINDS[kind]
    if merger is not None:
        merger = {**merger, **family.layouts["later"]}
    model = family.build(merger, **family.fast)
    monkeypatch.setattr(pieces, "PIECE", 1 << 11)
    images, found = torch.randn(1, 3, 37, 50), []
    for dtypes in ({}, door.DTYPES):
        monkeypatch.setattr(door, "DTYPES", dtypes)
        model.zero_grad()
        x = images.clone().requires_grad_()
        loss = sum(m.square().mean() for m in model(x))
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        first.square().sum().backward()
        gradients = [first.detach()] + [p.grad for p in model.parameters() if p.grad is not None]
        found.append([g / g.abs().max().clamp(min=1e-6) for g in gradients])
    assert taken
    assert difference(*found) < 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_all_that_can_goes_fast(name, taken):
    """Where nothing is in the way; and the plain way where a hook is on all modules."""
    family = FAMILIES[name]
    model = family.build(dict(type="LTM", **family.layouts["later"]))
    own = {name: m for name, m in model.named_modules() if type(m) in model.executors}
    inside = {name for name in own for other in own if name.startswith(f"{other}.")}
    offered = sorted(type(m).__name__ for name, m in own.items() if name not in inside)
    with torch.no_grad():
        model(torch.randn(1, 3, 37, 50))
        assert sorted(taken) == offered and any(kind.endswith("Block") for kind in taken)
        taken.clear()
        handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
        model(torch.randn(1, 3, 37, 50))
        handle.remove()
        assert not taken
