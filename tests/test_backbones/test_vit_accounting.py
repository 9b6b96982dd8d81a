"""Loading ViT weights: every key accounted for."""

import re

import pytest
import torch

from tests.test_backbones.vit_checkpoints import C, load_accounted, source, vit

WRONG = {
    "two tokens for one": (
        "distilled",
        dict(prefix_tokens=1),
        r"prefix_tokens: \(1, 2, 24\) in the checkpoint, \(1, 1, 24\) in.*checkpoint: .*prefix_tok"
        r"ens=2, .*model: .*prefix_tokens=1, .*remedy: set prefix_tokens to the number",
    ),
    "no token for one": (
        "none",
        dict(prefix_tokens=1),
        "1 missing: prefix_tokens.*remedy: set prefix_tokens to the number",
    ),
    "layer scale": (
        "deit3",
        {},
        r"6 unexpected: blocks.0.ls1.gamma \(24,\).*layer scale True.*set init_values=1e-5",
    ),
    "no layer scale": ("class", dict(init_values=1.0), "6 missing: .*ls2.*set init_values=None"),
    "no positions": (
        "class",
        dict(use_abs_pos=False),
        r"2 unexpected: pos_embed \(1, 16, 24\), pos_embed\[:, :1\] .*set use_abs_pos=True",
    ),
    "no qkv bias": (
        "class",
        dict(qkv_bias=False),
        r"3 unexpected: blocks.0.attn.qkv.bias \(72,\).*qkv_bias=True, .*remedy: set qkv_bias=True",
    ),
    "width": (
        "class",
        dict(embed_dims=48),
        r"pos_embed: \(1, 16, 24\) in the checkpoint, \(1, 16, 48\) in.*embed_dims=24, .*"
        "embed_dims=48, .*remedy: give the model the checkpoint's sizes",
    ),
    "deeper": ("class", dict(depth=4), "12 missing: blocks.3.*depth=3, .*depth=4, .*'s sizes"),
    "shallower": (
        "class",
        dict(depth=2, global_blocks=[1]),
        "12 unexpected: blocks.2.*depth=3, .*depth=2, .*'s sizes",
    ),
    "MLP": ("class", dict(mlp_ratio=2.0), r"\(96, 24\) in the .*\(48, 24\) in.*MLP width 96.*h 48"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_sizes_raise(wrong):
    name, options, message = WRONG[wrong]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_accounted(vit(**options), source(name))


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("^pos_embed", "1 missing: pos_embed.*remedy: set use_abs_pos=False"),
        (r"qkv\.bias", "3 missing: blocks.0.attn.qkv.bias.*remedy: set qkv_bias=False"),
        (r"^norm\.", r"2 missing: norm\.weight, norm\.bias.*remedy: set final_norm=False"),
        ("^cls_token", "1 missing: prefix_tokens.*remedy: set prefix_tokens"),
        (r"blocks\.1\.mlp\.fc2\.bias", r"1 missing: blocks\.1\.mlp\.fc2\.bias.*'s sizes"),
    ],
)
def test_lacking_keys_raise(pattern, message):
    state = {k: v for k, v in source().items() if not re.search(pattern, k)}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_accounted(vit(final_norm=True, prefix_tokens=1), state)


@pytest.mark.parametrize("key, value", [
    ("cls_token", 1.0), ("cls_token", torch.zeros(C)), ("cls_token", torch.zeros(1, 1, C + 1)),
    ("pos_embed", "x"), ("pos_embed", torch.zeros(1, C, 4, 4)), ("blocks.0.norm1.bias", [0.0]),
])  # fmt: skip
def test_malformed_tensors_are_reported(key, value):
    with pytest.raises(ValueError, match=rf"(?s)does not fit.*{key}.*checkpoint: embed_dims=24"):
        load_accounted(vit(prefix_tokens=1), source() | {key: value})


def test_unknown_keys_raise():
    state = source() | {"norm_pre.weight": torch.zeros(C), "blocks.0.mlp.w9.bias": torch.zeros(7)}
    message = r"(?s)in 2 keys.*2 unexpected: norm_pre.weight \(24,\), blocks.0.mlp.w9.bias \(7,\)"
    with pytest.raises(ValueError, match=message):
        load_accounted(vit(), state)


@pytest.mark.parametrize(
    "key",
    [
        "conv1.weight",
        "layers.0.blocks.0.attn.qkv.weight",
        "stages.0.blocks.0.attn.w_msa.qkv.weight",
        "blocks.0.0.attn.qkv.weight",
    ],
)
def test_unknown_format(key):
    with pytest.raises(ValueError, match=rf"no ViT block under '.*'.*{key}.*Supported: .*prefix"):
        load_accounted(vit(), {key: torch.zeros(1)})


def test_two_names_for_one_tensor():
    """Neither is dropped in silence."""
    with pytest.raises(ValueError, match="has norm.weight under two names"):
        load_accounted(vit(), source() | {"ln1.weight": torch.zeros(C)})
    own = vit(prefix_tokens=1).state_dict() | {"cls_token": torch.zeros(1, 1, C)}
    with pytest.raises(ValueError, match="1 unexpected: cls_token"):
        load_accounted(vit(prefix_tokens=1), own)
