"""Write requirements.lock: the versions that are installed here, each with the hash of its file.

    make lock

What the extras `lite` and `dev` of setup.py lead to is pinned to what this interpreter has, so to
what the tests passed with. pip finds the files and their hashes, and installs nothing. They are of
one Python and one kind of machine; the first line of the file says which.
"""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
EXTRAS = "lite,dev"
HEAD = """\
# Python {python}, {system}, {machine}: the extras {extras} of setup.py, by `make lock`.
# Installed by `make install LOCKED=1`: pip install --require-hashes -r requirements.lock
"""


def pip(*words: str) -> str:
    """What a command of pip's prints."""
    run = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.run(run, check=True, text=True, stdout=subprocess.PIPE).stdout


def installed() -> str:
    """The versions that are here, as constraints for pip; but of what is no package of an index."""
    found = json.loads(pip("list", "--format", "json", "--exclude-editable"))
    return "".join(f"{p['name']}=={p['version']}\n" for p in found if p["name"] != "pip")


def pinned(report: dict[str, Any]) -> str:
    """The file's text, from pip's report on what it would install.

    Raises:
        ValueError: For something no hash is known.
    """
    lines = []
    for item in report["install"]:
        download, about = item["download_info"], item["metadata"]
        if "dir_info" in download:  # this package itself
            continue
        hashes = download.get("archive_info", {}).get("hashes", {})
        if "sha256" not in hashes:
            raise ValueError(f"no hash is known of {about['name']} {about['version']}")
        name = about["name"].lower().replace("_", "-")
        lines.append(f"{name}=={about['version']} \\\n    --hash=sha256:{hashes['sha256']}\n")
    place = dict(python=".".join(map(str, sys.version_info[:2])), system=platform.system())
    head = HEAD.format(**place, machine=platform.machine(), extras=EXTRAS)
    return head + "".join(sorted(lines))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
        constraints.write_text(installed())
        words = ["--dry-run", "--ignore-installed", "--prefer-binary", "--quiet"]
        words += ["--report", str(report), "--constraint", str(constraints)]
        pip("install", *words, f"{ROOT}[{EXTRAS}]")
        text = pinned(json.loads(report.read_text()))
    LOCK.write_text(text)
    print(f"{text.count('--hash')} packages in {LOCK}")


if __name__ == "__main__":
    main()
