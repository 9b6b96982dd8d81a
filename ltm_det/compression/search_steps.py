"""The steps of the search: choices measured alone, then one for the budget."""

from typing import Any

from torch import nn

from ltm_det.basics.errors import InputError
from ltm_det.compression.choice import for_budget
from ltm_det.compression.settings import MAX_AP_LOSS
from ltm_det.compression.shared import AP, COST, SEARCH, Shared
from ltm_det.compression.trials import bisect, tried
from ltm_det.conversion.ratio_search import BudgetError

FURTHER = 1.25  # of a budget: what single blocks may gain over stages, to measure which takes long


class SearchSteps(Shared):
    """What is searched, step by step."""

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
                if least > FURTHER * budget.value:
                    break
        raise InputError(
            f"--budget {budget} cannot be met: the least within reach is about {least:.2f} of "
            "mmdet's detector\nGive a larger budget, smaller --ratios, or for a Swin --unit block"
        )

    def for_budget(self, kept: dict[str, Any], last: bool) -> dict[str, Any]:
        """The choice by one unit; if it is the last one, one that misses the budget will do."""
        found = for_budget(self.choice, kept, self.base, self.batches, self.counted, self.say)
        if found["reached"] > self.settings.budget.value and not last:
            raise BudgetError(found["reached"])
        self.say(f"chosen: {found['chosen']}")
        return found

    def counted(self, picked: dict[str, Any]) -> nn.Module:
        """What a budget of time counts of a choice: its detector, or its file."""
        model = self.choice.model(picked)
        if self.dense_file is None:
            return model.to(self.device)
        file = self.dense_file.with_stem("tried")
        self.written(model, file)
        return self.read(file, model)

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
