"""A matrix of detectors - backbone, merger, setting, seed, way of making - and what to run of it.

Its spec is YAML with three keys:

- backbones: name to ``{config: FILE, shape: [height, width]}``, the dense detector's config, seen
  from the repository's root, and the image for which GMACs are counted; ``time_shape``, where
  another is to be timed.
- mergers: name to a backbone's ``merger`` dict without what the settings give. ``cfg_options``
  beside its type, ``{KEY: VALUE}``, change the config of trainings with it.
- runs: a list. Each has a mode, backbones, mergers (or 'dense'), settings and seeds, and stands for
  a cell for each combination. Settings are a label, such as the share of GMACs, to the merger's
  further options for each backbone: ``{"0.7": {swin: {...}, swin/ToMe: {...}}}``; an entry of
  'backbone/merger' stands in place of that of the backbone. A dense cell has none.

Modes: 'train', from scratch; 'finetune', from the trained dense detector of the same seed;
'convert', from it without training; 'calibrate', converted and then calibrated on ``images``. The
first two may have ``iterations``, in place of the config's, and ``cfg_options``; fine-tuning that
has ``images`` starts from what calibration on them makes of the dense detector.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ltm_det.merging import MERGERS, merger_options
from ltm_det.studies.runs import last_checkpoint

DENSE, DENSE_SETTING = "dense", "1"
TRAININGS = ("train", "finetune")
# What a run of each mode may say beside the keys that all have.
MODES = {
    "train": ("iterations", "cfg_options"),
    "finetune": ("iterations", "cfg_options", "images"),
    "convert": (),
    "calibrate": ("images",),
}
RUN_KEYS = ("mode", "backbones", "mergers", "seeds")


class SpecError(ValueError):
    """A spec that makes no sense; the message names the value."""


@dataclass(frozen=True)
class Backbone:
    """A dense detector's config, and the sizes of image to count and to time at, in pixels."""

    config: str
    shape: tuple[int, int]
    time_shape: tuple[int, int]


@dataclass(frozen=True)
class Cell:
    """One detector of a matrix.

    Attributes:
        options: What makes it, as the spec has it: 'merger', unless it is dense, and what its run
            says of 'iterations', 'cfg_options' and 'images'.
    """

    backbone: str
    mode: str
    merger: str
    setting: str
    seed: int
    options: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, ...]:
        return self.backbone, self.mode, self.merger, self.setting, str(self.seed)

    @property
    def name(self) -> str:
        """Also that of its folder."""
        return "-".join([*self.key[:-1], f"seed{self.seed}"])

    @property
    def start(self) -> tuple[str, ...] | None:
        """Key of the dense cell from whose checkpoint it starts, if it does."""
        if self.mode == "train":
            return None
        return self.backbone, "train", DENSE, DENSE_SETTING, str(self.seed)


def folder_of(key: tuple[str, ...], work_dir: Path) -> Path:
    return work_dir / "-".join([*key[:-1], f"seed{key[-1]}"])


def load_spec(path: Path) -> tuple[dict[str, Backbone], list[Cell]]:
    """The backbones of a spec and the cells of its matrix, in its order.

    Raises:
        SpecError: Names what is wrong in it.
    """
    if not path.is_file():
        raise SpecError(f"no spec at {path}; tools/compare_demo.yaml is one")
    try:
        spec = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is no YAML: {error}") from error
    check_keys("the spec", spec, ("backbones", "mergers", "runs"))
    check_type("backbones", spec["backbones"], dict)
    check_type("mergers", spec["mergers"], dict)
    check_type("runs", spec["runs"], list)
    backbones = {}
    for name, entry in spec["backbones"].items():
        check_keys(f"backbone {name}", entry, ("config", "shape"), ("time_shape",))
        check_name(name)
        shape = check_shape(name, entry["shape"])
        time_shape = check_shape(name, entry.get("time_shape", shape))
        backbones[name] = Backbone(entry["config"], shape, time_shape)
    for name, entry in spec["mergers"].items():
        check_name(name)
        kind = entry.get("type") if isinstance(entry, dict) else None
        if name == DENSE or kind not in MERGERS:
            raise SpecError(f"merger {name}: {entry} needs a type of {sorted(MERGERS)}")
    cells = {}
    for number, run in enumerate(spec["runs"]):
        for cell in expand(f"run {number + 1}", run, spec["backbones"], spec["mergers"]):
            if cells.setdefault(cell.key, cell) != cell:
                first = cells[cell.key].options
                raise SpecError(f"{cell.name} is there twice, as {first} and as {cell.options}")
    return backbones, list(cells.values())


