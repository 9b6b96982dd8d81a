"""What picture files were found to be, kept for the next look, in the user's cache folder."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from ltm_det.basics.files import write_text
from ltm_det.datasets.check.pictures import Seen

VERSION = 1  # of how files are looked at


def cache_file(folder: str) -> Path:
    """Where what is known of a folder of pictures lies."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(os.path.abspath(folder).encode()).hexdigest()[:24]
    return Path(base) / "ltm_det" / "pictures" / f"{name}.json"


def load(folder: str) -> dict[str, Seen]:
    """By path; nothing where nothing is known, or the file is damaged."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        kept = json.loads(cache_file(folder).read_text())
        if kept["version"] == VERSION:
            return {
                os.path.join(folder, name): Seen(*row[:3], tuple(row[3]), tuple(row[4]), row[5])
                for name, row in kept["pictures"].items()
            }
    return {}


def save(folder: str, seen: dict[str, Seen]) -> None:
    """Keeps it; a cache that can't be written is done without."""
    rows = {
        os.path.relpath(path, folder): look.values()
        for path, look in seen.items()
        if look.bytes >= 0 and os.path.exists(path)
    }
    with suppress(OSError):
        write_text(
            cache_file(folder),
            json.dumps(dict(version=VERSION, pictures=rows), separators=(",", ":")),
        )
