"""The report of a compression: what came out of each step, as JSON and as one HTML file."""

from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from ltm_det.compression.drawing import latency_chart, merging_chart
from ltm_det.compression.evaluation import SIZES
from ltm_det.compression.state import spoken

KINDS = dict(bbox="box AP", segm="mask AP")
PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>$title</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em;
  color: #1c1c1c; background: #fff; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: 0.6em 0; }
th, td { padding: 0.2em 0.8em; text-align: right; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child { text-align: left; }
th { background: #f4f4f4; font-weight: 600; }
img { max-width: 100%; } figure { margin: 1em 0; } figcaption { color: #555; font-size: 0.9em; }
pre { background: #f6f6f6; padding: 0.8em; overflow-x: auto; }
.lead { font-size: 1.1em; } .note { color: #555; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def number(value: float | None, places: int = 2, sign: bool = False) -> str:
    """A number for people; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:+.{places}f}" if sign else f"{value:.{places}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; cells are texts."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>\n" + "\n".join(body) + "</table>"


def section(title: str, *parts: str) -> str:
    return "\n".join([f"<h2>{escape(title)}</h2>", *filter(None, parts)])


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def ap_tables(found: Mapping[str, Mapping[str, Any]]) -> str:
    """AP of each detector by its name; in all and by size."""
    first = next(iter(found.values()))
    parts = []
    for kind, name in KINDS.items():
        if kind not in first:
            continue
        rows = []
        for detector, own in found.items():
            values = [own[kind][key] for key in ("AP", "AP50", *SIZES)]
            cells = [number(value) for value in values]
            apart = (own[kind]["AP"] or 0) - (first[kind]["AP"] or 0)
            rows.append([detector, *cells, number(apart, sign=True) if own is not first else ""])
        parts.append(table([name, "all", "AP50", *SIZES, "to dense"], rows))
    return "\n".join(parts)


def class_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """AP by class, before and after."""
    kinds = [kind for kind in KINDS if kind in before]
    head = ["class", *(f"{KINDS[k]}, {when}" for k in kinds for when in ("dense", "after", "+-"))]
    rows = []
    for name in before[kinds[0]]["classes"]:
        row = [name]
        for kind in kinds:
            pair = [own[kind]["classes"][name] for own in (before, after)]
            known = None not in pair
            apart = pair[1] - pair[0] if known else None
            row += [*map(number, pair), number(apart, sign=True)]
        rows.append(row)
    return table(head, rows)


def time_table(times: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            number(own["ms"], 1),
            number(own["ratio"]),
            f"{own['lower']:.2f} to {own['upper']:.2f}",
        ]
        for name, own in times["models"].items()
    ]
    base = next(iter(times["models"]))
    return table(["detector", "ms a picture", f"of {base}", "middle half of rounds"], rows)


def parts_table(times: Mapping[str, Any]) -> str:
    """Milliseconds of each part."""
    known = {name: own["parts"] for name, own in times["models"].items() if own["parts"]}
    names = list(dict.fromkeys(part for parts in known.values() for part in parts))
    rows = [[part, *(number(parts.get(part), 1) for parts in known.values())] for part in names]
    return table(["ms a picture", *known], rows)


def machine_line(times: Mapping[str, Any]) -> str:
    own = times["machine"]
    flags = f", {' '.join(own['flags'])}" if own.get("flags") else ""
    where = own["cpu"] if own["device"] == "cpu" else own["device"]
    return (
        f"{where}{flags}, {own['threads']} of {own['cores']} threads, torch {own['torch']}, "
        f"{own['system']}; {times['pictures']} validation pictures, {times['rounds']} rounds in "
        "turns"
    )


def summary(report: Mapping[str, Any]) -> str:
    """The first lines: what was asked for, what came out."""
    before, after = report["ap"]["dense"], report["ap"]["compressed"]
    times, macs = report["cost"]["times"]["models"], report["gmacs"]
    base, own = next(iter(times)), times[report["cost"]["counted"]]
    pairs = [(k, before[k]["AP"], after[k]["AP"]) for k in KINDS if k in before]
    lines = [[KINDS[kind], number(old), number(new)] for kind, old, new in pairs]
    speed = times[base]["ms"], own["ms"]
    lines.append([f"ms a picture ({base} before)", *(number(ms, 1) for ms in speed)])
    lines.append(["GMACs", number(macs["dense"], 1), number(macs["compressed"], 1)])
    size = report["export"]
    words = (
        f"Asked for: {report['budget']}. Reached: {own['ratio']:.2f} of {base} time, "
        f"{macs['compressed'] / macs['dense']:.2f} of its GMACs, "
        f"{-report['loss']:+.2f} points of AP (of boxes or masks, whichever lost more)."
    )
    missed = "" if report["met"] else "The budget is not met by what was measured at the end."
    files = f"To deploy: {', '.join(size['files'])} ({size['mb']:.0f} MB)." if size else ""
    return "\n".join(
        [
            f'<p class="lead">{escape(words)} <b>{escape(missed)}</b></p>',
            table(["", "before", "after"], lines),
            note(files),
            *(note(text) for text in report["notes"]),
        ]
    )


def search_table(report: Mapping[str, Any]) -> str:
    """The candidates of the search, the chosen ones marked."""
    dense = report["search"]["dense"]
    chosen = report["search"]["chosen"]
    rows = [
        [unit, label[1], number(error, 4), number(1 + cost / dense, 3)]
        + ["chosen" if chosen.get(unit) == label[1] else ""]
        for unit, candidates in report["search"]["units"].items()
        for cost, error, label in candidates
    ]
    return table(["unit", "choice", "error", "of the dense cost", ""], rows)


def trials_table(report: Mapping[str, Any]) -> str:
    tried = report["search"].get("tried")
    if not tried:
        return ""
    rows = [[number(row["cost_ratio"], 3), number(row["loss"])] for row in tried]
    return table(["of our dense detector's cost", "points of AP lost, calibrated"], rows)


def as_html(report: Mapping[str, Any], pictures: Sequence[Mapping[str, Any]]) -> str:
    """The page.

    Args:
        report: What ``report.json`` holds.
        pictures: See :func:`ltm_det.compression.drawing.pictures`.
    """
    times, merging = report["cost"]["times"], report["merging"]
    ap = {name: own for name, own in report["ap"].items() if name != "compressed"}
    chart = '<figure><img alt="{}" src="{}"></figure>'.format
    lean = ", ".join(f"{key}={value}" for key, value in report["lean"].items())
    shown = "\n".join(
        f'<figure><img alt="{escape(row["name"])}" src="{row["image"]}"><figcaption>'
        f"{escape(row['name'])}: {row['objects'][0]} objects; found {row['objects'][1]} by the "
        f"dense, {row['objects'][2]} by the compressed detector</figcaption></figure>"
        for row in pictures
    )
    steps = [[name, spoken(own)] for name, own in report["seconds"].items()]
    body = [
        summary(report),
        section("Average precision", ap_tables(ap), note(report["ap_note"])),
        section("By class", class_table(report["ap"]["dense"], report["ap"]["compressed"])),
        section(
            "Latency",
            note(machine_line(times)),
            time_table(times),
            chart("latency by part", latency_chart(times)),
            parts_table(times),
        ),
        section(
            "Where it merges",
            chart("kept tokens by block", merging_chart(merging)) if merging else "",
            note(f"Lean recipe of the heads: {lean}" if lean else "No part of the heads is lean."),
            note(report["merging_note"]),
        ),
        section("What was searched", trials_table(report), search_table(report)),
        section("Pictures: truth, dense, compressed", shown),
        section("Commands", f"<pre>{escape(chr(10).join(report['commands']))}</pre>"),
        section("Steps", table(["step", "time"], steps)),
    ]
    return PAGE.substitute(title=escape(report["title"]), body="\n".join(body))
