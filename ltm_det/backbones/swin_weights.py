"""Weights for LTMSwin: read any Swin checkpoint, account for every key, then load.

The target names are those of mmdet's ``SwinTransformer``. Two ways in:

- `load_accounted`: the content of a checkpoint file into a backbone (``init_weights``).
- `account_prefixed`: inside ``_load_from_state_dict``, which torch's and mmengine's
  ``load_state_dict`` call alike; so it covers ``load_from``, ``resume``, EMA and DetInferencer.

Sources of the facts: models/swin_transformer.py and utils.py of microsoft/Swin-Transformer on
GitHub (patch merging order, resampling), timm/models/swin_transformer.py (where a stage
downsamples), mmdet/models/layers/transformer/utils.py (``nn.Unfold`` order).

Shapes: M side of a window, L rows of a relative-position table, (2M - 1)^2, nH heads, C channels,
h x w grid of patches.
"""

import math
import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The allow-list. Buffers that the model computes from sizes; an index is checked to be the usual
# one first, since another one would mean that the table's rows have another order.
RECOMPUTED = re.compile(
    r"^stages\.\d+\.blocks\.\d+\.(?:.+\.)?(?:relative_position_index|attn_mask)$"
)
# Mask modules, which a dense checkpoint cannot have: ``mergers`` of a stage, ``merger`` of a block.
MASK_MODULE = re.compile(r"(?:^|\.)(?:mergers\.\d+|merger)\.")
# One norm for each output of a detection backbone. A classifier has none, or only the last.
OUTPUT_NORM = re.compile(r"^norm(\d+)\.(?:weight|bias)$")
# Only in a classifier: its linear head, and the norm between the last stage and that head.
CLASSIFIER_ONLY = re.compile(r"^(?:head\..+|norm\.(?:weight|bias))$")

TABLE = re.compile(r"\.relative_position_bias_table$")
POS_EMBED = "absolute_pos_embed"
SUPPORTED = (
    "the Swin repository's classifiers and detectors, timm's Swin ('layers.0.blocks...' or "
    "'layers_0.blocks...'), mmdet's Swin backbones ('stages.0.blocks...'), whole mmdet detectors "
    "and MMPretrain classifiers ('backbone.stages.0.blocks...')"
)
_SWIN_NAME = re.compile(r"^layers[._]\d+\.blocks\.\d+\.attn\.qkv\.weight$")
_MMDET_NAME = re.compile(r"^stages\.\d+\.blocks\.\d+\.attn\.w_msa\.qkv\.weight$")
_RENAMES = (
    (re.compile(r"^layers[._](\d+)\."), r"stages.\1."),
    (re.compile(r"^patch_embed\.proj\."), "patch_embed.projection."),
    (re.compile(r"\.attn\.(?=(?:qkv|proj)\.|relative_position_)"), ".attn.w_msa."),
    (re.compile(r"\.mlp\.fc1\."), ".ffn.layers.0.0."),
    (re.compile(r"\.mlp\.fc2\."), ".ffn.layers.1."),
)


class SwinSource(NamedTuple):
    """A backbone's tensors under mmdet's names, and whether they come from a classifier."""

    state: dict[str, Tensor]
    classification: bool


def convert_swin_state_dict(
    checkpoint: Mapping[str, Any], prefix: str | None = None
) -> dict[str, Tensor]:
    """Renames, and where needed re-orders, the backbone of a Swin checkpoint to mmdet's layout.

    Args:
        checkpoint: What the file holds: a state dict, or one under 'state_dict' or 'model'.
        prefix: Where the backbone lies, such as 'student.backbone.'. None: 'backbone.' if any key
            starts so, else the top level.

    Returns:
        The backbone's tensors. A key without a counterpart, such as 'head.weight', stays, so that
        `account` sees it. The input is left as it is.

    Raises:
        ValueError: On a format that is not among `SUPPORTED`.
    """
    return read_source(checkpoint, prefix).state


