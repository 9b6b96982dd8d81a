"""What a lean recipe costs in AP: a trained detector with each part of it alone, and with all.

Every (recipe, checkpoint) that OUT has no row for yet is evaluated by ltm-det test with one
thread; so an interrupted run goes on where it stopped. Beside OUT.csv, OUT.md gets means over the
checkpoints and their differences from 'fast', the exact heads; 'mmdet' are mmdet's own.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ltm_det.basics.files import write_text
from ltm_det.cli.common import OutputFile, command, config_file, new_parser
from ltm_det.detectors import FAST
from ltm_det.detectors.recipes import common_recipe, name_of, parts_of
from ltm_det.engine.preflight import PreflightError, check_checkpoint, load_config
from ltm_det.measure.detectors import kind_of
from ltm_det.studies.runs import (
    METRICS,
    as_typed,
    commit,
    last_metrics,
    read_rows,
    run_tool,
    write_rows,
)

EXAMPLE = "dense.py dense.pth --out prices"

MMDET, EXACT, ALL = "mmdet", "fast", "lean"
COLUMNS = ("recipe", "checkpoint", *METRICS, "minutes", "commit", "command")


def recipes_of(test_cfg: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Recipes by name: each part alone, and the common one."""
    alone = {name_of(key, value): {key: value} for key, value in parts_of(test_cfg)}
    return {EXACT: {}, **alone, ALL: common_recipe(test_cfg)}


def options_of(kind: str, recipe: str, recipes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What has to be changed in a config of one of mmdet's detectors, for a recipe."""
    if recipe == MMDET:
        return [f"model.type={kind}"]
    found = [f"model.type={FAST[kind]}"]
    return found + [f"model.lean.{key}={value}" for key, value in recipes[recipe].items()]


def summary(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown: a recipe's mean AP and how far it lies from the exact one's."""
    lines = [
        "| recipe | checkpoints | box AP | mask AP | box | mask |",
        "|---|---|---|---|---|---|",
    ]
    exact = {row["checkpoint"]: row for row in rows if row["recipe"] == EXACT}
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        own = [row for row in rows if row["recipe"] == recipe and row["checkpoint"] in exact]
        if not own:
            continue
        cells, apart = [recipe, str(len(own))], []
        for metric in ("bbox_mAP", "segm_mAP"):
            cells.append(f"{100 * mean(float(row[metric]) for row in own):.2f}")
            each = [float(row[metric]) - float(exact[row["checkpoint"]][metric]) for row in own]
            apart.append(f"{100 * mean(each):+.2f}")
        lines.append(f"| {' | '.join(cells + apart)} |")
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> None:
    model = load_config(args.config, None).model
    kind = kind_of(model)
    if kind not in FAST:
        raise ValueError(f"the detector is a {kind}: give one of {[*FAST]}")
    if model.get("lean"):
        raise ValueError(
            "the config has a lean recipe of its own: give the exact detector's config"
        )
    if "mask_head" not in model.roi_head:
        raise ValueError(f"a {kind} without masks has no mask AP to compare: give one with masks")
    for checkpoint in args.checkpoints:
        check_checkpoint(checkpoint)
    table = args.out.with_suffix(".csv")
    rows: list[dict[str, Any]] = list(read_rows(table))
    done = {(row["recipe"], row["checkpoint"]) for row in rows}
    recipes = recipes_of(model.test_cfg)
    if unknown := set(args.recipes or ()) - {MMDET, *recipes}:
        raise ValueError(f"no recipe {sorted(unknown)}: choose from {[MMDET, *recipes]}")
    for recipe in args.recipes or [MMDET, *recipes]:
        for checkpoint in args.checkpoints:
            if (recipe, checkpoint) in done:
                continue
            command = ["test", args.config, checkpoint]
            options = ["--cfg-options", *options_of(kind, recipe, recipes)]
            with tempfile.TemporaryDirectory() as folder:
                log = args.out.with_name(f"{args.out.name}.log")
                minutes = run_tool([*command, "--work-dir", folder, *options], log)
                metrics = last_metrics(Path(folder))
            log.unlink()
            row = dict(recipe=recipe, checkpoint=checkpoint, minutes=minutes, commit=commit())
            rows.append(row | metrics | dict(command=as_typed([*command, *options])))
            write_rows(table, COLUMNS, rows)
            write_text(args.out.with_suffix(".md"), summary(rows))
            print(f"{recipe}, {checkpoint}: {metrics}", flush=True)
    print(summary(rows))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is evaluated")
    out = parser.add_argument_group("what is written")
    of.add_argument("config", type=config_file, help="config file of a detector, with its data")
    of.add_argument("checkpoints", nargs="+", help="checkpoint files, such as of several seeds")
    tables = OutputFile(beside=[".csv", ".md", ".log"])
    out.add_argument("--out", type=tables, required=True, help="of the tables, OUT.csv and OUT.md")
    of.add_argument("--recipes", nargs="+", metavar="NAME", help="to evaluate (default: all)")
    args = parser.parse_args(words)
    return args


main = command(parse, run, PreflightError, ValueError, RuntimeError)
