"""From a picture to what a detector's file finds on it.

Shapes: a picture of h x w pixels, of which the file takes H x W; K objects.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ltm_det.basics.errors import InputError
from ltm_det.basics.finite import check_outputs
from ltm_det.deploy.detections import Detections, names_of
from ltm_det.deploy.runtime import Loaded, Runner, load_runner
from ltm_det.detectors.masks import empty_rle, pasted_rle


def check_picture(image: Any) -> None:
    """Checks that a picture is an array (h, w, 3) of uint8.

    Raises:
        InputError: It is none.
    """
    if image is None:
        raise InputError(
            "a picture is an array (h, w, 3) of uint8, not None: cv2.imread gives that where it "
            "can read none"
        )
    kind = getattr(image, "shape", None), str(getattr(image, "dtype", type(image).__name__))
    if kind[1] != "uint8" or len(kind[0]) != 3 or kind[0][2] != 3 or 0 in kind[0]:
        raise InputError(f"a picture is an array (h, w, 3) of uint8, not {kind[0]} of {kind[1]}")


def resized(image: np.ndarray, factor: float) -> np.ndarray:
    """(h, w, 3) by a factor, as mmdet resizes."""
    height, width = (max(1, int(side * factor + 0.5)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def prepared(image: np.ndarray, size: tuple[int, int], about: Mapping[str, Any]) -> Tensor:
    """A picture (h, w, 3) that fits into a size to (1, 3, H, W): normalised, and padded at the
    right and below; ``about`` is :func:`.detector.described`."""
    if about["rgb"]:
        image = image[..., ::-1]
    normal = (image.astype(np.float32) - about["mean"]) / about["std"]
    out = np.full((*size, 3), about["pad_value"], np.float32)
    out[: image.shape[0], : image.shape[1]] = normal
    return torch.from_numpy(out).permute(2, 0, 1)[None].contiguous()


class Predictor:
    """A detector's file, called on pictures; ``raw`` takes and gives what the file does.

    Args:
        raw: From images (1, 3, H, W), as the detector's data preprocessor leaves them, to boxes in
            their pixels, scores, labels and probabilities of masks in their boxes.
        loaded: Of the same file.
    """

    def __init__(self, raw: Runner, loaded: Loaded) -> None:
        assert loaded.about is not None
        self.raw, self.about = raw, loaded.about
        height, width = loaded.shape[2:]
        self.size = None if height is None or width is None else (int(height), int(width))

    def factor(self, height: int, width: int) -> float:
        """By which a picture is resized: to what fits into the file's size, or where that is free
        into the scale of the detector's own test pipeline."""
        if self.size is not None:
            return min(self.size[0] / height, self.size[1] / width)
        if self.about["scale"] is None:
            return 1.0
        pairs = zip(self.about["scale"], (max(height, width), min(height, width)))
        return min(limit / side for limit, side in pairs)

    def prepared(self, image: np.ndarray) -> Tensor:
        """A resized picture to (1, 3, H, W), of the file's size, or its own and what the detector
        pads."""
        step = self.about["divisor"]
        own = tuple(-(-side // step) * step for side in image.shape[:2])
        return prepared(image, self.size or own, self.about)

    def __call__(self, image: np.ndarray) -> Detections:
        """What is found on a picture (h, w, 3) of uint8, blue first, as ``cv2.imread`` gives it.

        It is resized in its own proportions, see `factor`.

        Raises:
            ValueError: It is no such array.
        """
        check_picture(image)
        height, width = image.shape[:2]
        image = resized(image, self.factor(height, width))
        scale = image.shape[1] / width, image.shape[0] / height
        return self.finish(self.raw(self.prepared(image)), scale, (height, width))

    def finish(
        self, found: Sequence[Tensor], scale: Sequence[float], size: tuple[int, int]
    ) -> Detections:
        """What the file found to objects on a picture of this ``size``, whose width and height are
        those in the file by ``scale``.

        Raises:
            InputError: There is NaN or infinity in what was found.
        """
        check_outputs(found, "the exported detector")
        boxes, scores, labels, *masks = found
        boxes = boxes / torch.tensor([*scale, *scale], dtype=boxes.dtype)
        limit = torch.tensor([size[1], size[0]] * 2, dtype=boxes.dtype)
        whole, boxes = boxes, boxes.clamp(min=0).minimum(limit)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)  # what lies in the padding is not there
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        runs = None
        if masks:
            threshold = self.about["mask_threshold"]
            shown = kept[: len(masks[0])].nonzero().squeeze(1)  # a recipe masks the best alone
            # a mask is that of its whole box, of which a part may lie in the padding
            runs = [pasted_rle(masks[0][i][None], whole[i], size, threshold) for i in shown]
            runs += [empty_rle(size) for _ in range(len(boxes) - len(runs))]
        names = names_of(labels.tolist(), self.about["classes"])
        return Detections(boxes.numpy(), scores.numpy(), labels.numpy(), names, runs, size)


def load(file: str | Path, threads: int | None = None) -> Runner | Predictor:
    """What an exported file does: of a detector's a :class:`Predictor`, of a backbone's a function
    from images (B, 3, H, W) to the list of float32 maps.

    Args:
        file: Written by ``ltm-det export``, .onnx or .xml.
        threads: That the runtime may use; None: as many as it chooses.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or it is of another kind.
        ImportError: The file's runtime is not installed.
    """
    run, loaded = load_runner(file, threads)
    if loaded.about is None and "boxes" in loaded.names:
        raise ValueError(f"{file} says nothing of its detector: export it again with this version")
    return run if loaded.about is None else Predictor(run, loaded)
