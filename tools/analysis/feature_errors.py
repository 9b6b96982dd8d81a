"""How far mergers move the last map of a trained ViT on a folder's pictures, as relative errors.

    python tools/analysis/feature_errors.py configs/ltm_dinov2_s_maskrcnn.py \\
        --checkpoint vit_s14.pth --pictures data/val --mergers LTM ToMe PiToMe Pool

Nothing is trained, unless --calibrate names pictures to fit learned mergers to; no labels are read.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ltm_det.basics.files import write_text  # noqa: E402
from ltm_det.measure.benchmark_models import timed_code  # noqa: E402
from ltm_det.studies.features import compared, pictures  # noqa: E402
from ltm_det.studies.runs import commit  # noqa: E402


def merger(text: str) -> dict[str, Any]:
    """LTM, or with options, LTM:affinity=0,rounds=3."""
    kind, _, options = text.partition(":")
    given = (option.partition("=") for option in options.split(",") if option)
    return dict(type=kind, **{name: json.loads(value) for name, _, value in given})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--checkpoint", help="of the backbone (default: the config's)")
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--mergers", type=merger, nargs="+", default=[merger("LTM")])
    parser.add_argument("--merge-at", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.56, 0.25])
    parser.add_argument("--calibrate", type=Path, help="folder of other pictures")
    parser.add_argument("--calibrate-count", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    if args.checkpoint:
        cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=args.checkpoint)
    init_default_scope("mmdet")
    torch.manual_seed(0)
    preprocessor = cfg.model.data_preprocessor
    images = pictures(args.pictures, args.count, args.side, preprocessor)
    training = None
    if args.calibrate:
        training = pictures(args.calibrate, args.calibrate_count, args.side, preprocessor)
    rows = []
    for row in compared(
        cfg, args.mergers, args.merge_at, args.ratios, images, training, args.steps
    ):
        print(*(f"{name}={value}" for name, value in row.items()), flush=True)
        rows.append(row)
    if args.json is not None:
        command = shlex.join(["python", *sys.argv])
        about = dict(command=command, commit=commit(), code=timed_code(cfg, "backbone"))
        write_text(args.json, json.dumps(dict(about, rows=rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
