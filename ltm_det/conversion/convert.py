"""From a trained dense detector to a merged one, off the shelf: new config, same weights."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from torch import nn

from ltm_det.basics.files import whole
from ltm_det.basics.finite import check_finite
from ltm_det.compat.weight_files import write_weights
from ltm_det.measure.flops import build_backbone, build_detector, dense_twin

MERGED = {  # by dense type
    "SwinTransformer": "LTMSwin",
    "LTMSwin": "LTMSwin",
    "LTMViT": "LTMViT",
    "LTMMobileViT": "LTMMobileViT",
    "LTMEfficientViT": "LTMEfficientViT",
    "LTMPVTv2": "LTMPVTv2",
    "LTMConvNeXt": "LTMConvNeXt",
}


def merged_config(cfg: Config, merger: Mapping[str, Any]) -> Config:
    """A dense detector's config with a backbone that merges. It names no pretrained weights.

    Args:
        cfg: Of a detector whose backbone is mmdet's SwinTransformer, or a dense one of ours.
        merger: The backbone's ``merger``.

    Raises:
        ValueError: On another backbone, one that merges already, or a merger that it cannot take.
    """
    cfg = copy.deepcopy(cfg)
    backbone = cfg.model.backbone
    kind = backbone.type if isinstance(backbone.type, str) else backbone.type.__name__
    kind = kind.rpartition(".")[2]  # without a scope, as in mmdet.SwinTransformer
    if kind not in MERGED:
        raise ValueError(f"a {kind} cannot be converted: the backbone must be one of {[*MERGED]}")
    if backbone.get("merger") is not None:
        raise ValueError(
            f"the config's backbone merges already, merger={dict(backbone.merger)}: "
            "give the dense detector's config"
        )
    if MERGED[kind] == "LTMViT" and "scope" in merger:
        raise ValueError(
            f"scope={merger['scope']!r} is not for a ViT: its tokens stay merged from the block "
            "merge_at to the last; leave scope out, and choose that block with merge_at"
        )
    backbone.type = MERGED[kind]
    backbone.merger = dict(merger)
    for key in ("init_cfg", "pretrained"):
        backbone.pop(key, None)
    cfg.load_from = None
    imports = dict(cfg.get("custom_imports") or {})
    names = imports.get("imports") or []
    names = [names] if isinstance(names, str) else list(names)
    if "ltm_det" not in names:
        names.append("ltm_det")
    cfg.custom_imports = dict(imports, imports=names)
    return cfg


def convert(cfg: Config, checkpoint: str, merger: Mapping[str, Any]) -> tuple[Config, nn.Module]:
    """Turns a trained dense detector into a merged one; mergers are as they are initialised.

    Args:
        cfg: See :func:`merged_config`.
        checkpoint: The dense detector's, a file or a URL. Every key is accounted for.
        merger: See :func:`merged_config`.

    Returns:
        The merged detector's config, and the detector on the CPU in evaluation mode. Its
        ``dataset_meta`` is the checkpoint's, as mmdet keeps it, or an empty dict.

    Raises:
        ValueError: See :func:`merged_config`, or if the checkpoint does not fit the config, or has
            NaN in it.
    """
    cfg = merged_config(cfg, merger)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # what mergers draw at their start is the same every time
            detector = build_detector(cfg)
    except TypeError as error:  # an option that the merger does not have
        raise ValueError(f"merger={dict(merger)} does not fit: {error}") from error
    source = load_checkpoint(detector, checkpoint, map_location="cpu", strict=True)
    check_finite(detector.state_dict(), checkpoint)
    meta = source.get("meta") or {}
    old = {key.lower(): meta[key] for key in ("CLASSES", "PALETTE") if key in meta}  # mmdet 2
    detector.dataset_meta = dict(meta.get("dataset_meta") or old)
    return cfg, detector.eval()


def dense_backbone(cfg: Config, detector: nn.Module) -> nn.Module:
    """The dense backbone of a merged detector's weights, in evaluation mode on the same device."""
    backbone = build_backbone(dense_twin(cfg))
    weights = detector.backbone.state_dict()
    backbone.load_state_dict({key: weights[key] for key in backbone.state_dict()})
    return backbone.to(next(detector.parameters()).device).eval()


def written_files(out: Path) -> tuple[Path, Path]:
    """What :func:`save_converted` writes: the checkpoint and the config beside it.

    Raises:
        ValueError: If both would have one name.
    """
    if out.suffix == ".py":
        raise ValueError(
            f"{out}: name the checkpoint, .safetensors or .pth; the config goes beside it as .py"
        )
    return out, out.with_suffix(".py")


def save_converted(cfg: Config, detector: nn.Module, out: Path) -> None:
    """Writes a checkpoint for ltm-det test and DetInferencer, and its config beside it as .py.

    Files that are there are replaced, each at once.

    Args:
        cfg: Of the merged detector.
        detector: See :func:`convert`.
        out: Of the checkpoint.

    Raises:
        InputError: Weights are not finite.
    """
    check_finite(detector.state_dict(), f"{out} is not written")
    checkpoint, config = written_files(out)
    meta = dict(cfg=cfg.pretty_text, mmengine_version=mmengine.__version__)
    if getattr(detector, "dataset_meta", None):
        meta["dataset_meta"] = detector.dataset_meta
    write_weights(checkpoint, detector.state_dict(), meta)
    with whole(config) as part:
        cfg.dump(part)
