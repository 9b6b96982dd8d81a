"""Write the numbers of README.md and docs/ from results/: `make tables`. With --check, only look.

Between `<!-- table NAME -->` and `<!-- end -->` stands what `TABLES[NAME]` of ltm_det.studies.pages
makes, between `<!-- value NAME -->` and `<!-- end -->`, in a line, what `VALUES[NAME]` makes.
"""

import argparse
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ltm_det.studies.pages import CONFIGS, GIGA, TABLES, VALUES, load  # noqa: E402

MARKER = re.compile(r"<!-- (table|value) ([\w./-]+) -->(.*?)<!-- end -->", re.DOTALL)


ALONE = ["hst_vit_b_maskrcnn"]  # configs without a twin


def model_index() -> str:
    """model-index.yml's metafile: the configs, their parameters and GMACs."""
    named = [(f"ltm_{name}", f"ltm_{name}", "merged") for name in CONFIGS]
    named += [(name, f"ltm_{name}", "dense") for name in CONFIGS]
    named += [(name, name, "dense") for name in ALONE]
    models = []
    for name, file, side in named:
        config, found = f"configs/{name}.py", load(f"flops/{file}.json")
        macs = found[side]["macs"]
        about = {
            "Image Size": found["shape"],
            "GMACs": round(macs["detector"] / GIGA, 1),
            "Backbone GMACs": round(macs["backbone"] / GIGA, 1),
            "Parameters (M)": round(found[side]["params"]["detector"] / 1e6, 1),
        }
        if (ROOT / config).exists():  # of some the dense twin is mmdet's own
            models.append(dict(Name=name, Config=config, Metadata=about))
    return yaml.safe_dump(dict(Models=models), sort_keys=False)


def filled(text: str) -> str:
    """A page with its numbers."""

    def fill(match: re.Match) -> str:
        kind, name = match[1], match[2]
        made = (TABLES if kind == "table" else VALUES)[name]()
        inner = f"\n\n{made}\n\n" if kind == "table" else made
        return f"<!-- {kind} {name} -->{inner}<!-- end -->"

    return MARKER.sub(fill, text)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="tell what differs, write nothing")
    args = parser.parse_args()
    wanted = {page: filled(page.read_text()) for page in pages()}
    wanted[ROOT / "configs/metafile.yml"] = model_index()
    stale = [p for p, text in wanted.items() if not p.exists() or p.read_text() != text]
    for page in stale:
        print(f"{'differs' if args.check else 'written'}: {page.relative_to(ROOT)}")
        if not args.check:
            page.write_text(wanted[page])
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
