"""What is looked at: an annotation file with its pictures, and what a config makes of them."""

import os.path as osp
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.utils import is_abs

READERS = ("mmdet.datasets.coco", "mmdet.datasets.objects365")  # whose files are COCO's

RESIZES = ("Resize", "RandomResize", "RandomChoiceResize", "FixScaleResize")


@dataclass
class Source:
    """
    Attributes:
        name: Of the loader, or what else asks for the file.
        ann_file: Path of the json.
        images: Folder of the pictures; None: they are not looked at.
        classes: Names in the order of labels; None: not known.
        masks: Whether segmentations are read.
        bitmaps: Whether run lengths can be read as masks, besides polygons.
        training: Whether a detector learns from it; else it is evaluated.
        scored: Whether annotations are needed.
        filters: The data set's ``filter_cfg``.
        scales: What the pipeline resizes to, keeping the ratio: longer and shorter side, or a
            factor.
        turned: Whether pictures are turned by their EXIF when they are loaded.
        dataset: Config of the data set, where there is one; and its place among the split's.
    """

    name: str
    ann_file: str
    images: str | None = None
    classes: Any = None
    masks: bool = True
    bitmaps: bool = True
    training: bool = True
    scored: bool = True
    filters: dict[str, Any] = field(default_factory=dict)
    scales: tuple[Any, ...] = ()
    turned: bool = True
    dataset: Any = None
    place: int | None = None


def sources(
    split: str, datasets: Iterable[dict], evaluators: Iterable[dict]
) -> Iterator[Source | str]:
    """What a split of a config reads; of a data set that is none of COCO's its type.

    Args:
        split: 'train', 'val' or 'test'.
        datasets: Configs of its data sets, without wrappers.
        evaluators: Configs of its metrics.
    """
    evaluators = list(evaluators)
    masks = any("segm" in _listed(metric.get("metric")) for metric in evaluators)
    scored = not (evaluators and all(metric.get("format_only") for metric in evaluators))
    read, classes = set(), None
    for place, dataset in enumerate(datasets):
        kind = dataset["type"]
        kind = kind if isinstance(kind, type) else DATASETS.get(kind)
        if not (
            isinstance(kind, type)
            and issubclass(kind, CocoDataset)
            and kind.load_data_list.__module__ in READERS
            and kind.parse_data_info is CocoDataset.parse_data_info
        ):
            yield str(dataset["type"])
            continue
        source = of_dataset(f"{split}_dataloader", dataset, kind)
        source.training = not dataset.get("test_mode", False)
        source.masks |= masks
        source.place = place
        source.scored = scored
        read.add(osp.abspath(source.ann_file))
        classes = source.classes
        yield source
    for metric in evaluators:
        file = metric.get("ann_file")
        if file and "://" not in file and osp.abspath(file) not in read and _is_coco(metric):
            yield Source(f"{split}_evaluator", file, None, classes, masks, True, False, scored)


def of_dataset(name: str, dataset: dict, kind: type[CocoDataset]) -> Source:
    root = dataset.get("data_root") or ""
    pipeline = dataset.get("pipeline") or []
    load = [step for step in steps(pipeline) if _named(step, "LoadAnnotations")]
    image = next((step for step in steps(pipeline) if _named(step, "LoadImageFromFile")), {})
    colour = image.get("color_type", "color")
    backend = image.get("imdecode_backend", "cv2")
    given = (dataset.get("metainfo") or {}).get("classes")
    return Source(
        name=name,
        ann_file=_join(root, dataset.get("ann_file") or ""),
        images=_join(root, (dataset.get("data_prefix") or {}).get("img") or ""),
        classes=kind.METAINFO["classes"] if given is None else _from_file(given),
        masks=any(step.get("with_mask") for step in load),
        bitmaps=all(step.get("poly2mask", True) for step in load),
        filters=dict(dataset.get("filter_cfg") or {}),
        scales=tuple(scale for step in steps(pipeline) for scale in kept_ratio(step)),
        turned="ignore_orientation" not in colour
        and colour != "unchanged"
        and backend in ("cv2", "pillow"),
        dataset=dataset,
    )


def steps(pipeline: Any) -> Iterator[dict]:
    """The transforms of a pipeline, and those inside others."""
    if isinstance(pipeline, dict):
        if "type" in pipeline:
            yield pipeline
        pipeline = [value for value in pipeline.values() if isinstance(value, (dict, list, tuple))]
    for step in pipeline:
        if isinstance(step, (dict, list, tuple)):
            yield from steps(step)


def kept_ratio(step: dict) -> Iterator[Any]:
    """The sizes that a transform resizes to, where it keeps the ratio of the sides."""
    if not (step.get("keep_ratio") and _named(step, *RESIZES)):
        return
    given = step.get("scales") or step.get("scale") or step.get("scale_factor")
    if not isinstance(given, (list, tuple)) or not isinstance(given[0], (list, tuple)):
        given = [given]
    least = min(step.get("ratio_range") or (1,))
    for scale in given:
        if isinstance(scale, (int, float)):
            yield scale * least
        elif is_pair(scale):
            yield tuple(sorted((side * least for side in scale), reverse=True))


def is_pair(scale: Any) -> bool:
    """Whether it is two numbers."""
    listed = isinstance(scale, (list, tuple)) and len(scale) == 2
    return listed and all(isinstance(side, (int, float)) for side in scale)


def _named(step: dict, *names: str) -> bool:
    kind = step.get("type")
    return (kind if isinstance(kind, str) else kind.__name__).removeprefix("mmdet.") in names


def _is_coco(metric: dict) -> bool:
    return _named(metric, "CocoMetric")


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else (value or "bbox",)


def _join(root: str, path: str) -> str:
    return path if not root or is_abs(path) else osp.join(root, path)


def _from_file(classes: Any) -> Any:
    """mmengine reads names from a file where it is given one."""
    if isinstance(classes, str) and osp.isfile(classes):
        with open(classes) as file:
            return tuple(file.read().splitlines())
    return classes if isinstance(classes, str) else tuple(classes)
