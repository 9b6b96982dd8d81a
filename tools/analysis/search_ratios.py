"""Pick the ratio of every stage or block from a budget; write the merged detector's config.

On a few unlabelled images it measures what merging one unit alone does to the backbone's maps, and
counts what that saves. Then it picks the ratios of least summed error that meet the budget, counts
what they really cost together, and goes on with a tighter budget where that is too much. Nothing
is trained: mask modules are as they start. See ltm_det.conversion.ratio_search for the rules.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ltm_det  # noqa: E402, F401  first: it makes mmdet's models importable

# isort: split
import torch  # noqa: E402
from mmengine.config import Config, DictAction  # noqa: E402
from mmengine.device import get_device  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from torch import nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

from ltm_det.backbones.common.weights import read_checkpoint, without_mergers  # noqa: E402
from ltm_det.conversion.convert import merged_config  # noqa: E402
from ltm_det.conversion.ratio_search import (  # noqa: E402
    DENSE,
    BudgetError,
    Candidate,
    latencies,
    meet_budget,
    sensitivities,
)
from ltm_det.conversion.searched_models import SearchedModels  # noqa: E402
from ltm_det.conversion.unlabelled import unlabelled_batches  # noqa: E402
from ltm_det.engine import preflight  # noqa: E402
from ltm_det.measure.flops import aligned, count_backbone, dense_twin  # noqa: E402
from ltm_det.merging import MERGERS  # noqa: E402

RATIOS = [0.75, 0.51, 0.33, 0.18]  # windows of 7 x 7 become 6 x 6, 5 x 5, 4 x 4, 3 x 3
UNITS = dict(gmacs="GMACs", latency="ms")
SEARCHED = ("compression_ratio", "merge_at")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config file of the detector; a merger in it is replaced")
    parser.add_argument("checkpoint", help="its trained weights, file or URL")
    parser.add_argument(
        "--budget", type=float, required=True, help="part of the dense cost, 0 to 1"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PY", help="config to write")
    parser.add_argument("--cost", choices=["gmacs", "latency"], default="gmacs")
    parser.add_argument(
        "--unit",
        choices=["stage", "block"],
        help="of a Swin, what gets its ratio in one piece (default: stage); block in stage scope: "
        "a stage merges from any block to its end",
    )
    parser.add_argument("--merger", choices=list(MERGERS), help="default: the config's, or LTM")
    parser.add_argument("--merger-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    parser.add_argument("--scope", choices=["stage", "block"], help="default: the config's")
    parser.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        default=RATIOS,
        help=f"kept fractions to choose from (default: {RATIOS})",
    )
    preflight.add_shape(parser)
    parser.add_argument("--images", type=int, default=64, help="to measure on (default: 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override settings of the config, for the search only: they are not written",
    )
    args = parser.parse_args()
    if not 0 < args.budget < 1:
        parser.error(f"--budget must lie between 0 and 1, but is {args.budget}")
    if args.out.suffix != ".py" or args.out.absolute() == Path(args.config).absolute():
        parser.error(f"--out must be a new .py file, but is {args.out}")
    if args.images < 1 or min(args.shape) < 1:
        parser.error("--images and --shape must be 1 or more")
    if taken := set(SEARCHED) & {*(args.merger_options or {})}:
        parser.error(f"--merger-options: {sorted(taken)} is what the search sets; see --ratios")
    return args


def base_merger(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Type and options of the merger, without its ratios."""
    own = dict(cfg.model.backbone.get("merger") or {})
    if args.merger not in (None, own.get("type")):  # keeps what every merger has
        own = {key: own[key] for key in ("scope", "dense_blocks") if key in own}
    own = {key: value for key, value in own.items() if key not in SEARCHED}
    own["type"] = args.merger or own.get("type", "LTM")
    own |= args.merger_options or {}
    return own | (dict(scope=args.scope) if args.scope else {})


def costs(models: Sequence[nn.Module], args: argparse.Namespace) -> list[float]:
    """GMACs of one image, or milliseconds."""
    shape = tuple(args.shape)
    if args.cost == "latency":
        return [1e3 * seconds for seconds in latencies(models, shape)]
    bar = tqdm(models, desc="count", disable=len(models) < 3)
    return [count_backbone(model, shape).macs["backbone"] / 1e9 for model in bar]


