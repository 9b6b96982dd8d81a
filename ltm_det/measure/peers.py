"""timm's and torchvision's Swin and timm's ViTDet, as backbones to set ours beside.

They are registered under the arguments of mmdet's Swin and of LTMViT, so that a config's backbone
becomes a peer by its ``type``; and they take our weights.

Shapes: B images, C channels, H x W grid.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmdet.registry import MODELS
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.swin_transformer import SwinTransformer as TimmSwinTransformer
from timm.models.vision_transformer_sam import Block
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwinTransformer

from ltm_det.basics.errors import InputError

# Arguments that say nothing of a forward pass, and those whose other values the peers lack.
SILENT = {"init_cfg", "convert_weights", "frozen_stages", "norm_eval", "pretrained"}
SWIN_LACKS = dict(patch_norm=True, use_abs_pos_embed=False, qk_scale=None, qkv_bias=True)
SWIN_LACKS |= dict(in_channels=3, drop_rate=0.0, attn_drop_rate=0.0, with_cp=False)
STAGE_PART = re.compile(r"stages\.(\d+)\.(blocks|downsample)")
VIT_LACKS = dict(prefix_tokens=0, with_cp=False, mlp="gelu", rope_base=None, norm_eps=1e-6)


class PeerSwin(nn.Module):
    """Another project's Swin with mmdet's output norms and layout of maps.

    Attributes:
        names: Its own for parts of the names of mmdet's parameters.
    """

    names: Mapping[str, str]

    def __init__(
        self,
        embed_dims: int = 96,
        patch_size: int = 4,
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.1,
        pretrain_img_size: int = 224,  # for absolute positions alone
        **options,
    ) -> None:
        super().__init__()
        check_options(self, options, SWIN_LACKS)
        self.out_indices = tuple(out_indices)
        for i in self.out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(embed_dims * 2**i))
        sizes = dict(embed_dim=embed_dims, depths=list(depths), num_heads=list(num_heads))
        self.add_body(
            dict(sizes, mlp_ratio=mlp_ratio, num_classes=1), patch_size, window_size, drop_path_rate
        )

    def add_body(
        self, sizes: dict[str, Any], patch_size: int, window_size: int, drop_path_rate: float
    ) -> None:
        raise NotImplementedError

    def place(self, stage: int, part: str) -> str:
        """Its own name for 'blocks' or 'downsample' of a stage."""
        raise NotImplementedError

    def stage_outputs(self, x: Tensor) -> Iterable[Tensor]:
        """Images to each stage's tokens (B, H, W, C), before the next one's patch merging."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to the maps (B, C_i, H_i, W_i) of ``out_indices``."""
        return [
            getattr(self, f"norm{i}")(out).permute(0, 3, 1, 2).contiguous()
            for i, out in enumerate(self.stage_outputs(x))
            if i in self.out_indices
        ]

    def share(self, dense: nn.Module) -> None:
        """Takes the weights of a dense LTMSwin: the very tensors, but for patch merging's."""
        state = {}
        for key, value in dense.state_dict().items():
            if ".downsample." in key:
                value = swin_order(value)
            if match := STAGE_PART.match(key):
                key = self.place(int(match[1]), match[2]) + key[match.end() :]
            for old, new in self.names.items():
                key = key.replace(old, new)
            state[key] = value
        own = {key: value for key, value in self.state_dict().items() if key.endswith("_index")}
        self.load_state_dict({**own, **state}, strict=True, assign=True)


def swin_order(value: Tensor) -> Tensor:
    """Undoes :func:`ltm_det.backbones.swin.weights.unfold_order`, on the last axis, 4C."""
    return value.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)


@MODELS.register_module()
class TimmSwin(PeerSwin):
    """timm's, for images of any size: it makes its shift masks in every pass, as mmdet's does.

    Where a map is no multiple of the window, it pads after the shift, others before.
    """

    names = {
        ".w_msa.": ".",
        ".ffn.layers.0.0.": ".mlp.fc1.",
        ".ffn.layers.1.": ".mlp.fc2.",
        ".projection.": ".proj.",
    }

    def place(self, stage: int, part: str) -> str:
        return f"layers.{stage}.blocks" if part == "blocks" else f"layers.{stage + 1}.downsample"

    def add_body(
        self, sizes: dict[str, Any], patch_size: int, window_size: int, drop_path_rate: float
    ) -> None:
        model = TimmSwinTransformer(
            patch_size=patch_size,
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            strict_img_size=False,
            always_partition=True,  # whatever its own image size: a window is never made smaller
            **sizes,
        )
        self.patch_embed, self.layers = model.patch_embed, model.layers

    def stage_outputs(self, x: Tensor) -> Iterable[Tensor]:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
            yield x


