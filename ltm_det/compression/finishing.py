"""From what the steps gave to the report's content."""

import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ltm_det.compression.evaluation import loss_of
from ltm_det.compression.given import Given
from ltm_det.compression.settings import LATENCY, MAX_AP_LOSS, Settings
from ltm_det.compression.state import Steps

SLACK = 1.02  # of a budget that is met: what the clock leaves open


def content(
    found: Given, settings: Settings, steps: Steps, names: dict[str, str], command: str
) -> dict[str, Any]:
    """What ``report.json`` holds.

    Args:
        names: Of the steps, by what they are.
        command: That was typed.
    """
    result, done = (
        steps.result,
        {name: steps.done[name] for name in steps.used if name in steps.done},
    )
    dense, search, chosen = result(names["ap"]), result(names["search"]), result(names["chosen"])
    cost = result(names["cost"])
    ap = {"dense": dense, "converted": result(names["converted_ap"])}
    if names["trained_ap"] in done:
        ap["fine-tuned"] = result(names["trained_ap"])
    trained = chosen["source"] == "finetuned.pth"
    after = ap["fine-tuned"] if trained else ap["converted"]
    export = result(names["file"]) if settings.export != "none" else None
    rows = dict(ap)
    if export:
        rows[", ".join(export["files"])] = result(names["file_ap"])
    rows["compressed"] = after
    gmacs = dict(dense=result(names["dense_cost"])["gmacs"], compressed=cost["gmacs"])
    macs = {key: own["detector"] for key, own in gmacs.items()}
    loss = loss_of(dense, after)
    reached = {
        LATENCY: cost["times"]["models"][cost["counted"]]["ratio"],
        MAX_AP_LOSS: loss,
    }.get(settings.budget.kind, macs["compressed"] / macs["dense"])
    kept = next(own for name, own in done.items() if done_for(name, search, own))
    return dict(
        title=f"{chosen['types'][0]} on {found.files[0].name}: compressed by {settings.budget}",
        version=version("ltm_det"),
        budget=str(settings.budget),
        reached=reached,
        met=reached <= settings.budget.value * (SLACK if settings.budget.kind == LATENCY else 1),
        loss=loss,
        ap=rows,
        ap_note=ap_note(found, after["pictures"], trained, "fine-tuned" in ap),
        gmacs=macs,
        gmacs_by_part=gmacs,
        cost=cost,
        export=export,
        merging=chosen["merging"] if search["merger"] else [],
        merging_note="" if search["merger"] else "The backbone merges nothing.",
        merger=search["merger"],
        lean=search["lean"],
        calibration=result(names["convert"]),
        finetuning=result(names["train"]) if "fine-tuned" in ap else None,
        search=dict(search, dense=kept["result"]["dense"], units=kept["result"]["units"]),
        notes=notes(found, settings, search, export, cost["counted"]),
        commands=commands(steps.folder, found, export, command),
        seconds={name: own["seconds"] for name, own in done.items()},
        data=dict(
            train=str(found.files[0]),
            val=str(found.files[1]),
            train_pictures=found.train_pictures,
            val_pictures=found.val_pictures,
        ),
    )


def done_for(name: str, search: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether a step measured the candidates that the choice is of."""
    measured = name.startswith("search: measure")
    return measured and (not search["chosen"] or own["result"]["unit"] == search["unit"])


def ap_note(found: Given, pictures: int, trained: bool, tried: bool) -> str:
    words = f"On the {pictures} validation pictures, COCO's AP in points."
    if trained:
        words += " The fine-tuned detector is the compressed one."
    if found.val_pictures < 100:
        words += " They are few: a point more or less says little."
    if tried and not trained:
        words += " Fine-tuning did not help: the converted detector is the compressed one."
    return words


def notes(
    found: Given,
    settings: Settings,
    search: dict[str, Any],
    export: dict[str, Any] | None,
    counted: str,
) -> list[str]:
    """What a reader has to know of how the numbers came about."""
    said = []
    if not found.whole:
        said.append(
            f"The search, and what is exported, are of the backbone alone: {found.why_not}. "
            "Neck and heads are as they were."
        )
    else:
        said.append(
            "Neck and heads are our fast ones, which give the same to rounding; the rest of the "
            "gain is merging, and the lean recipe where there is one."
        )
    if settings.budget.kind == LATENCY and counted != "compressed":
        said.append(
            f"The budget of time is that of {counted}, which is what is deployed; times of its "
            "detector in torch, from which the search expects them, stand beside it."
        )
    if settings.budget.kind == MAX_AP_LOSS and not search["chosen"]:
        said.append(
            "No candidate stays within the points of AP that may be lost: nothing is merged, and "
            "no part of the heads is lean."
        )
    if not search["merger"] and settings.budget.kind != MAX_AP_LOSS:
        said.append("The budget is met without merging.")
    if export and export["size"] != "any":
        said.append(f"The file takes pictures of {export['size']}; others are fitted into that.")
    return said


def commands(
    folder: Path, found: Given, export: dict[str, Any] | None, command: str
) -> Sequence[str]:
    """How to repeat it, and how to go on."""
    config, weights = str(folder / "config.py"), str(folder / "model.pth")
    lines = ["# all of this again", command, "", "# AP of the compressed detector"]
    lines.append(shlex.join(["ltm-det", "test", config, weights]))
    lines += ["", "# objects on pictures"]
    predict = ["ltm-det", "predict", config, weights, "--images", "DIR", "--out", "found"]
    lines.append(shlex.join(predict))
    if export and found.whole:
        file = str(folder / export["files"][0])
        lines.append(shlex.join(["ltm-det", "predict", file, "--images", "DIR", "--out", "found"]))
        lines += ["", "# AP of the file", shlex.join(["ltm-det", "test", config, file])]
    elif export:
        file = str(folder / export["files"][0])
        lines += ["", "# the file in the backbone's place: a config of its own"]
        lines.append(f"_base_ = {config!r}")
        lines.append(
            f"model = dict(backbone=dict(_delete_=True, type='ExportedBackbone', file={file!r}))"
        )
    return lines
