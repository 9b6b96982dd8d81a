"""Multiply-accumulates and parameters of a detector, counted while it runs.

torch's ``FlopCounterMode`` sees every operator a forward pass calls, so batched matrix products,
attention and matrix-product merging count, whichever module or function they sit in. It counts
matrix products and convolutions at two flops a multiply-accumulate; everything else (norms,
softmax, additions, interpolation, RoIAlign, NMS) counts nothing, as is usual in the literature.
Scaled dot-product attention is made to run as the matrix products it stands for, since which of
its fused kernels the counter knows depends on the version of torch.

The model runs on torch's meta device: shapes without numbers, no memory, no arithmetic.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from mmdet.models import BaseRoIHead, SingleStageDetector, TwoStageDetector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ltm_det.detectors.lean import Recipe
from ltm_det.engine.building import building

PROPOSALS = 1000
MASK_ROIS = 100
ATTENTION = {"attn", "w_msa"}  # names of attention modules


class Counts(NamedTuple):
    """Multiply-accumulates (an integer) and parameters of each part of a model, by its name.

    A name with a dot is a part of another one: ``backbone.stages.0`` of ``backbone``.
    """

    macs: dict[str, int]
    params: dict[str, int]


def count_macs(model: nn.Module, shape: tuple[int, int]) -> Counts:
    """Counts a two-stage or single-stage detector on one image.

    So that the count depends on neither weights nor image, the RoI heads get a fixed number of
    boxes in place of what the RPN finds: each box head 1000, each mask head 100. These are the
    numbers of mmdet's own counter for Mask R-CNN. A cascade runs every box head on 1000 and every
    mask head on 100. A lean recipe that asks for fewer has its own numbers counted.

    Args:
        model: The detector. It is left as it is: a copy is counted, in evaluation mode.
        shape: Height and width of the image, in pixels, as the backbone sees it.

    Returns:
        Counts under 'detector', its parts 'backbone', 'neck', 'rpn_head', 'roi_head' (or
        'bbox_head'), and the parts of the backbone. A Swin stage includes the patch merging at
        its end.

    Raises:
        TypeError: The model is neither a two-stage nor a single-stage detector.
    """
    if not isinstance(model, (TwoStageDetector, SingleStageDetector)):
        raise TypeError(
            "only two-stage and single-stage detectors can be counted as a whole, but got "
            f"{type(model).__name__}; use count_backbone on its backbone"
        )
    model = copy.deepcopy(model).to("meta")
    model.eval()
    macs, params, features = backbone_counts(model.backbone, shape)
    if model.with_neck:
        macs["neck"], features = count_call(model.neck, features)
    if isinstance(model, TwoStageDetector):
        if model.with_rpn:
            macs["rpn_head"], _ = count_call(model.rpn_head, features)
        macs["roi_head"], _ = count_call(run_roi_head, model.roi_head, features, *regions_of(model))
    else:
        macs["bbox_head"], _ = count_call(model.bbox_head, features)
    params |= {name: parameters(getattr(model, name)) for name in macs if "." not in name}
    macs = {"detector": sum(n for name, n in macs.items() if "." not in name), **macs}
    return Counts(macs, {"detector": parameters(model), **params})


def count_backbone(backbone: nn.Module, shape: tuple[int, int]) -> Counts:
    """Counts a backbone alone, as :func:`count_macs` does, under 'backbone' and its parts."""
    backbone = copy.deepcopy(backbone).to("meta")
    backbone.eval()  # not chained: on mmdet's Swin it returns None
    macs, params, _ = backbone_counts(backbone, shape)
    return Counts(macs, params)


def attention_macs(backbone: nn.Module, shape: tuple[int, int]) -> int:
    """Multiply-accumulates of attention's own products in a backbone, on one image.

    These are all products inside modules named ``attn`` or ``w_msa`` that are not linear layers:
    queries with keys, attention with values, and those that make relative positions.
    """
    backbone = copy.deepcopy(backbone).to("meta")
    backbone.eval()
    counter = FlopCounterMode(display=False)
    count_call(backbone, torch.empty(1, 3, *shape, device="meta"), counter=counter)
    flops = counter.get_flop_counts()

    def products(name: str) -> int:
        """Without products that add a bias: linear layers called as functions, not as modules."""
        counts = flops.get(f"{type(backbone).__name__}.{name}", {})
        return sum(n for op, n in counts.items() if op != torch.ops.aten.addmm)

    total = 0
    for name, module in backbone.named_modules():
        *parents, own = name.split(".")
        if own in ATTENTION and not ATTENTION & {*parents}:  # the outermost one holds the rest
            total += products(name)
            for inner, layer in module.named_modules():
                if isinstance(layer, nn.Linear):
                    total -= products(f"{name}.{inner}")
    return total // 2


def backbone_counts(backbone: nn.Module, shape: tuple[int, int]) -> tuple[dict, dict, Tensor]:
    """Macs and parameters of a backbone on the meta device, and its features."""
    counter = FlopCounterMode(display=False)
    image = torch.empty(1, 3, *shape, device="meta")
    total, features = count_call(backbone, image, counter=counter)
    flops = counter.get_flop_counts()
    macs, params = {"backbone": total}, {"backbone": parameters(backbone)}
    for name, part in backbone_parts(backbone):
        count = sum(flops.get(f"{type(backbone).__name__}.{name}", {}).values()) // 2
        if count:
            macs[f"backbone.{name}"] = count
            params[f"backbone.{name}"] = parameters(part)
    other = total - sum(n for name, n in macs.items() if "." in name)
    if other:
        macs["backbone.other"] = other
        params["backbone.other"] = params["backbone"] - sum(
            n for name, n in params.items() if "." in name
        )
    return macs, params, features


def backbone_parts(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children of a backbone, and in place of a list of stages or blocks its items."""
    parts = []
    for name, child in backbone.named_children():
        if isinstance(child, nn.ModuleList):
            parts += [(f"{name}.{i}", item) for i, item in enumerate(child)]
        else:
            parts.append((name, child))
    return parts


