"""Rules of a config's values: each says what is wrong with one, and what is allowed."""

from collections.abc import Mapping
from typing import Any

from ltm_det.basics.arguments import many, number, optional, whole
from ltm_det.basics.errors import InputError
from ltm_det.engine.config_check import kind_of

# Transforms of mmdet's that take several pictures.
MIXING = ("Mosaic", "MixUp", "CopyPaste")
LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", "NOTSET")


def interval(name: str, value: Any) -> None:
    """Every so many; -1 for never."""
    if value != -1:
        whole(1)(name, value)


def steps(name: str, value: Any) -> None:
    """Whole and positive; as mmdet's configs have it, also the result of a division."""
    whole(1)(name, int(value) if isinstance(value, float) and value.is_integer() else value)


def mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} must be a dict, got {value!r}")


def typed(name: str, value: Any) -> None:
    """A dict with type, that of a registered class by its name or the class itself."""
    mapping(name, value)
    kind = value.get("type")
    if not isinstance(kind, (str, type)) or not kind:
        raise InputError(f"{name}.type must be the name of a class, got {kind!r}")


def pipeline(name: str, value: Any) -> None:
    """Of a data set that gives one picture at a time."""
    many(typed)(name, value)
    for i, step in enumerate(value):
        if kind_of(step) in MIXING:
            raise InputError(
                f"{name}[{i}].type={step['type']!r} mixes pictures: put it into the pipeline of a "
                "MultiImageMixDataset around this data set"
            )


def parts(name: str, value: Any) -> None:
    """Dicts by name; None switches one off."""
    mapping(name, value)
    for key, part in value.items():
        optional(mapping)(f"{name}.{key}", part)


def prefixes(name: str, value: Any) -> None:
    """Folders by what lies in them."""
    mapping(name, value)
    for key, folder in value.items():
        optional(folder_name)(f"{name}.{key}", folder)


def metainfo(name: str, value: Any) -> None:
    """Of a data set: names of its classes, or a file with one in each line."""
    mapping(name, value)
    classes = value.get("classes")
    if classes is not None and not isinstance(classes, (str, list, tuple)):
        raise InputError(f"{name}.classes must be a list of names, got {classes!r}")


def folder_name(name: str, value: Any) -> None:
    """A folder or a file; none is the one that all others lie in."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be a path, got {value!r}")


def level(name: str, value: Any) -> None:
    """A level of logging, by its name or number."""
    known = value in LEVELS if isinstance(value, str) else isinstance(value, int)
    if not known:
        raise InputError(f"unknown {name} {value!r}: choose one of {', '.join(LEVELS)}")


def limit(name: str, value: Any) -> None:
    """How many are kept; mmdet takes a negative number for all."""
    if not isinstance(value, int) or isinstance(value, bool) or value == 0:
        raise InputError(f"{name} must be a whole number from 1 on, or -1 for all, got {value!r}")


def overlap(name: str, value: Any) -> None:
    """Of NMS: a dict with a number."""
    mapping(name, value)
    number(0, most=1)(f"{name}.iou_threshold", value.get("iou_threshold", 0.5))


def location(name: str, value: Any) -> None:
    """Of a checkpoint: None, a file or a URL."""
    if value is not None and (not isinstance(value, str) or not value):
        raise InputError(f"{name} must be a file or a URL, got {value!r}")


def never(name: str, value: Any) -> None:
    """In evaluation every picture of the annotations counts: those left out as missed."""
    if value:
        raise InputError(
            f"{name}={value!r} leaves pictures out, which AP would count as missed: take it away, "
            "or evaluate on an annotation file of fewer pictures"
        )


def metrics(name: str, value: Any) -> None:
    """A dict with type, or some of them."""
    many(typed)(name, value if isinstance(value, (list, tuple)) else [value])


def detections(name: str, value: Any) -> None:
    """How many objects of a picture count: AP itself is that of 100, see pycocotools."""
    many(whole(1))(name, value)
    if 100 not in value:
        raise InputError(f"{name} must hold 100, of which AP is taken, got {value!r}")


def no_thresholds(name: str, value: Any) -> None:
    """mmdet's table of results is of COCO's thresholds; with others it fails after all pictures."""
    if value is not None:
        raise InputError(f"{name}={value!r}: leave it out, AP comes at 0.5 and 0.75 too")


def ends(name: str, value: Any) -> None:
    """A sampler whose evaluation does."""
    typed(name, value)
    if str(value["type"]).rpartition(".")[2] == "InfiniteSampler":
        raise InputError(f"{name}.type='InfiniteSampler' never ends: give 'DefaultSampler'")
