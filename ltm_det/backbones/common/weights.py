"""Loading weights: read a checkpoint, account for every key, then load. For all backbones alike.

Two ways in, both supplied by `AccountedLoading`:

- `load_accounted`: a file's content into a backbone (``init_weights``).
- `account_prefixed`: inside ``_load_from_state_dict``, which torch's and mmengine's
  ``load_state_dict`` call alike; so it covers ``load_from``, ``resume``, EMA and DetInferencer.

How keys are accounted for: :mod:`.accounting`.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping, MutableMapping
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ltm_det.backbones.common.accounting import MASK_MODULE, Family, Source, account, some
from ltm_det.backbones.common.arguments import check_start
from ltm_det.basics.errors import InputError
from ltm_det.compat.state_dicts import CHOSEN, find_state, plain_names

PLACE = "backbone."  # in a detector


class AccountedLoading:
    """Mixin, to be named before mmengine's BaseModule: loading that accounts for every key.

    ``init_cfg`` is None or dict(type='Pretrained', checkpoint=...[, prefix][, drop_mergers]), see
    `read_checkpoint` and `load_accounted`.

    Attributes:
        family: How checkpoints are read.
        pretrain_grid: (h, w) of the patches for which there are absolute positions, if any.
    """

    family: Family
    pretrain_grid: tuple[int, int] | None = None

    def init_weights(self) -> None:
        """From scratch, or from init_cfg: type='Pretrained', checkpoint[, prefix, drop_mergers]."""
        if self.init_cfg is None:
            return super().init_weights()
        name, options = type(self).__name__, dict(self.init_cfg)
        check_start(name, options)
        del options["type"]
        file = options.pop("checkpoint")
        checkpoint, grid = read_checkpoint(file), self.pretrain_grid
        try:
            note = load_accounted(self.family, self, checkpoint, grid=grid, **options)
        except ValueError as error:
            raise InputError(f"{file} does not fit {name}: {error}") from error
        if note:
            print_log(f"{name}: {note}", logger="current")

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        own = self.state_dict()
        note = account_prefixed(self.family, state_dict, prefix, own, self.pretrain_grid)
        if note:
            print_log(f"{type(self).__name__}, {prefix!r}: {note}", logger="current")
        super()._load_from_state_dict(state_dict, prefix, *args)


def read_checkpoint(path: str) -> dict[str, Any]:
    """The content of a file, on the CPU: torch's or safetensors, local or a URL.

    Returns:
        With the weights under 'state_dict'; see :mod:`ltm_det.compat.state_dicts`.

    Raises:
        InputError: It cannot be read, or holds no weights.
    """
    return CheckpointLoader.load_checkpoint(path, map_location="cpu")


def read_source(
    family: Family, checkpoint: Mapping[str, Any], prefix: str | None = None
) -> tuple[Source, str]:
    """Finds the backbone in the content of a file; see `load_accounted` for the arguments.

    Returns:
        The backbone, and a line for the log if there were several to choose from.

    Raises:
        ValueError: On an unknown format.
    """
    state, note = find_state(checkpoint)
    whole, gone = plain_names(state)
    notes = [note, gone]
    if prefix is None:
        prefix = _place(family, whole)
        if prefix not in ("", PLACE):
            notes.append(f"took the backbone under {prefix!r}")
    elif prefix:
        prefix = prefix.removeprefix("module.").removesuffix(".") + "."
    state = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
    source = family.read(state, whole)
    if source is None:
        raise ValueError(
            f"Unknown checkpoint format: no {family.name} block under {prefix!r}. Keys: "
            f"{some(whole)}. Supported: {family.supported}. For a backbone in another place set "
            "init_cfg's prefix."
        )
    return source, "; ".join(filter(None, notes))


def _place(family: Family, whole: Mapping[str, Tensor]) -> str:
    """Where in a state dict the backbone lies."""
    places = {match[0] for key in whole if (match := re.match(r"(?:.+?\.)??backbone\.", key))}
    if PLACE in places or not places:
        first = {key.partition(".")[0] for key in whole}
        if not places and len(first) == 1 and family.read(dict(whole), whole) is None:
            return f"{first.pop()}."  # Lightning's 'model.', say, before all names
        return PLACE if places else ""
    chosen = places if len(places) == 1 else {place for place in places if CHOSEN in place}
    if len(chosen) != 1:
        raise ValueError(f"several backbones, under {some(sorted(places))}: set init_cfg's prefix")
    return chosen.pop()


def without_mergers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a backbone or of a whole detector, without its mask modules."""
    own = OrderedDict((k, v) for k, v in state_dict.items() if not MASK_MODULE.search(k))
    own._metadata = getattr(state_dict, "_metadata", None) or {}  # for one, where it comes from
    return own


def share_weights(dense: nn.Module, merged: nn.Module) -> None:
    """Gives a merged backbone the very tensors of its dense twin; its mask modules keep theirs."""
    merged.load_state_dict({**merged.state_dict(), **dense.state_dict()}, assign=True)


def load_accounted(
    family: Family,
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    prefix: str | None = None,
    drop_mergers: bool = False,
    grid: tuple[int, int] | None = None,
) -> str:
    """Converts the content of a checkpoint file, accounts for every key, loads it into a backbone.

    Args:
        family: Of the model.
        model: A backbone.
        checkpoint: What the file holds, see :func:`ltm_det.compat.state_dicts.find_state`.
        prefix: Where the backbone lies, such as 'student.backbone.'. None: it is looked for.
        drop_mergers: Whether to leave out, knowingly, the checkpoint's mask modules.
        grid: See `account`.

    Returns:
        A line for the log; empty if every key was loaded as it is.

    Raises:
        ValueError: On an unknown format, or if any key is not accounted for.
    """
    (state, lenient), choice = read_source(family, checkpoint, prefix)
    if drop_mergers:
        state = without_mergers(state)
    fitted, note = account(family, model.state_dict(), state, lenient, grid)
    model.load_state_dict(fitted, strict=True)
    return "; ".join(filter(None, (choice, note)))


def account_prefixed(
    family: Family,
    state_dict: MutableMapping[str, Tensor],
    prefix: str,
    own: Mapping[str, Tensor],
    grid: tuple[int, int] | None = None,
) -> str:
    """Replaces the keys under ``prefix``, in place, by exactly those that the model wants.

    For an override of ``_load_from_state_dict(state_dict, prefix, *args)``: call it first, with
    ``own=self.state_dict()``, then ``super()``. What it leaves in ``state_dict``, a copy made by
    torch's or mmengine's ``load_state_dict``, goes on to the child modules, so that they have
    nothing to report: keys that may be missing are filled in with the model's own tensors, keys
    that may be unexpected are gone. Other projects' detectors are renamed. Here nothing tells
    another task's weights from a damaged detector, so the accounting is not lenient.

    Returns:
        A line for the log; empty if every key was loaded as it is.

    Raises:
        ValueError: If any key under ``prefix`` is not accounted for, or there is none.
    """
    part = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    if not part:
        raise ValueError(
            f"The checkpoint holds nothing under {prefix!r}. Give the checkpoint of a whole "
            "detector; weights of a backbone alone belong in its "
            "init_cfg=dict(type='Pretrained', checkpoint=...), not in load_from."
        )
    source = family.read(part, part)
    fitted, note = account(family, own, part if source is None else source.state, grid=grid)
    for key in part:
        del state_dict[prefix + key]
    state_dict.update({prefix + key: value for key, value in fitted.items()})
    return note
