"""Count the GMACs and parameters of a classifier for timm, dense and merged side by side.

    python tools/analysis/classifier_flops.py ltm_mobilevit_s --side 256

Whole models, heads included, by the conventions of ltm_det.measure.flops.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import timm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ltm_det.basics.files import write_text  # noqa: E402
from ltm_det.classifiers import MODELS, Classifier  # noqa: E402
from ltm_det.measure.flops import Counts, as_table, count_backbone  # noqa: E402


def count(model: Classifier, shape: tuple[int, int]) -> Counts:
    """Of the whole, under 'model', and of its parts."""
    counts = count_backbone(model, shape)
    return Counts(
        *({f"model{name.removeprefix('backbone')}": n for name, n in c.items()} for c in counts)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--side", type=int, default=224, help="of the image, in pixels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts here too")
    args = parser.parse_args()
    shape = (args.side, args.side)
    counts = {
        side: count(timm.create_model(args.model, merger=merger), shape)
        for side, merger in (("dense", False), ("merged", True))
    }
    print(f"{args.model} at {args.side} x {args.side}")
    print(as_table(counts))
    if args.json is not None:
        command = shlex.join(["python", *sys.argv])
        kept = {side: found._asdict() for side, found in counts.items()}
        found = dict(command=command, model=args.model, shape=shape, **kept)
        write_text(args.json, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
