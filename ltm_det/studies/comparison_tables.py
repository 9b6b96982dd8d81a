"""What the rows of a comparison say, by detector: mean and spread over seeds, in Markdown."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean

from ltm_det.studies.comparison import DENSE
from ltm_det.studies.runs import METRICS

AP = ("bbox_mAP", "segm_mAP")
COLUMNS = ("backbone", "mode", "merger", "setting", "seed", *METRICS, "backbone_gmacs", "of_dense")
COLUMNS += ("time_ratio", "time_quartiles", "timing", "minutes", "jobs", "commit", "options")
COLUMNS += ("command",)
TITLES = {
    "train": "Trained from scratch",
    "finetune": "Fine-tuned from the dense detector of the same seed",
    "convert": "Converted from the dense detector of the same seed, without training",
    "calibrate": "Converted and calibrated, without labels",
}
REFERENCES = {"train": "train", "finetune": "finetune", "convert": "train", "calibrate": "train"}
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Summary:
    """Rows of one backbone, mode, merger and setting; all AP in percent.

    Attributes:
        ap: By metric, a value for each seed.
        against_dense: By metric, the difference to the dense detector of the same seed, for each
            seed that this one has. A converted detector is held against the one it came from.
        time_ratio: None if it was not measured.
    """

    backbone: str
    mode: str
    merger: str
    setting: str
    ap: Mapping[str, list[float]]
    against_dense: Mapping[str, list[float]]
    gmacs: float
    of_dense: float
    time_ratio: float | None


def key_of(row: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("backbone", "mode", "merger", "setting", "seed"))


def summaries(rows: Iterable[Mapping[str, object]]) -> list[Summary]:
    """One for each detector, in the order in which the rows name them."""
    by_key = {key_of(row): row for row in rows}
    groups = {}
    for key, row in by_key.items():
        groups.setdefault(key[:-1], []).append(row)
    found = []
    for (backbone, mode, merger, setting), members in groups.items():
        dense = {
            key[-1]: row
            for key, row in by_key.items()
            if key[:3] == (backbone, REFERENCES[mode], DENSE)
        }
        pairs = [(row, dense[key_of(row)[-1]]) for row in members if key_of(row)[-1] in dense]
        times = [float(row["time_ratio"]) for row in members if row["time_ratio"] != NOT_MEASURED]
        found.append(
            Summary(
                backbone,
                mode,
                merger,
                setting,
                ap={m: [100 * float(row[m]) for row in members] for m in AP},
                against_dense={
                    m: [100 * (float(row[m]) - float(other[m])) for row, other in pairs] for m in AP
                },
                gmacs=float(members[-1]["backbone_gmacs"]),
                of_dense=float(members[-1]["of_dense"]),
                time_ratio=times[-1] if times else None,
            )
        )
    return found


def markdown(rows: Iterable[Mapping[str, object]]) -> str:
    """A table for each mode, the dense detector first."""
    rows = list(rows)
    found = summaries(rows)
    lines = [
        "Mean over seeds (least to most), in percent; differences to dense are means over the "
        "seeds that both have. GMACs and time are the backbone's, on one image.",
        "",
    ]
    lines += [f"- Time: {timing}." for timing in dict.fromkeys(str(r["timing"]) for r in rows)]
    for mode, title in TITLES.items():
        chosen = [s for s in found if s.mode == mode and s.merger != DENSE]
        dense = [s for s in found if s.mode == REFERENCES[mode] and s.merger == DENSE]
        if not chosen and (mode != REFERENCES[mode] or not dense):
            continue
        lines += ["", f"## {title}", ""]
        lines += [
            "| backbone | merger | setting | seeds | box AP | to dense | mask AP | to dense "
            "| GMACs | of dense | time |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        backbones = dict.fromkeys(s.backbone for s in [*dense, *chosen])
        for backbone in backbones:
            lines += [line(s) for s in [*dense, *chosen] if s.backbone == backbone]
    return "\n".join(lines) + "\n"


def line(s: Summary) -> str:
    cells = [s.backbone, s.merger, s.setting, str(len(s.ap[AP[0]]))]
    for metric in AP:
        cells.append(spread(s.ap[metric], "{:.1f}"))
        if s.merger == DENSE:
            cells.append("-")
        elif s.against_dense[metric]:
            cells.append(spread(s.against_dense[metric], "{:+.1f}"))
        else:
            cells.append(NOT_MEASURED)
    time = NOT_MEASURED if s.time_ratio is None else f"{s.time_ratio:.2f}"
    cells += [f"{s.gmacs:.3f}", f"{s.of_dense:.2f}", time]
    return f"| {' | '.join(cells)} |"


def spread(values: list[float], form: str) -> str:
    """Mean, and least to most if there are several."""
    text = form.format(mean(values))
    if len(values) > 1:
        text += f" ({form.format(min(values))} to {form.format(max(values))})"
    return text
