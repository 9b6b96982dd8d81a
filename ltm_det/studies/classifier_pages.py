"""The table of the classifiers' page, from the files in results/."""

from ltm_det.studies.page_parts import GIGA, load, pair, table

# What a row is of, its file in results/flops, and the paper's GFLOPs (arXiv 2407.15219), dense and
# merged.
PAPER = {
    "MobileViT-XS, 256 x 256": ("mobilevit_xs_256", (0.70, 0.52)),
    "MobileViT-S, 256 x 256": ("mobilevit_s_256", (1.4, 1.17)),
    "EfficientViT-B1, 224 x 224": ("efficientvit_b1_224", (0.52, 0.44)),
    "EfficientViT-B1, 288 x 288": ("efficientvit_b1_288", (0.86, 0.70)),
    "ViT-S/16, 224 x 224": ("vit_small_224", (4.3, 3.7)),
    "ViT-B/16, 224 x 224": ("vit_base_224", (17.6, 12.9)),
    "Swin-T, 224 x 224": ("swin_tiny_224", (4.5, 3.8)),
    "Swin-B, 224 x 224": ("swin_base_224", (15.4, 12.0)),
}


def classifier_gmacs() -> str:
    """Classifiers as `ltm_det.classifiers.MODELS` has them, and the paper's own figures."""
    rows = []
    for label, (name, paper) in PAPER.items():
        counts = load(f"flops/classifier_{name}.json")
        dense, merged = (counts[side]["macs"]["model"] / GIGA for side in ("dense", "merged"))
        params = [counts[side]["params"]["model"] for side in ("dense", "merged")]
        more = f"{100 * (params[1] / params[0] - 1):+.1f} %"
        rows.append([label, f"`{counts['model']}`", pair(dense, merged, 2), more, pair(*paper, 2)])
    return table(["", "model", "GMACs", "parameters", "paper, GFLOPs"], rows)
