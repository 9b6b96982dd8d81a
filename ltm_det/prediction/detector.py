"""One way to call a detector, whether it is a checkpoint or an exported file.

Shapes: a picture of h x w pixels, K objects.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import cv2
import numpy as np
import torch
from mmdet.apis import init_detector
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from pycocotools import mask as coco

from ltm_det import deploy
from ltm_det.basics.errors import InputError
from ltm_det.basics.files import check_name
from ltm_det.basics.finite import check_finite
from ltm_det.compat.checkpoint import fitting
from ltm_det.deploy import Detections
from ltm_det.deploy.detections import names_of
from ltm_det.deploy.predictor import check_picture
from ltm_det.detectors import FAST
from ltm_det.engine import preflight
from ltm_det.engine.building import building
from ltm_det.engine.classes import names_in
from ltm_det.prediction.tiles import Find, Size, Tiles, find_in_tiles

Image = np.ndarray | str | Path


class Detector:
    """A detector, called on pictures.

        detector = Detector("detector.onnx")
        detector = Detector("configs/demo_ltm_swin_maskrcnn.py", "work_dirs/demo/iter_700.pth")
        found = detector("street.jpg")
        found.boxes, found.scores, found.names, found.bitmaps()

    Args:
        model: A file that ``ltm-det export --part detector`` wrote, or the config of a detector,
            mmdet's own too.
        checkpoint: The trained weights of a config.
        score: Objects below this score are left out.
        device: Where a config's detector runs; None: a GPU if there is one.
        threads: That the runtime of an exported file may use; None: as many as it chooses.
        options: ``--cfg-options`` of a config.

    Attributes:
        classes: Names of the labels, None where a file does not know them.
        size: Height and width of pictures that are not resized, None where that is any.

    Raises:
        InputError: There is no such file, or it is of another kind.
        ImportError: The runtime of an exported file is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        checkpoint: str | Path | None = None,
        score: float = 0.3,
        device: str | None = None,
        threads: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if not 0 <= score <= 1:
            raise InputError(f"score={score}: give 0 to 1")
        self.score = score
        self.classes: list[str] | None
        self.size: Size | None
        self._find: Find
        if Path(model).suffix in deploy.FORMATS:
            if checkpoint is not None or options:
                raise InputError(f"{model} is a whole detector: give no checkpoint, no options")
            self._find, self.classes, self.size = of_file(model, threads)
        else:
            if checkpoint is None:
                raise InputError(f"{model} is a config: give the checkpoint of its weights too")
            of = of_config(str(model), str(checkpoint), device, options)
            self._find, self.classes, self.size = of

    @overload
    def __call__(self, images: Image, tiles: bool | Tiles = False) -> Detections: ...

    @overload
    def __call__(
        self, images: Sequence[Image], tiles: bool | Tiles = False
    ) -> list[Detections]: ...

    def __call__(
        self, images: Image | Sequence[Image], tiles: bool | Tiles = False
    ) -> Detections | list[Detections]:
        """What is found on a picture, or on each of several.

        Args:
            images: A file, or an array (h, w, 3) of uint8, blue first, as ``cv2.imread`` gives it;
                or a sequence of such, which a checkpoint's detector takes as one batch.
            tiles: Whether pictures that are larger than what the detector takes are looked at in
                tiles, and how, see :class:`.tiles.Tiles`.

        Raises:
            InputError: A file that is no picture, or an array of another kind; tiles of a detector
                for pictures of any size, without a size.
            ImportError: SAHI, which lays tiles, is not installed.
        """
        several = isinstance(images, Sequence) and not isinstance(images, str)
        pictures = [as_array(image) for image in (images if several else [images])]
        if tiles:
            how = tiles if isinstance(tiles, Tiles) else Tiles()
            found = [
                find_in_tiles(self._find, picture, how, self.size, self.score)
                for picture in pictures
            ]
        else:
            every = self._find(pictures) if pictures else []
            found = [objects.above(self.score) for objects in every]
        return found if several else found[0]


