"""Layer-wise learning-rate decay for plain Vision Transformers (BEiT, arXiv 2106.08254)."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ltm_det.basics.arguments import check_names, is_number
from ltm_det.basics.errors import InputError

EMBEDDING = re.compile(r"backbone\.(patch_embed|pos_embed|prefix_tokens)(\.|$)")
BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")
# What paramwise_cfg may have: mmengine's rules, which passes over other names, and ours.
PARAMWISE = {"layer_decay", "custom_keys", "bypass_duplicate", "bias_lr_mult", "bias_decay_mult"}
PARAMWISE |= {"norm_decay_mult", "flat_decay_mult", "dwconv_decay_mult", "dcn_offset_lr_mult"}
# What mmengine logs of each parameter.
PER_PARAMETER = re.compile(r"paramwise_options -- |\S+ is skipped since its requires_grad=")


def layer_of(name: str, depth: int) -> int:
    """Layer of a detector's parameter: 0 for the backbone's embeddings, i + 1 for its block i, and
    depth + 1 for all that follows the blocks or is new: norm, mergers, neck and heads."""
    if EMBEDDING.match(name):
        return 0
    block = BLOCK.match(name)
    return int(block[1]) + 1 if block else depth + 1


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with learning rates that fall from the heads to the embeddings.

    The rate of each parameter is multiplied by layer_decay ** (depth + 1 - layer), with the layers
    of :func:`layer_of`. Use it as::

        optim_wrapper = dict(
            constructor='LayerDecayConstructor',
            paramwise_cfg=dict(layer_decay=0.7, norm_decay_mult=0.0), ...)

    Args:
        optim_wrapper_cfg: As for mmengine's constructor; its optimizer must name ``lr``.
        paramwise_cfg: ``layer_decay`` in (0, 1] beside mmengine's own rules, which stay as they
            are: ``lr_mult`` in ``custom_keys``, for one, multiplies the rate of the layer.

    Raises:
        InputError: ``layer_decay`` or ``lr`` is missing or out of range, or the model has no
            ``backbone.blocks``.
    """

    def _validate_cfg(self) -> None:
        check_names("paramwise_cfg", self.paramwise_cfg, PARAMWISE)
        super()._validate_cfg()
        decay = self.paramwise_cfg.get("layer_decay")
        if not is_number(decay) or not 0 < decay <= 1:
            raise InputError(
                f"layer_decay={decay!r} must lie in (0, 1]: give it in paramwise_cfg, as "
                "dict(layer_decay=0.7); 1 is no decay"
            )
        if self.base_lr is None:
            raise InputError(
                f"optimizer={self.optimizer_cfg} has no lr: name the rate of the last layer"
            )

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = "",
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Appends a group for each parameter of ``module`` that is not frozen."""
        if prefix:  # a part of the model: mmengine recurses through this method
            return super().add_params(params, module, prefix, is_dcn_module)
        depth = _depth(module)
        scales = [self.paramwise_cfg["layer_decay"] ** (depth + 1 - i) for i in range(depth + 2)]
        first = len(params)
        with _no_line_per_parameter():
            super().add_params(params, module)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for group in params[first:]:
            (parameter,) = group["params"]
            scale = scales[layer_of(names[id(parameter)], depth)]
            group["lr"] = group.get("lr", self.base_lr) * scale
        rates = " ".join(f"{self.base_lr * scale:.3g}" for scale in scales)
        print_log(
            f"LayerDecayConstructor: learning rates of layers 0 to {depth + 1}: {rates}; "
            f"{len(params) - first} of {len(names)} parameters are trained",
            logger="current",
        )


def _depth(model: nn.Module) -> int:
    blocks = getattr(getattr(model, "backbone", None), "blocks", None)
    if blocks is None:
        kind = type(getattr(model, "backbone", model)).__name__
        raise InputError(
            f"LayerDecayConstructor numbers layers by model.backbone.blocks, which {kind} lacks: "
            "leave out optim_wrapper.constructor and paramwise_cfg.layer_decay, or use LTMViT"
        )
    return len(blocks)


@contextmanager
def _no_line_per_parameter() -> Iterator[None]:
    """Keeps mmengine from logging hundreds of lines."""

    def other(record: logging.LogRecord) -> bool:
        return not PER_PARAMETER.match(record.getMessage())

    logger = MMLogger.get_current_instance()
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
