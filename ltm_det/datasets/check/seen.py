"""What files were found to be, kept for the next look, in the user's cache folder: pictures of a
folder, and whole sets of sources without a fault."""

import hashlib
import json
import os
import os.path as osp
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ltm_det.basics.files import sha256_of, write_text
from ltm_det.datasets.check.pictures import Seen
from ltm_det.datasets.check.source import Source

VERSION = 1  # of how files are looked at


def cache_file(kind: str, of: str) -> Path:
    """Where what is known of something lies."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(of.encode()).hexdigest()[:24]
    return Path(base) / "ltm_det" / kind / f"{name}.json"


def pictures_file(folder: str) -> Path:
    return cache_file("pictures", osp.abspath(folder))


def load(folder: str) -> dict[str, Seen]:
    """By path; nothing where nothing is known, or the file is damaged."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        kept = json.loads(pictures_file(folder).read_text())
        if kept["version"] == VERSION:
            return {
                osp.join(folder, name): Seen(*row[:3], tuple(row[3]), tuple(row[4]), row[5])
                for name, row in kept["pictures"].items()
            }
    return {}


def save(folder: str, seen: dict[str, Seen]) -> None:
    """Keeps it; a cache that can't be written is done without."""
    rows = {
        osp.relpath(path, folder): look.values()
        for path, look in seen.items()
        if look.bytes >= 0 and osp.exists(path)
    }
    with suppress(OSError):
        write_text(
            pictures_file(folder),
            json.dumps(dict(version=VERSION, pictures=rows), separators=(",", ":")),
        )


def are_clean(sources: Sequence[Source | str]) -> bool:
    """Whether all of them had no fault when they were looked at, and no file is another since.

    Annotation files are compared by content, pictures by size and time of writing.
    """
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        kept = json.loads(clean_file(sources).read_text())
        return (
            kept["version"] == VERSION
            and all(sha256_of(path) == was for path, was in kept["annotations"].items())
            and all(written(path) == was for path, was in kept["pictures"].items())
        )
    return False


def keep_clean(sources: Sequence[Source | str], checked: Iterable[tuple[Source, Any, Any]]) -> None:
    """Notes that they have no fault; a cache that can't be written is done without.

    Args:
        checked: The sources that were read, with what they hold.
    """
    annotations, pictures = {}, {}
    with suppress(OSError):
        for source, data, _ in checked:
            annotations[source.ann_file] = sha256_of(source.ann_file)
            for image in data["images"] if source.images is not None else ():
                path = osp.join(source.images, image["file_name"])
                pictures[path] = written(path)
        kept = dict(version=VERSION, annotations=annotations, pictures=pictures)
        write_text(clean_file(sources), json.dumps(kept, separators=(",", ":")))


def clean_file(sources: Sequence[Source | str]) -> Path:
    told = [vars(own) | dict(dataset=None) if isinstance(own, Source) else own for own in sources]
    return cache_file("clean", os.getcwd() + repr(told))


def written(path: str) -> list[int]:
    """Size of a file, and when it was written."""
    state = os.stat(path)
    return [state.st_size, state.st_mtime_ns]
