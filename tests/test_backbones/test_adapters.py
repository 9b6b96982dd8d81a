"""What wraps, watches or changes the layers inside a backbone has its say, in every family.

Adapters, pruning, quantisation, parametrisations and hooks on any module inside.
"""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils import parametrizations, prune

from tests.test_backbones.conftest import EXECUTED, FAMILIES
from tests.test_backbones.harness import difference, mergers_of

MERGERS = {
    "dense": None,
    "LTM": dict(type="LTM"),
    "ToMe": dict(type="ToMe"),  # reads the keys of the attention
    "LTMP": dict(type="LTMP"),  # and the attention received
}


# Some merge all the time, some once: each family's layers are the same in both scopes.
LINEAR = {name: family for name, family in FAMILIES.items() if family.gridless}
LINEAR.pop("mobilevit-block")


@pytest.fixture(params=MERGERS)
def merger(request):
    return request.param


@pytest.fixture(params=LINEAR)
def model(request, merger):
    merger, family = MERGERS[merger], LINEAR[request.param]
    return family.build(None if merger is None else {**merger, **family.layouts["later"]})


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 37, 50, generator=generator)


def linears(model):
    """The linear layers of blocks and patch merging, by name."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    mergers = tuple(f"{name}." for name in mergers_of(model))
    return {n: m for n, m in found.items() if not n.startswith(mergers or "-")}


def maps(model):
    with torch.no_grad():
        return model(images().to(next(model.parameters()).dtype))


def place(model, name, module):
    """Puts a module in the place of the one so named."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


class Adapted(nn.Linear):
    """A low-rank adapter that derives from the layer, as some packages have it."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        self.down = nn.Parameter(0.3 * torch.randn(2, layer.in_features))
        self.up = nn.Parameter(0.3 * torch.randn(layer.out_features, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


Adapted.__qualname__ = Adapted.__name__ = "Linear"  # as of loralib


class Wrapper(nn.Module):
    """Has no weight of its own."""

    def __init__(self, layer):
        super().__init__()
        self.inner, self.scale = layer, nn.Parameter(torch.tensor([1.5]))

    def forward(self, x):
        return self.scale * self.inner(x)


def test_lora(model):
    """peft's adapters: as if their products were added to the weights, and they learn."""
    expected = copy.deepcopy(model)
    inject_adapter_in_model(
        LoraConfig(r=2, lora_alpha=4, target_modules=list(linears(model))), model
    )
    adapted = [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_B")]
    assert len(adapted) == len(linears(expected))
    generator = torch.Generator().manual_seed(0)
    for name, module in adapted:
        up = module.lora_B["default"].weight
        up.data.copy_(0.2 * torch.randn(up.shape, generator=generator))
        linears(expected)[name].weight.data += module.get_delta_weight("default")
    assert difference(maps(model), maps(expected)) < 1e-3
    sum(m.square().mean() for m in model(images())).backward()
    learning = {n: p for n, p in model.named_parameters() if "lora_" in n}
    assert len(learning) == 2 * len(adapted)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learning.values())


@pytest.mark.parametrize("kind", [Adapted, Wrapper], ids=["subclass", "wrapper"])
def test_every_linear_layer_that_is_replaced_counts(model, kind):
    before = maps(model)
    for name, layer in linears(model).items():
        place(model, name, kind(layer))
        assert difference(maps(model), before) > 1e-4, name
        place(model, name, layer)
    assert difference(maps(model), before) == 0


def test_pruning(model):
    """Zeroed weights stay so while training goes on, and after the pruning was made permanent."""
    for layer in linears(model).values():
        prune.l1_unstructured(layer, "weight", amount=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        sum(m.square().mean() for m in model.train()(images())).backward()
        optimizer.step()
    model.eval()
    if not all(merger.keeps_grid for merger in mergers_of(model).values()):
        model.double()  # where rounding turns no near tie of a matching over
    pruned = maps(model)
    for layer in linears(model).values():
        prune.remove(layer, "weight")
        assert 0.4 < (layer.weight == 0).float().mean() < 0.6
    assert difference(maps(model), pruned) < 1e-3


def test_dynamic_quantisation(model):
    """To 8 bits: near the features before, and every layer of torch's is replaced."""
    before = maps(model)
    quantised = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    replaced = [m for m in quantised.modules() if "quantized" in type(m).__module__]
    assert len(replaced) >= len([m for m in model.modules() if type(m) is nn.Linear]) > 0
    for one, other in zip(maps(quantised), before):
        assert 0 < (one - other).norm() < 0.5 * other.norm()


def test_parametrisation(model):
    """Weight norm of every layer: the same features; and the parts of a weight learn."""
    before = maps(model)
    for layer in linears(model).values():
        parametrizations.weight_norm(layer)
    assert difference(maps(model), before) < 1e-3
    sum(m.square().mean() for m in model(images())).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "original" in n)


