"""An exported detector in mmdet's test loop."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmdet.models.utils import samplelist_boxtype2tensor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor

from ltm_det.basics.arguments import checked, optional, whole
from ltm_det.basics.errors import InputError
from ltm_det.deploy.predictor import Predictor, load, resized
from ltm_det.detectors.masks import FORMATS


@MODELS.register_module()
class ExportedDetector(BaseModel):
    """A detector's file, in the place of the detector that it was made from; evaluated alone.

    It runs on the CPU. What the config's pipeline resized is taken as it is where it fits into the
    file's size, and is made smaller where it does not.

    Args:
        file: .onnx or .xml, see :func:`ltm_det.deploy.load`.
        threads: That its runtime may use; None: as many as it chooses.
        mask_format: 'rle', COCO's run lengths, which CocoMetric takes, or 'bitmap', (K, H, W).

    Raises:
        InputError: It is a backbone's file, or there is no such format.
    """

    @checked(threads=optional(whole(1)))
    def __init__(
        self, file: str | Path, threads: int | None = None, mask_format: str = "rle"
    ) -> None:
        super().__init__()
        self.file = str(file)
        if mask_format not in FORMATS:
            raise InputError(f"mask_format={mask_format!r}: give one of {FORMATS}")
        self.mask_format = mask_format
        predictor = load(file, threads)
        if not isinstance(predictor, Predictor):
            raise InputError(
                f"{file} holds no detector: write one with ltm-det export --part detector, or set "
                "model.backbone to dict(_delete_=True, type='ExportedBackbone', file=FILE)"
            )
        self.predictor, self.warned = predictor, False

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        raise RuntimeError(f"{self.file} is an exported detector: it has test_step alone")

    def test_step(self, data: Mapping[str, Any]) -> list[DetDataSample]:
        """Pictures of a test pipeline, (3, h, w) of uint8, to samples with their objects."""
        samples = [self.found(*pair) for pair in zip(data["inputs"], data["data_samples"])]
        samplelist_boxtype2tensor(samples)
        return samples

    val_step = test_step

    def found(self, image: Tensor, sample: DetDataSample) -> DetDataSample:
        predictor = self.predictor
        picture, size = image.permute(1, 2, 0).cpu().numpy(), sample.ori_shape[:2]
        factor = predictor.factor(*picture.shape[:2])
        if predictor.size is not None and factor < 1:
            if not self.warned:
                self.warned = True
                warnings.warn(
                    f"{self.file} takes {predictor.size} pixels, a picture of {picture.shape[:2]} "
                    "is made smaller: export it with a --shape that holds all, or --dynamic",
                    stacklevel=2,
                )
            picture = resized(picture, factor)
        given = image.shape[2], image.shape[1]  # padding, if there is any, included
        scale = [s * a / b for s, a, b in zip(sample.scale_factor, picture.shape[1::-1], given)]
        found = predictor.raw(predictor.prepared(picture))
        objects = predictor.finish(found, scale, size)
        sample.pred_instances = InstanceData(
            bboxes=torch.from_numpy(objects.boxes),
            scores=torch.from_numpy(objects.scores),
            labels=torch.from_numpy(objects.labels),
        )
        if objects.masks is not None:
            maps = self.mask_format == "bitmap"
            masks = torch.from_numpy(objects.bitmaps()) if maps else objects.masks
            sample.pred_instances.masks = masks
        return sample
