"""Tables and numbers of the README and the guides, from the files in results/.

Each function reads what it needs when it is called, and makes Markdown.
"""

import csv
from collections.abc import Callable, Collection
from statistics import mean
from typing import Any

from ltm_det.studies import mobile_pages
from ltm_det.studies.classifier_pages import classifier_gmacs
from ltm_det.studies.page_parts import GIGA, MIB, RESULTS, aged, load, pair, table

# Names on the pages, and files of results/flops; the first is its dense twin too.
SWIN = {
    "`compression_ratio=[1, 1, 0.51, 1]`, `dense_blocks=[1, 1, [0, 1, 7, 12], 1]`": "_75",
    "**`compression_ratio=0.51` (the config's)**": "",
    "`compression_ratio=[1, 1, 0.33, 1]`": "_58",
    "`compression_ratio=0.33`": "_50",
    '`compression_ratio=0.51, scope="block"`': "_block",
}
VIT = {
    "`merge_at=6, compression_ratio=0.51`": "_75",
    "`merge_at=4, compression_ratio=0.51`": "_65",
    "**`merge_at=2, compression_ratio=0.51` (the config's)**": "",
    "`merge_at=2, compression_ratio=0.4`": "_47",
    "`merge_at=[2, 6], compression_ratio=[0.51, 0.25]`": "_44",
    "`merge_at=2, compression_ratio=0.3`": "_40",
}
CONFIGS = [f"swin_{size}_{head}" for head in ("maskrcnn", "cascade") for size in "tsb"]
CONFIGS += [
    f"vit_{size}_{head}"
    for head, sizes in (("maskrcnn", "sbl"), ("cascade", "sb"))
    for size in sizes
]
CONFIGS += ["mobilevit_s_maskrcnn", "mobilevit_s_ssdlite", "efficientvit_b1_maskrcnn"]
CONFIGS += ["pvtv2_b0_maskrcnn", "pvtv2_b2_maskrcnn", "convnext_t_maskrcnn"]
CONFIGS += [f"dino{version}_{size}_maskrcnn" for version in ("v2", "v3") for size in "sbl"]
# Detectors on the clock: what a row is of, and the file.
DETECTORS = {
    "AMD: Mask R-CNN Swin-S, 800 x 1280": "detector_avx2",
    "AMD, four images": "detector_batch_avx2",
    "AMD, beside two busy processes": "detector_loaded_avx2",
    "AMD: Cascade Mask R-CNN Swin-S, 800 x 1280": "detector_cascade_avx2",
    "AMD: Mask R-CNN ViT-B, 1024 x 1024": "detector_vit_avx2",
    "Intel: Mask R-CNN Swin-S, 800 x 1280": "detector_intel",
    "Intel, beside two busy processes": "detector_intel_loaded",
    "Intel: Cascade Mask R-CNN Swin-S, 800 x 1280": "detector_intel_cascade",
    "Intel: Mask R-CNN ViT-B, 1024 x 1024": "detector_intel_vit",
}
FRONT = [  # those of the README
    *("detector_avx2", "detector_loaded_avx2"),
    *("detector_intel", "detector_intel_loaded", "detector_intel_vit"),
]


def gmacs(name: str) -> tuple[float, float, float, float]:
    """Of a config, in thousands of millions: backbone dense and merged, detector the same."""
    found = load(f"flops/ltm_{name}.json")
    return tuple(
        found[side]["macs"][part] / GIGA
        for part in ("backbone", "detector")
        for side in ("dense", "merged")
    )


def gmacs_of_mergers(config: str, mergers: dict[str, str]) -> str:
    rows = []
    for label, ending in mergers.items():
        dense, merged, whole, less = gmacs(config + ending)
        if not rows:
            rows.append(["dense", f"{dense:.1f}", "1.000", f"{whole:.1f}", "1.000"])
        cells = f"{merged:.1f}", f"{merged / dense:.3f}", f"{less:.1f}", f"{less / whole:.3f}"
        rows.append([label, *cells])
    head = ["`merger`", "backbone GMACs", "of dense", "detector GMACs", "of dense"]
    return table(head, rows)


def gmacs_of_configs(names: list[str] = CONFIGS) -> str:
    rows = []
    for name in names:
        dense, merged, whole, less = gmacs(name)
        rows.append([f"`ltm_{name}`", pair(dense, merged), pair(whole, less)])
    return table(["config", "backbone GMACs", "detector GMACs"], rows)


def timed(name: str) -> dict[str, dict[str, Any]]:
    """The rows of a benchmark by model and form, with the model's name alone where that is eager;
    the busiest load's."""
    rows = load(f"bench/{name}.json")["rows"]
    most = max(row["load"] for row in rows)
    found = {}
    for row in rows:
        key = row["model"].removesuffix(f" {row['how']}")
        if row["load"] == most:
            found[key if row["how"] == "eager" else f"{key} {row['how']}"] = row
    return found