def read_source(checkpoint: Mapping[str, Any], prefix: str | None = None) -> SwinSource:
    """As `convert_swin_state_dict`, and tells a classifier from a detection backbone."""
    whole = checkpoint
    for key in ("state_dict", "model"):
        if isinstance(whole.get(key), Mapping):
            whole = whole[key]
    if whole and all(key.startswith("module.") for key in whole):  # saved from inside DDP
        whole = {key.removeprefix("module."): value for key, value in whole.items()}
    if prefix is None:
        prefix = "backbone." if any(key.startswith("backbone.") for key in whole) else ""
    elif prefix and not prefix.endswith("."):
        prefix += "."
    state = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
    # Swin V2 shares most names, but attends in another way.
    if any(".logit_scale" in key or ".cpb_mlp." in key for key in state):
        raise ValueError(f"Swin V2 checkpoint ({_some(state)}): only Swin V1 is supported.")
    if any(_SWIN_NAME.match(key) for key in state):
        # Nothing marks a headless classifier (timm's features_only) but the lack of output norms.
        return SwinSource(_rename(state), not any(OUTPUT_NORM.match(key) for key in state))
    if any(_MMDET_NAME.match(key) for key in state):
        # MMPretrain calls the parts of a classifier backbone and head; no detector has a "head.".
        return SwinSource(state, any(key.startswith("head.") for key in whole))
    raise ValueError(
        f"Unknown checkpoint format: no Swin block under {prefix!r}. Keys: {_some(whole)}. "
        f"Supported: {SUPPORTED}. For a backbone in another place set init_cfg's prefix."
    )


def _rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and patch merging order of the Swin repository and of timm, to mmdet's."""
    downsample = re.compile(r"^layers[._](\d+)\.downsample\.")
    # timm >= 0.9 downsamples at the start of a stage, so its first stage doesn't; the Swin
    # repository and older timm do so at the end.
    at_start = not any(m and m[1] == "0" for m in map(downsample.match, state))
    renamed = {}
    for key, value in state.items():
        if match := downsample.match(key):
            key = f"layers.{int(match[1]) - at_start}.downsample.{key[match.end() :]}"
            value = unfold_order(value)
        for pattern, name in _RENAMES:
            key = pattern.sub(name, key)
        renamed[key] = value
    return renamed


def unfold_order(weight: Tensor) -> Tensor:
    """Re-orders the last axis, 4C, of patch merging's norm or reduction for ``nn.Unfold``.

    Swin concatenates the neighbours (row, column) = 00, 10, 01, 11 with C channels each, so its
    axis is (column, row, C). Unfold's is (C, row, column).
    """
    return weight.unflatten(-1, (2, 2, -1)).transpose(-1, -3).flatten(-3)


def relative_position_index(window: int) -> Tensor:
    """(M^2, M^2): the row of the table, ((2M-1)^2, nH), for query n and key m; window side M."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy, dx = y[:, None] - y + window - 1, x[:, None] - x + window - 1
    return dy * (2 * window - 1) + dx


def resample_table(table: Tensor, rows: int) -> Tensor:
    """Resamples a relative-position table, (L, nH) to (rows, nH), bicubically; square windows.

    Raises:
        ValueError: If L or rows is not (2M - 1)^2 for a whole M.
    """
    old, new = math.isqrt(table.shape[0]), math.isqrt(rows)
    if old**2 != table.shape[0] or new**2 != rows or old % 2 == 0 or new % 2 == 0:
        raise ValueError(f"table of {table.shape[0]} rows for {rows}: not (2M - 1)^2 for a whole M")
    return _resize(table.T.unflatten(1, (old, old)), (new, new)).flatten(1).T.contiguous()


def resample_pos_embed(embed: Tensor, patches: int, grid: tuple[int, int] | None = None) -> Tensor:
    """Resamples an absolute position embedding to (1, patches, C), bicubically.

    `account` calls it where the number of patches differs: equal numbers are taken as equal grids,
    as in resuming.

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
    return _resize(embed[0], grid)[None].flatten(2).transpose(1, 2).contiguous()


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(K, h, w) to (K, *size), in float32, since half precision would round the weights twice."""
    if maps.shape[-2:] == size:
        return maps
    resized = F.interpolate(maps[None].float(), size=size, mode="bicubic", align_corners=False)
    return resized[0].to(maps.dtype)


def without_mergers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a backbone or of a whole detector, without its mask modules."""
    return {key: value for key, value in state_dict.items() if not MASK_MODULE.search(key)}


def load_accounted(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    prefix: str | None = None,
    drop_mergers: bool = False,
    grid: tuple[int, int] | None = None,
) -> str:
    """Converts the content of a checkpoint file, accounts for every key, loads it into a backbone.

    ``init_weights`` calls it with what mmengine's CheckpointLoader read (map_location='cpu') and
    with ``prefix`` and ``drop_mergers`` of its init_cfg. mmdet's ``convert_weights`` has nothing
    left to say: the format is recognised.

    Args:
        model: A backbone with mmdet's names.
        checkpoint: See `convert_swin_state_dict`; so for ``prefix``.
        drop_mergers: Whether to leave out, knowingly, the checkpoint's mask modules.
        grid: See `account`.

    Returns:
        A line for the log; empty if every key was loaded as it is.

    Raises:
        ValueError: On an unknown format, or if any key is not accounted for.
    """
    state, classification = read_source(checkpoint, prefix)
    if drop_mergers:
        state = without_mergers(state)
    fitted, note = account(model.state_dict(), state, classification, grid)
    model.load_state_dict(fitted, strict=True)
    return note


