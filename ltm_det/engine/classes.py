"""Whether weights and data mean the same by a label."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from ltm_det.basics.errors import InputError
from ltm_det.engine.preflight import leaf_datasets


def check_classes(cfg: Config, split: str, file: str) -> None:
    """Before anything is built: that no class of the weights has another label in the data.

    Args:
        cfg: The config.
        split: 'train', 'val' or 'test', whose data go with the weights.
        file: Their checkpoint.

    Raises:
        InputError: A class that both name has another label, so that labels would be wrong; or what
            the checkpoint says of classes are no names.
    """
    theirs = names_in(file)
    data = (cfg.get(f"{split}_dataloader") or {}).get("dataset")
    for leaf in leaf_datasets(data) if data else ():
        own = tuple((leaf.get("metainfo") or {}).get("classes") or ())
        moved = [n for n in own if n in theirs and own.index(n) != theirs.index(n)]
        if moved:
            name = moved[0]
            raise InputError(
                f"{file} has its classes in another order than the config: {name!r} is label "
                f"{theirs.index(name)} of {theirs[:5]}, not {own.index(name)} of {own[:5]}\n"
                f"Give {split}_dataloader.dataset.metainfo.classes in its order; a detector of "
                "other classes is a new training, which load_from starts"
            )


def names_in(file: str) -> tuple[str, ...]:
    """The names that a checkpoint was trained with; none where it doesn't say.

    Raises:
        InputError: They are no names.
    """
    content = CheckpointLoader.load_checkpoint(file, "cpu", logger="silent")
    meta: Any = content.get("meta") or {}
    meta = (meta.get("dataset_meta") or {}) if isinstance(meta, Mapping) else None
    found = meta.get("classes") or meta.get("CLASSES") or () if isinstance(meta, Mapping) else None
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"{file}: its 'meta' says no names of classes: {found!r}\nThe file is damaged, or no "
            "checkpoint of a detector: take another"
        )
    return tuple(names)
