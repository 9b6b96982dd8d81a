"""mmdet's convolutions as modules that go the fast way on a CPU."""

import torch
from torch import Tensor, nn

from ltm_det.cpu import convolutions, door


class FastConv2d(nn.Conv2d):
    """A convolution whose 3 x 3 kernels go by Winograd's filtering, where no gradients are asked
    for on a CPU in float32; everywhere else torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not door.fast(x) or torch.compiler.is_compiling():
            return super().forward(x)
        if not (self.usual and x.dtype == torch.float32 and convolutions.serves(x, self.weight)):
            return super().forward(x)
        return convolutions.conv3x3(x, self.weight, self.bias)

    @property
    def usual(self) -> bool:
        """Whether it has stride and padding of 1 and nothing else."""
        options = self.stride, self.padding, self.dilation, self.groups, self.padding_mode
        return options == ((1, 1), (1, 1), (1, 1), 1, "zeros")


def use_fast_convolutions(module: nn.Module) -> None:
    """Puts a :class:`FastConv2d` with the same parameters in the place of each convolution inside.

    Names and parameters stay. Classes that derive from torch's convolution are left alone.
    """
    for name, child in module.named_children():
        if type(child) is nn.Conv2d:
            setattr(module, name, fast_convolution(child))
        else:
            use_fast_convolutions(child)


def fast_convolution(conv: nn.Conv2d) -> FastConv2d:
    """One of the same options, parameters and hooks."""
    fast = FastConv2d.__new__(FastConv2d)
    fast.__dict__.update(conv.__dict__)
    return fast
