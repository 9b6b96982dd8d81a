"""Export a detector or its backbone for ONNX Runtime (.onnx) or OpenVINO (.xml)

With --check the file is run and what it gives is compared with what the model gives. In a detector
the file takes the backbone's place, by dict(_delete_=True, type='ExportedBackbone', file=FILE).
With --part detector a Mask, Faster or Cascade R-CNN goes into one file: an image, as
the data preprocessor leaves it, to boxes in its pixels, scores, labels, and the probabilities of
each object's mask in its box. ltm_det.deploy.load(FILE) takes pictures as they are, ltm-det test
CONFIG FILE finds its AP. Int8 takes the ranges of what it rounds from --calibration's pictures.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config, DictAction
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from ltm_det import deploy
from ltm_det.basics.errors import InputError
from ltm_det.basics.files import check_apart, check_name
from ltm_det.basics.finite import check_finite, check_outputs, worst
from ltm_det.cli.common import OutputFile, command, config_file, new_parser
from ltm_det.deploy.detector import FORMATS as DETECTOR_FORMATS
from ltm_det.deploy.detector import described
from ltm_det.deploy.predictor import prepared, resized
from ltm_det.deploy.whole import NAMES
from ltm_det.detectors import check_lean
from ltm_det.engine import preflight
from ltm_det.engine.classes import names_of
from ltm_det.measure.flops import build_detector

EXAMPLE = "ltm.py ltm.pth --part detector --shape 800 1280 --out detector.xml"

# Largest relative error of a map that --check lets pass. Bfloat16 keeps 8 bits.
TOLERANCE = dict(float32=1e-3, bfloat16=0.05)
DTYPES = ("float32", "bfloat16", "int8")
# Pictures for int8 are these, of a folder and all in it.
PICTURES = (".jpg", ".jpeg", ".png", ".bmp")
# Largest difference of a detector's boxes, in pixels, and so on.
TOLERANCE_OF = dict(boxes=0.1, scores=1e-3, labels=0, masks=1e-2)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is exported")
    file = parser.add_argument_group("the file")
    test = parser.add_argument_group("checking")
    of.add_argument("config", type=config_file, help="config file")
    of.add_argument("checkpoint", nargs="?", help="checkpoint file or URL")
    file.add_argument(
        "--out",
        type=OutputFile(beside=[".bin"]),
        required=True,
        metavar="FILE",
        help="file to write: .onnx for ONNX Runtime, .xml for OpenVINO",
    )
    preflight.add_shape(file)
    file.add_argument(
        "--dynamic",
        action="store_true",
        help="for any size (and a backbone for any batch) instead of --shape; the file is checked",
    )
    file.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="what to compute in (default: float32; bfloat16 is for .xml, int8 for a detector's)",
    )
    file.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="pictures as the detector will see, for int8",
    )
    file.add_argument(
        "--calibration-size",
        type=int,
        default=100,
        metavar="N",
        help="at most so many of them, spread over all (default: 100)",
    )
    of.add_argument(
        "--part",
        choices=["backbone", "detector"],
        default="backbone",
        help="detector: a whole two-stage detector (default: backbone)",
    )
    test.add_argument("--check", action="store_true", help="run the file and compare")
    test.add_argument(
        "--image", metavar="FILE", help="picture for --check, resized to --shape (default: noise)"
    )
    of.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args(words)
    whole = args.part == "detector"
    formats = (DETECTOR_FORMATS if whole else deploy.FORMATS).get(args.out.suffix)
    if formats is None:
        parser.error(f"--out must end in .onnx or .xml, but is {args.out}")
    if args.dtype not in formats:
        more = " and --part detector" if args.dtype == "int8" else ""
        parser.error(f"--dtype {args.dtype} needs an --out that ends in .xml{more}")
    if (args.dtype == "int8") != (args.calibration is not None):
        parser.error("--dtype int8 takes its ranges from --calibration DIR: give both")
    if args.calibration_size < 1:
        parser.error(f"--calibration-size must be at least 1, got {args.calibration_size}")
    if whole and args.check and args.dtype != "float32":
        parser.error(f"what {args.dtype} changes shows in AP: run ltm-det test CONFIG {args.out}")
    if args.image is not None and not args.check:
        parser.error("--image is what --check runs on: give both")
    if min(args.shape) < 1:
        parser.error(f"--shape must be two positive numbers, got {args.shape}")
    return args


def check(model: nn.Module, args: argparse.Namespace, images: Tensor) -> bool:
    """Whether the file gives what the model gives on images (1, 3, H, W); prints how near."""
    with torch.no_grad():
        expected = model(images)
    run, size = deploy.load(args.out), tuple(images.shape[2:])
    if args.part == "detector":
        return check_objects(run.raw(images), expected, size)
    found = run(images)
    error = worst(deploy.relative_errors(found, expected))
    apart = worst((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))
    print(
        "{} x {}: largest difference {:.2g}, relative error {:.2g} of at most {}".format(
            *size, apart, error, TOLERANCE[args.dtype]
        )
    )
    return error <= TOLERANCE[args.dtype]  # not so for NaN


def check_objects(
    found: Sequence[Tensor], expected: Sequence[Tensor], size: tuple[int, int]
) -> bool:
    """Whether objects are the same; of other numbers of objects nothing is compared."""
    counts = len(found[0]), len(expected[0])
    print("{} x {}: {} objects, the detector finds {}".format(*size, *counts))
    if any(len(a) != len(b) for a, b in zip(found, expected, strict=True)):
        return False  # a lean recipe's masks may be fewer than its objects
    if not counts[0]:
        return True
    apart = [
        (a - b).abs().max().item() if len(a) else 0.0 for a, b in zip(found, expected, strict=True)
    ]
    pairs = zip(NAMES, apart)  # Faster R-CNN has no masks
    print("largest difference: " + ", ".join(f"{name} {value:.2g}" for name, value in pairs))
    return all(value <= TOLERANCE_OF[name] for name, value in zip(NAMES, apart))


def picture(file: str, detector: nn.Module, size: tuple[int, int]) -> Tensor:
    """(1, 3, H, W), a picture as the detector gets it."""
    check_name(file)
    image = cv2.imread(file)
    if image is None:
        raise ValueError(f"no picture can be read from {file}")
    inputs = torch.from_numpy(cv2.resize(image, size[::-1])).permute(2, 0, 1)
    data = dict(inputs=[inputs], data_samples=[DetDataSample(metainfo=dict(img_shape=size))])
    return detector.data_preprocessor(data)["inputs"]


def calibration(args: argparse.Namespace, detector: nn.Module) -> list[Tensor]:
    """Pictures of a folder, (1, 3, H, W) each, as the file will get them.

    Raises:
        ValueError: There are none, or one that cannot be read.
    """
    if args.calibration is None:
        return []
    found = sorted(p for p in args.calibration.rglob("*") if p.suffix.lower() in PICTURES)
    if not found:
        raise ValueError(f"no pictures {PICTURES} in {args.calibration}, for int8")
    about, size = described(detector, None), tuple(args.shape)
    images = []
    for file in found[:: -(-len(found) // args.calibration_size)]:
        check_name(file)
        image = cv2.imread(str(file))
        if image is None:
            raise ValueError(f"no picture can be read from {file}")
        factor = min(size[0] / image.shape[0], size[1] / image.shape[1])
        images.append(prepared(resized(image, factor), size, about))
    return images


def classes_of(cfg: Config, known: Sequence[str]) -> list[str] | None:
    """Names of the labels: the checkpoint's, or else those of the config's data."""
    data = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    given = known or (data.get("metainfo") or {}).get("classes")
    return None if given is None else list(given)


def scale_of(cfg: Config) -> tuple[int, int] | None:
    """Into which the config's test pipeline fits pictures."""
    data = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    steps = data.get("pipeline") or []
    return next((tuple(step.scale) for step in steps if step.get("scale")), None)


