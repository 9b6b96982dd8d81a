"""Tables of what `ltm-det compress` made of detectors, from the files in results/compress."""

import json
from collections.abc import Callable
from statistics import mean
from typing import Any

from ltm_det.studies.page_parts import RESULTS, table

MMDETS, DENSE_FILE, COMPRESSED = "mmdet's", "dense file", "compressed"


def reports(data: str) -> list[dict[str, Any]]:
    """One for each seed of a study, in the order of their files' names."""
    files = sorted((RESULTS / "compress").glob(f"{data}_*.json"))
    return [json.loads(file.read_text())["report"] for file in files]


def forms(report: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """By what is deployed: its time over that of mmdet's detector, and how far box and mask AP lie
    from the dense detector's, in points."""
    times, every = report["cost"]["times"]["models"], report["ap"]
    (file,) = report["export"]["files"]
    found = {}
    for label, name, own in (
        ("dense, in one file", DENSE_FILE, "dense"),
        ("compressed, in torch", COMPRESSED, COMPRESSED),
        ("**compressed, in one file**", file, file),
    ):
        if name in times:
            ap = [every[own][kind]["AP"] - every["dense"][kind]["AP"] for kind in ("bbox", "segm")]
            found[label] = (times[name]["ratio"], *ap)
    return found


def study(data: str) -> str:
    """Means over seeds, and each seed's in brackets."""
    own = reports(data)
    dense = [[report["ap"]["dense"][kind]["AP"] for report in own] for kind in ("bbox", "segm")]
    rows = [["mmdet's", "1.00", *(several(values, "{:.1f}") for values in dense)]]
    for label in forms(own[0]):
        columns = zip(*(forms(report)[label] for report in own), strict=True)
        formats = ("{:.2f}", "{:+.1f}", "{:+.1f}")
        rows.append([label, *(several(v, f) for v, f in zip(columns, formats, strict=True))])
    return table(["", "time", "box AP", "mask AP"], rows)


def several(values: Any, form: str) -> str:
    each = ", ".join(form.format(value) for value in values)
    return f"{form.format(mean(values))} ({each})"


TABLES: dict[str, Callable[[], str]] = {"compress-nuclei": lambda: study("nuclei")}
