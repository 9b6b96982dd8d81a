"""The search for ratios, and of a whole detector for a lean recipe with them, from a budget; and
the config that it ends in."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.device import get_device
from torch import Tensor
from tqdm import tqdm

from ltm_det.backbones.common.weights import without_mergers
from ltm_det.basics.files import write_text
from ltm_det.basics.finite import check_numbers
from ltm_det.compat.weight_files import SAFETENSORS, write_weights
from ltm_det.conversion.convert import merged_config
from ltm_det.conversion.noise import without_noise
from ltm_det.conversion.ratio_search import BudgetError, Candidate, meet_budget
from ltm_det.conversion.searched_detectors import SearchedDetectors
from ltm_det.conversion.searched_models import SearchedModels
from ltm_det.conversion.unlabelled import unlabelled_batches
from ltm_det.engine import preflight
from ltm_det.measure.flops import aligned, dense_twin

RATIOS = (0.75, 0.51, 0.33, 0.18)  # windows of 7 x 7 become 6 x 6, 5 x 5, 4 x 4, 3 x 3
UNITS = dict(gmacs="GMACs", latency="ms")
SEARCHED = ("compression_ratio", "merge_at")
PARTS = dict(backbone=SearchedModels, detector=SearchedDetectors)
Searched = SearchedModels | SearchedDetectors


def base_merger(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Type and options of the merger, without its ratios."""
    own = dict(cfg.model.backbone.get("merger") or {})
    if args.merger not in (None, own.get("type")):  # keeps what every merger has
        own = {key: own[key] for key in ("scope", "dense_blocks") if key in own}
    own = {key: value for key, value in own.items() if key not in SEARCHED}
    own["type"] = args.merger or own.get("type", "LTM")
    own |= args.merger_options or {}
    return own | (dict(scope=args.scope) if args.scope else {})


class Measured(NamedTuple):
    """What each choice alone costs, and does to what comes out.

    Attributes:
        dense: Cost of the dense model.
        units: By unit its candidates, the first of which changes nothing; costs are counted from
            the dense one's, so that savings are below zero.
    """

    dense: float
    units: dict[str, list[Candidate]]


def searched(
    part: str,
    cfg: Config,
    options: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    ratios: Sequence[float],
    unit: str | None,
) -> Searched:
    """The models of one of `PARTS`, see :class:`SearchedModels`."""
    return PARTS[part](cfg, options, checkpoint, ratios, unit, get_device())


def measure(
    found: Searched, batches: Sequence[Tensor], cost: str, shape: tuple[int, int]
) -> Measured:
    """Measures every choice alone.

    Args:
        found: The models.
        batches: Images (B, 3, H, W), see :func:`unlabelled_batches`.
        cost: Of `UNITS`.
        shape: Height and width of the image that costs are counted on.

    Raises:
        ValueError: A number is not finite, or a detector finds nothing.
    """
    labels = [(unit, choice) for unit, choices in found.units.items() for choice in choices[1:]]
    models = [found.model([label]) for label in labels]
    dense, *each = found.costs([found.dense, *models], cost, shape, batches[0][:1])
    if cost == "latency":
        each = without_noise(labels, each)
    with tqdm(total=len(batches) * len(models), desc="measure") as bar:
        errors = found.errors(models, batches, bar.update)
    measured = {f"{unit} {choice}": [a, b] for (unit, choice), a, b in zip(labels, each, errors)}
    check_numbers(dict(dense=dense, **measured), "the search")
    units: dict[str, list[Candidate]] = {
        unit: [Candidate(0.0, 0.0, (unit, choices[0]))] for unit, choices in found.units.items()
    }
    for label, own, error in zip(labels, each, errors, strict=True):
        units[label[0]].append(Candidate(own - dense, error, label))
    return Measured(dense, units)


def pick(
    found: Searched,
    measured: Measured,
    limit: float,
    batches: Sequence[Tensor],
    cost: str,
    shape: tuple[int, int],
) -> dict[str, Any]:
    """The choice for a limit, and what it reaches: ``chosen``, by unit; ``cost`` and ``cost_ratio``
    of dense; ``expected_error`` and ``measured_error``; ``merger`` and ``lean``, as configs have
    them.

    Args:
        limit: What the whole may cost, in the measure of ``measured.dense``.
        found, batches, cost, shape: See :func:`measure`.

    Raises:
        BudgetError: No choice costs so little.
    """
    dense = measured.dense

    def count(picks: list[Candidate]) -> float:
        merged = found.model([pick.label for pick in picks])
        twin, whole = found.costs([found.dense, merged], cost, shape, batches[0][:1])
        return whole / twin * dense

    picks, reached = meet_budget(list(measured.units.values()), dense, limit, count)
    chosen = [pick.label for pick in picks]
    (error,) = found.errors([found.model(chosen)], batches)
    check_numbers(dict(cost=reached, error=error), "the search's choice")
    return dict(
        chosen=dict(chosen),
        cost=reached,
        cost_ratio=reached / dense,
        expected_error=sum(pick.error for pick in picks),
        measured_error=error,
        merger=found.merger(chosen),
        lean=found.recipe(chosen),
    )


