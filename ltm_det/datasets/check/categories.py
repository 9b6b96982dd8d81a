"""Categories: whether they have ids and names of their own, and which class each of them is."""

from collections import Counter
from typing import Any

from ltm_det.basics.words import is_name
from ltm_det.datasets.check.findings import Finding
from ltm_det.datasets.check.source import Source

SHOWN = 10  # names in a message


def check_categories(
    source: Source, categories: list[Any], found: list[Finding]
) -> dict[Any, str | None]:
    """Names of the ids that are there; what is wrong is added to ``found``."""

    def wrong(index: int, text: str, mend: dict | None = None, sure: bool = True) -> None:
        action = ("categories", index, mend) if sure else None
        entry = f"category {index + 1} of {len(categories)}"
        found.append(Finding("category unusable", source.ann_file, entry, text, action))

    names: dict[Any, str | None] = {}
    first: dict[str, Any] = {}
    for index, entry in enumerate(categories):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), (int, str)):
            wrong(index, f"it has no id: {str(entry)[:80]}")
            continue
        number, name = entry["id"], entry.get("name")
        if number in names:
            text = f"id {number!r} is there before ({names[number]!r}, {name!r})"
            wrong(index, text, sure=name == names[number])
            continue
        names[number] = None
        if not is_name(name):
            wrong(index, f"id {number!r} has no name of one line: {name!r}")
        elif name in first:
            text = f"the name {name!r} has ids {first[name]!r} and {number!r}: one class, two ids"
            wrong(index, text, dict(id=first[name]))
            names[number] = name
        else:
            first[name] = number
            names[number] = name
    return names


def check_classes(source: Source, names: dict[Any, str | None], found: list[Finding]) -> set | None:
    """Ids that are one of the classes; None where the classes aren't known."""
    classes = source.classes
    if classes is None:
        return None
    if isinstance(classes, str):
        text = f"classes is a text, {classes!r}, no tuple: one class is written ({classes!r},)"
        found.append(Finding("class names", source.name, "", text))
        return set()
    odd = [name for name in classes if not is_name(name)]
    if odd:
        text = f"no text of one line: {odd[0]!r}"
        found.append(Finding("class names", source.name, "", text))
    twice = [name for name, times in Counter(classes).items() if times > 1]
    if twice:
        found.append(Finding("class names", source.name, "", f"twice there: {_shown(twice)}"))
    there = {name for name in names.values() if name is not None}
    matched = there & set(classes)
    if not matched:
        text = f"the file has {_shown(there)}, the classes are {_shown(classes)}"
        found.append(Finding("no category matches", source.ann_file, "", text + _hint(source)))
        return set()
    missing = [name for name in classes if name not in there]
    extra = sorted(there - matched)
    for kind, rest in (
        ("classes without a category", missing),
        ("categories that are no class", extra),
    ):
        if rest:
            text = f"{len(rest)} of {len(classes if rest is missing else there)}: {_shown(rest)}"
            text += _near(missing, extra)
            found.append(Finding(kind, source.ann_file, "", text, error=False))
    return {number for number, name in names.items() if name in matched}


def _shown(names: Any) -> str:
    names = [repr(name) for name in names]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more


def _near(missing: list[str], extra: list[str]) -> str:
    """Names that differ in capitals and blanks alone."""

    def plain(name: str) -> str:
        return name.strip().lower().replace(" ", "_").replace("-", "_")

    forms = {plain(name): name for name in extra}
    pairs = [(name, forms[plain(name)]) for name in missing if plain(name) in forms]
    return "".join(f"; class {ours!r} and category {theirs!r} differ" for ours, theirs in pairs)


def _hint(source: Source) -> str:
    metainfo = (source.dataset or {}).get("metainfo") or {}
    if source.dataset is not None and "classes" not in metainfo:
        return "; the config has no metainfo=dict(classes=...), so that the data set's own are used"
    return ""
