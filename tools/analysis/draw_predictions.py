"""Draw a contact sheet of validation images: ground truth beside predicted boxes and masks."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ltm_det  # noqa: E402, F401  first: it makes mmdet's models importable

# isort: split
from mmengine.config import DictAction  # noqa: E402
from mmengine.device import get_device  # noqa: E402

from ltm_det.engine import preflight  # noqa: E402
from ltm_det.pictures.predictions import contact_sheet  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file or URL")
    parser.add_argument("--out", type=Path, required=True, help="picture to write, such as a.png")
    parser.add_argument("--num", type=int, default=6, help="number of images")
    parser.add_argument("--score-thr", type=float, default=0.5, help="least score to draw")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args()
    if args.num < 1:
        parser.error(f"--num must be at least 1, but is {args.num}")
    try:
        cfg = preflight.load_config(args.config, args.cfg_options)
        preflight.check_checkpoint(args.checkpoint)
        preflight.check_data(cfg, "val")
    except preflight.PreflightError as error:
        print(f"draw_predictions.py: {error}", file=sys.stderr)
        return 2
    contact_sheet(cfg, args.checkpoint, args.out, args.num, args.score_thr, get_device())
    return 0


if __name__ == "__main__":
    sys.exit(main())