@MODELS.register_module()
class TorchvisionSwin(PeerSwin):
    """torchvision's. Where a map is no larger than a window, it doesn't shift."""

    names = {
        ".w_msa.": ".",
        ".ffn.layers.0.0.": ".mlp.0.",
        ".ffn.layers.1.": ".mlp.3.",
        "patch_embed.projection.": "features.0.0.",
        "patch_embed.norm.": "features.0.2.",
    }

    def place(self, stage: int, part: str) -> str:
        return f"features.{2 * stage + (1 if part == 'blocks' else 2)}"

    def add_body(
        self, sizes: dict[str, Any], patch_size: int, window_size: int, drop_path_rate: float
    ) -> None:
        self.features = TorchvisionSwinTransformer(
            patch_size=[patch_size] * 2,
            window_size=[window_size] * 2,
            stochastic_depth_prob=drop_path_rate,
            **sizes,
        ).features

    def stage_outputs(self, x: Tensor) -> Iterable[Tensor]:
        embed, *rest = self.features
        x = embed(x)
        for i, part in enumerate(rest):  # stages and patch mergings in turn
            x = part(x)
            if i % 2 == 0:
                yield x


@MODELS.register_module()
class TimmViTDet(nn.Module):
    """timm's ViT in ViTDet's layout: the blocks of its VisionTransformerSAM."""

    def __init__(
        self,
        *,
        embed_dims: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        patch_size: int = 16,
        in_channels: int = 3,
        qkv_bias: bool = True,
        pretrain_img_size: int = 224,
        img_size: int = 1024,
        window_size: int = 14,
        global_blocks: Sequence[int] | None = None,
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        final_norm: bool = False,
        init_values: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **options,
    ) -> None:
        super().__init__()
        check_options(self, options, VIT_LACKS)
        if global_blocks is None:
            global_blocks = [depth * quarter // 4 - 1 for quarter in range(1, 5)]
        self.grid = (pretrain_img_size // patch_size,) * 2
        self.patch_embed = PatchEmbed(
            None, patch_size, in_channels, embed_dims, output_fmt="NHWC", dynamic_img_pad=True
        )
        self.pos_embed = None
        if use_abs_pos:
            self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], embed_dims))
        self.pos_drop = nn.Dropout(drop_rate)
        drops = torch.linspace(0, drop_path_rate, depth).tolist()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.Sequential(
            *(
                Block(
                    embed_dims,
                    num_heads,
                    mlp_ratio,
                    qkv_bias,
                    proj_drop=drop_rate,
                    attn_drop=attn_drop_rate,
                    init_values=init_values,
                    drop_path=drops[i],
                    norm_layer=norm,
                    use_rel_pos=use_rel_pos,
                    window_size=0 if i in global_blocks else window_size,
                    input_size=(img_size // patch_size,) * 2,
                )
                for i in range(depth)
            )
        )
        self.norm = norm(embed_dims) if final_norm else nn.Identity()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, h, w) to one map (B, C, H, W)."""
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            hw = tuple(x.shape[1:3])
            x = x + resample_abs_pos_embed(
                self.pos_embed, hw, self.grid, num_prefix_tokens=0, antialias=False
            ).unflatten(1, hw)
        x = self.norm(self.blocks(self.pos_drop(x)))
        return [x.permute(0, 3, 1, 2).contiguous()]


def check_options(peer: nn.Module, options: Mapping[str, Any], lacks: Mapping[str, Any]) -> None:
    """Refuses an argument of our backbone that would make it differ from the peer."""
    for key, value in options.items():
        if key not in SILENT and not (key in lacks and value == lacks[key]):
            raise InputError(
                f"{type(peer).__name__} cannot have {key}={value!r}: leave it out of the "
                "benchmark, or change the config"
            )
