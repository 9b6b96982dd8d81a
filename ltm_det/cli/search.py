"""Pick ratios, and of a detector a lean recipe, from one of two budgets; write a config.

On a few unlabelled images it measures what merging one unit alone does to the backbone's maps, and
counts what that saves. Then it picks the ratios of least summed error that meet the budget, counts
what they really cost together, and goes on with a tighter budget where that is too much. Nothing
is trained: mask modules are as they start. See ltm_det.conversion.ratio_search for the rules.

With --part detector parts of a lean recipe are candidates too, costs are the whole detector's, and
errors are what AP falls short of 1 where the dense detector's own objects are taken for the truth.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger

from ltm_det.backbones.common.weights import read_checkpoint, without_mergers
from ltm_det.basics.finite import check_finite
from ltm_det.cli.common import OutputFile, command, config_file, new_parser, typed, write_json
from ltm_det.compat.state_dicts import under_own_names
from ltm_det.compat.weight_files import SAFETENSORS
from ltm_det.conversion.convert import merged_config
from ltm_det.conversion.search import (
    PARTS,
    RATIOS,
    SEARCHED,
    UNITS,
    as_table,
    config_text,
    search,
    weights_file,
    write,
)
from ltm_det.engine import preflight
from ltm_det.measure.flops import build_detector, dense_twin
from ltm_det.merging import MERGERS

EXAMPLE = "dense.py dense.pth --part detector --cost latency --budget 0.6 --out ltm.py"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is searched")
    choices = parser.add_argument_group("what can be chosen")
    costs = parser.add_argument_group("what it may cost")
    out = parser.add_argument_group("what is written")
    of.add_argument(
        "config", type=config_file, help="config file of the detector; a merger in it is replaced"
    )
    of.add_argument("checkpoint", help="its trained weights, file or URL")
    of.add_argument(
        "--part",
        choices=[*PARTS],
        default="backbone",
        help="what costs, and is searched; detector: ratios and a lean recipe (default: backbone)",
    )
    budget = costs.add_mutually_exclusive_group(required=True)
    budget.add_argument("--budget", type=float, help="part of the dense cost, 0 to 1")
    budget.add_argument(
        "--budget-ms", type=float, metavar="MS", help="milliseconds, for --cost latency"
    )
    config = OutputFile(".py", beside=[".pth", SAFETENSORS])
    out.add_argument("--out", type=config, required=True, metavar="PY", help="config to write")
    costs.add_argument(
        "--cost", choices=["gmacs", "latency"], default="gmacs", help="default: gmacs"
    )
    choices.add_argument(
        "--unit",
        choices=["stage", "block"],
        help="not of a ViT: what gets its ratio in one piece (default: stage); block in stage "
        "scope: a stage merges from any block to its end",
    )
    choices.add_argument("--merger", choices=list(MERGERS), help="default: the config's, or LTM")
    choices.add_argument("--merger-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    choices.add_argument("--scope", choices=["stage", "block"], help="default: the config's")
    choices.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        default=RATIOS,
        help=f"kept fractions to choose from (default: {RATIOS})",
    )
    preflight.add_shape(costs)
    costs.add_argument(
        "--images",
        type=int,
        default=64,
        help="of the training data, to measure on, without labels (default: 64)",
    )
    out.add_argument("--json", type=OutputFile(), metavar="FILE", help="write the numbers here too")
    out.add_argument(
        "--safetensors", action="store_true", help="where weights are written, as .safetensors"
    )
    out.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    of.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override settings of the config, for the search only: they are not written",
    )
    args = parser.parse_args(words)
    if args.budget is not None and not 0 < args.budget < 1:
        parser.error(f"--budget must lie between 0 and 1, but is {args.budget}")
    if args.budget_ms is not None and (args.cost != "latency" or not args.budget_ms > 0):
        parser.error("--budget-ms must be above 0, and is for --cost latency")
    if args.out.absolute() == Path(args.config).absolute():
        parser.error(f"--out must be a new .py file, but is {args.out}")
    if args.images < 1 or min(args.shape) < 1:
        parser.error("--images and --shape must be 1 or more")
    if taken := set(SEARCHED) & {*(args.merger_options or {})}:
        parser.error(f"--merger-options: {sorted(taken)} is what the search sets; see --ratios")
    return args


def run(args: argparse.Namespace) -> int | None:
    MMLogger.get_instance("mmengine", log_level="ERROR")  # not a line for every model
    cfg = preflight.load_config(args.config, args.cfg_options)
    preflight.check_data(cfg, "train")
    preflight.check_checkpoint(args.checkpoint)
    checkpoint = read_checkpoint(args.checkpoint)
    merged_config(dense_twin(cfg) or cfg, {})  # raises on a backbone that cannot merge
    own = build_detector(cfg).state_dict()
    checkpoint["state_dict"], _ = under_own_names(own, checkpoint["state_dict"])
    check_finite(without_mergers(checkpoint["state_dict"]), args.checkpoint)
    weights = weights_file(args, checkpoint)
    for path in {str(args.out), weights} - {args.checkpoint}:
        if Path(path).exists() and not args.overwrite:
            raise preflight.PreflightError(f"{path} exists: give another --out, or --overwrite")
    result = search(args, cfg, checkpoint)
    command = typed()
    unit = UNITS[args.cost]
    budget = args.budget if args.budget is not None else f"{args.budget_ms} ms"
    kind = result["types"][args.part == "backbone"]
    reached = "{} at {} x {}: {cost:.3f} of {dense_cost:.3f} {}, {cost_ratio:.3f} (budget {})"
    reached = reached.format(kind, *args.shape, unit, budget, **result)
    of = "its maps" if args.part == "backbone" else "its objects"
    errors = (
        "Error of {} on {} images: {expected_error:.5f} expected, {measured_error:.5f} measured"
    )
    errors = errors.format(of, args.images, **result)
    print(as_table(result, unit), reached, errors, sep="\n")
    text = config_text(args, result, [command, reached, errors], weights)
    write(args, checkpoint, weights, text)
    if args.json is not None:
        given = {key: getattr(args, key) for key in ("config", "checkpoint", "shape", "images")}
        given |= dict(command=command, device=get_device(), unit=unit, part=args.part)
        given |= dict(budget=args.budget, budget_ms=args.budget_ms)
        write_json(args.json, given | result)


main = command(parse, run, preflight.PreflightError, ValueError)
