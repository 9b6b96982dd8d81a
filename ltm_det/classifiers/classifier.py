"""Classifiers in timm's grammar: a backbone of ours, and the head of its twin in timm.

Shapes: B images, C channels, H x W map, Y classes.
"""

from typing import Any

from torch import Tensor, nn

from ltm_det.backbones.common.accounting import MASK_MODULE
from ltm_det.basics.errors import InputError

# Of timm's layer-wise rates: which parameters belong to one layer, and the order of layers. This
# ordinal counts a part with the layer before it.
WITH_THE_ONE_BEFORE = (99999,)
STEM = r"^backbone\.(?:stem|patch_embed|pos_embed|prefix_tokens)"
STAGES = r"^backbone\.(?:stages|blocks|mergers)\.(\d+)"
BLOCKS = [
    (r"^backbone\.stages\.(\d+)\.(?:blocks\.|mergers\.)?(\d+)", None),
    (r"^backbone\.(?:blocks|mergers)\.(\d+)", None),
    (r"^backbone\.stages\.(\d+)\.downsample", WITH_THE_ONE_BEFORE),
    (r"^(?:backbone\.norm|final_conv)", WITH_THE_ONE_BEFORE),
]
NOT_DECAYED = ("pos_embed", "prefix_tokens", "relative_position_bias_table")


class Classifier(nn.Module):
    """A backbone's last map, and timm's head on it: pooling, and a linear layer.

    It has what timm's scripts ask of a model. State dicts have the backbone's names below
    'backbone.', so that what was trained here starts a detector, and timm's names for the rest;
    those that are loaded may also be timm's, of the dense twin.

    Args:
        backbone: One of ours, which gives out its last map.
        head: timm's.
        classifier: Name of the linear layer, from the model on.
        in_chans, num_features: Channels of the image, and of the map that the head reads.
        num_classes: Y; 0 for pooled features in the place of logits.
        global_pool: The head's pooling.
        final_conv: Between them, or None for nothing.
        renames: The backbone's own names for what timm has outside of its stages.
        recomputes: Whether activations may be computed again in the backward pass.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        classifier: str,
        in_chans: int,
        num_features: int,
        num_classes: int,
        global_pool: str,
        final_conv: nn.Module | None = None,
        renames: dict[str, str] | None = None,
        recomputes: bool = True,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.final_conv = nn.Identity() if final_conv is None else final_conv
        self.classifier = classifier
        self.in_chans, self.num_features = in_chans, num_features
        self.head_hidden_size = getattr(head, "num_features", num_features)
        self.num_classes, self.global_pool = num_classes, global_pool
        self.renames, self.recomputes = renames or {}, recomputes

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, h, w) to logits (B, Y)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, h, w) to the map (B, C, H, W) that the head reads."""
        return self.final_conv(self.backbone(x)[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, H, W) to logits (B, Y), or with ``pre_logits`` to what the last layer reads."""
        return self.head(x, pre_logits=pre_logits)

    def get_classifier(self) -> nn.Module:
        """The linear layer."""
        return self.get_submodule(self.classifier)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new linear layer for another number of classes, and where it is given, pooling."""
        self.head.reset(num_classes, global_pool)
        self.num_classes = num_classes
        self.global_pool = global_pool or self.global_pool

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks compute their activations again in the backward pass.

        Raises:
            InputError: This backbone's can't.
        """
        if enable and not self.recomputes:
            raise InputError(
                f"{type(self.backbone).__name__} can't train with --grad-checkpointing: batch "
                "norms in its blocks would take each batch twice into their statistics"
            )
        for module in self.backbone.modules():
            if hasattr(module, "with_cp"):
                module.with_cp = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that no weight decay is for: positions, and mask modules."""
        names = [name for name, _ in self.named_parameters()]
        return {n for n in names if n.endswith(NOT_DECAYED) or MASK_MODULE.search(n)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the parameters of the stem, and of each stage or block."""
        return dict(stem=STEM, blocks=STAGES if coarse else BLOCKS)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Puts timm's names below 'backbone.', where the backbone accounts for each."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key.removeprefix(prefix)
            if name.partition(".")[0] not in self._modules:
                for timms, ours in self.renames.items():
                    name = ours + name.removeprefix(timms) if name.startswith(timms) else name
                state_dict[f"{prefix}backbone.{name}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


class TokenClassifier(Classifier):
    """A :class:`.ClassTokenViT` and a linear layer on its class token, as of timm's ViT.

    Args:
        drop_rate: Of the features that the linear layer reads, in training.
    """

    def __init__(self, *args: Any, drop_rate: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head_drop = nn.Dropout(drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, h, w) to the class token (B, C)."""
        return self.backbone(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C) to logits (B, Y), or with ``pre_logits`` to what the last layer reads."""
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new linear layer for another number of classes.

        Raises:
            InputError: Of another pooling than the class token.
        """
        check_token(global_pool)
        old = self.backbone.prefix_tokens
        self.head = linear(self.num_features, num_classes).to(old.device, old.dtype)
        self.num_classes = num_classes


def check_token(global_pool: str | None) -> None:
    """Raises InputError for another pooling than a ViT's class token."""
    if global_pool not in (None, "token"):
        raise InputError(
            f"global_pool={global_pool!r}: a ViT of ours reads its class token: 'token'"
        )


def linear(features: int, classes: int) -> nn.Module:
    """A classifier as timm's transformers start it; without classes nothing."""
    return started(nn.Linear(features, classes)) if classes else nn.Identity()


def started(model: nn.Module) -> nn.Module:
    """A model whose linear layers and tables of positions begin as those of timm's transformers."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        table = getattr(module, "relative_position_bias_table", None)
        if table is not None:
            nn.init.trunc_normal_(table, std=0.02)
    return model
