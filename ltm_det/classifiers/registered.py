"""The classifiers of the paper's table (arXiv 2407.15219), registered with timm.

Each takes timm's weights of its twin, the model of the same name without 'ltm_': by
``pretrained=True`` and timm's tags of weights, or from a file.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    get_arch_pretrained_cfgs,
    register_model,
)

from ltm_det.basics.arguments import check_names
from ltm_det.basics.errors import InputError
from ltm_det.classifiers.classifier import Classifier
from ltm_det.classifiers.families import efficientvit, mobilevit, swin, vit

# By name: how a model is put together, and what its merger is where nothing else is given, for the
# paper's multiply-adds or fewer.
MODELS: dict[str, tuple[Callable[..., Classifier], dict[str, Any]]] = {
    "ltm_mobilevit_xs": (partial(mobilevit, "xs"), dict(compression_ratio=0.25)),
    "ltm_mobilevit_s": (partial(mobilevit, "s"), dict(compression_ratio=0.5)),
    "ltm_efficientvit_b1": (partial(efficientvit, "b1"), dict(compression_ratio=0.5)),
    "ltm_vit_small_patch16_224": (
        partial(vit, 384, 6),
        dict(compression_ratio=0.51, merge_at=7),
    ),
    "ltm_vit_base_patch16_224": (
        partial(vit, 768, 12),
        dict(compression_ratio=0.51, merge_at=5),
    ),
    "ltm_swin_tiny_patch4_window7_224": (
        partial(swin, 96, (2, 2, 6, 2), (3, 6, 12, 24)),
        dict(compression_ratio=[1, 0.51, 0.51, 1]),
    ),
    "ltm_swin_base_patch4_window7_224": (
        partial(swin, 128, (2, 2, 18, 2), (4, 8, 16, 32)),
        dict(compression_ratio=[1, 1, 0.51, 1]),
    ),
}
# What may be given to timm.create_model: of ours, and of timm's.
ARGUMENTS = (
    *("compression_ratio", "merger"),
    *("num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate"),
)


def twin_of(name: str) -> str:
    """timm's own model, whose weights a classifier takes."""
    return name.removeprefix("ltm_")


def weights_of_twins() -> dict[str, Any]:
    """timm's entries of the twins' weights, one for each tag, under our names.

    Ours take images of any size, and fit the first layer to other channels by themselves.
    """
    found = {}
    for name in MODELS:
        for tagged, entry in get_arch_pretrained_cfgs(twin_of(name)).items():
            own = dict(fixed_input_size=False, first_conv=None, custom_load=False)
            found[f"ltm_{tagged}"] = replace(entry, **own)
    return generate_default_cfgs(found)


def merger_of(
    usual: Mapping[str, Any], compression_ratio: Any, merger: Any
) -> dict[str, Any] | None:
    """A backbone's ``merger`` argument, of what was given to timm.create_model.

    Args:
        usual: The model's own.
        compression_ratio: In the place of the usual one, or None.
        merger: False for the dense twin (timm.create_model drops arguments that are None), the
            name of a type, or options in the place of the usual ones; None or True for those.

    Raises:
        InputError: They do not go together, or are nothing of this kind.
    """
    if merger is False:
        if compression_ratio is not None:
            raise InputError(
                f"merger=False is the dense model, compression_ratio={compression_ratio!r} a "
                "merged one: leave one of them out"
            )
        return None
    if merger is None or merger is True:
        merger = {}
    elif isinstance(merger, str):
        merger = dict(type=merger)
    elif not isinstance(merger, Mapping):
        raise InputError(
            f"merger={merger!r}: give False for the dense model, the name of a type such as "
            "'Pool', or a dict of options"
        )
    if compression_ratio is not None:
        if "compression_ratio" in merger:
            raise InputError(
                f"compression_ratio={compression_ratio!r}, and another in merger={dict(merger)!r}: "
                "leave one of them out"
            )
        merger = {**merger, "compression_ratio": compression_ratio}
    return dict(type="LTM") | dict(usual) | dict(merger)


def create(name: str, pretrained: bool = False, **given: Any) -> Classifier:
    """A model of `MODELS`, as timm makes its own; what timm.create_model calls.

    Args:
        name: Of the model.
        pretrained: Whether timm's weights of the dense twin are loaded.
        given: `ARGUMENTS`, and what timm says of weights (``pretrained_cfg`` and its like).

    Raises:
        InputError: An argument is unknown or wrong.
    """
    if given.pop("features_only", False):
        raise InputError(
            f"{name}: features_only=True is for timm's own models: take the classifier's backbone"
        )
    weights = [key for key in given if key.startswith("pretrained_") or key == "cache_dir"]
    check_names(name, given.keys() - {*weights}, ARGUMENTS)
    make, usual = MODELS[name]
    merger = merger_of(usual, given.pop("compression_ratio", None), given.pop("merger", None))
    return build_model_with_cfg(partial(make, merger=merger), name, pretrained, **given)


default_cfgs = weights_of_twins()  # where `register_model` looks for them


def register(name: str) -> None:
    """Makes a model known to timm.create_model."""

    def entry(pretrained: bool = False, **given: Any) -> Classifier:
        return create(name, pretrained, **given)

    entry.__name__ = entry.__qualname__ = name
    register_model(entry)


for _name in MODELS:
    register(_name)