def expand(what: str, run: Any, backbones: Iterable[str], mergers: Mapping) -> Iterator[Cell]:
    """The cells of one of a spec's runs.

    Raises:
        SpecError: Names what is wrong in it.
    """
    mode = run.get("mode") if isinstance(run, dict) else None
    if mode not in MODES:
        raise SpecError(f"{what}: unknown mode {mode!r}, known are {', '.join(MODES)}")
    what = f"{what}, {mode}"
    check_keys(what, run, RUN_KEYS, ("settings", *MODES[mode]))
    for key in ("backbones", "mergers", "seeds"):
        check_type(f"{what}: {key}", run[key], list)
    for seed in run["seeds"]:
        check_type(f"{what}: a seed", seed, int)
    for key, known in (("backbones", backbones), ("mergers", [DENSE, *mergers])):
        unknown = [name for name in run[key] if name not in known]
        if unknown:
            raise SpecError(f"{what}: unknown {key} {unknown}, known are {', '.join(known)}")
    for key in ("iterations", "images"):
        check_type(f"{what}: {key}", run.get(key, 1), int)
        if run.get(key, 1) < 1:
            raise SpecError(f"{what}: {key} must be above 0, but is {run[key]}")
    for key in ("settings", "cfg_options"):
        check_type(f"{what}: {key}", run.get(key, {}), dict)
    if mode == "calibrate" and "images" not in run:
        raise SpecError(f"{what}: lacks images, the number to calibrate on")
    settings = {str(label): entry for label, entry in run.get("settings", {}).items()}
    places = [*backbones, *(f"{b}/{m}" for b in backbones for m in mergers)]
    for label, entry in settings.items():
        check_name(label)
        check_keys(f"{what}, setting {label}", entry, (), places)

    own = {key: run[key] for key in MODES[mode] if key in run}
    for backbone, merger in itertools.product(run["backbones"], run["mergers"]):
        if merger == DENSE:
            if mode not in TRAININGS or "images" in run:
                raise SpecError(f"{what}: 'dense' is what is converted, by other mergers")
            for seed in run["seeds"]:
                yield Cell(backbone, mode, DENSE, DENSE_SETTING, seed, own)
            continue
        if not settings:
            raise SpecError(f"{what}: {merger} needs settings")
        fixed = {key: value for key, value in mergers[merger].items() if key != "cfg_options"}
        changes = run.get("cfg_options", {}) | mergers[merger].get("cfg_options", {})
        trained = {"cfg_options": changes} if changes and mode in TRAININGS else {}
        for label, entry in settings.items():
            options = entry.get(f"{backbone}/{merger}", entry.get(backbone))
            if options is None:
                raise SpecError(f"{what}: setting {label} has nothing for {backbone}/{merger}")
            try:
                made = own | trained | {"merger": merger_options(fixed | options)}
            except ValueError as error:
                raise SpecError(f"{what}: {backbone}/{merger} at {label}: {error}") from error
            for seed in run["seeds"]:
                yield Cell(backbone, mode, merger, label, seed, made)


def check_keys(what: str, given: Any, needed: Iterable[str], optional: Iterable[str] = ()) -> None:
    known = [*needed, *optional]
    if not isinstance(given, dict):
        raise SpecError(f"{what} must have keys of {known}, but is {given!r}")
    unknown = [key for key in given if key not in known]
    if unknown:
        raise SpecError(f"{what}: unknown {unknown}, known are {', '.join(known)}")
    missing = [key for key in needed if given.get(key) is None]
    if missing:
        raise SpecError(f"{what} lacks {', '.join(missing)}")


def check_type(what: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        names = {dict: "have names and entries", list: "be a list", int: "be a whole number"}
        raise SpecError(f"{what} must {names[kind]}, but is {value!r}")


def check_name(name: Any) -> None:
    if not re.fullmatch(r"[\w.+]+", str(name)):  # it becomes part of a folder's name
        raise SpecError(f"the name {name!r} must be of letters, digits, '_', '.' and '+'")


def check_shape(name: str, shape: Any) -> tuple[int, int]:
    try:
        height, width = map(int, shape)
    except (TypeError, ValueError) as error:
        raise SpecError(f"backbone {name}: [height, width] expected, not {shape!r}") from error
    return height, width


def plan(cells: Sequence[Cell], rows: Mapping[tuple, Mapping], work_dir: Path) -> list[Cell]:
    """The cells to run: those without a row, after the dense ones that they need.

    Raises:
        SpecError: A dense detector is needed that is neither in the matrix nor in the work
            directory; or a row was made with other options than the spec now has.
    """
    by_key = {cell.key: cell for cell in cells}
    for key in by_key.keys() & rows.keys():
        old, new = json.loads(rows[key]["options"]), by_key[key].options
        if old != new:
            raise SpecError(
                f"the row of {by_key[key].name} was made with {old}, and the spec says {new}: give "
                "the setting or the merger another name, or delete the row"
            )
    todo = [cell for cell in cells if cell.key not in rows]
    needed = {}
    for cell in todo:
        if cell.start is None or cell.start in needed:
            continue
        folder = folder_of(cell.start, work_dir)
        gone = last_checkpoint(folder) is None
        if cell.start in by_key and (gone or cell.start not in rows):
            needed[cell.start] = by_key[cell.start]
        elif gone:
            raise SpecError(
                f"{cell.name} starts from a dense detector that is not there: put {cell.backbone}, "
                f"train, dense and seed {cell.seed} into the runs, or its folder at {folder}"
            )
    others = [cell for cell in todo if cell.key not in needed]
    return [*needed.values(), *sorted(others, key=lambda cell: cell.start is not None)]
