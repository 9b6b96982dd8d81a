"""Table of a backbone's GMACs and peak memory over image sizes, dense and merged side by side.

GMACs are counted as in ltm_det.measure.flops: of the whole backbone, and of attention's own
products. Peak memory is measured as in ltm_det.measure.memory: what a forward pass, and with
--train a training step, of the backbone alone adds on one square image. The table has the median
of the repeats, in which dense and merged take turns.
"""

import argparse
from collections.abc import Sequence
from statistics import median

import torch
from mmengine.config import Config, DictAction

from ltm_det.cli.common import (
    OutputFile,
    command,
    config_file,
    device,
    new_parser,
    typed,
    write_json,
)
from ltm_det.engine import preflight
from ltm_det.measure.benchmark_models import timed_code
from ltm_det.measure.detector_memory import detector_peak
from ltm_det.measure.detectors import known_detectors
from ltm_det.measure.flops import (
    aligned,
    attention_macs,
    build_backbone,
    count_backbone,
    dense_twin,
)
from ltm_det.measure.memory import MemoryUnknownError, peak_memory
from ltm_det.studies.runs import commit

EXAMPLE = "configs/ltm_vit_b_maskrcnn.py --train"


def figures(
    sides: dict[str, Config], shape: tuple[int, int], modes: list[str], repeats: int, device: str
) -> dict[str, dict]:
    """Macs and bytes at one image size, for each of 'dense' and 'merged'."""
    found = {}
    for name, cfg in sides.items():
        backbone = build_backbone(cfg)
        found[name] = dict(
            backbone_macs=count_backbone(backbone, shape).macs["backbone"],
            attention_macs=attention_macs(backbone, shape),
            peak_bytes={mode: [] for mode in modes},
        )
    for _ in range(repeats):
        for mode in modes:
            for name, cfg in sides.items():
                peak = peak_memory(cfg, shape, mode == "training", device)
                found[name]["peak_bytes"][mode].append(peak)
    for result in found.values():
        result["median_bytes"] = {
            m: int(median(peaks)) for m, peaks in result["peak_bytes"].items()
        }
    return found


def rows(side: int, found: dict[str, dict]) -> list[list[str]]:
    """The table's rows for one image size."""
    values = {
        "backbone GMACs": [r["backbone_macs"] / 1e9 for r in found.values()],
        "attention GMACs": [r["attention_macs"] / 1e9 for r in found.values()],
    }
    for mode in found["dense"]["median_bytes"]:
        values[f"{mode} MiB"] = [r["median_bytes"][mode] / 2**20 for r in found.values()]
    table = []
    for name, numbers in values.items():
        digits = 1 if name.endswith("MiB") else 2
        ratio = f"{numbers[-1] / numbers[0]:.3f}" if numbers[0] else "-"
        cells = [f"{n:.{digits}f}" for n in numbers] + [ratio] * (len(numbers) - 1)
        table.append([f"{side:4}  {name}", *cells])
    return table


def on_picture(cfg: Config, args: argparse.Namespace, device: str) -> int:
    """The whole detector: others' and ours, with mmdet's heads and with fast ones."""
    names = [name for name in known_detectors(cfg) if not name.endswith(("+lean", "torchvision"))]
    found = {}
    print(f"{args.config}, one picture of {args.picture}, peak memory on {device}")
    for name in names:
        peaks = [
            detector_peak(cfg, name, tuple(args.picture), args.objects, device)
            for _ in range(args.repeats)
        ]
        bytes_ = [peak.bytes for peak in peaks]
        found[name] = dict(
            peak_bytes=bytes_, median_bytes=int(median(bytes_)), objects=peaks[0].objects
        )
        mib = found[name]["median_bytes"] / 2**20
        print(f"{name:16} {mib:9.1f} MiB, {peaks[0].objects} objects", flush=True)
    write(cfg, args, device, picture=args.picture, detectors=found)
    return 0


def write(cfg: Config, args: argparse.Namespace, device: str, **found: object) -> None:
    """The figures as JSON, where that is asked for."""
    if args.json is None:
        return
    result = dict(
        command=typed(),
        commit=commit(),
        code=timed_code(cfg, "detector" if args.picture else "backbone"),
        config=args.config,
        torch=torch.__version__,
        device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        repeats=args.repeats,
        **found,
    )
    write_json(args.json, result)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is measured")
    how = parser.add_argument_group("how")
    out = parser.add_argument_group("what is written")
    of.add_argument("config", type=config_file, help="config file")
    of.add_argument(
        "--sides",
        type=int,
        nargs="+",
        default=[512, 768, 1024],
        metavar="PIXELS",
        help="sides of the square images (default: 512 768 1024)",
    )
    of.add_argument(
        "--picture",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="the whole detector on one such picture instead, fitted into 1333 x 800 pixels",
    )
    of.add_argument("--objects", type=int, default=100, help="found on that picture (default: 100)")
    of.add_argument("--train", action="store_true", help="measure a training step as well")
    how.add_argument("--repeats", type=int, default=3, help="runs of each (default: 3)")
    how.add_argument(
        "--device",
        type=device,
        help="cpu or a CUDA device (default: a CUDA device where there is one)",
    )
    out.add_argument("--json", type=OutputFile(), metavar="FILE", help="write the figures here too")
    of.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args(words)
    if min(args.repeats, args.objects, *args.sides, *(args.picture or [1])) < 1:
        parser.error("--repeats, --objects, --picture and --sides must be at least 1")
    if args.picture and args.train:
        parser.error("--picture is of inference: leave --train out")
    return args


def run(args: argparse.Namespace) -> int | None:
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    modes = ["inference", "training"] if args.train else ["inference"]
    cfg = preflight.load_config(args.config, args.cfg_options)
    if args.picture:
        return on_picture(cfg, args, device)
    twin = dense_twin(cfg)
    sides = dict(dense=cfg) if twin is None else dict(dense=twin, merged=cfg)
    found = {s: figures(sides, (s, s), modes, args.repeats, device) for s in args.sides}
    print(f"{args.config}, one image, peak memory on {device}")
    header = ["side", *sides, *["ratio"] * (len(sides) - 1)]
    print(aligned([header, *(row for s in args.sides for row in rows(s, found[s]))]))
    write(cfg, args, device, sides={str(s): found[s] for s in args.sides})


main = command(parse, run, preflight.PreflightError, MemoryUnknownError, ValueError)
