"""How far merging moves a trained backbone's map, off the shelf or calibrated: no labels, no
detector, two minutes.

Shapes: B images, C channels, H x W grid of a map.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mmcv
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn

from ltm_det.basics.errors import InputError
from ltm_det.conversion.calibration import calibrate, merger_parameters

ENDINGS = (".jpg", ".jpeg", ".png")


def pictures(folder: Path, count: int, side: int, preprocessor: Any) -> Tensor:
    """(count, 3, side, side), of a folder and those in it, evenly spaced in the order of their
    names, resized and normalised as a config's data preprocessor does.

    Raises:
        InputError: There are fewer.
    """
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in ENDINGS)
    if len(files) < count:
        raise InputError(f"{folder} has {len(files)} pictures, {count} are wanted: ask for fewer")
    order = "rgb" if preprocessor.get("bgr_to_rgb") else "bgr"
    chosen = [files[i * len(files) // count] for i in range(count)]
    images = [
        mmcv.imresize(mmcv.imread(f, channel_order=order), (side, side), interpolation="area")
        for f in chosen
    ]
    x = torch.stack([torch.from_numpy(image).permute(2, 0, 1).float() for image in images])
    mean, std = (torch.tensor(preprocessor[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (x - mean) / std


def backbone(cfg: Config, merger: dict[str, Any] | None) -> nn.Module:
    """A config's, with its weights and another merger, in evaluation mode."""
    built = MODELS.build(dict(copy.deepcopy(cfg.model.backbone), merger=merger))
    built.init_weights()
    return built.eval()


@torch.no_grad()
def maps(model: nn.Module, images: Tensor, batch: int = 8) -> Tensor:
    """The last map of images (B, 3, h, w), (B, C, H, W)."""
    return torch.cat([model(part)[-1] for part in images.split(batch)])


def distance(merged: Tensor, dense: Tensor) -> dict[str, float]:
    """Of maps (B, C, H, W): |merged - dense| / |dense| and the cosine of the two, mean over images
    for the first, over images and places for the second."""
    apart = (merged - dense).flatten(1).norm(dim=1) / dense.flatten(1).norm(dim=1)
    return dict(
        error=apart.mean().item(),
        cosine=F.cosine_similarity(merged, dense, dim=1).mean().item(),
    )


def compared(
    cfg: Config,
    mergers: Sequence[dict[str, Any]],
    places: Sequence[int],
    ratios: Sequence[float],
    images: Tensor,
    training: Tensor | None = None,
    steps: int = 200,
    lr: float = 0.02,
) -> Iterator[dict[str, Any]]:
    """A row for each place, ratio and merger.

    Args:
        cfg: Its backbone takes ``merge_at``, as LTMViT does.
        mergers: ``type`` and options, without ratio and place.
        places: Block before which tokens are merged.
        ratios: Kept fractions.
        images: (B, 3, h, w), of :func:`pictures`.
        training: Others, to calibrate on; None for none.
        steps, lr: Of :func:`ltm_det.conversion.calibration.calibrate`.
    """
    teacher = backbone(cfg, None)
    dense = maps(teacher, images)
    for place in places:
        for ratio in ratios:
            for merger in mergers:
                own = backbone(cfg, dict(merger, compression_ratio=ratio, merge_at=place))
                own.load_state_dict(teacher.state_dict(), strict=False)  # where they are random
                row = dict(merge_at=place, ratio=ratio, merger=dict(merger))
                row |= distance(maps(own, images), dense)
                if training is not None:
                    row |= calibrated(own, teacher, images, dense, training, steps, lr)
                yield row


def calibrated(
    own: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    dense: Tensor,
    training: Tensor,
    steps: int,
    lr: float,
) -> dict[str, float]:
    """The distances after calibration; nothing where the merger has no parameters."""
    try:
        merger_parameters(own)
    except ValueError:
        return {}
    calibrate(own, teacher, training.split(8), steps, lr)
    found = distance(maps(own, images), dense)
    return {f"calibrated_{name}": value for name, value in found.items()}
