"""Where to merge, how far, and what to leave out of the heads, for a budget of the whole detector.

The search of :mod:`ltm_det.conversion.search` counts in parts of our dense detector's cost, or its
backbone's; a budget is a part of mmdet's whole detector. Here one becomes the other.
"""

import copy
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

from torch import Tensor, nn

from ltm_det.basics.errors import InputError
from ltm_det.compression.costs import times
from ltm_det.compression.evaluation import Batch
from ltm_det.compression.given import Given, compressed_config, loaded
from ltm_det.compression.settings import GMACS, LATENCY, Settings
from ltm_det.conversion.convert import convert
from ltm_det.conversion.ratio_search import BudgetError, Candidate
from ltm_det.conversion.search import Measured, Searched, measure, pick, searched
from ltm_det.conversion.unlabelled import unlabelled_batches

TRIES = 3  # choices for a budget of time, each with a limit that the clock corrects
LEFT = 0.05  # of a budget of time that may be left unused
OF_ONE_SIZE = "lean.neck_finest"  # part of a recipe
BATCH = 8  # pictures at once while the search measures


class Choice:
    """The search for one detector, whose models are built when they are needed.

    Args:
        found: The detector.
        settings: What is searched, and among what.
        shape: Height and width of most pictures, as the backbone gets them.
        dense: What the steps of the dense detector measured: ``gmacs``, and ``times`` of mmdet's,
            of ours, and where files are counted of its file.
        one_size: Whether all pictures have that shape; else a recipe that no file of any size can
            have is left out.
    """

    def __init__(
        self,
        found: Given,
        settings: Settings,
        shape: tuple[int, int],
        dense: Mapping[str, Any],
        one_size: bool,
    ) -> None:
        self.given, self.settings, self.shape, self.dense = found, settings, shape, dense
        self.one_size = one_size
        self.part = "detector" if found.whole else "backbone"
        self._models: dict[str | None, Searched] = {}
        self._batches: list[Tensor] | None = None

    @property
    def units(self) -> list[str | None]:
        """Of the search, one after the other while the budget is not met."""
        if "Swin" not in str(self.given.cfg.model.backbone.type):
            return [None]
        return [self.settings.unit] if self.settings.unit else ["stage", "block"]

    def inputs(self, unit: str | None) -> dict[str, Any]:
        """What :meth:`measured` depends on."""
        own = self.settings
        return dict(
            merger=dict(own.merger),
            ratios=list(own.ratios),
            unit=unit,
            images=own.images,
            cost=own.cost,
            part=self.part,
            recipe="of one size" if self.one_size or own.export == "none" else "of any size",
        )

    def batches(self) -> list[Tensor]:
        if self._batches is None:
            number = min(self.settings.images, self.given.train_pictures)
            with redirect_stdout(io.StringIO()):  # pycocotools prints what it does
                self._batches = unlabelled_batches(self.given.cfg, number, BATCH)
        return self._batches

    def models(self, unit: str | None) -> Searched:
        if unit not in self._models:
            own = self.settings
            options = dict(own.merger)
            cfg = copy.deepcopy(self.given.cfg)
            content = self.given.read()
            models = searched(self.part, cfg, options, content, own.ratios, unit)
            if not self.one_size and own.export != "none":
                models.units.pop(OF_ONE_SIZE, None)
            self._models[unit] = models
        return self._models[unit]

    def measured(self, unit: str | None) -> dict[str, Any]:
        """Every choice alone: the dense cost, and of each unit its candidates; as JSON."""
        own = self.settings
        done = measure(self.models(unit), self.batches(), own.cost, self.shape)
        units = {
            name: [[c.cost, c.error, list(c.label)] for c in candidates]
            for name, candidates in done.units.items()
        }
        return dict(dense=done.dense, units=units, unit=unit)

    def picked(self, kept: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """The choice that costs at most ``limit`` of the dense model's cost.

        Args:
            kept: Of :meth:`measured`.

        Raises:
            BudgetError: There is none; ``least`` in the measure's own units.
        """
        if limit >= 1:
            return nothing(kept["dense"])
        units = {
            name: [Candidate(cost, error, tuple(label)) for cost, error, label in candidates]
            for name, candidates in kept["units"].items()
        }
        measured = Measured(kept["dense"], units)
        models, own = self.models(kept["unit"]), self.settings
        limit *= kept["dense"]
        return pick(models, measured, limit, self.batches(), own.cost, self.shape) | dict(
            unit=kept["unit"]
        )

    def share(self, budget: float) -> float:
        """A part of mmdet's whole detector as a part of what the search counts.

        Raises:
            InputError: What the search cannot change takes more.
        """
        rest, own = self.shares()
        if budget <= rest:
            raise InputError(
                f"--budget {self.settings.budget} cannot be met: all but the backbone takes "
                f"{rest:.2f} of mmdet's detector, and here the backbone alone is made faster "
                f"({self.given.why_not})\nGive a larger budget"
            )
        return (budget - rest) / own

    def shares(self) -> tuple[float, float]:
        """Parts of mmdet's whole detector: what the search leaves as it is, and all else."""
        if self.settings.cost == GMACS:
            whole, backbone = self.dense["gmacs"]["detector"], self.dense["gmacs"]["backbone"]
            if self.given.whole:
                return 0.0, 1.0
            return (whole - backbone) / whole, backbone / whole
        times = [*self.dense["times"]["models"].values()]
        base, ours, counted = times[0], times[1], times[-1]
        if self.given.whole:
            return 0.0, counted["ms"] / base["ms"]
        backbone = ours["parts"]["backbone"]
        return (ours["ms"] - backbone) / base["ms"], backbone / base["ms"]

    def config(self, choice: Mapping[str, Any]) -> Any:
        """The config of a choice's detector."""
        own = self.given
        return compressed_config(own.cfg, choice["merger"], choice["lean"], own.whole)

    def model(self, choice: Mapping[str, Any]) -> nn.Module:
        """The detector of a choice, not calibrated, on the CPU."""
        own = self.given
        cfg = self.config(choice)
        if not choice["merger"]:
            return loaded(cfg, own.checkpoint)
        dense = copy.deepcopy(cfg)
        dense.model.backbone.merger = None
        return convert(dense, own.checkpoint, choice["merger"])[1]


def for_budget(
    choice: Choice,
    kept: Mapping[str, Any],
    base: tuple[str, nn.Module],
    batches: Sequence[Batch],
    counted: Callable[[dict[str, Any]], nn.Module],
    say: Callable[[str], Any],
) -> dict[str, Any]:
    """The choice for a budget of time or GMACs. Of time it is held against mmdet's detector on the
    clock, and made again with a tighter limit where it takes more, or a looser one where it takes
    much less: costs of single choices do not quite add up.

    Args:
        kept: Of :meth:`Choice.measured`.
        base: mmdet's detector, and what it is called.
        batches: Validation pictures.
        counted: What a budget of time counts of a choice: its detector, or its file.

    Raises:
        BudgetError: The budget is below what can be reached, ``least`` of mmdet's.
        InputError: It is below what cannot be changed.
    """
    budget, wanted = choice.settings.budget, choice.settings.budget.value
    rest, own = choice.shares()
    limit, tried = choice.share(wanted), []
    for _ in range(TRIES):
        try:
            found = choice.picked(kept, limit)
        except BudgetError as error:
            least = rest + own * error.least / kept["dense"]
            if tried:
                say("no choice is tighter")
                break
            raise BudgetError(least) from error
        found["reached"] = rest + own * found["cost_ratio"]
        tried.append(found)
        if budget.kind != LATENCY:
            break
        models = {base[0]: base[1], "merged": counted(found)}
        clock = times(models, batches, 30)["models"]["merged"]["ratio"]
        found["reached"] = clock
        say(f"limit {limit:.3f} of ours: {clock:.3f} of mmdet's time, asked for {wanted:g}")
        if (1 - LEFT) * wanted <= clock <= wanted or (clock <= wanted and not found["chosen"]):
            break
        limit = found["cost_ratio"] * wanted / clock * 0.99
    met = [one for one in tried if one["reached"] <= wanted]
    if met:
        return min(met, key=lambda one: one["measured_error"])
    return min(tried, key=lambda one: one["reached"])


def nothing(dense: float) -> dict[str, Any]:
    """The choice to merge nothing, and leave out nothing."""
    return dict(
        chosen={},
        cost=dense,
        cost_ratio=1.0,
        expected_error=0.0,
        measured_error=0.0,
        merger=None,
        lean={},
        unit=None,
    )
