"""Peak memory of a whole detector on a large picture, from the resized picture to pasted masks.

As in :mod:`ltm_det.measure.memory` each measurement has a fresh process, the number is what a pass
adds to the loaded model, and on the CPU one thread computes. Run as a module,

    python -m ltm_det.measure.detector_memory CONFIG NAME HEIGHT WIDTH OBJECTS DEVICE

it is that process, and prints bytes and the number of objects.
"""

import os
import sys
import tempfile
from typing import NamedTuple

import torch
from mmengine.config import Config

from ltm_det.measure.detector_forms import batch_of
from ltm_det.measure.detectors import build_detectors, find_threshold, set_threshold
from ltm_det.measure.memory import MemoryUnknownError, in_fresh_process, rise_of_memory

SCALE = (1333, 800)  # what mmdet's configs fit pictures into, longer and shorter side
WARM_UP = (64, 64)  # pixels


class Peak(NamedTuple):
    bytes: int
    objects: int


def detector_peak(
    cfg: Config, name: str, picture: tuple[int, int], objects: int, device: str = "cpu"
) -> Peak:
    """What one picture adds at its peak, with random weights and so many objects on it.

    Fast heads give run lengths, mmdet's bitmaps of the picture's size, as both are used.

    Args:
        cfg: Of the detector.
        name: Of :func:`ltm_det.measure.detectors.known_detectors`.
        picture: Its height and width; it is fitted into 1333 x 800 pixels for the detector.
        objects: That the detector is to find on it, at most 100 in mmdet's configs.
        device: 'cpu' or a CUDA device.

    Raises:
        MemoryUnknownError: The system does not tell, or the process failed, out of memory say.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "detector.py")
        cfg.dump(path)
        words = [path, name, *picture, objects, device]
        printed = in_fresh_process(__name__, words, f"of {name}")
    return Peak(*map(int, printed[-2:]))


def measure(cfg: Config, name: str, picture: tuple[int, int], objects: int, device: str) -> Peak:
    """What :func:`detector_peak` returns, measured in this process."""
    (detector,) = build_detectors(cfg, [name], device).values()
    if "+mmdet" not in name and hasattr(detector, "recipe"):
        detector.roi_head.test_cfg.mask_format = "rle"
    height, width = picture
    factor = min(max(SCALE) / max(picture), min(SCALE) / min(picture))
    size = round(height * factor), round(width * factor)
    images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    set_threshold(detector, find_threshold(detector, images, objects))
    data = batch_of(images)
    given = dict(ori_shape=picture, scale_factor=(size[1] / width, size[0] / height))
    data["data_samples"][0].set_metainfo(given)
    found = []

    @torch.no_grad()
    def run() -> None:
        found.extend(detector.test_step(data))

    with torch.no_grad():
        detector.test_step(batch_of(images[..., : WARM_UP[0], : WARM_UP[1]]))
    peak = rise_of_memory(device, run)
    return Peak(peak, len(found[0].pred_instances))


def main(config: str, name: str, height: str, width: str, objects: str, device: str) -> None:
    torch.manual_seed(0)
    try:
        cfg, picture = Config.fromfile(config), (int(height), int(width))
        print(*measure(cfg, name, picture, int(objects), device))
    except MemoryUnknownError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
