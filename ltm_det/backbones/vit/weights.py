"""Weights for LTMViT: plain Vision Transformers of many projects under timm's names.

How they are loaded and accounted for: :mod:`ltm_det.backbones.common.weights`,
:mod:`ltm_det.backbones.common.accounting`.

Sources of the facts: timm/models/vision_transformer.py and deit.py (order and positions of the
tokens beside the map), models_mae.py of facebookresearch/mae, vision_transformer.py and utils.py of
facebookresearch/dino and dinov2, timm/models/eva.py (DINOv3's names, its own and timm's, and biases
of queries and values alone), modeling/backbone/vit.py and utils.py of detectron2 and
projects/ViTDet of mmdet (a class position without a class token, relative positions),
mmpretrain/models/backbones/vision_transformer.py (names).

Shapes: T tokens beside the map, R rows of a position embedding, C channels, D = C / heads, S length
for which there are 2S - 1 relative positions.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import resample_patch_embed
from torch import Tensor

from ltm_det.backbones.common.accounting import Family, Source, resample_pos_embed, resize, some

# Tokens beside the map, in timm's order, each (1, n, C).
TOKENS = ("cls_token", "dist_token", "reg_token")
# LTMViT's own: all of them in one tensor, their positions added.
PREFIX = "prefix_tokens"
POS_EMBED = "pos_embed"
PATCH_EMBED = "patch_embed.proj.weight"
PERIODS = "rope_embed.periods"
REL_POS = re.compile(r"\.attn\.rel_pos_[hw]$")
# The first rows of a checkpoint's pos_embed where they are no patches', set apart under this name.
POSITIONS = "pos_embed[:, :{}]"
# Only in pretraining: classifiers' heads and pooling, what masks patches, MAE's decoder.
PRETRAINING_ONLY = re.compile(
    r"^(?:head|head_dist|fc_norm|pre_logits|attn_pool|decoder_\w+|mask_token|masked_embed"
    r"|local_cls_norm)(?:\.|$)"
)
_BLOCK = re.compile(r"^blocks\.\d+\.attn\.qkv\.weight$")
# Linear layers that others have in two, and we in one: the first of each, and the second.
GATES = (".mlp.fc1_g.", ".mlp.fc1_x.", ".mlp.fc1.")
_RENAMES = (
    (re.compile(r"^(?:register|storage)_tokens$"), "reg_token"),  # DINOv2, DINOv3
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),  # DINOv2's SwiGLU; DINOv3's is in two
    (re.compile(r"\.mlp\.w1\."), ".mlp.fc1_g."),
    (re.compile(r"\.mlp\.w2\."), ".mlp.fc1_x."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
    (re.compile(r"\.gamma_([12])$"), r".ls\1.gamma"),  # DeiT-3, timm's DINOv3
    # MMPretrain, where the norm after average pooling is ln2.
    (re.compile(r"^layers\."), "blocks."),
    (re.compile(r"^(?:ln|norm)1\."), "norm."),
    (re.compile(r"^(?:ln|norm)2\."), "fc_norm."),
    (re.compile(r"^patch_embed\.projection\."), "patch_embed.proj."),
    (re.compile(r"^(blocks\.\d+)\.ln([12])\."), r"\1.norm\2."),
    (re.compile(r"\.ffn\.layers\.0\.0\."), ".mlp.fc1."),
    (re.compile(r"\.ffn\.layers\.1\."), ".mlp.fc2."),
    (re.compile(r"\.(?:attn|ffn)\.gamma([12])\.weight$"), r".ls\1.gamma"),
)


class ViTFamily(Family):
    """Plain ViT. Lenient towards all weights of a backbone that are given through init_cfg.

    - May be missing there: all relative positions together; they start at zero. Everywhere, the
      periods of rotary positions, which are computed; only DINOv3's own checkpoints have them.
    - May be unexpected there: what `PRETRAINING_ONLY` matches; class, distillation and register
      tokens if the model has no prefix tokens; the final norm if it has none.
    - May be unexpected everywhere: positions of tokens that are not there or not needed.
    - Resampled to the model's size: absolute and relative positions, the patch embedding.
    - Of images in colour, in a model of other input channels: the patch embedding.

    The number of heads leaves no trace in a checkpoint without relative positions.
    """

    name = "ViT"
    supported = (
        "ViT, DeiT, AugReg and DeiT-3 of timm or under its names, MAE, DINO, DINOv2 and DINOv3, "
        "detectron2's and mmdet's ViTDet ('blocks.0.attn.qkv...'), "
        "MMPretrain's ViT ('layers.0.attn.qkv...'), each also below 'backbone.'"
    )
    patch_embed = PATCH_EMBED
    remedies = {
        r" (?:prefix_tokens|(?:cls|dist|reg)_token)$": "set prefix_tokens to the number of the "
        "checkpoint's class, distillation and register tokens, or, for backbone weights through "
        "init_cfg, to 0, which leaves them out.",
        r"^missing .*\.rel_pos_": "set use_rel_pos=False; or load backbone weights through "
        "init_cfg, which may lack all relative positions together.",
        r"^unexpected .*\.rel_pos_": "set use_rel_pos=True.",
        r"^missing pos_embed$": "set use_abs_pos=False.",
        r"^unexpected pos_embed": "set use_abs_pos=True.",
        r"^missing norm\.": "set final_norm=False.",
        r"^unexpected norm\.": "set final_norm=True.",
        r"^missing .*\.ls[12]\.": "set init_values=None.",
        r"^unexpected .*\.ls[12]\.": "set init_values=1e-5, or any number.",
        r"^missing .*\.qkv\.bias$": "set qkv_bias=False.",
        r"^unexpected .*\.qkv\.bias$": "set qkv_bias=True.",
        r"^unexpected rope_embed\.": "set rope_base=100, as in DINOv3.",
        r"^misfit .*\.mlp\.": "set mlp='swiglu' or 'gelu', and mlp_ratio to the width of the "
        "checkpoint's first layer, a SwiGLU's gates and values together, over embed_dims.",
    }

    def read(self, state: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Source | None:
        renamed = {}
        for key, value in state.items():
            for pattern, name in _RENAMES:
                key = pattern.sub(name, key)
            if key in renamed:
                raise ValueError(f"The checkpoint has {key} under two names.")
            renamed[key] = value
        renamed = _joined(renamed)
        return Source(renamed, True) if any(_BLOCK.match(key) for key in renamed) else None

    def prepare(self, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leaves the patches' rows in pos_embed; joins tokens if the model has prefix tokens."""
        state = dict(state)
        names = [name for name in TOKENS if name in state]
        tokens = [state[name] for name in names]
        embed = state.get(POS_EMBED)
        if not _are_sequences(tokens if embed is None else [*tokens, embed]):
            return state  # so that they are reported
        positions = torch.empty(1, 0, 1)
        if embed is not None and PREFIX not in state:
            patches = own[POS_EMBED].shape[1] if POS_EMBED in own else 0
            first = _not_patches(embed.shape[1], sum(x.shape[1] for x in tokens), patches)
            positions, state[POS_EMBED] = embed[:, :first], embed[:, first:]
        if tokens and PREFIX in own and PREFIX not in state:
            prefix = torch.cat(tokens, dim=1).to(own[PREFIX].dtype)
            prefix[:, : positions.shape[1]] += positions
            state = {key: value for key, value in state.items() if key not in names}
            state[PREFIX] = prefix
        elif positions.numel():
            state[POSITIONS.format(positions.shape[1])] = positions
        return state

    def resample(
        self, key: str, value: Tensor, own: Tensor, grid: tuple[int, int] | None
    ) -> Tensor | None:
        if key == POS_EMBED and value.ndim == 3 and value.shape[::2] == own.shape[::2]:
            return resample_pos_embed(value, own.shape[1], grid)
        if REL_POS.search(key) and value.ndim == 2 and value.shape[1] == own.shape[1]:
            return resize(value.T[None], (own.shape[0],))[0].T.contiguous()
        if key == PATCH_EMBED and value.ndim == 4 and value.shape[:2] == own.shape[:2]:
            return resample_patch_embed(value, list(own.shape[2:]))
        return None

    def may_lack(self, key: str, state: Mapping[str, Tensor], lenient: bool) -> bool:
        if key == PERIODS:
            return True
        return lenient and bool(REL_POS.search(key)) and not any(map(REL_POS.search, state))

    def may_hold(self, key: str, own: Mapping[str, Tensor], lenient: bool) -> bool:
        if key.startswith(POSITIONS.partition("{")[0]):
            return POS_EMBED in own
        if key in (*TOKENS, PREFIX):
            return lenient and PREFIX not in own
        return lenient and (key.startswith("norm.") or bool(PRETRAINING_ONLY.match(key)))

    def describe(self, state: Mapping[str, Tensor]) -> str:
        def size(key: str, axis: int) -> Any:
            shape = getattr(state.get(key), "shape", ())
            return shape[axis] if axis < len(shape) else "?"

        mergers = []
        for key in state:
            # S_0 of a mask module is (N, P): P tokens kept of the window's N.
            if match := re.match(r"mergers\.(\d+)\.initial_logits$", key):
                mergers.append(
                    f"before block {match[1]} (keeps {size(key, 1)} of {size(key, 0)} tokens)"
                )
        tokens = [size(key, 1) for key in (*TOKENS, PREFIX) if key in state]
        patches = f" ({size(POS_EMBED, 1)} patches)" if POS_EMBED in state else ""
        return (
            f"embed_dims={size(PATCH_EMBED, 0)}, depth={sum(map(bool, map(_BLOCK.match, state)))}, "
            f"patch_size={size(PATCH_EMBED, 2)}, MLP width {size('blocks.0.mlp.fc1.weight', 0)}, "
            f"qkv_bias={'blocks.0.attn.qkv.bias' in state}, "
            f"use_abs_pos={POS_EMBED in state}{patches}, "
            f"use_rel_pos={any(map(REL_POS.search, state))}, "
            f"{'rotary positions, ' * (PERIODS in state)}"
            f"prefix_tokens={' + '.join(map(str, tokens)) or 0}, "
            f"final_norm={'norm.weight' in state}, layer scale {'blocks.0.ls1.gamma' in state}, "
            f"mask modules: {some(mergers) or 'none'}"
        )


