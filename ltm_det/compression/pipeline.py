"""The steps of a compression, one after the other; what each needs of those before it."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from torch import nn

from ltm_det.backbones import LTMViT
from ltm_det.basics.errors import InputError
from ltm_det.basics.files import write_text
from ltm_det.basics.finite import check_numbers
from ltm_det.compression import costs
from ltm_det.compression.choice import Choice, for_budget
from ltm_det.compression.drawing import pictures
from ltm_det.compression.evaluation import coco_of, evaluate, loss_of, some_batches
from ltm_det.compression.exporting import export, from_file, same, told
from ltm_det.compression.finishing import content
from ltm_det.compression.given import Given, compressed_config, loaded, mmdets
from ltm_det.compression.merging import converted, finetuned, finetuning_config, save
from ltm_det.compression.report import as_html
from ltm_det.compression.settings import FORMATS, MAX_AP_LOSS, Settings
from ltm_det.compression.state import Steps, digest
from ltm_det.compression.trials import bisect, tried
from ltm_det.conversion.ratio_search import BudgetError

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


class Compression:
    """A detector that is compressed in a folder, step by step.

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
    def calibration(self) -> dict[str, int]:
        """What a converted detector depends on besides the choice."""
        return dict(calibration=self.settings.calibration, steps=self.settings.steps)

    def evaluated(self, model: nn.Module) -> dict[str, Any]:
        own = self.given
        found = evaluate(model, own.cfg, own.masked, own.classes)
        self.say(as_line(found))
        return found

    def run(self) -> None:
        """All steps up to the report."""
        step, key = self.steps.step, self.steps.key
        own = self.given
        step(AP, {}, lambda: self.evaluated(loaded(own.cfg, own.checkpoint, self.device)))
        step(COST, dict(pictures=TIMED), self.dense_cost)
        self.choose()
        start = dict(of=key(SEARCH), **self.calibration)
        weights, config = self.work / "converted.pth", self.work / "converted.py"
        files = [path.relative_to(self.steps.folder) for path in (weights, config)]
        step(CONVERT, start, lambda: self.convert(weights), files)
        step(CONVERTED_AP, dict(of=key(CONVERT)), lambda: self.evaluated(self.of(weights)))
        best = CONVERTED_AP
        if self.settings.finetune != 0:
            best = self.finetune(weights)
        source = weights if best == CONVERTED_AP else self.work / "finetuned.pth"
        step(
            CHOSEN,
            dict(of=key(best)),
            lambda: self.write(source),
            ["model.pth", "config.py"],
        )
        final = self.steps.folder / "model.pth"
        if self.settings.export != "none":
            self.export(final)
        step(FINAL, dict(of=key(CHOSEN), file=self.file_key()), lambda: self.final_cost(final))
        files = ["report.json", "report.html"]
        given = dict(of=key(FINAL, best), pictures=self.settings.pictures, command=self.command)
        step(REPORT, given, lambda: self.report(final), files)

    def dense_cost(self) -> dict[str, Any]:
        """GMACs, and times against mmdet's."""
        models = {self.base[0]: self.base[1], "dense": self.exact}
        found = dict(
            gmacs=costs.gmacs(self.exact, self.batches[0]),
            times=costs.times(models, self.batches),
            shape=list(costs.shape_of(self.exact, self.batches[0])),
            fast_heads=self.given.whole,
            why_not=self.given.why_not,
        )
        for name, own in found["times"]["models"].items():
            self.say(f"{name}: {own['ms']:.0f} ms a picture, {own['ratio']:.2f} of {self.base[0]}")
        return found

    @cached_property
    def choice(self) -> Choice:
        dense = self.steps.result(COST)
        sizes = self.steps.result(AP)["sizes"]
        return Choice(self.given, self.settings, tuple(dense["shape"]), dense, len(sizes) == 1)

    def choose(self) -> None:
        """The search: choices measured alone, then one for the budget."""
        choice, budget = self.choice, self.settings.budget
        units = choice.units
        for unit in units:
            name = f"search: measure {unit or 'blocks'}"
            shape = list(choice.shape)
            given = dict(choice.inputs(unit), shape=shape)
            kept = self.steps.step(name, given, lambda u=unit: choice.measured(u))
            own = dict(of=self.steps.key(name, COST), budget=str(budget))
            try:
                if budget.kind == MAX_AP_LOSS:
                    self.by_trials(kept, own)
                else:
                    last = unit == units[-1]
                    self.steps.step(SEARCH, own, lambda k=kept, x=last: self.for_budget(k, x))
                return
            except BudgetError as error:
                least = error.least
                self.say(f"by {unit or 'blocks'} the least is {least:.2f} of mmdet's")
        raise InputError(
            f"--budget {budget} cannot be met: the least within reach is about {least:.2f} of "
            "mmdet's detector\nGive a larger budget, or smaller --ratios"
        )

    def for_budget(self, kept: dict[str, Any], last: bool) -> dict[str, Any]:
        """The choice by one unit; if it is the last one, one that misses the budget will do."""
        found = for_budget(self.choice, kept, self.base, self.batches, self.device, self.say)
        if found["reached"] > self.settings.budget.value and not last:
            raise BudgetError(found["reached"])
        self.say(f"chosen: {found['chosen']}")
        return found

    def by_trials(self, kept: dict[str, Any], own: dict[str, Any]) -> None:
        """The search for a loss of AP, a step for each candidate."""
        settings, dense = self.settings, self.steps.result(AP)
        own = own | self.calibration

        def trial(number: int, limit: float) -> dict[str, Any]:
            return self.steps.step(
                f"search: trial {number + 1}",
                own | dict(limit=round(limit, 6)),
                lambda: tried(self.choice, kept, limit, dense, self.on_device, self.say),
            )

        best = bisect(trial, settings.budget.value, settings.trials, kept["dense"])
        rest, share = self.choice.shares()
        best["reached"] = rest + share * best["cost_ratio"]
        if not best["chosen"]:
            self.say(
                f"none of {len(best['tried'])} candidates stays within {settings.budget.value:g} "
                f"points of AP: nothing is merged; the exact detector takes {best['reached']:.2f} "
                "of mmdet's"
            )
        self.steps.step(SEARCH, own | dict(tried=best["tried"]), lambda: best)

    def on_device(self, model: nn.Module) -> dict[str, Any]:
        return self.evaluated(model.to(self.device))

    def convert(self, weights: Path) -> dict[str, Any]:
        found = self.steps.result(SEARCH)
        model, report = converted(self.choice, found, self.say)
        save(self.choice.config(found), model, self.given.classes, weights)
        return report

    def of(self, weights: Path) -> nn.Module:
        """The detector of a choice with these weights."""
        return loaded(self.choice.config(self.steps.result(SEARCH)), str(weights), self.device)

    def finetune(self, weights: Path) -> str:
        """Trains; tells which AP's detector is the better one."""
        found, key = self.steps.result(SEARCH), self.steps.key
        own = self.settings
        merged = bool(found["merger"])
        cfg = self.choice.config(found)
        given = dict(
            of=key(CONVERT),
            iterations=own.finetune,
            batch=own.batch,
            distill=own.distill and merged,
            training_data=str(self.given.files[0]),
        )
        folder = self.work / f"finetune-{digest(given)}"
        cfg = finetuning_config(cfg, weights, folder, self.given, own, merged)
        out = self.work / "finetuned.pth"
        files = [p.relative_to(self.steps.folder) for p in (out, out.with_suffix(".py"))]

        def work() -> dict[str, Any]:
            model = finetuned(cfg, self.say)
            save(self.choice.config(found), model, self.given.classes, out)
            return dict(
                iterations=cfg.train_cfg.max_iters,
                batch=cfg.train_dataloader.batch_size,
                lr=cfg.optim_wrapper.optimizer.lr,
                distilled=own.distill and merged,
            )

        self.steps.step(TRAIN, given, work, files)
        self.steps.step(TRAINED_AP, dict(of=key(TRAIN)), lambda: self.evaluated(self.of(out)))
        dense = self.steps.result(AP)
        losses = {n: loss_of(dense, self.steps.result(n)) for n in (CONVERTED_AP, TRAINED_AP)}
        if losses[CONVERTED_AP] < losses[TRAINED_AP]:
            self.say("fine-tuning did not help: the converted detector is kept")
        return min(losses, key=losses.__getitem__)

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

    @property
    def file(self) -> Path | None:
        """The file to deploy."""
        ending = FORMATS[self.settings.export]
        part = "detector" if self.given.whole else "backbone"
        return None if ending is None else self.steps.folder / f"{part}{ending}"

    def file_key(self) -> str:
        return "none" if self.file is None else self.steps.key(FILE)

    def export(self, weights: Path) -> None:
        """The file, compared with its detector, and its AP."""
        file, own = self.file, self.given
        assert file is not None
        sizes = self.steps.result(AP)["sizes"]
        cfg = self.choice.config(self.steps.result(SEARCH))

        def work() -> dict[str, Any]:
            model = loaded(cfg, str(weights))
            dynamic = len(sizes) > 1
            done = export(cfg, model, file, own.whole, own.classes, self.batches[0], dynamic)
            exported = from_file(file, model, own.whole, torch.get_num_threads())
            done |= same(model, exported, own.whole, some_batches(own.cfg, CHECKED))
            self.say(f"{file}: {told(done)}")
            if not done["same"]:
                raise InputError(
                    f"{file} does not give what its detector gives: {told(done)}\n"
                    "Please report it; --export none, or another format, goes without"
                )
            return done

        files = [file.name, *([file.with_suffix(".bin").name] if file.suffix == ".xml" else [])]
        self.steps.step(FILE, dict(of=self.steps.key(CHOSEN), file=file.name), work, files)

        def ap() -> dict[str, Any]:
            model = loaded(cfg, str(weights))
            return self.evaluated(from_file(file, model, own.whole, torch.get_num_threads()))

        self.steps.step(FILE_AP, dict(of=self.steps.key(FILE)), ap)

    def final_cost(self, weights: Path) -> dict[str, Any]:
        """GMACs, and times of all forms in turns."""
        cfg = self.choice.config(self.steps.result(SEARCH))
        model = loaded(cfg, str(weights), self.device)
        models = {self.base[0]: self.base[1], "dense": self.exact, "compressed": model}
        if self.file is not None and self.device == "cpu":
            threads = torch.get_num_threads()
            models[self.file.name] = from_file(self.file, model, self.given.whole, threads)
        found = costs.times(models, self.batches)
        for name, own in found["models"].items():
            self.say(f"{name}: {own['ms']:.0f} ms a picture, {own['ratio']:.2f} of {self.base[0]}")
        return dict(gmacs=costs.gmacs(model, self.batches[0]), times=found)

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


def as_line(found: dict[str, Any]) -> str:
    """AP in one line."""
    names = dict(bbox="box AP", segm="mask AP")
    values = [f"{names[kind]} {found[kind]['AP'] or 0:.2f}" for kind in names if kind in found]
    return f"{', '.join(values)} on {found['pictures']} pictures"


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
        dict(name=f"stage {i + 1}", kept=[kept / stage.window**2 for kept in stage.kept])
        for i, stage in enumerate(backbone.stages)
    ]
