"""Weights for LTMSwin: any Swin checkpoint under the names of mmdet's ``SwinTransformer``.

How they are loaded and accounted for: :mod:`ltm_det.backbones.common.weights`,
:mod:`ltm_det.backbones.common.accounting`.

Sources of the facts: models/swin_transformer.py and utils.py of microsoft/Swin-Transformer on
GitHub (patch merging order, resampling), timm/models/swin_transformer.py (where a stage
downsamples), mmdet/models/layers/transformer/utils.py (``nn.Unfold`` order).

Shapes: M side of a window, L rows of a relative-position table, (2M - 1)^2, nH heads, C channels.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ltm_det.backbones.common.accounting import Family, Source, resample_pos_embed, resize, some

# Buffers that the model computes from sizes; an index is checked to be the usual one first, since
# another one would mean that the table's rows have another order.
RECOMPUTED = re.compile(
    r"^stages\.\d+\.blocks\.\d+\.(?:.+\.)?(?:relative_position_index|attn_mask)$"
)
# One norm for each output of a detection backbone. A classifier has none, or only the last.
OUTPUT_NORM = re.compile(r"^norm(\d+)\.(?:weight|bias)$")
# Only in a classifier: its linear head, and the norm between the last stage and that head.
CLASSIFIER_ONLY = re.compile(r"^(?:head\..+|norm\.(?:weight|bias))$")

# U, (C, P), and S_0, (N, P), of a mask module.
MASK_TABLE = re.compile(r"(stages\.(\d+)\..*?(mergers?)(?:\.\d+)?)\.(?:step|initial_logits)$")
TABLE = re.compile(r"\.relative_position_bias_table$")
POS_EMBED = "absolute_pos_embed"
_SWIN_NAME = re.compile(r"^layers[._]\d+\.blocks\.\d+\.attn\.qkv\.weight$")
_MMDET_NAME = re.compile(r"^stages\.\d+\.blocks\.\d+\.attn\.w_msa\.qkv\.weight$")
_RENAMES = (
    (re.compile(r"^layers[._](\d+)\."), r"stages.\1."),
    (re.compile(r"^patch_embed\.proj\."), "patch_embed.projection."),
    (re.compile(r"\.attn\.(?=(?:qkv|proj)\.|relative_position_)"), ".attn.w_msa."),
    (re.compile(r"\.mlp\.fc1\."), ".ffn.layers.0.0."),
    (re.compile(r"\.mlp\.fc2\."), ".ffn.layers.1."),
)


class SwinFamily(Family):
    """Swin V1. Lenient towards classifiers alone.

    - May be missing: a classifier's output norms.
    - May be unexpected: a classifier's head and final norm; the output norm of a stage that the
      model has but does not output; what `RECOMPUTED` matches.
    - Resampled to the model's size: relative-position tables, absolute position embedding.
    - Of images in colour, in a model of other input channels: the patch embedding.
    """

    name = "Swin"
    supported = (
        "the Swin repository's classifiers and detectors, timm's Swin ('layers.0.blocks...' or "
        "'layers_0.blocks...'), mmdet's Swin backbones ('stages.0.blocks...'), whole mmdet "
        "detectors and MMPretrain classifiers ('backbone.stages.0.blocks...')"
    )
    patch_embed = "patch_embed.projection.weight"
    recomputed = RECOMPUTED
    remedies = {
        r"^missing norm\d": "only a classifier may lack output norms; load one through the "
        "backbone's init_cfg=dict(type='Pretrained', checkpoint=...), not through load_from."
    }

    def read(self, state: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Source | None:
        # Swin V2 shares most names, but attends in another way.
        if any(".logit_scale" in key or ".cpb_mlp." in key for key in state):
            raise ValueError(f"Swin V2 checkpoint ({some(state)}): only Swin V1 is supported.")
        if any(_SWIN_NAME.match(key) for key in state):
            # Nothing marks a headless classifier (timm's features_only) but its lack of norms.
            return Source(_rename(state), not any(OUTPUT_NORM.match(key) for key in state))
        if any(_MMDET_NAME.match(key) for key in state):
            # MMPretrain calls a classifier's parts backbone and head; no detector has a "head.".
            return Source(dict(state), any(key.startswith("head.") for key in whole))
        return None

    def check(self, key: str, state: Mapping[str, Tensor]) -> None:
        table = state.get(key.replace("_index", "_bias_table"))
        if key.endswith("attn_mask") or table is None:
            return  # nothing to check, or the table itself is reported as missing
        m = _window(table)
        if not torch.equal(state[key].cpu().long(), relative_position_index(m)):
            raise ValueError(
                f"not the usual index of a {m}x{m} window, so its table is in another order"
            )

    def resample(
        self, key: str, value: Tensor, own: Tensor, grid: tuple[int, int] | None
    ) -> Tensor | None:
        if TABLE.search(key) and value.ndim == 2 and value.shape[1] == own.shape[1]:
            return resample_table(value, own.shape[0])
        channels = {3: -1, 4: 1}.get(value.ndim)
        if key == POS_EMBED and channels and value.shape[channels] == own.shape[-1]:
            return resample_pos_embed(value, own.shape[1], grid)
        return None

    def may_lack(self, key: str, state: Mapping[str, Tensor], lenient: bool) -> bool:
        return lenient and OUTPUT_NORM.match(key) is not None

    def may_hold(self, key: str, own: Mapping[str, Tensor], lenient: bool) -> bool:
        if match := OUTPUT_NORM.match(key):  # of a stage not in out_indices: no map depends on it
            return any(name.startswith(f"stages.{match[1]}.") for name in own)
        return lenient and CLASSIFIER_ONLY.match(key) is not None

    def describe(self, state: Mapping[str, Tensor]) -> str:
        tables: dict[int, list[Tensor]] = {}
        for key, value in state.items():
            match = re.match(r"stages\.(\d+)\.", key)
            if TABLE.search(key) and match and value.ndim == 2:
                tables.setdefault(int(match[1]), []).append(value)
        window = {stage: _window(found[0]) for stage, found in tables.items()}
        mergers = {}
        for key, value in state.items():
            if match := MASK_TABLE.match(key):
                tokens = window.get(int(match[2]), 0) ** 2
                scope = "stage" if match[3] == "mergers" else "block"
                kept = f"keeps {value.shape[-1]} of {tokens} tokens"
                mergers[match[1]] = f"{match[1]} (scope={scope!r}, {kept})"
        embed = state.get(self.patch_embed)
        return (
            f"embed_dims={'?' if embed is None else len(embed)}, "
            f"depths={tuple(len(tables[stage]) for stage in sorted(tables))}, "
            f"num_heads={tuple(tables[stage][0].shape[1] for stage in sorted(tables))}, "
            f"window_size={', '.join(map(str, sorted(set(window.values())))) or '?'}, "
            f"use_abs_pos_embed={POS_EMBED in state}, "
            f"mask modules: {some(mergers.values()) or 'none'}"
        )


SWIN = SwinFamily()


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


def _window(table: Tensor) -> int:
    """M of a relative-position table (L, nH)."""
    return (math.isqrt(len(table)) + 1) // 2


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
    maps = table.T.unflatten(1, (old, old))[None]
    return resize(maps, (new, new))[0].flatten(1).T.contiguous()