def test_a_forward_of_its_own(model):
    before = maps(model)
    for name, layer in linears(model).items():
        layer.forward = lambda x, forward=layer.forward: 1.1 * forward(x)
        assert difference(maps(model), before) > 1e-4, name
        del layer.forward
    assert difference(maps(model), before) == 0


def test_hooks_on_every_module(family):
    """Forward, pre- and backward hooks are called on each module of mmdet's or timm's inside."""
    model, seen = family.build(None), {}
    for module in model.modules():  # torch has no backward hooks about what writes to its input
        if hasattr(module, "inplace"):
            module.inplace = False
    names = {
        m: n
        for n, m in model.named_modules()
        if n and not isinstance(m, (nn.ModuleList, nn.ModuleDict))
    }

    def note(kind):
        return lambda module, *_: seen.setdefault(kind, set()).add(names[module])

    for module in names:
        module.register_forward_pre_hook(note("before"))
        module.register_forward_hook(note("after"))
        module.register_full_backward_hook(note("backward"))
    sum(m.square().mean() for m in model(images().requires_grad_())).backward()
    for kind in ("before", "after", "backward"):
        missing = set(names.values()) - seen[kind]
        assert not missing, (kind, sorted(missing))


@pytest.mark.parametrize("kind", ["forward", "pre", "backward", "backward_pre"])
@pytest.mark.parametrize("name", EXECUTED)
def test_one_hook_is_enough(name, kind):
    """It is called though all other blocks go the fast way, and its result counts."""
    model, seen = EXECUTED[name].build(None), []
    block = [m for m in model.modules() if type(m) in model.executors and hasattr(m, "norm1")][1]
    layer = [m for m in block.modules() if isinstance(m, nn.Linear)][1]
    before = maps(model)
    if kind == "forward":
        layer.register_forward_hook(lambda m, args, out: (seen.append(m), 2 * out)[1])
    elif kind == "pre":
        layer.register_forward_pre_hook(lambda m, args: (seen.append(m), (2 * args[0],))[1])
    elif kind == "backward":
        layer.register_full_backward_hook(lambda m, *_: seen.append(m))
    else:
        layer.register_full_backward_pre_hook(lambda m, *_: seen.append(m))
    if "backward" in kind:
        model(images().requires_grad_())[-1].sum().backward()
    else:
        assert difference(maps(model), before) > 1e-3
    assert seen == [layer]


@pytest.mark.parametrize("name", [name for name, family in LINEAR.items() if family.attends])
def test_watched_dropout_sees_the_weights_of_attention(name):
    """They are called with softmaxed weights, though attention is fused elsewhere."""
    model, seen = LINEAR[name].build(None), []
    before = maps(model)
    for module_name, module in model.named_modules():
        if module_name.endswith("attn_drop"):
            module.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    assert difference(maps(model), before) < 1e-4
    assert seen and all((w.sum(-1) - 1).abs().max() < 1e-4 for w in seen)


@pytest.mark.parametrize("part", ["norm", "mlp", "attention", "attention inside"])
def test_a_wrapped_part_counts(model, part):
    """Not just a linear layer: what wraps it has none of its attributes."""
    ends = {
        "norm": ("norm1",),
        "mlp": ("ffn", "mlp"),
        "attention": ("attn",),
        "attention inside": ("w_msa",),
    }[part]
    names = [n for n, m in model.named_modules() if n.rpartition(".")[2] in ends]
    if not names or any(m.reads for m in mergers_of(model).values()):
        pytest.skip("none such, or its merger reads the attention")
    before = maps(model)
    place(model, names[0], Passing(model.get_submodule(names[0])))
    assert difference(maps(model), before) < 1e-3


class Passing(nn.Module):
    """Calls what it wraps."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return self.inner(*args)
