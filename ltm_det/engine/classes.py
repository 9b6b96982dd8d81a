"""Whether weights and data mean the same by a label."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from ltm_det.basics.errors import InputError
from ltm_det.basics.words import is_name
from ltm_det.compat.checkpoint import glanced
from ltm_det.engine.config_check import class_counts, classes_of, leaf_datasets


def check_classes(cfg: Config, split: str, file: str) -> None:
    """Before anything is built: that labels of a checkpoint are those of the data.

    Args:
        cfg: The config.
        split: 'train', 'val' or 'test', whose data go with the weights.
        file: Their checkpoint.

    Raises:
        InputError: They share no class, one that both name has another label, or the weights know
            more of them, so that labels would be wrong; or what the checkpoint says of classes are
            no names, or more than its model has.
    """
    theirs = names_in(file)
    for path, count in class_counts(cfg.model):
        if len(theirs) > count:
            raise InputError(
                f"{file} says that it has {len(theirs)} classes, {shown(theirs)}, but {path} is "
                f"{count}\nGive the config of this checkpoint, or the checkpoint of this config"
            )
    check_labels(cfg, split, file, theirs)


def check_labels(cfg: Config, split: str, file: str, theirs: Sequence[str]) -> None:
    """That the names of a detector's classes are those of the data, where both are known.

    Raises:
        InputError: As :func:`check_classes` does.
    """
    loader = f"{split}_dataloader"
    remedy = (
        f"Give {loader}.dataset.metainfo.classes in its order; a detector of other classes is a "
        "new training, which load_from starts"
    )
    for leaf in leaf_datasets((cfg.get(loader) or {}).get("dataset")):
        own = list(classes_of(leaf) or ())
        if own and theirs and not {*own} & {*theirs}:
            raise InputError(
                f"{file} has other classes than the config: {shown(theirs)}, not {shown(own)}\n"
                f"{remedy}"
            )
        moved = [n for n in own if n in theirs and own.index(n) != theirs.index(n)]
        if moved:
            name = moved[0]
            raise InputError(
                f"{file} has its classes in another order than the config: {name!r} is label "
                f"{theirs.index(name)} of {shown(theirs)}, not {own.index(name)} of {shown(own)}\n"
                f"{remedy}"
            )
        if own and len(theirs) > len(own):
            raise InputError(
                f"{file} finds {len(theirs)} classes, {shown(theirs)}, of which {loader} has "
                f"{len(own)}, {shown(own)}\n{remedy}"
            )


def shown(names: Sequence[str]) -> str:
    return f"({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


def names_in(file: str) -> tuple[str, ...]:
    """The names that a checkpoint was trained with; none where it doesn't say.

    Raises:
        InputError: They are no names.
    """
    if "://" in file:
        return names_of(CheckpointLoader.load_checkpoint(file, "cpu", logger="silent"), file)
    return names_of(glanced(file), file)


def names_of(content: Mapping[str, Any], file: str) -> tuple[str, ...]:
    """The names of classes in a checkpoint's content, as :func:`names_in` gives them.

    They are found as mmdet finds them: in ``dataset_meta``, whose keys it takes in small letters,
    the last one of a name, or in ``CLASSES``, where there is none.
    """
    meta: Any = content.get("meta") or {}
    known = (meta.get("dataset_meta", meta) or {}) if isinstance(meta, Mapping) else None
    good = isinstance(known, Mapping) and all(isinstance(key, str) for key in known)
    found = (
        {key.lower(): value for key, value in known.items()}.get("classes", ()) if good else None
    )
    names = [found] if isinstance(found, str) else found
    if names is None and good:
        return ()
    if not isinstance(names, (list, tuple)) or not all(is_name(name) for name in names):
        raise InputError(
            f"{file}: its 'meta' says no names of classes: {found!r}\nThe file is damaged, or no "
            "checkpoint of a detector: take another"
        )
    return tuple(names)
