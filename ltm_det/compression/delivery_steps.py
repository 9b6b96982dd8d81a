"""The steps after the detector is made: its files, what they are worth, the report."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from ltm_det.backbones import LTMViT
from ltm_det.basics.errors import InputError
from ltm_det.basics.files import write_text
from ltm_det.basics.finite import check_numbers
from ltm_det.compression import costs
from ltm_det.compression.drawing import pictures
from ltm_det.compression.evaluation import coco_of, some_batches
from ltm_det.compression.exporting import same, told
from ltm_det.compression.finishing import content
from ltm_det.compression.given import loaded
from ltm_det.compression.merging import save
from ltm_det.compression.report import as_html
from ltm_det.compression.shared import (
    CHECKED,
    CHOSEN,
    DENSE_FILE,
    FILE,
    FILE_AP,
    NAMES,
    SEARCH,
    Shared,
)


class DeliverySteps(Shared):
    """What is written, step by step."""

    def write(self, source: Path) -> dict[str, Any]:
        """The detector that is delivered, and its config."""
        found, out = self.steps.result(SEARCH), self.steps.folder / "model.pth"
        cfg = self.choice.config(found)
        model = loaded(cfg, str(source))
        save(cfg, model, self.given.classes, out)
        out.with_suffix(".py").replace(self.steps.folder / "config.py")
        kinds = [str(cfg.model.type), str(cfg.model.backbone.type)]
        merging = merge_places(model.backbone)
        return dict(source=source.name, types=kinds, merging=merging, lean=found["lean"])

    def file_key(self) -> str:
        return "none" if self.file is None else self.steps.key(FILE)

    def export(self, weights: Path) -> None:
        """The file, compared with its detector, and its AP."""
        file, own = self.file, self.given
        assert file is not None
        cfg = self.choice.config(self.steps.result(SEARCH))

        def work() -> dict[str, Any]:
            model = loaded(cfg, str(weights))
            done = self.written(model, file)
            done |= same(model, self.read(file, model), own.whole, some_batches(own.cfg, CHECKED))
            self.say(f"{file}: {told(done)}")
            if not done["same"]:
                raise InputError(
                    f"{file} does not give what its detector gives: {told(done)}\n"
                    "Please report it; --export none, or another format, goes without"
                )
            return done

        given = dict(of=self.steps.key(CHOSEN), file=file.name)
        self.steps.step(FILE, given, work, self.inside(file))

        def ap() -> dict[str, Any]:
            model = loaded(cfg, str(weights))
            return self.evaluated(self.read(file, model))

        self.steps.step(FILE_AP, dict(of=self.steps.key(FILE)), ap)

    def final_cost(self, weights: Path) -> dict[str, Any]:
        """GMACs, and times of all forms in turns."""
        cfg = self.choice.config(self.steps.result(SEARCH))
        model = loaded(cfg, str(weights), self.device)
        models = {self.base[0]: self.base[1], "dense": self.exact, "compressed": model}
        if self.dense_file is not None:
            models[DENSE_FILE] = self.read(self.dense_file, model)
        if self.file is not None and self.device == "cpu":
            models[self.file.name] = self.read(self.file, model)
        counted = "compressed" if self.dense_file is None else [*models][-1]
        found = costs.times(models, self.batches)
        for name, own in found["models"].items():
            self.say(f"{name}: {own['ms']:.0f} ms a picture, {own['ratio']:.2f} of {self.base[0]}")
        return dict(gmacs=costs.gmacs(model, self.batches[0]), times=found, counted=counted)

    def report(self, weights: Path) -> dict[str, Any]:
        """The report, as JSON and as a page."""
        own, folder = self.given, self.steps.folder
        cfg = self.choice.config(self.steps.result(SEARCH))
        models = [self.exact, loaded(cfg, str(weights), self.device)]
        batches = some_batches(own.cfg, self.settings.pictures)
        truth = coco_of(str(own.files[1]))
        shown = pictures(models, batches, truth, own.classes)
        report = content(own, self.settings, self.steps, NAMES, self.command)
        check_numbers(report, "report.json is not written")
        write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
        write_text(folder / "report.html", as_html(report, shown))
        return dict(met=report["met"], reached=report["reached"], loss=report["loss"])


def merge_places(backbone: nn.Module) -> list[dict[str, Any]]:
    """Where a backbone merges: by stage its name and ``kept``, the share of its tokens that each
    block computes on; a ViT is one stage."""
    if isinstance(backbone, LTMViT):
        shares, side = [], backbone.window
        for block in range(len(backbone.blocks)):
            side = backbone.sides.get(block, side)
            shares.append(side**2 / backbone.window**2)
        return [dict(name="blocks", kept=shares)]
    return [
        dict(name=f"stage {i + 1}", kept=[kept / part.window**2 for kept in part.kept])
        for i, stage in enumerate(backbone.stages)
        for part in stage.modules()
        if hasattr(part, "kept")
    ]
