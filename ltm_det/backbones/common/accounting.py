"""Accounting for every key of a checkpoint, for all backbones alike.

A key of the checkpoint is loaded, resampled, knowingly left out with a line in the log, or an error
that names it; a key of the model is loaded, knowingly left as initialised, or such an error. What
differs between kinds of backbones is a `Family`, see :mod:`ltm_det.backbones.swin.weights`
and :mod:`ltm_det.backbones.vit.weights`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models import adapt_input_conv
from torch import Tensor

from ltm_det.basics.words import some

# Mask modules, which a dense checkpoint cannot have: ``mergers`` of a backbone or of a stage,
# ``merger`` of a block.
MASK_MODULE = re.compile(r"(?:^|\.)(?:mergers\.\d+|merger)\.")

RGB = 3  # input channels of which those of other images are made


class Source(NamedTuple):
    """A backbone's tensors under the model's names, and whether parts may lack or be left over."""

    state: dict[str, Tensor]
    lenient: bool


class Family:
    """What a kind of backbones adds to the accounting; each is one object without state.

    ``own`` is always the model's state dict, ``state`` the checkpoint's under the model's names.
    ``lenient`` is whether the checkpoint comes from another task, such as classification, so that
    what is peculiar to either task may lack or be left over.

    Attributes:
        name: For messages.
        supported: Formats, for messages.
        patch_embed: The weight (C, channels of the image, h, w) of the first layer.
        recomputed: Matches buffers that the model computes from sizes.
        remedies: For the message of `account`: a pattern of 'missing KEY', 'unexpected KEY' or
            'misfit KEY', and what to do about such keys.
    """

    name: str
    supported: str
    patch_embed: str
    recomputed = re.compile(r"(?!)")
    remedies: Mapping[str, str] = {}

    def read(self, state: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Source | None:
        """Renames a backbone's tensors, and where needed re-orders them, to the model's layout.

        A key without a counterpart, such as 'head.weight', stays, so that `account` sees it.

        Args:
            state: The backbone's, under the names of the file.
            whole: All tensors of the file.

        Returns:
            None if the format is unknown.

        Raises:
            ValueError: On a format that is known not to fit.
        """
        raise NotImplementedError

    def prepare(self, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Regroups tensors where it takes the model's sizes to do so."""
        return dict(state)

    def check(self, key: str, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError if a recomputed buffer is another than the model computes."""

    def resample(
        self, key: str, value: Tensor, own: Tensor, grid: tuple[int, int] | None
    ) -> Tensor | None:
        """The value in the shape of ``own``, the model's; None where no resampling leads there."""
        return None

    def may_lack(self, key: str, state: Mapping[str, Tensor], lenient: bool) -> bool:
        """Whether the checkpoint may lack this key of the model, which stays as initialised."""
        return False

    def may_hold(self, key: str, own: Mapping[str, Tensor], lenient: bool) -> bool:
        """Whether the checkpoint may hold this key, unknown to the model, which is left out."""
        return False

    def describe(self, state: Mapping[str, Tensor]) -> str:
        """Sizes and mask modules in the config's words, read off a state dict."""
        raise NotImplementedError


def stages_of_blocks(
    state: Mapping[str, Tensor], block: re.Pattern[str], axis: int, nothing: str
) -> str:
    """What :meth:`Family.describe` says of a backbone of stages.

    Args:
        state: A state dict.
        block: Matches a weight that each block has once; its first group is the stage.
        axis: Of that weight, as long as the block has channels.
        nothing: What is said where there is no block.
    """
    channels: dict[str, list[int]] = {}
    for key, value in state.items():
        if match := block.match(key):
            channels.setdefault(match[1], []).append(value.shape[axis])
    stages = [f"stage {i}: {len(c)} blocks of {c[0]} channels" for i, c in channels.items()]
    mergers = {key.rpartition(".")[0] for key in state if ".merger" in key}
    return (
        f"{'; '.join(stages) or nothing}; mask modules: "
        f"{some(sorted(mergers)) if mergers else 'none'}"
    )


def account(
    family: Family,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    lenient: bool = False,
    grid: tuple[int, int] | None = None,
) -> tuple[dict[str, Tensor], str]:
    """Fits a checkpoint to a model, or raises: a missing or unexpected key must be allowed.

    What may be missing is, beside what the family allows, all mask modules together; a part of them
    is another merging schedule.

    Args:
        family: Of the model; see there for ``own``, ``state`` and ``lenient``.
        grid: The model's patch grid (h, w), for its absolute position embedding. None: square.

    Returns:
        A state dict with the keys and shapes of ``own``, where what may be missing is ``own``'s;
        and a line for the log.

    Raises:
        ValueError: Names all problems, the sizes of both sides, and the remedy.
    """
    state = family.prepare(own, state)
    fitted, dropped, unexpected, misfits = {}, [], [], {}
    for key, value in state.items():
        try:
            if family.recomputed.match(key):
                family.check(key, state)
            elif key in own:
                fitted[key] = _fit(family, key, value, own[key], grid)
            elif family.may_hold(key, own, lenient):
                dropped.append(key)
            else:
                unexpected.append(key)
        except ValueError as error:
            misfits[key] = str(error)

    dense = not any(MASK_MODULE.search(key) for key in state)
    kept = [key for key in own if key not in state and not family.recomputed.match(key)]
    kept.sort(key=lambda key: bool(MASK_MODULE.search(key)))  # last, lest they hide the others
    missing = [
        key
        for key in kept
        if not (dense and MASK_MODULE.search(key)) and not family.may_lack(key, state, lenient)
    ]
    if missing or unexpected or misfits:
        raise ValueError(_complaint(family, own, state, missing, unexpected, misfits))
    changed = [
        key
        for key, value in fitted.items()
        if _but_channels(family, key, value.shape) != _but_channels(family, key, state[key].shape)
        and not _lone(value, state[key])
    ]
    notes = {
        "not in the checkpoint, left as initialised": kept,
        "in the checkpoint, not needed": dropped,
        "resampled to the model's size": changed,
    }
    if (key := family.patch_embed) in fitted and fitted[key].shape[1] != state[key].shape[1]:
        given, wanted = state[key].shape[1], fitted[key].shape[1]
        notes[f"of {given} input channels, made into {wanted} as timm does it"] = [key]
    note = "; ".join(f"{what}: {some(keys)}" for what, keys in notes.items() if keys)
    return {key: fitted.get(key, own[key]) for key in own}, note


def _fit(family: Family, key: str, value: Any, own: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """The value in the model's shape; ValueError where no resampling leads there."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{type(value).__name__}, not a tensor")
    if value.shape == own.shape:
        return value
    if _lone(value, own):
        return value.reshape(own.shape)
    if key == family.patch_embed and value.ndim == own.ndim == 4 and value.shape[1] == RGB:
        value = adapt_input_conv(own.shape[1], value)
        if value.shape == own.shape:
            return value
    resampled = family.resample(key, value, own, grid)
    if resampled is None:
        raise ValueError(f"{tuple(value.shape)} in the checkpoint, {tuple(own.shape)} in the model")
    return resampled


def _but_channels(family: Family, key: str, shape: torch.Size) -> tuple[int, ...]:
    """A shape, without the channels of images."""
    return (*shape[:1], *shape[2:]) if key == family.patch_embed else tuple(shape)


def _lone(one: Tensor, other: Tensor) -> bool:
    """Whether both are one number: those of mergers had no dimension once, and now have one."""
    return one.numel() == other.numel() == 1


def _complaint(
    family: Family,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misfits: dict[str, str],
) -> str:
    """The message of `account`: problems, what both sides are, remedies."""
    problems = [f"missing {key}" for key in missing] + [f"unexpected {key}" for key in unexpected]
    problems += [f"misfit {key}" for key in misfits]
    shapes = [f"{key} {tuple(getattr(state[key], 'shape', '?'))}" for key in unexpected]
    fits = [f"{key}: {problem}" for key, problem in misfits.items()]
    lines = [f"The checkpoint does not fit the model in {len(problems)} keys."]
    for what, items in (("missing", missing), ("unexpected", shapes), ("do not fit", fits)):
        if items:
            lines.append(f"- {len(items)} {what}: {some(items)}")
    lines += [f"- checkpoint: {family.describe(state)}", f"- model: {family.describe(own)}"]
    remedies = [_remedy(family, problem) for problem in problems]
    return "\n".join(lines + [f"- remedy: {remedy}" for remedy in dict.fromkeys(remedies)])


def _remedy(family: Family, problem: str) -> str:
    what, key = problem.split(" ", 1)
    if MASK_MODULE.search(key):
        return (
            "give the model the checkpoint's merger setting, or leave its mask modules out "
            "knowingly, with init_cfg=dict(type='Pretrained', checkpoint=..., drop_mergers=True), "
            "or for a whole detector with without_mergers(state_dict) of "
            "ltm_det.backbones.common.weights."
        )
    for pattern, remedy in family.remedies.items():
        if re.search(pattern, problem):
            return remedy
    return "give the model the checkpoint's sizes, or find one of its sizes."


def resample_pos_embed(embed: Tensor, patches: int, grid: tuple[int, int] | None = None) -> Tensor:
    """Resamples an absolute position embedding to (1, patches, C), bicubically.

    Called where the number of patches differs: equal numbers are taken as equal grids, as in
    resuming.

    Args:
        embed: (1, h * w, C) with h = w, or (1, C, h, w) as in the Swin repository's detectors.
        patches: Number of patches of the model.
        grid: Their (h, w). None: square.

    Raises:
        ValueError: If either grid is unknown, or the model's does not have ``patches`` cells.
    """
    grid = grid or (math.isqrt(patches), math.isqrt(patches))
    if grid[0] * grid[1] != patches:
        raise ValueError(f"the model's {patches} patches do not form a grid of {grid}")
    if embed.ndim == 3:
        side = math.isqrt(embed.shape[1])
        if side**2 != embed.shape[1]:
            raise ValueError(f"{embed.shape[1]} patches, not a square: their grid is unknown")
        embed = embed.transpose(1, 2).unflatten(2, (side, side))
    return resize(embed, grid).flatten(2).transpose(1, 2).contiguous()


def resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """(1, K, h, w) to (1, K, *size) bicubically, or (1, K, l) linearly; in float32, since half
    precision would round the weights twice."""
    if x.shape[2:] == size:
        return x
    mode = "bicubic" if x.ndim == 4 else "linear"
    return F.interpolate(x.float(), size=size, mode=mode, align_corners=False).to(x.dtype)
