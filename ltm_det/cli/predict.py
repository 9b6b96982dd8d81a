"""Find objects on pictures and in videos; draw them, or write them for other programs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import DictAction
from tqdm import tqdm

from ltm_det.cli.common import command, config_file, device, new_parser, output_folder
from ltm_det.prediction import Detector, Tiles
from ltm_det.prediction.sources import batches, check_apart, files_of, frames
from ltm_det.prediction.writers import FORMS, writers_of

EXAMPLE = "detector.onnx --images street.jpg holiday/ --out found --save pictures coco"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__, EXAMPLE)
    of = parser.add_argument_group("what finds")
    on = parser.add_argument_group("where")
    out = parser.add_argument_group("what is written")
    of.add_argument(
        "model", type=config_file, help="an exported detector, .onnx or .xml, or a config file"
    )
    of.add_argument("checkpoint", nargs="?", help="trained weights of a config, file or URL")
    on.add_argument(
        "--images",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="pictures, videos, and folders with them",
    )
    on.add_argument(
        "--batch", type=int, default=1, metavar="N", help="pictures at a time (default: 1)"
    )
    on.add_argument(
        "--tiles",
        action="store_true",
        help="look at large pictures in tiles, and once as a whole, and join what the borders cut",
    )
    on.add_argument(
        "--tile-size",
        type=int,
        nargs="+",
        metavar="N",
        help="height and width of tiles, or one number (default: what the detector takes)",
    )
    on.add_argument(
        "--tile-overlap",
        type=float,
        metavar="SHARE",
        help="share of a tile that its neighbour has too (default: 0.2)",
    )
    on.add_argument(
        "--tiles-alone",
        action="store_true",
        help="do not look at the whole picture: objects larger than a tile come in parts",
    )
    of.add_argument("--score-thr", type=float, default=0.3, help="least score (default: 0.3)")
    of.add_argument(
        "--device", type=device, help="of a config's detector (default: a GPU if there is one)"
    )
    of.add_argument("--threads", type=int, metavar="N", help="of an exported detector")
    of.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="of a config"
    )
    out.add_argument(
        "--out", type=output_folder, required=True, metavar="DIR", help="folder to write to"
    )
    out.add_argument(
        "--save",
        nargs="+",
        choices=FORMS,
        default=["pictures"],
        help="pictures: drawn ones, of a video a video; coco: detections.json; yolo: labels/*.txt "
        "(default: pictures)",
    )
    args = parser.parse_args(words)
    if args.batch < 1:
        parser.error(f"--batch must be at least 1, but is {args.batch}")
    if args.threads is not None and args.threads < 1:
        parser.error(f"--threads must be at least 1, but is {args.threads}")
    given = args.tile_size is not None or args.tile_overlap is not None or args.tiles_alone
    if given and not args.tiles:
        parser.error("--tile-size, --tile-overlap and --tiles-alone are of --tiles: give it too")
    return args


def tiles_of(args: argparse.Namespace) -> Tiles | bool:
    """How pictures are cut, if so; as many tiles at a time as pictures would be."""
    if not args.tiles:
        return False
    overlap = {} if args.tile_overlap is None else dict(overlap=args.tile_overlap)
    return Tiles(args.tile_size, whole=not args.tiles_alone, batch=args.batch, **overlap)


def run(args: argparse.Namespace) -> None:
    files, tiles = files_of(args.images), tiles_of(args)
    check_apart(files, args.out)
    detector = Detector(
        args.model,
        args.checkpoint,
        args.score_thr,
        args.device,
        args.threads,
        args.cfg_options,
    )
    writers = writers_of(dict.fromkeys(args.save), args.out, detector.classes)
    pictures = objects = 0
    try:
        for batch in batches(tqdm(frames(files), unit=" pictures"), args.batch):
            every = detector([f.image for f in batch], tiles)
            for frame, found in zip(batch, every, strict=True):
                for writer in writers:
                    writer.add(frame, found)
                pictures, objects = pictures + 1, objects + len(found)
    finally:  # what was found so far is kept
        for writer in writers:
            writer.close()
    if not objects:
        print(
            f"Nothing has a score of {args.score_thr:g}: give a lower --score-thr; what the "
            "detector's own test_cfg.rcnn.score_thr leaves out, it never gives"
        )
    print(f"{objects} objects on {pictures} pictures, in {args.out}")


main = command(parse, run, ImportError)
