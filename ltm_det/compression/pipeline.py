"""The steps of a compression, one after the other; what each needs of those before it."""

from pathlib import Path
from typing import Any

from torch import nn

from ltm_det.compression import costs
from ltm_det.compression.delivery_steps import DeliverySteps
from ltm_det.compression.evaluation import loss_of
from ltm_det.compression.given import loaded
from ltm_det.compression.merging import converted, finetuned, finetuning_config, save
from ltm_det.compression.search_steps import SearchSteps
from ltm_det.compression.shared import (
    AP,
    CHOSEN,
    CONVERT,
    CONVERTED_AP,
    COST,
    DENSE_FILE,
    FINAL,
    REPORT,
    SEARCH,
    TIMED,
    TRAIN,
    TRAINED_AP,
)
from ltm_det.compression.state import digest


class Compression(SearchSteps, DeliverySteps):
    """A detector that is compressed in a folder, step by step."""

    def run(self) -> None:
        """All steps up to the report."""
        step, key = self.steps.step, self.steps.key
        own = self.given
        step(AP, {}, lambda: self.evaluated(loaded(own.cfg, own.checkpoint, self.device)))
        files = [] if self.dense_file is None else self.inside(self.dense_file)
        step(COST, dict(pictures=TIMED, masks="bitmap", files=files), self.dense_cost, files)
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
        if self.dense_file is not None:
            self.written(self.exact, self.dense_file)
            models[DENSE_FILE] = self.read(self.dense_file, self.exact)
        found = dict(
            gmacs=costs.gmacs(self.exact, self.batches[0]),
            times=costs.times(models, self.batches),
            fast_heads=self.given.whole,
            why_not=self.given.why_not,
        )
        for name, own in found["times"]["models"].items():
            self.say(f"{name}: {own['ms']:.0f} ms a picture, {own['ratio']:.2f} of {self.base[0]}")
        return found

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