def account_prefixed(
    state_dict: MutableMapping[str, Tensor],
    prefix: str,
    own: Mapping[str, Tensor],
    grid: tuple[int, int] | None = None,
) -> str:
    """Replaces the keys under ``prefix``, in place, by exactly those that the model wants.

    For an override of ``_load_from_state_dict(state_dict, prefix, *args)``: call it first, with
    ``own=self.state_dict()``, then ``super()``. What it leaves in ``state_dict``, a copy made by
    torch's or mmengine's ``load_state_dict``, goes on to the child modules, so that they have
    nothing to report: keys that may be missing are filled in with the model's own tensors, keys
    that may be unexpected are gone. The Swin repository's detectors ('backbone.layers...') are
    renamed. Here nothing tells a classifier from a damaged detector, so output norms may not lack.

    Returns:
        A line for the log; empty if every key was loaded as it is.

    Raises:
        ValueError: If any key under ``prefix`` is not accounted for, or there is none.
    """
    part = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    if not part:
        raise ValueError(
            f"The checkpoint holds nothing under {prefix!r}. Weights of a backbone alone belong in "
            "its init_cfg=dict(type='Pretrained', checkpoint=...), not in load_from."
        )
    renamed = _rename(part) if any(_SWIN_NAME.match(key) for key in part) else part
    fitted, note = account(own, renamed, grid=grid)
    for key in part:
        del state_dict[prefix + key]
    state_dict.update({prefix + key: value for key, value in fitted.items()})
    return note


def account(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    classification: bool = False,
    grid: tuple[int, int] | None = None,
) -> tuple[dict[str, Tensor], str]:
    """Fits a checkpoint to a model, or raises: a missing or unexpected key must be allowed.

    - May be missing: all mask modules together (a part of them is another merging schedule); a
      classifier's output norms.
    - May be unexpected: a classifier's head and final norm; the output norm of a stage that the
      model has but does not output; what `RECOMPUTED` matches.
    - Resampled to the model's size: relative-position tables, absolute position embedding.

    Args:
        own: The model's state dict.
        state: The checkpoint's, under mmdet's names.
        classification: Whether the checkpoint is a classifier's.
        grid: The model's patch grid (h, w), for its absolute position embedding. None: square.

    Returns:
        A state dict with the keys and shapes of ``own``, where what may be missing is ``own``'s;
        and a line for the log.

    Raises:
        ValueError: Names all problems, the sizes of both sides, and the remedy.
    """
    fitted, dropped, unexpected, misfits = {}, [], [], {}
    for key, value in state.items():
        if RECOMPUTED.match(key):
            if problem := _index_problem(key, state):
                misfits[key] = problem
        elif key in own:
            try:
                fitted[key] = _fit(key, value, own[key], grid)
            except ValueError as error:
                misfits[key] = str(error)
        elif (classification and CLASSIFIER_ONLY.match(key)) or _unused_norm(key, own):
            dropped.append(key)
        else:
            unexpected.append(key)

    dense = not any(MASK_MODULE.search(key) for key in state)
    kept = [key for key in own if key not in state and not RECOMPUTED.match(key)]
    missing = [
        key
        for key in kept
        if not (dense and MASK_MODULE.search(key))
        and not (classification and OUTPUT_NORM.match(key))
    ]
    if missing or unexpected or misfits:
        raise ValueError(_complaint(own, state, missing, unexpected, misfits))
    changed = [key for key in fitted if fitted[key].shape != state[key].shape]
    notes = {
        "not in the checkpoint, left as initialised": kept,
        "in the checkpoint, not needed": dropped,
        "resampled to the model's size": changed,
    }
    note = "; ".join(f"{what}: {_some(keys)}" for what, keys in notes.items() if keys)
    return {key: fitted.get(key, own[key]) for key in own}, note


