"""Tables of times: detectors, their files, backbones and training, from the files in results/."""

from collections.abc import Callable, Collection
from typing import Any

from ltm_det.studies.page_parts import MIB, aged, load, table

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


def timed(name: str) -> dict[str, dict[str, Any]]:
    """The rows of a benchmark by model and form, with the model's name alone where that is eager;
    the busiest load's."""
    rows = load(f"bench/{name}.json")["rows"]
    most = max(row.get("load", 0) for row in rows)
    found = {}
    for row in rows:
        key = row["model"].removesuffix(f" {row['how']}")
        if row.get("load", 0) == most:
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
    found = timed("detector_intel")
    parts = next(iter(found.values()))["parts"]
    rows = [[p, *(f"{1e3 * row['parts'][p]:.0f}" for row in found.values())] for p in parts]
    return table(["ms", *found], rows)


def detector_files() -> str:
    rows, forms = [], ("eager", "openvino", "openvino_int8")
    for make, name in dict(AMD="detector_files_avx2", Intel="detector_files_intel").items():
        found, file = timed(name), load(f"bench/{name}.json")
        for model in ("mmdet", "merged"):
            own = [found[model if how == "eager" else f"{model} {how}"] for how in forms]
            label = f"{make}: {model}{aged(file)}"
            rows.append([label, *(f"{row['ratio']:.2f}" for row in own)])
    return table(["", *forms], rows)


def training_steps() -> str:
    rows = []
    for make, name in dict(AMD="swin_training", Intel="swin_training_intel").items():
        file, found = load(f"bench/{name}.json"), timed(name)
        cells = [f"{found[kind]['ratio']:.2f}" for kind in ("dense", "merged")]
        cells += [f"{row['peak_bytes'] / MIB:.0f}" for row in found.values()]
        rows.append([make, base_of(found["mmdet"]), *cells, file["commit"][:7]])
    head = ["time", "mmdet", "dense", "merged", "mmdet's MiB", "dense", "merged", "commit"]
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


# Other sizes, batches and forms of backbones on the Intel Xeon: what a file's rows are of.
FORMS = {
    "swin_sizes": "Swin-S",
    "swin_batches": "Swin-S",
    "swin_bfloat16": "Swin-S",
    "swin_frozen": "Swin-S",
    "swin_deployed": "Swin-S",
    "vit_eager": "ViT-B",
    "vit_training": "ViT-B",
}
PLAIN = dict(batch=1, mode="inference", dtype="float32", how="eager")


def backbone_forms() -> str:
    """By the base's eager time at the size and batch; a form of which nothing ran is left out, and
    one of several files is the first's."""
    rows: dict[tuple[str, ...], tuple[str, list[str]]] = {}
    for name, label in FORMS.items():
        file = load(f"bench/{name}.json")
        mark = aged(file)
        for row in file["rows"]:
            if "ratio" not in row:
                continue
            other = [f"{row['batch']} images"] if row["batch"] > 1 else []
            other += [row[key] for key in ("mode", "dtype", "how") if row[key] != PLAIN[key]]
            size = "{} x {}".format(*row["shape"])
            owner, cells = rows.setdefault(
                (f"{label}, {size}{mark}", ", ".join(other)), (name, [""] * 3)
            )
            if owner == name:
                kind = {"dense": 1, "merged": 2}.get(row["model"], 0)
                cells[kind] = base_of(row) if row["ratio"] == 1 else f"{row['ratio']:.2f}"
    head = ["backbone", "form", "mmdet's (a ViT: timm's)", "ours, dense", "merged"]
    return table(head, [[*key, *cells] for key, (_, cells) in rows.items()])


TABLES: dict[str, Callable[[], str]] = {
    "detector-times": detector_times,
    "detector-times-short": lambda: detector_times(FRONT),
    "detector-parts": detector_parts,
    "detector-files": detector_files,
    "training-steps": training_steps,
    "backbone-times": backbone_times,
    "backbone-forms": backbone_forms,
}
