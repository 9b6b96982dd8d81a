"""The benchmark of whole detectors, as its command line asks for it."""

import argparse
from itertools import product
from typing import Any

import torch
from mmengine.config import Config

from ltm_det.backbones.common.weights import read_checkpoint
from ltm_det.basics.finite import check_finite
from ltm_det.engine import preflight
from ltm_det.measure.benchmark_tables import detector_rows, detector_table
from ltm_det.measure.detector_forms import EAGER, FORMS
from ltm_det.measure.detectors import (
    build_detectors,
    find_threshold,
    known_detectors,
    set_threshold,
    time_detectors,
)


def measure_detectors(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Rows of whole detectors, printed as they come.

    Args:
        cfg: Of the detector.
        args: Of ``ltm-det benchmark``; models and base are filled in.

    Raises:
        ValueError: On an unknown detector, a base that is not measured, a strange checkpoint.
        PreflightError: There is no such checkpoint.
    """
    if unfit := set(args.how) - set(FORMS):
        raise ValueError(f"--how {sorted(unfit)} is of backbones: a detector's is of {[*FORMS]}")
    if args.how[0] != EAGER:
        raise ValueError("--how of detectors starts with eager, the form of the base")
    files = [how for how in args.how if how not in (EAGER, "compiled")]
    if files and args.dtype != ["float32"]:
        raise ValueError(f"--how {files} compute in dtypes of their own: give --dtype float32")
    known = known_detectors(cfg)
    args.models = args.models or known
    args.base = args.base or (known[0] if known[0] in args.models else args.models[0])
    if args.base not in args.models:
        raise ValueError(f"the base {args.base!r} is not measured: name it in --models")
    state = None
    if args.checkpoint is not None:
        preflight.check_checkpoint(args.checkpoint)
        state = read_checkpoint(args.checkpoint)["state_dict"]
        check_finite(state, args.checkpoint)
    detectors, rows = build_detectors(cfg, args.models, args.device, state), []
    for shape, batch in product(args.shape, args.batch):
        images = torch.randint(0, 256, (batch, 3, *shape), dtype=torch.uint8)
        threshold = find_threshold(detectors[args.base], images, args.objects)
        for detector in detectors.values():
            set_threshold(detector, threshold)
        for dtype in args.dtype:
            counts = dict(rounds=args.rounds, warm_up=args.warm_up, loads=args.load)
            counts["forms"] = args.how
            found = time_detectors(detectors, images, dtype, args.device, **counts)
            for load, own in found.items():
                place = dict(shape=shape, batch=batch, mode="inference", dtype=dtype, load=load)
                now = [row | place for row in detector_rows(own, args.base)]
                print("\n{} x {}, batch {}, {}, load {}".format(*shape, batch, dtype, load))
                print(detector_table(now), flush=True)
                rows += now
    return dict(rows=rows, exponents=[])
