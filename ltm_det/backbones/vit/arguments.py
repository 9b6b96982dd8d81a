"""LTMViT's arguments: what they have to be, and what they say of merging."""

from collections.abc import Mapping, Sequence
from typing import Any

from ltm_det.backbones.common.arguments import options_of, window
from ltm_det.basics.arguments import choice, flag, number, optional, size, whole
from ltm_det.basics.errors import InputError
from ltm_det.merging import check_ratio, kept_side

RULES = dict(
    embed_dims=whole(1),
    depth=whole(1),
    num_heads=whole(1),
    mlp_ratio=number(above=0, most=1000),
    mlp=choice(("gelu", "swiglu")),
    patch_size=whole(1),
    in_channels=whole(1),
    qkv_bias=flag,
    pretrain_img_size=size,
    img_size=size,
    window_size=window,
    query_groups=optional(whole(1)),
    group_keys=optional(whole(1)),
    use_abs_pos=flag,
    use_rel_pos=flag,
    rope_base=optional(number(above=1)),
    prefix_tokens=whole(),
    final_norm=flag,
    norm_eps=number(above=0, most=1),
    init_values=optional(number(-1000, most=1000)),
    drop_rate=number(0, most=1),
    attn_drop_rate=number(0, most=1),
    drop_path_rate=number(0, below=1),
    with_cp=flag,
    frozen_stages=whole(-1),
)


def check_sizes(
    embed_dims: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    mlp: str,
    global_blocks: Sequence[int],
    frozen_stages: int,
) -> None:
    """What arguments have to be together."""
    check_blocks("global_blocks", global_blocks, depth)
    if frozen_stages > depth:
        raise InputError(f"LTMViT: frozen_stages={frozen_stages}: give -1 to {depth}, the depth")
    if embed_dims % num_heads:
        raise InputError(
            f"LTMViT: embed_dims={embed_dims} must be a multiple of num_heads={num_heads}"
        )
    if int(embed_dims * mlp_ratio) < 1:
        raise InputError(
            f"LTMViT: mlp_ratio={mlp_ratio} leaves no channel of embed_dims={embed_dims}"
        )
    if mlp == "swiglu" and int(embed_dims * mlp_ratio) % 2:
        raise InputError(
            f"LTMViT: mlp_ratio={mlp_ratio} of embed_dims={embed_dims} makes "
            f"{int(embed_dims * mlp_ratio)} channels, half of which are a SwiGLU's gates: give a "
            "ratio that makes an even number"
        )


def check_positions(head_dim: int, use_rel_pos: bool, rope_base: float | None) -> None:
    """What positions have to be together, with D channels of a head."""
    if rope_base is not None and use_rel_pos:
        raise InputError(
            f"LTMViT: rope_base={rope_base} and use_rel_pos=True: attention has one kind of "
            "positions: set use_rel_pos=False, or rope_base=None"
        )
    if rope_base is not None and head_dim % 4:
        raise InputError(
            f"LTMViT: rope_base={rope_base} needs heads of a multiple of 4 channels, for sine and "
            f"cosine of rows and columns, got embed_dims / num_heads={head_dim}"
        )


def check_groups(
    query_groups: int | None, group_keys: int | None, blocks: Sequence[int], use_rel_pos: bool
) -> None:
    """What the arguments of grouped attention have to be together."""
    given = f"LTMViT: query_groups={query_groups} and group_keys={group_keys}"
    if (query_groups is None) != (group_keys is None):
        raise InputError(f"{given}: give both, or neither")
    if query_groups is not None and use_rel_pos:
        raise InputError(f"{given} do not go with use_rel_pos=True: set it to False")
    if query_groups is not None and not blocks:
        raise InputError(f"{given} are of global blocks, and global_blocks names none")


def parse_merger(
    merger: Mapping[str, Any] | None, depth: int, window: int
) -> tuple[dict[int, int], dict[str, Any]]:
    """For each block before which is merged, the side k; and the options left for the mergers."""
    if merger is None:
        return {}, {}
    own, options = options_of(merger, "LTMViT")
    ratios, blocks = own["compression_ratio"], own.get("merge_at")
    if blocks is None:
        blocks = max(depth // 4 - 1, 0)
    blocks = list(blocks) if isinstance(blocks, Sequence) else [blocks]
    one = isinstance(ratios, str) or not isinstance(ratios, Sequence)
    ratios = [ratios] * len(blocks) if one else list(ratios)
    check_blocks("merge_at", blocks, depth)
    if not blocks or blocks != sorted(set(blocks)):
        raise InputError(f"merge_at={blocks} must name blocks in ascending order, each once")
    if len(ratios) != len(blocks):
        raise InputError(
            f"compression_ratio={ratios} has {len(ratios)} entries for merge_at={blocks}: "
            "give one for each block"
        )
    sides, side = {}, window
    for block, ratio in zip(blocks, ratios, strict=True):
        kept = kept_side(check_ratio(ratio), window)
        if kept > side:
            raise InputError(
                f"compression_ratio={ratios} rises: merged tokens stay merged to the exit, so "
                "each ratio must be at most the one before"
            )
        if kept < side:
            sides[block] = side = kept
    return sides, options


def check_blocks(name: str, blocks: Sequence[int], depth: int) -> None:
    if not isinstance(blocks, Sequence) or isinstance(blocks, str):
        raise InputError(f"{name} must be a list of blocks, got {blocks!r}")
    for block in blocks:
        if not isinstance(block, int) or isinstance(block, bool) or not 0 <= block < depth:
            raise InputError(f"{name} names block {block!r}, but there are blocks 0 to {depth - 1}")


def grid_of(name: str, size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of the whole patches in a size, which an argument gives."""
    height, width = [*size] * (3 - len(size)) if isinstance(size, Sequence) else (size, size)
    if min(height, width) < patch_size:
        raise InputError(
            f"LTMViT: {name}={size!r}: {height}x{width} pixels hold no patch of "
            f"{patch_size}x{patch_size}"
        )
    return height // patch_size, width // patch_size