def _fit(key: str, value: Any, own: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """The value in the model's shape; ValueError where no resampling leads there."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{type(value).__name__}, not a tensor")
    if value.shape == own.shape:
        return value
    if TABLE.search(key) and value.ndim == 2 and value.shape[1] == own.shape[1]:
        return resample_table(value, own.shape[0])
    channels = {3: -1, 4: 1}.get(value.ndim)
    if key == POS_EMBED and channels and value.shape[channels] == own.shape[-1]:
        return resample_pos_embed(value, own.shape[1], grid)
    raise ValueError(f"{tuple(value.shape)} in the checkpoint, {tuple(own.shape)} in the model")


def _index_problem(key: str, state: Mapping[str, Tensor]) -> str:
    """Whether an index is another than the usual one for the window of its table."""
    table = state.get(key.replace("_index", "_bias_table"))
    if key.endswith("attn_mask") or table is None:
        return ""  # nothing to check, or the table itself is reported as missing
    window = (math.isqrt(table.shape[0]) + 1) // 2
    if torch.equal(state[key].cpu().long(), relative_position_index(window)):
        return ""
    return f"not the usual index of a {window}x{window} window, so its table is in another order"


def _unused_norm(key: str, own: Mapping[str, Tensor]) -> bool:
    """Output norm of a stage that the model has, but not in out_indices: no map depends on it."""
    match = OUTPUT_NORM.match(key)
    return match is not None and any(name.startswith(f"stages.{match[1]}.") for name in own)


def _complaint(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misfits: dict[str, str],
) -> str:
    """The message of `account`: problems, what both sides are, remedies."""
    keys = [*missing, *unexpected, *misfits]
    mergers = [key for key in keys if MASK_MODULE.search(key)]
    norms = [key for key in missing if OUTPUT_NORM.match(key)]
    shapes = [f"{key} {tuple(getattr(state[key], 'shape', '?'))}" for key in unexpected]
    fits = [f"{key}: {problem}" for key, problem in misfits.items()]
    lines = [f"The checkpoint does not fit the model in {len(keys)} keys."]
    for what, items in (("missing", missing), ("unexpected", shapes), ("do not fit", fits)):
        if items:
            lines.append(f"- {len(items)} {what}: {_some(items)}")
    lines += [f"- checkpoint: {describe(state)}", f"- model: {describe(own)}"]
    if mergers:
        lines.append(
            "- remedy: give the model the checkpoint's merger setting, or leave its mask modules "
            "out knowingly, with init_cfg=dict(type='Pretrained', checkpoint=..., "
            "drop_mergers=True), or for a whole detector with without_mergers(state_dict) of "
            "ltm_det.backbones.swin_weights."
        )
    if norms:
        lines.append(
            "- remedy: only a classifier may lack output norms; load one through the backbone's "
            "init_cfg=dict(type='Pretrained', checkpoint=...), not through load_from."
        )
    if len(mergers) + len(norms) < len(keys):
        lines.append("- remedy: give the model the checkpoint's sizes, or find one of its sizes.")
    return "\n".join(lines)


def describe(state: Mapping[str, Tensor]) -> str:
    """A Swin's sizes and mask modules in the config's words, read off its state dict."""
    tables: dict[int, list[Tensor]] = {}
    for key, value in state.items():
        if TABLE.search(key) and (match := re.match(r"stages\.(\d+)\.", key)) and value.ndim == 2:
            tables.setdefault(int(match[1]), []).append(value)
    window = {stage: (math.isqrt(len(found[0])) + 1) // 2 for stage, found in tables.items()}
    mergers = []
    for key, value in state.items():
        # U of a mask module is (C, P): P tokens kept of the stage's M^2.
        if match := re.match(r"(stages\.(\d+)\..*?(mergers?)(?:\.\d+)?)\.step$", key):
            tokens = window.get(int(match[2]), 0) ** 2
            scope = "stage" if match[3] == "mergers" else "block"
            mergers.append(
                f"{match[1]} (scope={scope!r}, keeps {value.shape[-1]} of {tokens} tokens)"
            )
    embed = state.get("patch_embed.projection.weight")
    return (
        f"embed_dims={'?' if embed is None else len(embed)}, "
        f"depths={tuple(len(tables[stage]) for stage in sorted(tables))}, "
        f"num_heads={tuple(tables[stage][0].shape[1] for stage in sorted(tables))}, "
        f"window_size={', '.join(map(str, sorted(set(window.values())))) or '?'}, "
        f"use_abs_pos_embed={POS_EMBED in state}, mask modules: {_some(mergers) or 'none'}"
    )


def _some(keys: Iterable[str], limit: int = 10) -> str:
    keys = list(keys)
    return ", ".join(keys[:limit]) + (f", ... ({len(keys)} in all)" if len(keys) > limit else "")
