"""Properties that every backbone with merged tokens must have, whatever its family.

The tests of a family build small models and hand them over. Images are (B, 3, H, W); a model
returns a list of maps (B, C, h, w).
"""

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.merging import Merger

MASKS = [dict(type="LTM", mask=mask) for mask in ("soft", "hard", "hard_soft")]
MERGERS = [*MASKS, dict(type="Pool")]
LAYOUTS = ["start", "later", "twice"]

# Parameters that show in the features only where their values are of the order of one.
LARGE = ("bias_table", "initial_logits", "step", "pos_embed", "prefix_tokens", "rel_pos_h")
LARGE = (*LARGE, "rel_pos_w")


class Family(NamedTuple):
    """Small models of one kind, with windows of 4 on patches of 4 pixels.

    Attributes:
        make: (merger, ratio=0.5, **options) to a new model. The ratio is that of a merger which has
            none itself.
        dense: (model, **options) to the dense model of the same weights and options.
        maps: (h, w) of the first map to the shapes (C, h, w) of all.
        tokens: The side of an image in pixels to that of the first map.
        layouts: By LAYOUTS, options of the merger: merged from the first block on, or later, or in
            two spans.
        depth: Number of blocks to options that give as many, all in one stage.
        equal: Options with which tokens of an image of one colour are equal.
        local: Options with which tokens see no further than their surroundings; None where some
            attention is always global, or convolutions carry on what a window shares.
        unread: Options with which dense blocks do not read padding either.
        fast: Options with which the executors of the CPU serve all of a block.
        sampled: Whether only some of the properties are looked at each time, all with slow tests.
        once: What ends the name of a module that each block calls once.
        executed: Whether there are executors of its blocks for the CPU.
        attends: Whether there is attention in its blocks.
        gridless: Whether it takes mergers that lose the grid, as convolutions on merged tokens do
            not; its blocks have linear layers then.
    """

    make: Callable[..., nn.Module]
    dense: Callable[..., nn.Module]
    maps: Callable[[int, int], list[tuple[int, int, int]]]
    layouts: dict[str, dict[str, Any]]
    depth: Callable[[int], dict[str, Any]]
    equal: dict[str, Any] = {}
    local: dict[str, Any] | None = {}
    unread: dict[str, Any] = {}
    fast: dict[str, Any] = {}
    sampled: bool = False
    once: str = ".norm1"
    executed: bool = True
    attends: bool = True
    gridless: bool = True
    tokens: Callable[[int], int] = lambda side: -(-side // 4)

    def build(self, merger: dict[str, Any] | None, **options: Any) -> nn.Module:
        """One of random weights, in evaluation mode."""
        return randomise(self.make(merger, **options))


def dense_twin(build: Callable[..., nn.Module], model: nn.Module, **options: Any) -> nn.Module:
    """The model without its mergers, of the same weights.

    Args:
        build: (merger, **options) to a model.
    """
    twin, weights = build(None, **options), model.state_dict()
    twin.load_state_dict({key: weights[key] for key in twin.state_dict()})
    return twin


def padded(model: nn.Module, mode: str) -> nn.Module:
    """The model whose convolutions pad maps in this mode."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = mode
    return model


def merger_name(merger: dict) -> str:
    return merger.get("mask", merger["type"])


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter a value that would show if it were misused; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.3
            if name.endswith(LARGE):
                std = 1.0
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(std * noise + (parameter.ndim == 1 and name.endswith("weight")))
    model.eval()  # mmdet's returns None
    return model


def mergers_of(model: nn.Module) -> dict[str, Merger]:
    return {name: m for name, m in model.named_modules() if isinstance(m, Merger)}


def ltm_shapes(name: str, dim: int, tokens: int, start: int | None = None) -> dict[str, tuple]:
    """What a state dict has of an LTM: of C channels, P tokens, and N tokens if it starts a chain.

    Its own path has C / 4 channels.
    """
    shapes = dict(step=(dim, tokens), log_affinity=(1,))
    shapes |= dict(detail_in=(dim, dim // 4), detail_out=(dim // 4, dim))
    shapes |= {} if start is None else dict(initial_logits=(start, tokens))
    return {f"{name}.{key}": shape for key, shape in shapes.items()}


def difference(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest over all maps; what is not finite fails."""
    assert len(ones) == len(others) > 0
    for one, other in zip(ones, others):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert one.isfinite().all() and other.isfinite().all()
    return max((one - other).abs().max().item() for one, other in zip(ones, others))


def affected(ones: Sequence[Tensor], others: Sequence[Tensor], window: int) -> list[Tensor]:
    """For each map, (windows down, windows across): where the two differ, on what both cover."""
    found = []
    for one, other in zip(ones, others):
        h, w = min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])
        apart = (one - other.narrow(2, 0, h).narrow(3, 0, w)).abs().amax((0, 1)) > 1e-10
        rows, columns = -(-h // window), -(-w // window)
        grid = torch.zeros(rows, columns, dtype=torch.bool)
        for y, x in apart.nonzero().tolist():
            grid[y // window, x // window] = True
        found.append(grid)
    return found


def assert_images_are_independent(model: nn.Module, images: Tensor) -> None:
    """An image's features do not depend on its batch neighbours."""
    with torch.no_grad():
        together = model(images)
        for i in range(len(images)):
            assert difference([m[i : i + 1] for m in together], model(images[i : i + 1])) < 1e-9


def assert_padded_tokens_are_not_read(model: nn.Module, images: Tensor, monkeypatch) -> None:
    """Whatever lies in the tokens that pad the windows, the features are the same."""
    filled = []
    partition = WindowGrid.partition

    def fill(grid: WindowGrid, x: Tensor) -> Tensor:
        real = torch.ones(1, grid.height * grid.width, 1, dtype=torch.bool)
        padded = ~partition(grid, real)
        out = partition(grid, x)
        if not x.is_floating_point() or x.shape[-1] == 1:  # a mask, not features
            return out
        filled.append(padded.any())
        return torch.where(padded, 1e3 * torch.randn_like(out), out)

    with torch.no_grad():
        expected = model(images)
        with monkeypatch.context() as patch:
            patch.setattr(WindowGrid, "partition", fill)
            assert difference(model(images), expected) < 1e-9
    assert any(filled), "choose a size that is padded"


def assert_further_padding_reaches_no_further(
    dense: nn.Module, merged: nn.Module, images: Tensor, padding: tuple[int, int], window: int
) -> None:
    """Where a window's dense features do not depend on the padding of the batch, neither do its
    merged ones. (Windows, since merged tokens are shared by a whole window.)"""
    h, w = padding
    larger = nn.functional.pad(images, (0, w, 0, h))
    with torch.no_grad():
        reach = affected(dense(images), dense(larger), window)
        merged_reach = affected(merged(images), merged(larger), window)
    assert any(r.any() for r in reach) and not all(r.all() for r in reach), "nothing to be seen"
    for one, other in zip(reach, merged_reach):
        assert not (other & ~one).any()


def assert_gradients_reach_mergers(model: nn.Module, images: Tensor) -> None:
    """Training moves all that a mask module learns, S_0 where it starts a chain.

    V waits for W, which starts at zero.
    """
    model.train()
    model.zero_grad()
    # scaled, as AMP does: a layer scale of 1e-6 leaves gradients that masks take for nothing
    (1e12 * sum(m.square().mean() for m in model(images))).backward()
    mergers = mergers_of(model)
    assert mergers
    for name, merger in mergers.items():
        learned = dict(merger.named_parameters())
        start = {"initial_logits"} if not merger.chained else set()
        assert set(learned) == {"step", "log_affinity", "detail_in", "detail_out"} | start
        for parameter, value in learned.items():
            gradient = value.grad
            assert gradient is not None, f"{name}.{parameter}"
            assert gradient.isfinite().all(), f"{name}.{parameter}"
            waits = parameter == "detail_in" and merger.detail_out.abs().max() == 0
            assert waits or gradient.abs().max() > 0, f"{name}.{parameter}"


def assert_same_with_checkpoints(plain: nn.Module, checkpointed: nn.Module, images: Tensor) -> None:
    """with_cp changes neither features nor gradients, drop path and Gumbel noise included."""
    checkpointed.load_state_dict(plain.state_dict())
    results = []
    for model in (plain, checkpointed):
        model.train()
        torch.manual_seed(7)
        x = images.clone().requires_grad_()
        outs = model(x)
        sum(m.square().mean() for m in outs).backward()
        results.append(([m.detach() for m in outs], x.grad, dict(model.named_parameters())))
    (outs, x, parameters), (cp_outs, cp_x, cp_parameters) = results
    assert difference([*outs, x], [*cp_outs, cp_x]) < 1e-9
    for name, parameter in parameters.items():
        gradient, cp_gradient = parameter.grad, cp_parameters[name].grad
        assert (gradient is None) == (cp_gradient is None), name
        assert gradient is None or (gradient - cp_gradient).abs().max() < 1e-9, name


def assert_can_be_copied(model: nn.Module, images: Tensor) -> None:
    """deepcopy (EMA) and pickle, also amid training, give an equal and separate model."""
    model.train()
    model(images)[-1].sum().backward()
    model.eval()
    with torch.no_grad():
        expected = model(images)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert difference(twin(images), expected) == 0
            for parameter in twin.parameters():
                parameter.zero_()
            assert difference(model(images), expected) == 0


def assert_works_in_half_precision(model: nn.Module, images: Tensor) -> None:
    """Under autocast and cast as a whole; near the float32 features."""
    model, images = model.float().eval(), images.float()
    with torch.no_grad():
        expected = model(images)
        for dtype, near in ((torch.bfloat16, 0.1), (torch.float16, 0.02)):
            with torch.autocast("cpu", dtype):
                outs = model(images)
            _assert_near(outs, expected, near)
            low = copy.deepcopy(model).to(dtype)(images.to(dtype))
            assert all(m.dtype == dtype for m in low)
            _assert_near(low, expected, 2 * near)


def _assert_near(outs: Sequence[Tensor], expected: Sequence[Tensor], near: float) -> None:
    for out, exact in zip(outs, expected):
        assert out.isfinite().all()
        error = (out.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert error < near, f"relative error {error:.3f}"


def assert_learns_after_inference(model: nn.Module, images: Tensor) -> None:
    """What inference mode leaves in caches may be used in training."""
    with torch.inference_mode():
        expected = model.eval()(images)
    outs = model(images)  # with gradients, from the same caches
    assert difference([m.clone() for m in expected], [m.detach() for m in outs]) < 1e-9
    model.train()
    model(images)[-1].sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
