"""Tables of the small families' page, from the files in results/."""

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


def mobile_gmacs() -> str:
    """Backbones at the paper's sizes, and the paper's own figures."""
    rows = []
    for label, (name, paper) in PAPER.items():
        counts = load(f"flops/{name}.json")
        dense, merged = (counts[side]["macs"]["backbone"] / GIGA for side in ("dense", "merged"))
        params = [counts[side]["params"]["backbone"] for side in ("dense", "merged")]
        more = f"{100 * (params[1] / params[0] - 1):+.1f} %"
        rows.append([label, pair(dense, merged, 2), more, pair(*paper, 2)])
    return table(["", "backbone GMACs", "parameters", "paper, GFLOPs"], rows)


def mobile_times() -> str:
    """Ratios to timm's model, which takes turns with ours."""
    rows = []
    for name, (label, kept) in FILES.items():
        file = load(f"bench/{name}.json")
        for found in file["rows"]:
            model = found["model"] + (f" {kept}" if found["model"] == "merged" else "")
            size = "{} x {}".format(*found["shape"]), str(found["batch"]), model
            time = f"{found['median_ms']:.0f}"
            quartiles = " to ".join(f"{q:.2f}" for q in found["quartiles"])
            rows.append([label + aged(file), *size, time, f"{found['ratio']:.2f}", quartiles])
    head = ["backbone", "image", "batch", "model", "median ms", "of timm's", "quartiles"]
    return table(head, rows)