def search(args: argparse.Namespace, cfg: Config, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """All that was found: the dense cost, the units' candidates, the choice, what it reaches."""
    batches = unlabelled_batches(cfg, args.images)
    options = base_merger(cfg, args)
    found = SearchedModels(cfg, options, checkpoint, args.ratios, args.unit, get_device())
    labels = [(unit, choice) for unit, choices in found.space.units.items() for choice in choices]
    models = [found.model([label]) for label in labels]
    dense, *each = costs([found.dense, *models], args)
    with tqdm(total=len(batches) * len(models), desc="measure") as bar:
        errors = sensitivities(found.dense, models, batches, bar.update)
    units: dict[str, list[Candidate]] = {unit: [] for unit in found.space.units}
    for label, cost, error in zip(labels, each, errors, strict=True):
        cost = dense if label[1] == DENSE else cost  # by the clock it would differ from itself
        units[label[0]].append(Candidate(cost - dense, error, label))

    def count(picks: list[Candidate]) -> float:
        merged = found.model([pick.label for pick in picks])
        twin, whole = costs([found.dense, merged], args)
        return whole / twin * dense

    try:
        picks, cost = meet_budget(list(units.values()), dense, args.budget * dense, count)
    except BudgetError as error:
        raise ValueError(
            f"--budget {args.budget} cannot be met: the least cost within reach is "
            f"{error.least / dense:.3f} of dense, {error.least:.3f} {UNITS[args.cost]}\n"
            "Give a larger budget, smaller --ratios, or for a Swin --unit block"
        ) from error
    chosen = [pick.label for pick in picks]
    (error,) = sensitivities(found.dense, [found.model(chosen)], batches)
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
            for unit in units.values()
            for pick in unit
        ],
        chosen=dict(chosen),
        cost=cost,
        cost_ratio=cost / dense,
        expected_error=sum(pick.error for pick in picks),
        measured_error=error,
        merger=found.merger(chosen),
        type=type(found.dense).__name__,
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
    weights = checkpoint.get("state_dict", checkpoint)
    if len(without_mergers(weights)) == len(weights):
        return args.checkpoint
    return str(args.out.with_suffix(".pth"))


def config_text(
    args: argparse.Namespace, result: Mapping[str, Any], comments: Sequence[str], weights: str
) -> str:
    """Source of the config to write: what differs from the config that was searched."""
    try:
        base = os.path.relpath(args.config, args.out.parent)
    except ValueError:  # on another drive
        base = os.path.abspath(args.config)
    cfg = preflight.load_config(args.config)
    backbone = cfg.model.backbone
    imports = merged_config(dense_twin(cfg) or cfg, result["merger"]).custom_imports
    lines = [*(f"# {line}" for line in comments), f"_base_ = {Path(base).as_posix()!r}"]
    if imports != cfg.get("custom_imports"):
        lines.append(f"custom_imports = {dict(imports)!r}")
    lines += [f"load_from = {weights!r}", "model = dict(", "    backbone=dict("]
    lines.append(f"        type={result['type']!r},")
    lines += [f"        {key}=None," for key in ("init_cfg", "pretrained") if backbone.get(key)]
    lines.append("        merger=dict(")
    if "merger" in backbone:
        lines.append("            _delete_=True,")
    lines += [f"            {key}={value!r}," for key, value in result["merger"].items()]
    return "\n".join([*lines, "        ),", "    )", ")", ""])


def write(args: argparse.Namespace, checkpoint: Mapping[str, Any], weights: str, text: str) -> None:
    """Writes the config, and the weights without mask modules where they are to be a new file."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text)
    if weights != args.checkpoint:
        own = without_mergers(checkpoint.get("state_dict", checkpoint))
        meta = checkpoint.get("meta", {}) if "state_dict" in checkpoint else {}
        torch.save(dict(state_dict=own, meta=meta), weights)


def main() -> int:
    args = parse()
    MMLogger.get_instance("mmengine", log_level="ERROR")  # not a line for every model
    try:
        cfg = preflight.load_config(args.config, args.cfg_options)
        preflight.check_data(cfg, "train")
        preflight.check_checkpoint(args.checkpoint)
        checkpoint = read_checkpoint(args.checkpoint)
        weights = weights_file(args, checkpoint)
        for path in {str(args.out), weights} - {args.checkpoint}:
            if Path(path).exists() and not args.overwrite:
                raise preflight.PreflightError(f"{path} exists: give another --out, or --overwrite")
        result = search(args, cfg, checkpoint)
    except (preflight.PreflightError, ValueError) as error:
        print(f"search_ratios.py: {error}", file=sys.stderr)
        return 2
    command = shlex.join(["python", *sys.argv])
    unit = UNITS[args.cost]
    reached = "{} at {} x {}: {cost:.3f} of {dense_cost:.3f} {}, {cost_ratio:.3f} (budget {})"
    reached = reached.format(result["type"], *args.shape, unit, args.budget, **result)
    errors = "Error of its maps on {} images: {expected_error:.5f} expected, {measured_error:.5f}"
    errors = errors.format(args.images, **result) + " measured"
    print(as_table(result, unit), reached, errors, sep="\n")
    text = config_text(args, result, [command, reached, errors], weights)
    write(args, checkpoint, weights, text)
    if args.json is not None:
        given = {key: getattr(args, key) for key in ("config", "checkpoint", "shape", "images")}
        given |= dict(command=command, device=get_device(), unit=unit, budget=args.budget)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(given | result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
