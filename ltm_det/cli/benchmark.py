"""Times of a config's backbone or detector and of its peers, of the same weights, in turns.

The models: 'dense' and 'merged' are the config's backbone without and with its merger, the name of
a merger (ToMe, Pool, ...) is that one in the same places; 'mmdet', 'timm' and 'torchvision' are
their Swin Transformers, and 'timm' of a ViT is its ViT in ViTDet's layout. Weights are random,
nothing is downloaded. For each size, batch, mode and load all models in all forms (--how) and
formats (--dtype) take turns, so that ratios hold whatever else the machine does; they are those of
medians, with the quartiles of the rounds' own ratios. The base of ratios is in the first form and
format named; 'same way' are ratios to the same model in the row's own. A load of N is N processes
that each keep a CPU busy meanwhile. Peak memory is that of ltm_det.measure.memory: what a pass adds
to the loaded model, eager, in a process of its own, without load.

With --part detector whole detectors take turns, from images to boxes and pasted masks: the peer's
backbone with mmdet's heads, ours with fast ones, with mmdet's ('dense+mmdet') and with those of a
lean recipe ('dense+lean'; the config's, or the common one), eager or in the forms of --how. The
threshold of scores is put where the base finds --objects on the first image.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from mmengine.config import Config, DictAction

from ltm_det.cli.common import (
    PICTURES,
    OutputFile,
    command,
    config_file,
    device,
    new_parser,
    typed,
    write_json,
)
from ltm_det.engine import preflight
from ltm_det.measure.benchmark import (
    MODES,
    RUNNERS,
    TRAINABLE,
    Entry,
    time_entries,
)
from ltm_det.measure.benchmark_detectors import measure_detectors
from ltm_det.measure.benchmark_models import (
    DENSE,
    MERGED,
    PEERS,
    build_models,
    check_peers,
    known_models,
    model_config,
    our_type,
    timed_code,
)
from ltm_det.measure.benchmark_tables import (
    as_table,
    exponents,
    name_of,
    rows_of,
    with_peaks,
)
from ltm_det.measure.detector_forms import FORMS
from ltm_det.measure.flops import count_backbone
from ltm_det.measure.load import LoadError
from ltm_det.measure.machine import machine
from ltm_det.measure.memory import MemoryUnknownError, peak_memory
from ltm_det.measure.precision import DTYPES
from ltm_det.pictures.benchmark import draw, draw_parts
from ltm_det.studies.runs import commit

EXAMPLE = "configs/ltm_swin_s_maskrcnn.py --part detector --checkpoint epoch_36.pth"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is timed")
    on = parser.add_argument_group("on what")
    out = parser.add_argument_group("what is written")
    of.add_argument("config", type=config_file, help="config file of a detector")
    of.add_argument(
        "--part",
        choices=["backbone", "detector"],
        default="backbone",
        help="of the config's detector (default: backbone)",
    )
    of.add_argument(
        "--checkpoint", help="of the detector, for --part detector (default: random weights)"
    )
    of.add_argument(
        "--objects",
        type=int,
        default=30,
        help="that the base finds on the first image, for --part detector (default: 30)",
    )
    of.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help="dense, merged, a merger's name, mmdet, timm, torchvision; of detectors also "
        "dense+lean, merged+mmdet and so on (default: all but mergers')",
    )
    of.add_argument("--base", help="model of ratio 1 (default: mmdet of a Swin, timm of a ViT)")
    on.add_argument(
        "--shape",
        type=int,
        nargs=2,
        action="append",
        metavar=("H", "W"),
        help="height and width of the images; may be given again (default: 800 1280)",
    )
    on.add_argument("--batch", type=int, nargs="+", default=[1], help="images (default: 1)")
    on.add_argument(
        "--mode",
        nargs="+",
        choices=[*MODES, "memory"],
        default=["inference"],
        help="what to measure; memory is that of the modes beside it, or else of inference "
        "(default: inference)",
    )
    on.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        default=["float32"],
        help="formats; amp is autocast, to float16 on a GPU, bfloat16 on the CPU "
        "(default: float32)",
    )
    on.add_argument(
        "--how",
        nargs="+",
        choices=list(dict.fromkeys([*RUNNERS, *FORMS])),
        default=["eager"],
        help="forms; compiled is torch.compile for one size, frozen the same with constant "
        "weights, exported what torch.export finds, the others what ltm-det export writes; "
        "of a detector also openvino_int8, but not frozen and exported (default: eager)",
    )
    on.add_argument(
        "--load",
        type=int,
        nargs="+",
        default=[0],
        metavar="N",
        help="busy processes beside it, while times are measured (default: 0)",
    )
    on.add_argument(
        "--device", type=device, help="cpu or a CUDA device (default: a CUDA device, if any)"
    )
    on.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    on.add_argument("--rounds", type=int, default=15, help="that are measured (default: 15)")
    on.add_argument("--warm-up", type=int, default=2, help="rounds before (default: 2)")
    out.add_argument("--json", type=OutputFile(), metavar="FILE", help="write the figures here too")
    plot = OutputFile(*PICTURES)
    out.add_argument("--plot", type=plot, metavar="FILE", help="draw the times (png, svg, pdf)")
    of.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args(words)
    args.shape = [tuple(shape) for shape in args.shape or [(800, 1280)]]
    if args.rounds < 1 or args.warm_up < 0:
        parser.error("--rounds must be at least 1, --warm-up at least 0")
    if min(*args.batch, *map(min, args.shape), args.threads or 1) < 1:
        parser.error("--batch, --shape and --threads must be at least 1")
    if min(args.load) < 0:
        parser.error("--load must be at least 0")
    for name in ("models", "shape", "batch", "mode", "dtype", "how", "load"):
        values = getattr(args, name) or []
        if len(set(values)) < len(values):
            parser.error(f"--{name} names something twice: {values}")
    if "training" in args.mode and (unfit := set(args.how) - set(TRAINABLE)):
        parser.error(f"--how {sorted(unfit)} cannot be trained: only {TRAINABLE} can")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        kind = torch.device(args.device).type
    except RuntimeError:
        parser.error(f"--device {args.device}: give cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: no CUDA device is visible; give --device cpu")
    if args.part == "detector":
        if args.mode != ["inference"] or "bfloat16" in args.dtype:
            parser.error("--part detector is timed in inference, as float32 or amp")
        if args.objects < 1:
            parser.error("--objects must be at least 1")
    elif unfit := set(args.how) - set(RUNNERS):
        parser.error(f"--how {sorted(unfit)} is for --part detector")
    elif args.checkpoint is not None:
        parser.error("--checkpoint is for --part detector: a backbone's time has no need of one")
    if args.mode == ["memory"]:
        if args.plot is not None:
            parser.error("--plot draws times: give --mode inference or training too")
        if any(args.load):
            parser.error("--load is for times: give --mode inference or training too")
    return args


def configs_of(cfg: Config, args: argparse.Namespace) -> dict[str, Config]:
    """Configs of the models that were asked for, and of the dense one, whose weights all have.

    Raises:
        ValueError: On an unknown model, or a base that is not among them.
    """
    known = known_models(cfg)
    if args.models is None:
        args.models = [name for name in known if name in (*PEERS[our_type(cfg)], DENSE, MERGED)]
    args.base = args.base or next((n for n in PEERS[our_type(cfg)] if n in args.models), DENSE)
    configs = {name: model_config(cfg, name) for name in args.models}
    if args.base not in configs:
        raise ValueError(f"the base {args.base!r} is not measured: name it in --models")
    return {DENSE: model_config(cfg, DENSE), **configs}


def measure(configs: dict[str, Config], args: argparse.Namespace) -> dict[str, Any]:
    """Rows of all that was asked for, printed as they come."""
    models = build_models(configs, args.device)
    checks = check_peers(models, args.shape[0])
    print(*checks, sep="\n")
    models = {name: models[name] for name in args.models}
    entries = [Entry(*way) for way in product(args.models, args.how, args.dtype)]
    base = Entry(args.base, args.how[0], args.dtype[0])
    modes = [mode for mode in MODES if mode in args.mode]
    counts = dict(rounds=args.rounds, warm_up=args.warm_up, device=args.device)
    rows = []
    for shape in args.shape:
        macs = {n: count_backbone(model, shape).macs["backbone"] for n, model in models.items()}
        for batch, mode in product(args.batch, modes or ["inference"]):
            place = dict(shape=shape, batch=batch, mode=mode)
            times, failures, peaks = dict.fromkeys(args.load), {}, {}
            if modes:
                times, failures = time_entries(models, entries, **place, **counts, loads=args.load)
            if "memory" in args.mode:
                peaks = peaks_of(configs, args, **place)
            for load, own in times.items():
                found = rows_of(entries, own, failures, macs, base) if modes else []
                if peaks:
                    found = with_peaks(found, peaks, macs, args.models, args.dtype, base)
                rows += [row | place | dict(load=load) for row in found]
                print("\n{} x {}, batch {}, {}, load {}".format(*shape, batch, mode, load))
                print(as_table(found), flush=True)
    return dict(checks=checks, rows=rows, exponents=exponents(rows))


def peaks_of(
    configs: dict[str, Config],
    args: argparse.Namespace,
    shape: tuple[int, int],
    batch: int,
    mode: str,
) -> dict[tuple[str, str], int | str]:
    """The peak memory of each model and format in eager form, or why there is none; base first.

    Raises:
        MemoryUnknownError: That of the base could not be measured.
    """
    given = dict(train=mode == "training", device=args.device, batch=batch)
    base = args.base, args.dtype[0]
    peaks = {base: peak_memory(configs[args.base], shape, dtype=args.dtype[0], **given)}
    for name, dtype in product(args.models, args.dtype):
        try:
            if (name, dtype) not in peaks:
                peaks[name, dtype] = peak_memory(configs[name], shape, dtype=dtype, **given)
        except MemoryUnknownError as error:  # one that does not run in this format, say
            peaks[name, dtype] = str(error)
    return peaks


def run(args: argparse.Namespace) -> int | None:
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or before)
    try:
        cfg = preflight.load_config(args.config, args.cfg_options)
        if args.part == "detector":
            result = measure_detectors(cfg, args)
        else:
            result = measure(configs_of(cfg, args), args)
        place = machine(args.device)
    finally:
        torch.set_num_threads(before)
    title = "{device}, {cpu}, {threads} of {cores} cores, torch {torch}".format(**place)
    print(f"\nBase {args.base}; medians of {args.rounds} rounds in turns; {title}")
    for fit in result["exponents"]:
        name = name_of(fit, result["rows"])
        print(
            "Cost against pixels, {}, batch {batch}, {mode}, load {load}: "
            "exponent {exponent:.3f}".format(name, **fit)
        )
    if args.json is not None:
        given = {key: getattr(args, key) for key in ("config", "base", "rounds", "warm_up")}
        given |= dict(
            command=typed(), commit=commit(), code=timed_code(cfg, args.part), machine=place
        )
        write_json(args.json, given | result)
    if args.plot is not None:
        title = f"{args.config}, base {args.base}; {title}"
        if args.part == "detector":
            draw_parts(result["rows"], title, args.plot)
        else:
            draw(result["rows"], result["exponents"], title, args.plot)


main = command(parse, run, preflight.PreflightError, MemoryUnknownError, LoadError, ValueError)
