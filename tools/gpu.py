"""All that there is to measure on a GPU, in 22 minutes at most: correctness, then times.

Each run is a process of its own with a time limit; one that fails is told and the others go on. The
figures land in OUT as JSON, one file a run, and as one table, OUT/README.md. Nothing is downloaded:
weights are random. With --tiny small models on small images take the places of all, to try it.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK = "tools/analysis/benchmark.py"
SWIN, SWIN_B, VIT = (f"configs/ltm_{name}_maskrcnn.py" for name in ("swin_s", "swin_b", "vit_b"))
SQUARE = ["--shape", "1024", "1024"]
BOTH = ["--dtype", "float32", "amp"]
MANY = ["--rounds", "20", "--warm-up", "3"]
# By name: seconds allowed, and the words after `python`.
RUNS: dict[str, tuple[int, list[str]]] = {
    "tests": (150, ["-m", "pytest", "-q", "-m", "gpu and not slow", "tests"]),
    "swin_s_detector": (
        150,
        [BENCHMARK, SWIN, "--part", "detector", "--batch", "1", "8", *BOTH, *MANY],
    ),
    "swin_s_backbone": (120, [BENCHMARK, SWIN, "--batch", "1", "8", *BOTH, *MANY]),
    "swin_s_training": (
        120,
        [BENCHMARK, SWIN, "--models", "mmdet", "dense", "merged", "--batch", "2", *BOTH]
        + ["--mode", "training", "memory", "--rounds", "10", "--warm-up", "2"],
    ),
    "vit_b_detector": (
        150,
        [BENCHMARK, VIT, "--part", "detector", *SQUARE, "--batch", "1", "8", *BOTH, *MANY],
    ),
    "swin_s_compiled": (
        240,
        [BENCHMARK, SWIN, "--models", "mmdet", "merged", "--batch", "8", "--dtype", "amp"]
        + ["--how", "eager", "compiled", *MANY],
    ),
    "swin_b_detector": (
        150,
        [BENCHMARK, SWIN_B, "--part", "detector", "--batch", "8", "--dtype", "amp", *MANY],
    ),
    "vit_b_compiled": (
        240,
        [BENCHMARK, VIT, *SQUARE, "--batch", "8", "--dtype", "amp", "--how", "eager", "compiled"]
        + MANY,
    ),
}
# Later words win: small models and images, one round.
TINY = ["--shape", "64", "64", "--batch", "1", "--rounds", "1", "--warm-up", "0"]
DEMO = "configs/demo_ltm_{}_maskrcnn.py"


def words_of(name: str, device: str, tiny: bool, out: Path) -> list[str]:
    """The command of a run, after `python`."""
    words = list(RUNS[name][1])
    if words[0] != BENCHMARK:
        return words
    if tiny:
        words[1] = DEMO.format("vit" if words[1] == VIT else "swin")
        at = words.index("--shape") if "--shape" in words else None
        if at is not None:
            del words[at : at + 3]
        words += TINY
    return [*words, "--device", device, "--json", str(out / f"{name}.json")]


def run(name: str, words: list[str], limit: float) -> str:
    """Runs one for so many seconds at most, its output on the terminal; gives how it ended."""
    print(f"\n== {name}: python {' '.join(words)}", flush=True)
    start = time.monotonic()
    try:
        done = subprocess.run([sys.executable, *words], cwd=ROOT, timeout=limit)
        ending = "done" if done.returncode == 0 else f"failed with status {done.returncode}"
    except subprocess.TimeoutExpired:
        ending = f"stopped at its limit of {limit} s"
    return f"{ending}, {time.monotonic() - start:.0f} s"


def table(endings: dict[str, str], out: Path) -> str:
    """Markdown of all runs that there are figures of."""
    lines = ["# Measured on a GPU", "", "`python tools/gpu.py`; JSON with every round beside this."]
    for name, ending in endings.items():
        lines += ["", f"## {name}", "", ending]
        file = out / f"{name}.json"
        if ending.startswith("done") and file.exists():  # else it is an earlier run's
            found = json.loads(file.read_text())
            place = found["machine"]
            lines += [
                "",
                f"{place['device']}, torch {place['torch']}, commit {found['commit']}",
                "",
            ]
            lines += ["| batch | mode | model | form | format | ms | of base | memory |"]
            lines += ["|---|---|---|---|---|---|---|---|"]
            lines += [cells(row) for row in found["rows"]]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> str:
    words = [row["batch"], row["mode"], row["model"], row.get("how", ""), row.get("dtype", "")]
    timed, weighed = "median_ms" in row, "peak_ratio" in row
    words += [f"{row['median_ms']:.1f}", f"{row['ratio']:.2f}"] if timed else ["-", "-"]
    words += [f"{row['peak_ratio']:.2f}" if weighed else ""]
    return "| " + " | ".join(map(str, words)) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results/gpu", help="folder of figures")
    parser.add_argument("--only", nargs="+", choices=[*RUNS], default=[*RUNS], help="these runs")
    parser.add_argument("--device", default="cuda", help="cpu to try it (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="small models, one round")
    args = parser.parse_args()
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    endings = {}
    for name in args.only:
        words = words_of(name, args.device, args.tiny, args.out)
        limit = 3600 if args.tiny else RUNS[name][0]
        endings[name] = run(name, words, limit)
        (args.out / "README.md").write_text(table(endings, args.out))
    print(f"\n{(args.out / 'README.md').read_text()}")
    return any(not ending.startswith("done") for ending in endings.values())


if __name__ == "__main__":
    sys.exit(main())
