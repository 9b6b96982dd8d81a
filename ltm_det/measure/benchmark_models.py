"""The models of a benchmark: backbones of one config and of the same weights, by name.

'dense' is the config's backbone without its merger, 'merged' the one with it; a merger's name is
another merger in the same places, at the same ratios; and there are the Swin Transformers of mmdet,
timm and torchvision, or for a ViT that of timm in ViTDet's layout, or the model of timm itself.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from torch import nn

from ltm_det.backbones.common.weights import share_weights
from ltm_det.basics.finite import worst
from ltm_det.measure import mobile_peers, peers
from ltm_det.measure.code import code_of, files_run
from ltm_det.measure.flops import build_backbone
from ltm_det.merging import MERGERS

DENSE, MERGED = "dense", "merged"
PEERS = {  # by the type of our backbone, others' by name; the first is the base of ratios
    "LTMSwin": {"mmdet": "SwinTransformer", "timm": "TimmSwin", "torchvision": "TorchvisionSwin"},
    "LTMViT": {"timm": "TimmViTDet"},
    "LTMMobileViT": {"timm": "TimmMobileViT"},
    "LTMEfficientViT": {"timm": "TimmEfficientViT"},
    "LTMPVTv2": {"timm": "TimmPVTv2"},
    "LTMConvNeXt": {"timm": "TimmConvNeXt"},
}
OURS = {"SwinTransformer": "LTMSwin", **{ours: ours for ours in PEERS}}
ON_GRIDS = ("LTMEfficientViT", "LTMPVTv2")  # take mergers that keep the grid alone
OF_ANY_MERGER = ("compression_ratio", "scope", "dense_blocks", "merge_at")
TOLERANCE = 1e-3  # of the largest number on a map


def known_models(cfg: Config) -> list[str]:
    """All names of models for a config, others' first.

    Raises:
        ValueError: Its backbone is not one of ours, nor mmdet's Swin.
    """
    kind = our_type(cfg)
    own = [*PEERS[kind], DENSE]
    if cfg.model.backbone.get("merger") is None:
        return own
    fit = [name for name, merger in MERGERS.items() if merger.keeps_grid or kind not in ON_GRIDS]
    return [*own, MERGED, *fit]


def our_type(cfg: Config) -> str:
    kind = cfg.model.backbone.type
    kind = (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]
    if kind not in OURS:
        raise ValueError(f"the backbone is a {kind}: there are peers of {[*OURS]}")
    return OURS[kind]


def timed_code(cfg: Config, part: str) -> dict[str, Any]:
    """What a pass of the config's 'backbone' or 'detector' runs, see
    :func:`ltm_det.measure.code.code_of`."""
    family = MODELS.get(our_type(cfg)).__module__.split(".")[-2]
    rest = ["detectors", "necks"] if part == "detector" else []
    return code_of(files_run([f"backbones/{family}", "cpu", "merging", *rest]))


def model_config(cfg: Config, name: str) -> Config:
    """The config with the backbone called ``name``, see :func:`known_models`.

    'merged' has the config's merger, a merger's name another one at the same places and ratios.

    Raises:
        ValueError: On any other name.
    """
    if name not in (known := known_models(cfg)):
        remedy = "" if MERGED in known else f"; {cfg.filename or 'the config'} has no merger"
        raise ValueError(f"unknown model {name!r}: choose from {known}{remedy}")
    cfg = copy.deepcopy(cfg)
    backbone, kind = cfg.model.backbone, our_type(cfg)
    backbone.type = PEERS[kind].get(name, kind)
    if name in PEERS[kind]:
        backbone.pop("merger", None)
        imports = dict(cfg.get("custom_imports") or {})
        names = imports.get("imports") or []
        names = [names] if isinstance(names, str) else names
        imports["imports"] = [*names, peers.__name__, mobile_peers.__name__]
        cfg.custom_imports = imports
    elif name == DENSE:
        backbone.merger = None
    elif name not in (MERGED, backbone.merger.type):
        own = {key: value for key, value in backbone.merger.items() if key in OF_ANY_MERGER}
        backbone.merger = ConfigDict(own, type=name)
    return cfg


def build_models(configs: Mapping[str, Config], device: str) -> dict[str, nn.Module]:
    """The backbones of configs by name, all with the weights of the one named 'dense'.

    The weights are random, those that would start as zero or one included.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = build_backbone(configs[DENSE]).to(device)
        with torch.no_grad():
            for parameter in dense.parameters():
                if parameter.min() == parameter.max():
                    parameter += 0.1 * torch.randn_like(parameter)
        models = {}
        for name, cfg in configs.items():
            model = dense if name == DENSE else build_backbone(cfg).to(device)
            if isinstance(model, peers.PeerSwin):
                model.share(dense)
            elif name != DENSE:
                share_weights(dense, model)
            models[name] = model
    return models


@torch.no_grad()
def check_peers(models: Mapping[str, nn.Module], shape: tuple[int, int]) -> list[str]:
    """Checks that others' models give the maps of our dense one, and says at which size they do.

    Where they differ at the size that is asked for, by padding, another one counts: two windows
    in each direction on the last map.

    Raises:
        ValueError: They differ there too.
    """
    dense, notes = models[DENSE], []
    last = dense.strides[-1] if hasattr(dense, "strides") else dense.patch_embed.patch_size[0]
    window = dense.window if hasattr(dense, "window") else dense.stages[0].window
    sizes = [shape, (2 * window * last,) * 2]
    for name, model in models.items():
        if name not in PEERS[type(dense).__name__]:
            continue
        for size in sizes:
            found = difference(dense, model, size)
            same = found <= TOLERANCE
            verb = "equals" if same else "differs from"
            notes.append(
                "{} {} dense at {} x {}: {:.1e} of the largest".format(name, verb, *size, found)
            )
            if same:
                break
        else:
            raise ValueError(f"{name} has other maps than the dense backbone: {notes[-2:]}")
    return notes


def difference(a: nn.Module, b: nn.Module, shape: tuple[int, int]) -> float:
    """The largest difference of two models' maps of one image, over the largest number on a map;
    infinite if the maps have other sizes."""
    image = torch.rand(1, 3, *shape, device=next(a.parameters()).device)
    for model in (a, b):
        model.eval()  # not chained: on mmdet's Swin it returns None
    pairs = list(zip(a(image), b(image), strict=True))
    if any(x.shape != y.shape for x, y in pairs):
        return float("inf")
    return worst(((x - y).abs().max() / x.abs().max()).item() for x, y in pairs)
