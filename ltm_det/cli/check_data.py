"""Look for faults in COCO data, in annotations and in picture files, before training meets them.

The data sets of a config, or one annotation file with a folder. Categories are compared with the
config's classes by name. Ends with 2 where there are errors.
"""

import argparse
import os.path as osp
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from tqdm import tqdm

from ltm_det.basics.errors import InputError
from ltm_det.cli.common import (
    BAD_INPUT,
    CONSOLE,
    OutputFile,
    command,
    config_file,
    new_parser,
    write_json,
)
from ltm_det.datasets.check import Finding, Source, as_json, as_text, check, errors, sources
from ltm_det.datasets.check import seen as known
from ltm_det.datasets.check.dataset import check_ids
from ltm_det.datasets.check.mending import write_mended
from ltm_det.datasets.check.pictures import Seen, check_pictures
from ltm_det.engine import preflight
from ltm_det.engine.alike import told_by_main
from ltm_det.engine.config_check import leaf_datasets
from ltm_det.engine.config_values import evaluators_of

EXAMPLE = "configs/demo_ltm_swin_maskrcnn.py --split train --fix mended.json"
FEW = 3  # problems of a kind that the start of a run shows
SPLITS = ("train", "val", "test")
Checked = tuple[Source, dict[str, Any] | None, list[Finding]]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is looked at")
    out = parser.add_argument_group("what is written")
    of.add_argument("config", nargs="?", type=config_file, help="config file")
    of.add_argument(
        "--split",
        nargs="+",
        choices=SPLITS,
        default=SPLITS,
        help="of the config's data (default: all)",
    )
    of.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override settings of the config",
    )
    of.add_argument("--ann", metavar="FILE", help="an annotation file, in the place of a config")
    of.add_argument("--images", metavar="DIR", help="its pictures (default: not looked at)")
    of.add_argument("--classes", nargs="+", metavar="NAME", help="its classes")
    of.add_argument("--boxes", action="store_true", help="masks of --ann are not needed")
    of.add_argument("--no-images", action="store_true", help="the annotation files alone")
    of.add_argument("--workers", type=int, metavar="N", help="threads (default: as processors)")
    out.add_argument(
        "--most", type=int, metavar="N", help="problems shown of a kind (default: all)"
    )
    out.add_argument(
        "--json", type=OutputFile(".json"), metavar="FILE", help="write all problems as JSON"
    )
    out.add_argument(
        "--fix",
        type=OutputFile(".json"),
        metavar="FILE",
        help="write a copy of the annotation file without the errors",
    )
    args = parser.parse_args(words)
    if (args.config is None) == (args.ann is None):
        parser.error("name a config, or an annotation file with --ann")
    if args.config and (args.images or args.classes or args.boxes):
        parser.error("--images, --classes and --boxes go with --ann")
    return args


def run(args: argparse.Namespace) -> int:
    look = partial(look_at, pictures=not args.no_images, workers=args.workers)
    if args.ann is not None:
        source = Source("--ann", args.ann, args.images, args.classes, not args.boxes)
        checked, findings = [look(source)], []
    else:
        checked, findings = check_config(
            preflight.load_config(args.config, args.cfg_options), args.split, look
        )
    findings = [finding for _, _, found in checked for finding in found] + findings
    for source, data, found in checked:
        print(summary(source, data, found))
    print(as_text(findings, args.most))
    write_json(args.json, as_json(findings))
    if args.fix is not None:
        fix(checked, args.fix)
    return BAD_INPUT if errors(findings) else 0


def fix(checked: Sequence[Checked], out: Path) -> None:
    """Writes the mended copy of the one file that was looked at.

    Raises:
        InputError: There are several, or what is wrong can't be mended.
    """
    if len(checked) != 1:
        files = ", ".join(source.ann_file for source, _, _ in checked)
        raise InputError(f"--fix mends one file, but these were looked at: {files}. Give --split")
    done = write_mended(*checked[0], out)
    print(f"{out}: {done or 'nothing was to be mended'}")


def summary(source: Source, data: dict[str, Any] | None, found: Sequence[Finding]) -> str:
    held = "unreadable"
    if data is not None:
        lists = ("images", "annotations", "categories")
        held = ", ".join(f"{len(data.get(name, ()))} {name}" for name in lists)
    wrong = len(errors(found))
    return (
        f"{source.name}: {source.ann_file}: {held}; {wrong} errors, {len(found) - wrong} warnings"
    )