def base_of(row: dict[str, Any]) -> str:
    return f"1.00 ({row['median_ms'] / 1e3:.1f} s)"


def detector_times(names: Collection[str] = tuple(DETECTORS.values())) -> str:
    rows = []
    for label, name in DETECTORS.items():
        if name not in names:
            continue
        found = timed(name)
        base = next(row for row in found.values() if row["ratio"] == 1)
        kinds = ("torchvision", "dense", "merged", "dense+lean", "merged+lean")
        cells = [f"{found[kind]['ratio']:.2f}" if kind in found else "" for kind in kinds]
        file = load(f"bench/{name}.json")
        label += (" (one round)" if file["rounds"] == 1 else "") + aged(file)
        rows.append([label, base_of(base), *cells])
    kinds = ["torchvision's", "ours, dense", "**ours, merged**", "dense, lean", "merged, lean"]
    return table(["", "mmdet's (a ViT: timm's backbone)", *kinds], rows)


def detector_parts() -> str:
    found = timed("detector_avx2")
    parts = next(iter(found.values()))["parts"]
    rows = [[p, *(f"{1e3 * row['parts'][p]:.0f}" for row in found.values())] for p in parts]
    return table(["ms", *found], rows)


def detector_files() -> str:
    found = timed("detector_files_avx2")
    forms = list(dict.fromkeys(row["how"] for row in found.values()))
    rows = []
    for model in ("mmdet", "dense", "merged"):
        own = [found.get(model if how == "eager" else f"{model} {how}") for how in forms]
        if any(own):
            rows.append([model, *(f"{row['ratio']:.2f}" if row else "" for row in own)])
    return table(["", *forms], rows)


def picture_memory() -> str:
    found = load("memory/detector_4000x6000.json")["detectors"]
    rows = [[k, f"{v['median_bytes'] / MIB:.0f}", str(v["objects"])] for k, v in found.items()]
    return table(["", "MiB above the model", "objects"], rows)


def vit_memory() -> str:
    rows = []
    for side, found in load("memory/ltm_vit_b_maskrcnn.json")["sides"].items():
        dense, merged = found["dense"], found["merged"]
        keys = ("backbone_macs", "attention_macs")
        cells = [pair(dense[key] / GIGA, merged[key] / GIGA) for key in keys]
        for mode in ("inference", "training"):
            cells.append(pair(*(own["median_bytes"][mode] / MIB for own in (dense, merged)), 0))
        rows.append([side, *cells])
    head = ["side", "backbone GMACs", "attention GMACs", "inference MiB", "training step MiB"]
    return table(head, rows)


def backbone_times() -> str:
    rows = []
    for label, name, busy in (
        ("AMD EPYC, AVX2, idle", "swin_avx2", 0),
        ("the same, beside two busy processes", "swin_loaded", 2),
        ("beside four", "swin_loaded", 4),
        ("Intel Xeon, AVX-512, idle", "swin_intel", 0),
        ("beside two busy processes", "swin_intel_loaded", 2),
        ("beside four", "swin_intel_loaded", 4),
    ):
        file = load(f"bench/{name}.json")
        found = {row["model"]: row for row in file["rows"] if row["load"] == busy}
        cells = [f"{found[kind]['ratio']:.2f}" for kind in ("dense", "merged")]
        rows.append([label, base_of(found["mmdet"]), *cells, file["commit"][:7]])
    return table(["CPU, two cores", "mmdet", "`LTMSwin`, dense", "merged", "commit"], rows)


def rows_of(name: str) -> list[dict[str, str]]:
    with open(RESULTS / name, newline="") as file:
        return list(csv.DictReader(file))


def exported_ap() -> str:
    every, rows = rows_of("lean/exported.csv"), []
    for kind in dict.fromkeys((row["dtype"], row["layers"]) for row in every):
        own = [row for row in every if (row["dtype"], row["layers"]) == kind]
        ap = [f"{100 * mean(float(r[m]) for r in own):.1f}" for m in ("bbox_mAP", "segm_mAP")]
        rows.append([f"{kind[0]}, layers: {kind[1]}", str(len(own)), *ap])
    return table(["OpenVINO", "seeds", "box AP", "mask AP"], rows)


def compared(backbone: str, setting: str) -> str:
    """Rows of the comparison: fine-tuned by one schedule, and their differences to dense."""
    rows, wanted = [], {("dense", "1")}
    text = (RESULTS / "compare.md").read_text()
    part = text.partition("## Fine-tuned")[2].partition("\n## ")[0]
    for line in part.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 10 and cells[0] == backbone:
            if cells[2] == setting or (cells[1], cells[2]) in wanted:
                _, merger, _, seeds, box, more, mask, other, _, share, time = cells
                short = [value.partition(" (")[0] for value in (more, other)]
                rows.append([merger, share, time, seeds, box, short[0], mask, short[1]])
    head = ["merger", "GMACs", "time", "seeds", "box AP", "to dense", "mask AP", "to dense"]
    return table(head, rows)


