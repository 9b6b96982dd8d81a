"""An annotation file as the lists that COCO's have."""

import os
from typing import Any

from ltm_det.basics import strict_json
from ltm_det.datasets.check.findings import Finding
from ltm_det.datasets.check.source import Source

LISTS = ("images", "annotations", "categories")


def read(source: Source, found: list[Finding]) -> dict[str, Any] | None:
    """The json; None where there is nothing to go on with. What is wrong is added to ``found``."""

    def unusable(text: str) -> None:
        found.append(Finding("annotation file unusable", source.ann_file, "", text))

    try:
        with open(source.ann_file, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return unusable("there is no such file")
    except UnicodeDecodeError as error:
        return unusable(f"no text: {error}")
    except OSError as error:
        return unusable(f"can't be read: {error.strerror}")
    if not text.strip():
        return unusable("it is empty")
    try:
        data = strict_json.parse(text)
    except strict_json.TwiceError as error:
        return unusable(f"{error}: of both, one would be passed over")
    except (ValueError, RecursionError) as error:
        kind = "a page of the web" if text.lstrip()[:1] == "<" else "no json, or a part of one"
        return unusable(f"{kind}: {error}, of {os.path.getsize(source.ann_file)} bytes")
    if not isinstance(data, dict):
        return unusable(f"it holds {_named(data)}, in the place of COCO's lists")
    return data if check_lists(source, data, found) else None


def check_lists(source: Source, data: dict[str, Any], found: list[Finding]) -> bool:
    """Whether the lists are there."""
    whole = True
    for name in LISTS:
        if isinstance(data.get(name), list):
            continue
        whole = whole and name == "annotations" and not source.scored and name not in data
        what = _named(data[name]) if name in data else "missing"
        text = f"{name!r} is {what}"
        if whole:
            found.append(Finding("no annotations", source.ann_file, "", text, error=False))
        else:
            found.append(Finding("annotation file unusable", source.ann_file, "", text))
    return whole


def _named(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a text", type(None): "null"}
    return names.get(type(value), f"{value!r}")
