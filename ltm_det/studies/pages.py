"""Tables and numbers of the README and the guides, from the files in results/.

Each function reads what it needs when it is called, and makes Markdown.
"""

import csv
from collections.abc import Callable
from statistics import mean

from ltm_det.studies import mobile_pages, time_pages
from ltm_det.studies.classifier_pages import classifier_gmacs
from ltm_det.studies.page_parts import GIGA, MIB, RESULTS, load, pair, table

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


# What the literature names beside mergers: its file in results/flops, and the side of it.
BESIDE = {
    "ViT-B, as ViTDet": ("ltm_vit_b_maskrcnn", "dense"),
    "`LTM`": ("ltm_vit_b_maskrcnn", "merged"),
    "`query_groups=8, group_keys=98` (DGT)": ("dgt_vit_b_maskrcnn", "dense"),
    "`HSTViT`": ("hst_vit_b_maskrcnn", "dense"),
}


def beside_mergers() -> str:
    rows, whole = [], None
    for label, (name, side) in BESIDE.items():
        found = load(f"flops/{name}.json")[side]
        macs, params = (found[kind]["backbone"] for kind in ("macs", "params"))
        whole = whole or macs
        rows.append([label, f"{macs / GIGA:.1f}", f"{macs / whole:.2f}", f"{params / 1e6:.1f}"])
    return table(["", "backbone GMACs", "of dense", "parameters, M"], rows)


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


def timings(name: str) -> str:
    """Of the rows in a table: how they were timed, each way once."""
    return "; ".join(dict.fromkeys(row["timing"] for row in rows_of(name)))


TABLES: dict[str, Callable[[], str]] = {
    "gmacs-swin": lambda: gmacs_of_mergers("swin_s_maskrcnn", SWIN),
    "gmacs-vit": lambda: gmacs_of_mergers("vit_b_maskrcnn", VIT),
    "gmacs-configs": gmacs_of_configs,
    "gmacs-short": lambda: gmacs_of_configs(["swin_s_maskrcnn", "swin_b_maskrcnn"] + CONFIGS[7:8]),
    "classifier-gmacs": classifier_gmacs,
    **mobile_pages.TABLES,
    **time_pages.TABLES,
    "beside-mergers": beside_mergers,
    "picture-memory": picture_memory,
    "vit-memory": vit_memory,
    "lean-prices": lambda: (RESULTS / "lean/demo_ltm_swin.md").read_text().strip(),
    "lean-strided": lambda: (RESULTS / "lean/demo_strided.md").read_text().strip(),
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
    "compare-commits": lambda: commits("compare.csv"),
    "compare-timings": lambda: timings("compare.csv"),
    "study-commits": lambda: commits("demo_study.csv"),
    "lean-commits": lambda: commits("lean/demo_ltm_swin.csv"),
    "strided-commits": lambda: commits("lean/demo_strided.csv"),
    "backbone-gmacs": lambda: f"{gmacs('swin_s_maskrcnn')[1] / gmacs('swin_s_maskrcnn')[0]:.2f}",
}