def check_config(
    cfg: Config, splits: Iterable[str], look: Any
) -> tuple[list[Checked], list[Finding]]:
    """Looks at the data sets of a config; and what is wrong between them.

    Args:
        look: From a source to what was found.
    """
    checked: list[Checked] = []
    between: list[Finding] = []
    done: set[str] = set()
    for split in splits:
        own = []
        for source in sources_of(cfg, split):
            if isinstance(source, str):
                text = f"{split}_dataloader has a data set of type {source}"
                between.append(Finding("not looked at", text, "", "", error=False))
                continue
            key = repr((split, {**vars(source), "name": "", "dataset": ""}))
            if key not in done:
                done.add(key)
                own.append(look(source))
        checked += own
        between += check_ids(own)
    return checked, between


def sources_of(cfg: Config, split: str) -> Iterator[Source | str]:
    """What a split reads; nothing where the config has switched it off."""
    if cfg.get(f"{split}_cfg") is not None and cfg.get(f"{split}_dataloader") is not None:
        leaves = leaf_datasets(cfg[f"{split}_dataloader"].dataset)
        yield from sources(split, leaves, evaluators_of(cfg, split))


def look_at(source: Source, pictures: bool = True, workers: int | None = None) -> Checked:
    """Checks one data set; what pictures were found to be is kept for the next time."""
    if not pictures or source.images is None:
        return source, *check(source, None)
    seen: dict[str, Seen] = known.load(source.images)
    before = dict(seen)

    def progress(things: Iterable[Any], count: int) -> Iterable[Any]:
        return tqdm(things, f"pictures of {source.name}", count, disable=None, leave=False)

    result = check(source, partial(check_pictures, seen=seen, progress=progress, workers=workers))
    if seen != before:
        known.save(source.images, seen)
    return source, *result


def add_options(group: Any) -> None:
    """Of commands that check the data before they begin, see :func:`before_run`."""
    group.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out, or repair, what the check of the data finds wrong",
    )
    group.add_argument("--no-check-data", action="store_true", help="do not check the data")


def before_run(cfg: Config, args: argparse.Namespace, *splits: str) -> None:
    """Checks the data of a run, once on each machine, and stops it or mends the data.

    With ``--skip-bad`` the config then names mended copies, which lie in the work folder.

    Raises:
        InputError: Data are missing or wrong.
    """

    def find_out() -> list[dict[str, Any]]:
        preflight.check_data(cfg, *splits)
        return [] if args.no_check_data else checked_data(cfg, args, splits)

    for mend in told_by_main(args.launcher, cfg.work_dir, find_out):
        use_mended(cfg, **mend)


def checked_data(
    cfg: Config, args: argparse.Namespace, splits: Sequence[str]
) -> list[dict[str, Any]]:
    """What is to be replaced, as :func:`use_mended` takes it.

    Raises:
        InputError: Errors are there, and are not to be left out, or can't be.
    """
    wanted = [source for split in splits for source in sources_of(cfg, split)]
    if known.are_clean(wanted):
        return []
    checked, between = check_config(cfg, splits, look_at)
    findings = [finding for _, _, found in checked for finding in found] + between
    if not findings:
        known.keep_clean(wanted, checked)
    else:
        print(as_text(findings, FEW), file=sys.stderr)
    wrong = errors(findings)
    if wrong and (errors(between) or not args.skip_bad):
        options = " --cfg-options ..." if args.cfg_options else ""
        raise InputError(
            f"the data have {len(wrong)} errors, listed above\n"
            f"All of them: {CONSOLE} check-data {args.config}{options}\n"
            "Go on without what is marked as left out or repaired: --skip-bad\n"
            "Go on with the data as they are: --no-check-data"
        )
    mends = []
    for place, (source, data, found) in enumerate(checked):
        if errors(found):
            new = Path(cfg.work_dir, "mended_data", f"{place}_{Path(source.ann_file).name}")
            done = write_mended(source, data, found, new)
            print(f"{source.name}: {done}; goes on with {new}", file=sys.stderr)
            files = dict(old=source.ann_file, new=str(new.absolute()), done=done)
            mends.append(dict(name=source.name, place=source.place, **files))
    return mends


def use_mended(cfg: Config, name: str, place: int | None, old: str, new: str, done: str) -> None:
    """A mended copy in the place of an annotation file, for a data set and its metric.

    What was done is written into the config too, which a run's log has.

    Args:
        name: Of the source, which begins with that of its split.
        place: Of the data set among those of the split; None: the metric alone reads the file.
    """
    split = name.partition("_")[0]
    if place is not None:
        list(leaf_datasets(cfg[f"{split}_dataloader"].dataset))[place].ann_file = new
    for metric in evaluators_of(cfg, split):
        if metric.get("ann_file") and osp.abspath(metric["ann_file"]) == osp.abspath(old):
            metric["ann_file"] = new
    cfg.mended_data = [*cfg.get("mended_data", []), dict(file=old, used=new, done=done)]


main = command(parse, run, preflight.PreflightError)
