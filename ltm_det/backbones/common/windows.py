"""Window layout: a feature map cut into square windows, and the geometry that goes with it.

Shapes: B images, H x W grid of tokens, R x S grid of windows, W = R * S windows, M window side,
N = M * M tokens in a window, C channels. Window layout is (B, W, N, C).
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ltm_det.basics.graphs import tracing
from ltm_det.merging import NO_MERGING, Merging

# Added to the logits between tokens that only the cyclic shift made neighbours. The dense Swin adds
# -100, which leaves them shares of about 1e-44: denormal numbers, with which an Intel CPU takes
# seven times as long for the softmax and fifty for the product after it.
SHIFT_MASK = -1000.0


class WindowGrid(NamedTuple):
    """R x S windows of M x M tokens over an H x W map, padded at the bottom and the right."""

    height: int
    width: int
    window: int

    @property
    def rows(self) -> int:
        return _ceil_div(self.height, self.window)

    @property
    def columns(self) -> int:
        return _ceil_div(self.width, self.window)

    @property
    def padded(self) -> bool:
        """Whether there is padding, or in a graph for any size may be."""
        return not (divides(self.window, self.height) and divides(self.window, self.width))

    def merged(self, side: int) -> "WindowGrid":
        """The grid of the same windows with ``side`` x ``side`` tokens each; nothing is padding."""
        return WindowGrid(self.rows * side, self.columns * side, side)

    def shrunk(self, side: int) -> "WindowGrid":
        """As `merged`, but a map that ends where the real tokens do: cells of padding alone pad
        its windows."""

        def cells(length: int) -> int:
            whole, rest = length // self.window, length % self.window  # divmod is not traced
            return whole * side + _ceil_div(rest * side, self.window)

        return WindowGrid(cells(self.height), cells(self.width), side)

    def partition(self, x: Tensor) -> Tensor:
        """(B, H * W, C) to window layout; padded tokens are zero."""
        if tracing():
            return self._partition(x)
        there, back = _partition_order(self, x.device), _reverse_order(self, x.device)
        x = Gathered.apply(x, there, back)
        return x.unflatten(1, (self.rows * self.columns, self.window**2))

    def _partition(self, x: Tensor) -> Tensor:
        """As `partition`, by copies."""
        height, width, m = self.rows * self.window, self.columns * self.window, self.window
        x = x.unflatten(1, (self.height, self.width))
        if self.padded:  # else a copy
            x = F.pad(x, (0, 0, 0, width - self.width, 0, height - self.height))
        x = x.unflatten(2, (self.columns, m)).unflatten(1, (self.rows, m))  # (B, R, M, S, M, C)
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def reverse(self, x: Tensor) -> Tensor:
        """Window layout to (B, H * W, C); padded tokens are cut off."""
        if tracing():
            return self._reverse(x)
        there, back = _reverse_order(self, x.device), _partition_order(self, x.device)
        return Gathered.apply(x.flatten(1, 2), there, back)

    def _reverse(self, x: Tensor) -> Tensor:
        """As `reverse`, by copies."""
        x = self._to_map(x)
        if self.padded:  # a copy in any case: else a graph would be for where flatten needs one
            x = x[:, : self.height, : self.width].clone(memory_format=torch.contiguous_format)
        return x.flatten(1, 2)

    def roll(self, x: Tensor, shift: int) -> Tensor:
        """Rolls the padded map by ``shift`` tokens along both axes, in window layout."""
        if shift == 0:
            return x
        if tracing():
            return self._roll_map(x, shift)
        there, back = self.roll_order(shift, x.device), self.roll_order(-shift, x.device)
        return Gathered.apply(x.flatten(1, 2), (there, None), (back, None)).view(x.shape)

    def roll_order(self, shift: int, device: torch.device) -> Tensor | None:
        """(W * N,), from where each token comes in `roll`; None where there is no roll."""
        return _roll_order(self, shift, device) if shift else None

    def _roll_map(self, x: Tensor, shift: int) -> Tensor:
        """As `roll`, by torch's operator on the map."""
        x = self._to_map(x).roll((shift, shift), (1, 2))
        full = WindowGrid(x.shape[1], x.shape[2], self.window)
        return full._partition(x.flatten(1, 2))

    def no_merging(self) -> Merging:
        """Keeps all real tokens and drops padded ones: what a dense block's MLP works on."""
        return Merging(self.reverse, self.partition) if self.padded else NO_MERGING

    def valid(self, device: torch.device) -> Tensor | None:
        """(W, N), False for padded tokens; None where no token is padded."""
        return _valid(self, device) if self.padded else None

    def rolled_valid(self, shift: int, device: torch.device) -> Tensor | None:
        """As `valid`, of the map rolled by -shift."""
        return _rolled_valid(self, shift, device) if self.padded else None

    def regions(self, shift: int, device: torch.device) -> Tensor | None:
        """(W, N, 4), one-hot: which tokens of windows rolled by -shift are neighbours on the map;
        None where there is no roll."""
        return _regions(self, shift, device) if shift else None

    def shift_mask(self, shift: int, device: torch.device) -> Tensor:
        """(W, N, N), what attention in windows rolled by -shift adds to its logits."""
        return _shift_mask(self, shift, device)

    def _to_map(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (self.window, self.window)).unflatten(1, (self.rows, self.columns))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, R * M, S * M, C)


