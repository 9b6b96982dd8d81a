"""Norms, activations and first weights that a config names: there, and fit for the features."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS, Registry
from torch import nn

from ltm_det.basics.arguments import nearest
from ltm_det.basics.errors import InputError


def check_norm(name: str, cfg: Any, channels: int, features: Sequence[int]) -> None:
    """That a config is of a norm for features of a shape, on which it is tried.

    Raises:
        InputError: It is not.
    """
    _try(name, cfg, "LN", lambda: build_norm_layer(cfg, channels)[1], features)


def check_activation(name: str, cfg: Any) -> None:
    """As `check_norm`, of an activation."""
    _try(name, cfg, "GELU", lambda: build_activation_layer(cfg), (2, 4))


def _try(
    name: str, cfg: Any, usual: str, build: Callable[[], nn.Module], features: Sequence[int]
) -> None:
    check_kind(name, cfg, MODELS, usual)
    x = torch.zeros(features)
    try:
        fits = build().eval()(x).shape == x.shape
    except Exception as error:
        raise InputError(f"{name}={dict(cfg)} does not fit {tuple(features)}: {error}") from error
    if not fits:
        raise InputError(f"{name}={dict(cfg)} changes the shape of {tuple(features)}")


def check_init(name: str, cfg: Any) -> None:
    """That mmengine knows how weights are to start: None, a dict with type, or a list of them.

    Raises:
        InputError: It does not.
    """
    if cfg is None:
        return
    for one in cfg if isinstance(cfg, (list, tuple)) else [cfg]:
        check_kind(name, one, WEIGHT_INITIALIZERS, "Xavier")


def check_kind(name: str, cfg: Any, registry: Registry, usual: str) -> None:
    """That a config is a dict whose type is registered, or a class."""
    if not isinstance(cfg, Mapping) or "type" not in cfg:
        raise InputError(f"{name}={cfg!r}: give a dict with type, as dict(type={usual!r})")
    kind = cfg["type"]
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(None) as here:
            found = here.get(kind)
        if found is None:
            told = nearest_or(kind, {*registry.module_dict, *here.module_dict}, usual)
            raise InputError(f"{name}.type={kind!r} is unknown: {told}")
    elif not isinstance(kind, type):
        raise InputError(f"{name}.type={kind!r}: give a name, as dict(type={usual!r})")


def nearest_or(kind: str, names: set[str], usual: str) -> str:
    """As `nearest`, with one usual name where hundreds would be listed."""
    told = nearest(kind, names)
    return told if told.startswith("did") else f"give one that is registered, such as {usual!r}"
