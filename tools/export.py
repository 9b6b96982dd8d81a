"""Export a config's backbone for ONNX Runtime (.onnx) or OpenVINO (.xml, the fastest on CPUs).

With --check the file is run and its maps are compared with the model's own. In a detector, the file
takes the backbone's place: backbone=dict(_delete_=True, type='ExportedBackbone', file=...).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ltm_det  # noqa: E402, F401  first: it makes mmdet's models importable

# isort: split
import torch  # noqa: E402
from mmengine.config import DictAction  # noqa: E402
from mmengine.runner import load_checkpoint  # noqa: E402
from torch import nn  # noqa: E402

from ltm_det import deploy  # noqa: E402
from ltm_det.analysis.flops import build_detector  # noqa: E402
from ltm_det.deploy.export import RPNFeatures  # noqa: E402
from ltm_det.engine import preflight  # noqa: E402

# Largest relative error of a map that --check lets pass. Bfloat16 keeps 8 bits.
TOLERANCE = dict(float32=1e-3, bfloat16=0.05)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint file or URL")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write: .onnx for ONNX Runtime, .xml for OpenVINO",
    )
    preflight.add_shape(parser)
    parser.add_argument("--dynamic", action="store_true", help="for any batch and size; is checked")
    parser.add_argument(
        "--dtype",
        choices=sorted(TOLERANCE),
        default="float32",
        help="what to compute in (default: float32; bfloat16 is for .xml)",
    )
    parser.add_argument(
        "--part",
        choices=["backbone", "rpn"],
        default="backbone",
        help="rpn: the detector up to its RPN's convolutions (default: backbone)",
    )
    parser.add_argument("--check", action="store_true", help="run the file and compare")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args()
    formats = deploy.FORMATS.get(args.out.suffix)
    if formats is None:
        parser.error(f"--out must end in .onnx or .xml, but is {args.out}")
    if args.dtype not in formats:
        parser.error(f"--dtype {args.dtype} needs an --out that ends in .xml")
    if min(args.shape) < 1:
        parser.error(f"--shape must be two positive numbers, got {args.shape}")
    return args


def check(model: nn.Module, args: argparse.Namespace, size: tuple[int, int]) -> bool:
    """Whether the file gives what the model gives, on one image of noise; prints how near."""
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = model(images)
    found = deploy.load(args.out)(images)
    error = max(deploy.relative_errors(found, expected))
    apart = max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))
    print(
        "{} x {}: largest difference {:.2g}, relative error {:.2g} of at most {}".format(
            *size, apart, error, TOLERANCE[args.dtype]
        )
    )
    return error <= TOLERANCE[args.dtype]  # not so for NaN


def run(args: argparse.Namespace) -> int:
    cfg = preflight.load_config(args.config, args.cfg_options)
    preflight.check_checkpoint(args.checkpoint)
    cfg.load_from = args.checkpoint
    with preflight.network_errors_named(cfg):
        detector = build_detector(cfg)
        if args.checkpoint is None:
            print("No checkpoint is given: the weights are random")
        else:
            load_checkpoint(detector, args.checkpoint, map_location="cpu")
    model = detector.backbone if args.part == "backbone" else RPNFeatures(detector)
    sizes = [tuple(args.shape)]
    traced = deploy.sample_size(detector.backbone) if args.dynamic else sizes[0]
    images = torch.randn(2 if args.dynamic else 1, 3, *traced)
    deploy.save(model, images, args.out, args.dynamic, args.dtype)
    print(f"Written: {args.out}")
    if args.dynamic:
        sizes.append((args.shape[0] // 2 + 1, args.shape[1] // 3 + 1))
    # what a trace took for fixed shows at another size alone: so such a file is always checked
    if (args.check or args.dynamic) and not all([check(model, args, size) for size in sizes]):
        print("export.py: the file does not give what the model gives", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    args = parse()
    try:
        return run(args)
    except (preflight.PreflightError, ValueError, ImportError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