def divides(n: int, size: int) -> bool:
    """Whether n divides a size, or in a graph all sizes that it is for."""
    if torch.compiler.is_compiling():
        return statically_known_true(size % n == 0)
    return isinstance(size, int) and size % n == 0  # else a size that is traced


def _ceil_div(a: int, b: int) -> int:
    """Rounded up; without negative numbers, whose division ONNX rounds the other way."""
    return (a + b - 1) // b


# From where each token comes, (L',), and which of them come from nowhere, or None.
Order = tuple[Tensor, Tensor | None]


class Gathered(torch.autograd.Function):
    """Tokens (B, L, C) in another order, (B, L', C), by one gather instead of several copies; the
    gradient goes back by another one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, there: Order, back: Order) -> Tensor:
        order, padding = there
        x = x.index_select(1, order)
        return x if padding is None else x.index_fill_(1, padding, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Order, Order], output: Tensor) -> None:
        _, ctx.there, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return Gathered.apply(gradient, ctx.back, ctx.there), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *orders: None) -> Tensor:
        return Gathered.apply(tangent, ctx.there, ctx.back)


def cached_by_size(maxsize: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Caches what depends on the size of the input alone; in a graph it is computed.

    It is made outside of inference mode, since a tensor made inside could not take part in training
    later.
    """

    def decorate(make: Callable[..., Any]) -> Callable[..., Any]:
        cached = lru_cache(maxsize)(torch.inference_mode(False)(make))

        @wraps(make)
        def get(*key: Any) -> Any:
            return make(*key) if tracing() else cached(*key)

        get.cache_clear = cached.cache_clear
        return get

    return decorate


# A pass needs up to eight shift masks, 25 MB at 800 x 1333; two input sizes are kept.
@cached_by_size(64)
def _valid(grid: WindowGrid, device: torch.device) -> Tensor:
    ones = torch.ones(1, grid.height * grid.width, 1, device=device)
    return grid._partition(ones)[0, :, :, 0] > 0


@cached_by_size(64)
def _rolled_valid(grid: WindowGrid, shift: int, device: torch.device) -> Tensor:
    return grid.roll(_valid(grid, device)[None, :, :, None], -shift)[0, :, :, 0]


@cached_by_size(64)
def _partition_order(grid: WindowGrid, device: torch.device) -> Order:
    tokens = torch.arange(1, grid.height * grid.width + 1, device=device)
    order = grid._partition(tokens.view(1, -1, 1)).flatten()
    padding = order.argsort()[: len(order) - tokens.numel()] if grid.padded else None
    return (order - 1).clamp(min=0), padding


@cached_by_size(64)
def _reverse_order(grid: WindowGrid, device: torch.device) -> Order:
    count = grid.rows * grid.columns * grid.window**2
    tokens = torch.arange(count, device=device).view(1, -1, grid.window**2, 1)
    return grid._reverse(tokens).flatten(), None


@cached_by_size(64)
def _roll_order(grid: WindowGrid, shift: int, device: torch.device) -> Tensor:
    """(W * N,), from where in window layout each token comes when the map is rolled by shift."""
    count = grid.rows * grid.columns * grid.window**2
    index = torch.arange(count, device=device).view(1, -1, grid.window**2, 1)
    return grid._roll_map(index, shift).flatten()


@cached_by_size(16)
def _regions(grid: WindowGrid, shift: int, device: torch.device) -> Tensor:
    full = WindowGrid(grid.rows * grid.window, grid.columns * grid.window, grid.window)

    def brought(length: int) -> Tensor:  # 1 for what the roll brings to the far end
        position = torch.arange(length, device=device)
        return (position >= length - shift).long()

    region = 2 * brought(full.height)[:, None] + brought(full.width)  # (H, W)
    region = full._partition(region.reshape(1, -1, 1))[0, :, :, 0]  # (W, N)
    return F.one_hot(region, 4).float()


@cached_by_size(16)
def _shift_mask(grid: WindowGrid, shift: int, device: torch.device) -> Tensor:
    region = _regions(grid, shift, device).argmax(-1)  # (W, N)
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros(apart.shape, device=device).masked_fill(apart, SHIFT_MASK)