VIT = ViTFamily()


def _joined(state: Mapping[str, Any]) -> dict[str, Any]:
    """Layers in one, as ours are: gates and values of a SwiGLU; biases of queries, keys and values,
    where there is none of keys. What is not there in whole stays, so that it is reported."""
    joined: dict[str, Any] = {}
    for key, value in state.items():
        gate, other, both = GATES
        if gate in key and (second := key.replace(gate, other)) in state:
            joined[key.replace(gate, both)] = torch.cat([value, state[second]])
        elif other in key and key.replace(other, gate) in state:
            pass  # done with its gate
        elif key.endswith(".q_bias") and (second := f"{key[: -len('q_bias')]}v_bias") in state:
            bias = torch.cat([value, torch.zeros_like(value), state[second]])
            joined[f"{key[: -len('q_bias')]}qkv.bias"] = bias
        elif key.endswith(".v_bias") and f"{key[: -len('v_bias')]}q_bias" in state:
            pass
        elif key.endswith(".qkv.bias") and (mask := state.get(f"{key}_mask")) is not None:
            joined[key] = torch.where(mask == 1, value, 0)  # DINOv3's own; of keys, perhaps NaN
        elif not (key.endswith(".qkv.bias_mask") and key[: -len("_mask")] in state):
            joined[key] = value
    return joined


def _not_patches(rows: int, tokens: int, patches: int) -> int:
    """How many of a position embedding's first rows belong to tokens beside the map.

    As many as there are tokens (timm); or one, the class token's, whether it is still there (DINOv2
    with registers) or not (ViTDet); or none (DeiT-3). The number that leaves the model's patches
    is right, else that which leaves a square.

    Args:
        rows: R.
        tokens: T of the checkpoint.
        patches: The model's; 0 if it embeds no positions.
    """
    choices = (tokens, 1, 0) if tokens else (0, 1)
    if patches and rows - patches in choices:
        return rows - patches
    squares = (n for n in choices if rows > n and math.isqrt(rows - n) ** 2 == rows - n)
    return next(squares, tokens)


def _are_sequences(values: list[Any]) -> bool:
    """Whether all are tensors (1, n, C), of one C."""
    shapes = [tuple(value.shape) if isinstance(value, Tensor) else () for value in values]
    return all(len(s) == 3 and s[::2] == (1, shapes[0][2]) for s in shapes)