def run(args: argparse.Namespace) -> int:
    cfg = preflight.load_config(args.config, args.cfg_options)
    preflight.check_checkpoint(args.checkpoint)
    weights = args.out.with_suffix(".bin")
    if args.out.suffix == ".xml" and weights.exists() and not args.out.exists():
        raise InputError(f"{weights}, of something else, would be written over: name another --out")
    check_apart(args.checkpoint, args.out, weights)
    check_lean(cfg.model)
    known: Sequence[str] = ()
    detector = build_detector(cfg)
    if args.checkpoint is None:
        print("No checkpoint is given: the weights are random")
    else:
        found = load_checkpoint(detector, args.checkpoint, map_location="cpu", strict=True)
        known = names_of(found, args.checkpoint)
    check_finite(detector.state_dict(), args.checkpoint or args.config)
    height, width = args.shape
    image = torch.randn(1, 3, height, width)
    if args.image is not None:
        image = picture(args.image, detector, (height, width))
    images = [image]
    with torch.no_grad():  # a detector's heads leave out what is NaN
        check_outputs(detector.backbone(image), args.checkpoint or args.config)
    if args.part == "detector":
        model = deploy.WholeDetector(detector)
        with deploy.written(args.out, image) as part:
            deploy.save_detector(
                detector,
                image,
                part,
                dtype=args.dtype,
                classes=classes_of(cfg, known),
                calibration=calibration(args, detector),
                dynamic=args.dynamic,
                scale=scale_of(cfg),
            )
        if args.dynamic:
            images.append(torch.randn(1, 3, height // 2 + 1, width // 3 + 1))
    else:
        model, traced = detector.backbone, image
        if args.dynamic:
            traced = torch.randn(2, 3, *deploy.sample_size(model))
            images.append(torch.randn(1, 3, height // 2 + 1, width // 3 + 1))
        with deploy.written(args.out, image) as part:
            deploy.save(model, traced, part, args.dynamic, args.dtype)
    beside = f" and {args.out.with_suffix('.bin')}, one model" if args.out.suffix == ".xml" else ""
    print(f"Written: {args.out}{beside}")
    # what a trace took for fixed shows at another size alone: so such a file is always checked
    if (args.check or args.dynamic) and not all([check(model, args, x) for x in images]):
        print("export.py: the file does not give what the model gives", file=sys.stderr)
        return 1
    return 0


main = command(parse, run, preflight.PreflightError, ValueError, ImportError)
