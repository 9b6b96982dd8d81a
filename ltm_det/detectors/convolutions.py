"""mmdet's convolutions as modules that go the fast way on a CPU, with what follows them."""

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm
from torch import Tensor, nn

from ltm_det.cpu import convolutions, door

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm)


class FastConv2d(nn.Conv2d):
    """A convolution whose 3 x 3 kernels go by Winograd's filtering, where no gradients are asked
    for on a CPU in float32; everywhere else torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.serves(x):
            return super().forward(x)
        return convolutions.conv3x3(x, self.weight, self.bias)

    def then_relu(self, x: Tensor) -> Tensor:
        """relu(self(x)), in one where nothing watches."""
        if type(self) is not FastConv2d or not door.untouched(self) or not self.serves(x):
            return F.relu(self(x))
        return convolutions.conv3x3(x, self.weight, self.bias, relu=True)

    def serves(self, x: Tensor) -> bool:
        """Whether ``x`` goes the fast way."""
        if torch.is_grad_enabled() or not door.fast(x) or torch.compiler.is_compiling():
            return False
        return self.usual and x.dtype == torch.float32 and convolutions.serves(x, self.weight)

    @property
    def usual(self) -> bool:
        """Whether it has stride and padding of 1 and nothing else."""
        options = self.stride, self.padding, self.dilation, self.groups, self.padding_mode
        return options == ((1, 1), (1, 1), (1, 1), 1, "zeros")


class FastConvModule(ConvModule):
    """mmcv's convolution with a norm and an activation: where the convolution goes the fast way,
    batch norm is put into its weights, and ReLU computed with it."""

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        norm, activate = norm and self.with_norm, activate and self.with_activation
        fast = type(self.conv) is FastConv2d and self.conv.serves(x)
        if not (fast and self.joins(norm, activate)):
            return super().forward(x, activate, norm)
        weight, bias = self.conv.weight, self.conv.bias
        if norm:
            weight, bias = with_norm(weight, bias, self.norm)
        return convolutions.conv3x3(x, weight, bias, relu=activate)

    def joins(self, norm: bool, activate: bool) -> bool:
        """Whether its parts can be one: of kinds that are known, and not watched."""
        if self.order != ("conv", "norm", "act") or self.with_explicit_padding:
            return False
        if not door.untouched(self.conv):
            return False
        if norm and not (type(self.norm) in NORMS and settled(self.norm)):
            return False
        return not activate or type(self.activate) is nn.ReLU and not door.altered(self.activate)


def settled(norm: nn.Module) -> bool:
    """Whether a batch norm uses the statistics that it has, as in evaluation."""
    return not (norm.training or norm.running_mean is None or door.altered(norm))


def with_norm(weight: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A convolution's weights (D, C, 3, 3) and bias (D,) with the batch norm that follows it."""
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    offset = -norm.running_mean if bias is None else bias - norm.running_mean
    offset = offset * scale if norm.bias is None else offset * scale + norm.bias
    return weight * scale[:, None, None, None], offset


def use_fast_convolutions(module: nn.Module) -> None:
    """Puts a :class:`FastConv2d` with the same parameters in the place of each convolution inside,
    and a :class:`FastConvModule` in that of each of mmcv's.

    Names and parameters stay. Classes that derive from them are left alone.
    """
    for name, child in module.named_children():
        use_fast_convolutions(child)
        for kind, fast in ((nn.Conv2d, FastConv2d), (ConvModule, FastConvModule)):
            if type(child) is kind:
                setattr(module, name, as_class(fast, child))


def as_class(kind: type[nn.Module], module: nn.Module) -> nn.Module:
    """A module of another class with the same options, parameters and hooks."""
    other = kind.__new__(kind)
    other.__dict__.update(module.__dict__)
    return other
