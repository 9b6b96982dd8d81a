"""What all steps of a compression share: their names, the detectors to compare, the search."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from torch import nn

from ltm_det.compression.choice import Choice
from ltm_det.compression.evaluation import evaluate, some_batches
from ltm_det.compression.exporting import counts_file, export, files_of, from_file
from ltm_det.compression.given import Given, compressed_config, loaded, mmdets
from ltm_det.compression.settings import FORMATS, Settings
from ltm_det.compression.state import Steps

TIMED = 4  # validation pictures that times are measured on
CHECKED = 5  # that a file is compared on, besides AP on all
AP, COST, SEARCH, CONVERT, CONVERTED_AP = (
    "dense AP",
    "dense cost",
    "search",
    "convert and calibrate",
    "AP converted",
)
TRAIN, TRAINED_AP, CHOSEN, FILE, FILE_AP, FINAL, REPORT = (
    "fine-tune",
    "AP fine-tuned",
    "config and checkpoint",
    "export",
    "AP of the file",
    "cost",
    "report",
)
DENSE_FILE = "dense file"  # what it is called among the models that are timed
NAMES = dict(
    ap=AP,
    dense_cost=COST,
    search=SEARCH,
    convert=CONVERT,
    converted_ap=CONVERTED_AP,
    train=TRAIN,
    trained_ap=TRAINED_AP,
    chosen=CHOSEN,
    file=FILE,
    file_ap=FILE_AP,
    cost=FINAL,
)


class Shared:
    """Of one compression.

    Args:
        found: The detector and its data.
        settings: What is asked for.
        steps: The folder's.
        command: That was typed, for the report.
        say: Is told what comes out.
    """

    def __init__(
        self,
        found: Given,
        settings: Settings,
        steps: Steps,
        command: str,
        say: Callable[[str], Any] = print,
    ) -> None:
        self.given, self.settings, self.steps, self.say = found, settings, steps, say
        self.device, self.command = get_device(), command
        self.work = steps.folder / "work"
        self.batches = some_batches(found.cfg, TIMED)

    @cached_property
    def exact(self) -> nn.Module:
        """Ours, dense, with the fast heads that give the same."""
        cfg = compressed_config(self.given.cfg, None, {}, self.given.whole)
        return loaded(cfg, self.given.checkpoint, self.device)

    @cached_property
    def base(self) -> tuple[str, nn.Module]:
        return mmdets(self.given, self.exact, self.device)

    @property
    def file(self) -> Path | None:
        """The file to deploy."""
        ending = FORMATS[self.settings.export]
        part = "detector" if self.given.whole else "backbone"
        return None if ending is None else self.steps.folder / f"{part}{ending}"

    @property
    def dense_file(self) -> Path | None:
        """The file of our dense detector, where files are counted."""
        if not counts_file(self.given, self.settings, self.device):
            return None
        return self.work / f"dense{FORMATS[self.settings.export]}"

    def inside(self, file: Path) -> list[str]:
        """What a written detector is in, by names within the folder."""
        return [str(path.relative_to(self.steps.folder)) for path in files_of(file)]

    def written(self, model: nn.Module, file: Path) -> dict[str, Any]:
        """Writes a detector's file, or its backbone's, see :func:`.exporting.export`."""
        file.parent.mkdir(parents=True, exist_ok=True)
        own, any_size = self.given, len(self.steps.result(AP)["sizes"]) > 1
        return export(own.cfg, model, file, own.whole, own.classes, self.batches[0], any_size)

    def read(self, file: Path, model: nn.Module) -> nn.Module:
        """The file in the detector's place, or in its backbone's."""
        return from_file(file, model, self.given.whole, torch.get_num_threads())

    @property
    def calibration(self) -> dict[str, int]:
        """What a converted detector depends on besides the choice."""
        return dict(calibration=self.settings.calibration, steps=self.settings.steps)

    def evaluated(self, model: nn.Module) -> dict[str, Any]:
        own = self.given
        found = evaluate(model, own.cfg, own.masked, own.classes)
        self.say(as_line(found))
        return found

    @cached_property
    def choice(self) -> Choice:
        sizes = self.steps.result(AP)["sizes"]  # the most common one first
        height, width = next(iter(sizes)).split(" x ")
        shape, dense = (int(height), int(width)), self.steps.result(COST)
        return Choice(self.given, self.settings, shape, dense, len(sizes) == 1)

    def on_device(self, model: nn.Module) -> dict[str, Any]:
        return self.evaluated(model.to(self.device))


def as_line(found: dict[str, Any]) -> str:
    """AP in one line."""
    names = dict(bbox="box AP", segm="mask AP")
    values = [f"{names[kind]} {found[kind]['AP'] or 0:.2f}" for kind in names if kind in found]
    return f"{', '.join(values)} on {found['pictures']} pictures"
