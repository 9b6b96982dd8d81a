"""Draw what a detector's backbone merges in images: regions, weights and restored features."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmdet.apis import init_detector
from mmengine.config import DictAction
from mmengine.device import get_device

from ltm_det.basics.files import check_output
from ltm_det.basics.finite import check_finite
from ltm_det.cli.common import command, config_file, new_parser, output_folder
from ltm_det.compat.checkpoint import fitting
from ltm_det.engine import preflight
from ltm_det.engine.building import building
from ltm_det.pictures.merging import (
    MergingPictureError,
    draw_merging,
    merge_points_of,
    read_image,
)

EXAMPLE = "ltm.py ltm.pth street.jpg --out-dir pictures"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what is drawn")
    out = parser.add_argument_group("what is written")
    of.add_argument("config", type=config_file, help="config file")
    of.add_argument("checkpoint", help="checkpoint file or URL")
    of.add_argument("images", nargs="+", type=Path, metavar="image", help="image files")
    out.add_argument(
        "--out-dir",
        type=output_folder,
        required=True,
        help="folder for IMAGE_merging.png of each image",
    )
    of.add_argument(
        "--targets",
        type=int,
        default=3,
        metavar="N",
        help="merged tokens to look at, those at the centres of the best detections",
    )
    of.add_argument(
        "--at",
        type=float,
        nargs=2,
        action="append",
        default=[],
        metavar=("X", "Y"),
        help="pixel whose merged token to look at instead; may be repeated",
    )
    of.add_argument(
        "--points",
        nargs="+",
        metavar="NAME",
        help="merge points to draw, such as stages.2.blocks.2; "
        "by default all of a ViT, the last of each stage of others",
    )
    of.add_argument("--score-thr", type=float, default=0.5, help="least score to draw")
    of.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args(words)
    if args.targets < 1:
        parser.error(f"--targets must be at least 1, but is {args.targets}")
    return args


def run(args: argparse.Namespace) -> int | None:
    outs = [args.out_dir / f"{path.stem}_merging.png" for path in args.images]
    for out in outs:
        check_output(out)
        if outs.count(out) > 1:
            raise MergingPictureError(
                f"{out} would be the picture of several images: draw them to several folders"
            )
    cfg = preflight.load_config(args.config, args.cfg_options)
    preflight.check_checkpoint(args.checkpoint)
    for path in args.images:
        read_image(path, args.at)
    with fitting(), building(cfg):
        model = init_detector(cfg, args.checkpoint, device=get_device())
    check_finite(model.state_dict(), args.checkpoint)
    merge_points_of(model.backbone, args.points)
    for path, out in zip(args.images, outs):
        draw_merging(model, path, out, args.targets, args.at, args.points, args.score_thr)
        print(out)


main = command(parse, run, preflight.PreflightError, MergingPictureError)