def feature_errors(data: str) -> str:
    """By merger, at each place and ratio; the least of a column is bold."""
    found = load(f"features/{data}.json")["rows"]
    points = list(dict.fromkeys((row["merge_at"], row["ratio"]) for row in found))
    least = {p: min(r["error"] for r in found if (r["merge_at"], r["ratio"]) == p) for p in points}
    rows: dict[str, list[str]] = {}
    for row in found:
        kind, *options = row["merger"].values()
        label = f"`{kind}`" + "".join(f", {option}" for option in options)
        error = f"{row['error']:.3f}"
        best = row["error"] == least[row["merge_at"], row["ratio"]]
        rows.setdefault(label, []).append(f"**{error}**" if best else error)
    head = ["", *(f"block {at}, {ratio}" for at, ratio in points)]
    return table(head, [[label, *cells] for label, cells in rows.items()])


def installations() -> str:
    """What `make test-matrix` tried: versions, the user's commands, tests, and what went wrong."""
    rows = []
    for row in load("install.json")["rows"]:
        det = row.get("mmdet") or row.get("onedl-mmdetection", "")
        cv = [f"{n} {row[n]}" for n in ("mmcv", "mmcv-lite", "onedl-mmcv") if n in row]
        versions = [row.get("python", row["asked_python"]), row.get("torch", row["asked_torch"])]
        counts = [str(row.get(kind, "-")) for kind in ("commands", "passed", "failed")]
        wrong = row.get("stopped") or row.get("why") or ""
        rows.append(
            [*versions, row["host"], det, *(cv or [""]), *counts, cell(wrong), row["commit"][:7]]
        )
    head = ["Python", "torch", "installed as", "mmdet", "mmcv", "of 4 commands", "passed", "failed"]
    return table([*head, "what went wrong", "commit"], rows)


def cell(text: str) -> str:
    """A text that fits into a cell."""
    text = text.replace("|", "/").replace("<", "&lt;")
    return text if len(text) <= 120 else f"{text[:117]}..."


def section(file: str, title: str) -> Callable[[], str]:
    """A part of a Markdown file in results/, by its heading or the line before its table."""

    def part() -> str:
        text = (RESULTS / file).read_text()
        return text.partition(title)[2].partition("\n\n")[2].partition("\n\n")[0].strip()

    return part


def commits(name: str) -> str:
    """Of the runs in a table."""
    return ", ".join(sorted({row["commit"][:7] for row in rows_of(name)}))


TABLES: dict[str, Callable[[], str]] = {
    "gmacs-swin": lambda: gmacs_of_mergers("swin_s_maskrcnn", SWIN),
    "gmacs-vit": lambda: gmacs_of_mergers("vit_b_maskrcnn", VIT),
    "gmacs-configs": gmacs_of_configs,
    "gmacs-short": lambda: gmacs_of_configs(["swin_s_maskrcnn", "swin_b_maskrcnn"] + CONFIGS[7:8]),
    "classifier-gmacs": classifier_gmacs,
    **mobile_pages.TABLES,
    "detector-times": detector_times,
    "detector-times-short": lambda: detector_times(FRONT),
    "detector-parts": detector_parts,
    "detector-files": detector_files,
    "picture-memory": picture_memory,
    "vit-memory": vit_memory,
    "backbone-times": backbone_times,
    "lean-prices": lambda: (RESULTS / "lean/demo_ltm_swin.md").read_text().strip(),
    "exported-ap": exported_ap,
    "compare-swin-0.7": lambda: compared("swin", "0.7"),
    "compare-swin-0.7s": lambda: compared("swin", "0.7s"),
    "compare-swin-0.55": lambda: compared("swin", "0.55"),
    "compare-vit-0.7": lambda: compared("vit", "0.7"),
    "compare-vit-0.55": lambda: compared("vit", "0.55"),
    "features-facade": lambda: feature_errors("facade"),
    "features-nuclei": lambda: feature_errors("nuclei"),
    "converted": section("compare.md", "## Converted from"),
    "calibrated": section("compare.md", "## Converted and calibrated"),
    "install": installations,
    "study": lambda: (RESULTS / "demo_study.md").read_text().strip(),
    "bottleneck": section("demo_study_bottleneck.md", "Samples of val, hard clusters"),
}
VALUES: dict[str, Callable[[], str]] = {
    "demo-box": lambda: f"{load('demo.json')['bbox_mAP']:.2f}",
    "demo-mask": lambda: f"{load('demo.json')['segm_mAP']:.2f}",
    "files-commit": lambda: load("bench/detector_files_avx2.json")["commit"][:7],
    "compare-commits": lambda: commits("compare.csv"),
    "study-commits": lambda: commits("demo_study.csv"),
    "lean-commits": lambda: commits("lean/demo_ltm_swin.csv"),
    "backbone-gmacs": lambda: f"{gmacs('swin_s_maskrcnn')[1] / gmacs('swin_s_maskrcnn')[0]:.2f}",
}
