"""Tables of the small families' page, from the files in results/."""

from collections.abc import Callable
from typing import Any

from ltm_det.studies.page_parts import GIGA, aged, load, pair, table

# What a row is of, its file in results/flops, and the paper's GFLOPs (arXiv 2407.15219), of
# classifiers with their heads, by its own count.
PAPER = {
    "MobileViT-XS, 256 x 256, keeps 2 x 2 of 4 x 4": ("ltm_mobilevit_xs_256", (0.70, 0.52)),
    "MobileViT-S, 256 x 256, keeps 3 x 3 of 4 x 4": ("ltm_mobilevit_s_256", (1.4, 1.17)),
    "MobileViT-S, 256 x 256, block scope, keeps 1 of 4 x 4": (
        "ltm_mobilevit_s_256_block",
        (1.4, 1.17),
    ),
    "EfficientViT-B1, 224 x 224, keeps 3 x 3 of 4 x 4": ("ltm_efficientvit_b1_224", (0.52, 0.44)),
    "EfficientViT-B1, 288 x 288, keeps 3 x 3 of 4 x 4": ("ltm_efficientvit_b1_288", (0.86, 0.70)),
}
# Of results/bench, each with all its sizes and batches: what a row is of, and the ratio of what is
# merged.
FILES = {
    f"{name}{ending}": (label, ratio)
    for name, label in (("mobilevit_s", "MobileViT-S"), ("efficientvit_b1", "EfficientViT-B1"))
    for ending, ratio in (("", 0.5), ("_640", 0.5), ("_quarter", 0.25))
}
# The same of backbones of which the paper says nothing, and their files in results/flops by image.
PYRAMIDS = dict(pvtv2_b0="PVTv2-B0", pvtv2_b2="PVTv2-B2", convnext_t="ConvNeXt-T")
SIZES = {"800 x 1280": "maskrcnn", "224 x 224": "224"}


def mobile_gmacs() -> str:
    """Backbones at the paper's sizes, and the paper's own figures."""
    rows = [[label, *counts(name), pair(*paper, 2)] for label, (name, paper) in PAPER.items()]
    return table(["", "backbone GMACs", "parameters", "paper, GFLOPs"], rows)


def pyramid_gmacs() -> str:
    """Backbones of which the paper says nothing."""
    rows = [
        [f"{label}, {size}", *counts(f"ltm_{name}_{ending}")]
        for name, label in PYRAMIDS.items()
        for size, ending in SIZES.items()
    ]
    return table(["", "backbone GMACs", "parameters"], rows)


def counts(name: str) -> tuple[str, str]:
    """GMACs of a backbone, dense to merged, and how many more parameters it has."""
    found = load(f"flops/{name}.json")
    dense, merged = (found[side]["macs"]["backbone"] / GIGA for side in ("dense", "merged"))
    params = [found[side]["params"]["backbone"] for side in ("dense", "merged")]
    return pair(dense, merged, 2), f"{100 * (params[1] / params[0] - 1):+.1f} %"


def mobile_times() -> str:
    return times(FILES)


def pyramid_times() -> str:
    files: dict[str, tuple[str, Any]] = {name: (label, "") for name, label in PYRAMIDS.items()}
    return times(files | dict(convnext_t_half=("ConvNeXt-T", "0.5 in all stages")))


def times(files: dict[str, tuple[str, Any]]) -> str:
    """Ratios to timm's model, which takes turns with ours."""
    rows = []
    for name, (label, kept) in files.items():
        file = load(f"bench/{name}.json")
        for found in file["rows"]:
            model = found["model"] + (f" {kept}" if kept and found["model"] == "merged" else "")
            size = "{} x {}".format(*found["shape"]), str(found["batch"]), model
            time = f"{found['median_ms']:.0f}"
            quartiles = " to ".join(f"{q:.2f}" for q in found["quartiles"])
            rows.append([label + aged(file), *size, time, f"{found['ratio']:.2f}", quartiles])
    head = ["backbone", "image", "batch", "model", "median ms", "of timm's", "quartiles"]
    return table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    "mobile-gmacs": mobile_gmacs,
    "mobile-times": mobile_times,
    "pyramid-gmacs": pyramid_gmacs,
    "pyramid-times": pyramid_times,
}