def count_call(
    function: Callable, *args: object, counter: FlopCounterMode | None = None
) -> tuple[int, object]:
    """The multiply-accumulates of ``function(*args)``, and what it returns."""
    counter = counter or FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        out = function(*args)
    return counter.get_total_flops() // 2, out


def regions_of(model: nn.Module) -> tuple[int, int]:
    """How many regions each box head gets, and each mask head."""
    recipe = getattr(model, "recipe", None) or Recipe()
    most = recipe.proposals or PROPOSALS, recipe.masks or MASK_ROIS
    return min(PROPOSALS, most[0]), min(MASK_ROIS, most[1])


def run_roi_head(
    head: BaseRoIHead, features: tuple[Tensor, ...], proposals: int, masks: int
) -> None:
    """Runs every box head on so many regions, and every mask head.

    RoIAlign, which costs no matrix product, gives way to features of the right shape: which level
    it would read from depends on the boxes.
    """
    for name, extractor in head.named_modules():
        if name.startswith(("bbox_roi_extractor", "mask_roi_extractor")):
            if hasattr(extractor, "roi_layers"):
                extractor.forward = RoIFeatures(extractor)
    for kind, run, number in (
        ("bbox", "_bbox_forward", proposals),
        ("mask", "_mask_forward", masks),
    ):
        if not getattr(head, f"with_{kind}"):
            continue
        rois = torch.empty(number, 5, device="meta")
        heads = getattr(head, f"{kind}_head")
        stages = [(i,) for i in range(len(heads))] if isinstance(heads, nn.ModuleList) else [()]
        for stage in stages:
            getattr(head, run)(*stage, features, rois)


class RoIFeatures:
    """Stands in for a RoI extractor: features of its output's shape, (rois, C, side, side)."""

    def __init__(self, extractor: nn.Module) -> None:
        self.channels = extractor.out_channels
        self.size = extractor.roi_layers[0].output_size

    def __call__(self, features: tuple[Tensor, ...], rois: Tensor, *args: object) -> Tensor:
        return features[0].new_empty(len(rois), self.channels, *self.size)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def build_detector(cfg: Config) -> nn.Module:
    """Builds the detector of a config with every pretrained checkpoint switched off."""
    init_default_scope(cfg.get("default_scope", "mmdet"))
    with building(cfg):
        return MODELS.build(without_pretraining(cfg.model))


def build_backbone(cfg: Config) -> nn.Module:
    """Builds the backbone of a config's detector, without any pretrained checkpoint."""
    init_default_scope(cfg.get("default_scope", "mmdet"))
    with building(cfg):
        return MODELS.build(without_pretraining(cfg.model.backbone))


def without_pretraining(node: object) -> object:
    """A copy of a model's config in which every ``init_cfg`` that loads a file is None."""
    node = copy.deepcopy(node)
    nodes = [node]
    while nodes:
        part = nodes.pop()
        if isinstance(part, dict):
            init = part.get("init_cfg")
            if isinstance(init, dict) and init.get("checkpoint"):
                part["init_cfg"] = None
            nodes += part.values()
        elif isinstance(part, (list, tuple)):
            nodes += part
    return node


def dense_twin(cfg: Config) -> Config | None:
    """The config with its backbone's merger switched off; None where it has none to switch off."""
    if cfg.model.backbone.get("merger") is None:
        return None
    twin = copy.deepcopy(cfg)
    twin.model.backbone.merger = None
    return twin


def compare(cfg: Config, shape: tuple[int, int]) -> dict[str, Counts]:
    """Counts a config's detector: under 'dense', and under 'merged' where its backbone merges."""
    twin = dense_twin(cfg)
    if twin is None:
        return {"dense": count_macs(build_detector(cfg), shape)}
    return {
        "dense": count_macs(build_detector(twin), shape),
        "merged": count_macs(build_detector(cfg), shape),
    }


def as_table(counts: dict[str, Counts]) -> str:
    """An aligned table of :func:`compare`: GMACs and millions of parameters of every part."""
    rows = [["", *(f"{side} GMACs" for side in counts)]]
    rows[0] += ["ratio"] if "merged" in counts else []
    rows[0] += [f"{side} M params" for side in counts]
    for name in dict.fromkeys(name for side in counts.values() for name in side.macs):
        macs = [side.macs.get(name, 0) for side in counts.values()]
        params = [side.params.get(name, 0) for side in counts.values()]
        ratio = [f"{macs[1] / macs[0]:.3f}" if macs[0] else "-"] if len(macs) == 2 else []
        label = "  " + name.partition(".")[2] if "." in name else name
        rows.append(
            [label, *(f"{n / 1e9:.2f}" for n in macs), *ratio, *(f"{n / 1e6:.2f}" for n in params)]
        )
    return aligned(rows)


def aligned(rows: list[list[str]]) -> str:
    """Rows of cells as lines: the first column aligned to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        row[0].ljust(widths[0]) + "".join(f"  {c:>{w}}" for c, w in zip(row[1:], widths[1:]))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
