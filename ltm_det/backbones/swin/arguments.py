"""LTMSwin's arguments: what they have to be."""

from collections.abc import Mapping
from typing import Any

from ltm_det.backbones.common.arguments import check_start, window
from ltm_det.basics.arguments import flag, many, number, optional, size, text, whole
from ltm_det.basics.errors import InputError
from ltm_det.compat.layers import check_activation, check_norm

# Of mmdet's SwinTransformer, which checks next to nothing.
RULES = dict(
    pretrain_img_size=size,
    in_channels=whole(1),
    embed_dims=whole(1),
    patch_size=whole(1),
    window_size=window,
    mlp_ratio=whole(1, 1000),
    depths=many(whole(1)),
    num_heads=many(whole(1)),
    strides=many(whole(1)),
    out_indices=many(whole()),
    qkv_bias=flag,
    qk_scale=optional(number()),
    patch_norm=flag,
    drop_rate=number(0, most=1),
    attn_drop_rate=number(0, most=1),
    drop_path_rate=number(0, below=1),
    use_abs_pos_embed=flag,
    with_cp=flag,
    pretrained=optional(text),
    convert_weights=flag,
    frozen_stages=whole(-1),
)


def check_stages(owner: str, args: Mapping[str, Any], named: Mapping[str, Any]) -> None:
    """What arguments have to be together.

    Args:
        owner: Whose they are.
        args: All, with mmdet's defaults.
        named: Those that were given: what the defaults have too much does no harm.

    Raises:
        InputError: Lengths differ, heads do not divide channels, there is no such stage.
    """
    depths, width = args["depths"], args["embed_dims"]
    last = len(depths) - 1
    for name in ("num_heads", "strides"):
        value = args[name]
        if len(value) < len(depths) or (name in named and len(value) > len(depths)):
            raise InputError(
                f"{owner}: {name}={value!r} has {len(value)} entries for the {len(depths)} stages "
                f"of depths={depths!r}: give one for each"
            )
    for i, heads in enumerate(args["num_heads"][: last + 1]):
        if width * 2**i % heads:
            raise InputError(
                f"{owner}: num_heads[{i}]={heads} does not divide the {width * 2**i} channels of "
                f"stage {i} (embed_dims={width} times {2**i})"
            )
    outs = args["out_indices"]
    if max(outs) > last or list(outs) != sorted(set(outs)):
        raise InputError(
            f"{owner}: out_indices={outs!r} must name stages of 0 to {last}, as depths={depths!r} "
            "has them, in ascending order, each once"
        )
    if args["strides"][0] != args["patch_size"]:
        raise InputError(
            f"{owner}: strides={args['strides']!r} must start with patch_size={args['patch_size']}"
        )
    if args["frozen_stages"] > last + 1:
        raise InputError(
            f"{owner}: frozen_stages={args['frozen_stages']} must be a whole number from -1 to "
            f"{last + 1}, the stages of depths={depths!r}"
        )
    sides = args["pretrain_img_size"]
    least = sides if isinstance(sides, int) else min(sides)
    if args["use_abs_pos_embed"] and least < args["patch_size"]:
        raise InputError(
            f"{owner}: pretrain_img_size={sides!r} holds no patch of {args['patch_size']} pixels"
        )
    check_norm(f"{owner}: norm_cfg", args["norm_cfg"], width, (2, 3, width))
    check_activation(f"{owner}: act_cfg", args["act_cfg"])
    check_start(owner, args["init_cfg"])