def as_array(image: Image) -> np.ndarray:
    """A picture (h, w, 3) of uint8, blue first.

    Raises:
        InputError: It is none.
    """
    if isinstance(image, (str, Path)):
        check_name(image)
        if not Path(image).is_file():
            raise InputError(f"no picture at {image}")
        pixels = cv2.imread(str(image), cv2.IMREAD_COLOR)
        if pixels is None:
            raise InputError(f"{image} is no picture that OpenCV can read: check the file")
        return pixels
    check_picture(image)
    return image


def of_file(file: str | Path, threads: int | None) -> tuple[Find, list[str] | None, Size | None]:
    """How an exported detector finds objects, the names of its classes, and the height and width of
    pictures that it does not resize."""
    try:
        predictor = deploy.load(file, threads)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(str(error)) from error
    if not isinstance(predictor, deploy.Predictor):
        raise InputError(f"{file} is a backbone: write one with ltm-det export --part detector")
    size = predictor.size
    if size is None and predictor.about["scale"]:
        size = min(predictor.about["scale"]), max(predictor.about["scale"])
    return lambda images: [predictor(image) for image in images], predictor.about["classes"], size


def of_config(
    config: str, checkpoint: str, device: str | None, options: dict[str, Any] | None
) -> tuple[Find, list[str] | None, Size | None]:
    """How a checkpoint's detector finds objects, the names of its classes, and the height and width
    of pictures that it does not resize."""
    cfg = preflight.load_config(config, options)
    preflight.check_checkpoint(checkpoint)
    names_in(checkpoint)
    if cfg.model.type in FAST.values():
        cfg.model.test_cfg.rcnn.setdefault("mask_format", "rle")
    with fitting(), building(cfg):
        model = init_detector(cfg, checkpoint, device=device or get_device())
    check_finite(model.state_dict(), checkpoint)
    classes = model.dataset_meta.get("classes")
    pipeline = array_pipeline(cfg)

    @torch.no_grad()
    def find(images: list[np.ndarray]) -> list[Detections]:
        rows = [pipeline(dict(img=image, img_id=i)) for i, image in enumerate(images)]
        samples = model.test_step(pseudo_collate(rows))
        return [
            as_detections(sample, image.shape[:2], classes)
            for sample, image in zip(samples, images, strict=True)
        ]

    return find, None if classes is None else list(classes), unresized(pipeline)


def array_pipeline(cfg: Config) -> Compose:
    """A config's test pipeline, from arrays, without annotations."""
    steps = [dict(step) for step in get_test_pipeline_cfg(cfg.copy())]
    kinds = [str(step["type"]).rpartition(".")[2] for step in steps]
    if not kinds or not kinds[0].startswith("LoadImage"):
        raise InputError(f"the test pipeline begins with {kinds[:1]}, not with LoadImageFromFile")
    steps[0]["type"] = "mmdet.LoadImageFromNDArray"
    for key in ("file_client_args", "imdecode_backend"):
        steps[0].pop(key, None)
    return Compose([s for s, kind in zip(steps, kinds) if "LoadAnnotations" not in kind])


def unresized(pipeline: Compose) -> Size | None:
    """Height and width of pictures that a pipeline leaves as they are; None where it resizes none,
    or all by one factor."""
    for step in pipeline.transforms:
        scale = getattr(step, "scale", None)
        if isinstance(scale, (tuple, list)) and len(scale) == 2:
            width, height = map(int, scale)
            # a scale in proportion is of the longer and the shorter side
            kept = getattr(step, "keep_ratio", False)
            return (min(scale), max(scale)) if kept else (height, width)
    return None


def as_detections(
    sample: DetDataSample, size: tuple[int, int], classes: Sequence[str] | None
) -> Detections:
    """mmdet's predictions on a picture of this height and width, the best first."""
    found = sample.pred_instances.cpu()
    found = found[found.scores.argsort(descending=True)] if len(found) else found
    masks = found.get("masks")
    if isinstance(masks, torch.Tensor):
        columns = np.asfortranarray(masks.numpy().astype(np.uint8).transpose(1, 2, 0))
        masks = coco.encode(columns)
    labels = found.labels.numpy()
    names = names_of(labels.tolist(), classes)
    boxes, scores = found.bboxes.numpy(), found.scores.numpy()
    return Detections(boxes, scores, labels, names, masks, size)
