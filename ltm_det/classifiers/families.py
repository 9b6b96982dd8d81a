"""How the classifiers of each family are put together: a backbone of ours under timm's head.

All take the same: the backbone's ``merger``, and of timm.create_model ``num_classes``,
``in_chans``, ``global_pool``, ``drop_rate`` (of what the last layer reads) and ``drop_path_rate``,
with the defaults that timm's own model has.
"""

from typing import Any

import timm
from timm.layers import ClassifierHead
from torch import nn

from ltm_det.backbones import LTMEfficientViT, LTMMobileViT, LTMSwin
from ltm_det.classifiers.classifier import Classifier, TokenClassifier, check_token, linear, started
from ltm_det.classifiers.vit import ClassTokenViT


def mobilevit(arch: str, **given: Any) -> Classifier:
    """A MobileViT under timm's last convolution and head."""
    theirs = f"mobilevit_{arch}"
    return convolutional(LTMMobileViT, arch, theirs, last=4, classifier="head.fc", **given)


def efficientvit(arch: str, **given: Any) -> Classifier:
    """An EfficientViT under timm's head, which has a convolution and a hidden layer of its own."""
    own = dict(last=3, classifier="head.classifier.4", recomputes=False)
    return convolutional(LTMEfficientViT, arch, f"efficientvit_{arch}", **own, **given)


def convolutional(
    kind: type[nn.Module],
    arch: str,
    theirs: str,
    *,
    last: int,
    classifier: str,
    recomputes: bool = True,
    merger: Any,
    num_classes: int,
    in_chans: int,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> Classifier:
    """A backbone of ``kind`` under what timm's model has behind its last stage.

    Args:
        theirs: Name of timm's model.
        last: Index of the backbone's last stage.
        classifier, recomputes: Of `Classifier`.
    """
    options = dict(num_classes=num_classes, global_pool=global_pool)
    twin = timm.create_model(theirs, drop_rate=drop_rate, **options)
    backbone = kind(
        arch=arch,
        in_channels=in_chans,
        out_indices=(last,),
        drop_path_rate=drop_path_rate,
        norm_eval=False,
        merger=merger,
    )
    return Classifier(
        backbone,
        twin.head,
        final_conv=getattr(twin, "final_conv", None),
        classifier=classifier,
        in_chans=in_chans,
        num_features=twin.num_features,
        recomputes=recomputes,
        **options,
    )


def vit(
    embed_dims: int,
    num_heads: int,
    *,
    merger: Any,
    num_classes: int,
    in_chans: int,
    global_pool: str = "token",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> TokenClassifier:
    """A plain ViT with global attention in each block, and a linear layer on its class token.

    What is merged are windows of 7 x 7 tokens, four of the map of an image of 224 x 224.
    """
    check_token(global_pool)
    if merger and merger["type"] == "LTM":
        merger = dict(detail=0.0) | merger  # nothing is restored that could need it
    backbone = ClassTokenViT(
        embed_dims=embed_dims,
        num_heads=num_heads,
        depth=12,
        global_blocks=range(12),
        window_size=7,
        in_channels=in_chans,
        prefix_tokens=1,
        final_norm=True,
        drop_path_rate=drop_path_rate,
        merger=merger,
    )
    return TokenClassifier(
        backbone,
        linear(embed_dims, num_classes),
        classifier="head",
        in_chans=in_chans,
        num_features=embed_dims,
        num_classes=num_classes,
        global_pool=global_pool,
        drop_rate=drop_rate,
    )


def swin(
    embed_dims: int,
    depths: tuple[int, ...],
    num_heads: tuple[int, ...],
    *,
    merger: Any,
    num_classes: int,
    in_chans: int,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.1,
) -> Classifier:
    """A Swin whose last map is normed, pooled, and read by a linear layer.

    Windows of the last stage never shift: of an image of 224 x 224 there is one, as timm has it.
    """
    backbone = LTMSwin(
        embed_dims=embed_dims,
        depths=depths,
        num_heads=num_heads,
        in_channels=in_chans,
        out_indices=(3,),
        drop_path_rate=drop_path_rate,
        merger=merger,
    )
    started(backbone)
    for block in backbone.stages[-1].blocks:
        block.attn.shift = 0
    features = embed_dims * 8
    head = ClassifierHead(features, num_classes, pool_type=global_pool, drop_rate=drop_rate)
    head.fc = linear(head.num_features, num_classes)
    return Classifier(
        backbone,
        head,
        classifier="head.fc",
        in_chans=in_chans,
        num_features=features,
        num_classes=num_classes,
        global_pool=global_pool,
        renames={"norm.": "norm3."},
    )