def search(args: argparse.Namespace, cfg: Config, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """All that was found: the dense cost, the units' candidates, the choice, what it reaches.

    Args:
        args: Of ``ltm-det search``.
        cfg: Of the detector.
        checkpoint: Its trained weights.

    Raises:
        ValueError: The budget cannot be met, or something does not fit.
    """
    batches = unlabelled_batches(cfg, args.images)
    options, shape = base_merger(cfg, args), tuple(args.shape)
    found = searched(args.part, cfg, options, checkpoint, args.ratios, args.unit)
    measured = measure(found, batches, args.cost, shape)
    dense = measured.dense
    limit = args.budget_ms if args.budget is None else args.budget * dense
    try:
        choice = pick(found, measured, limit, batches, args.cost, shape)
    except BudgetError as error:
        given = f"--budget-ms {limit}" if args.budget is None else f"--budget {args.budget}"
        raise ValueError(
            f"{given} cannot be met: the least cost within reach is "
            f"{error.least / dense:.3f} of dense, {error.least:.3f} {UNITS[args.cost]}\n"
            "Give a larger budget, smaller --ratios, or for a Swin --unit block"
        ) from error
    backbone = getattr(found.dense, "backbone", found.dense)
    return dict(
        dense_cost=dense,
        units=[
            dict(
                unit=pick.label[0],
                choice=pick.label[1],
                error=pick.error,
                cost=dense + pick.cost,
                cost_ratio=1 + pick.cost / dense,
            )
            for unit in measured.units.values()
            for pick in unit
        ],
        types=[str(found.cfg.model.type), type(backbone).__name__],
        **choice,
    )


def as_table(result: Mapping[str, Any], unit: str) -> str:
    """The candidates, the chosen ones marked."""
    rows = [["unit", "choice", "error", unit, "of dense", ""]]
    for row in result["units"]:
        numbers = f"{row['error']:.5f}", f"{row['cost']:.3f}", f"{row['cost_ratio']:.3f}"
        mark = "<-" if result["chosen"][row["unit"]] == row["choice"] else ""
        rows.append([row["unit"], row["choice"], *numbers, mark])
    return aligned(rows)


def weights_file(args: argparse.Namespace, checkpoint: Mapping[str, Any]) -> str:
    """The checkpoint's file; or where it has mask modules, which belong to other merge points, the
    file beside the config that is to have its weights without them."""
    weights = checkpoint["state_dict"]
    if len(without_mergers(weights)) == len(weights):
        return args.checkpoint
    return str(args.out.with_suffix(SAFETENSORS if args.safetensors else ".pth"))


def config_text(
    args: argparse.Namespace, result: Mapping[str, Any], comments: Sequence[str], weights: str
) -> str:
    """Source of the config to write: what differs from the config that was searched."""
    try:
        base = os.path.relpath(args.config, args.out.parent)
    except ValueError:  # on another drive
        base = os.path.abspath(args.config)
    cfg = preflight.load_config(args.config)
    backbone, (detector, kind) = cfg.model.backbone, result["types"]
    twin = dense_twin(cfg) or cfg
    imports = merged_config(twin, result["merger"] or {}).custom_imports
    lines = [*(f"# {line}" for line in comments), f"_base_ = {Path(base).as_posix()!r}"]
    if imports != cfg.get("custom_imports"):
        lines.append(f"custom_imports = {dict(imports)!r}")
    lines += [f"load_from = {weights!r}", "model = dict("]
    if args.part == "detector":
        lean = ", ".join(f"{key}={value!r}" for key, value in result["lean"].items())
        fresh = "_delete_=True, " if isinstance(cfg.model.get("lean"), Mapping) and lean else ""
        given = f"dict({fresh}{lean})" if lean else "None"
        lines += [f"    type={detector!r},", f"    lean={given},"]
    lines += ["    backbone=dict(", f"        type={kind!r},"]
    lines += [f"        {key}=None," for key in ("init_cfg", "pretrained") if backbone.get(key)]
    if result["merger"] is None:
        return "\n".join([*lines, "        merger=None,", "    )", ")", ""])
    lines.append("        merger=dict(")
    if "merger" in backbone:
        lines.append("            _delete_=True,")
    lines += [f"            {key}={value!r}," for key, value in result["merger"].items()]
    return "\n".join([*lines, "        ),", "    )", ")", ""])


def write(args: argparse.Namespace, checkpoint: Mapping[str, Any], weights: str, text: str) -> None:
    """Writes the config, and the weights without mask modules where they are to be a new file."""
    if weights != args.checkpoint:
        own = without_mergers(checkpoint["state_dict"])
        write_weights(Path(weights), own, checkpoint.get("meta"))
    write_text(args.out, text)
