"""Files of weights, read and written. Whatever is wrong with one is an InputError that names it.

Two formats are read, told apart by content: torch's, by its restricted unpickler alone, and
safetensors, which cannot hold code. Where a file keeps its state dict is found in
:mod:`ltm_det.compat.state_dicts`.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

import torch
from mmengine.dist import barrier, get_dist_info
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ltm_det.basics.errors import InputError
from ltm_det.basics.files import whole, write_text

SAFETENSORS = ".safetensors"
LOCAL = "file://"  # a file of this machine, which is read where it is
META = "ltm_det.meta"  # in the header of safetensors, which holds texts alone: the rest, as JSON
REMEDY = "Give a .pth or .safetensors file as training, ltm-det convert or a model zoo writes it"
REFUSED = """\
Save its weights alone where it was made: torch.save(model.state_dict(), FILE). Or, where you trust
who made it and need all of it, allow the name: torch.serialization.add_safe_globals([...])"""


def unreadable(file: str | Path, why: str, remedy: str = REMEDY) -> InputError:
    """The one message on a file of weights that cannot be used."""
    return InputError(f"cannot read the checkpoint {file}: {why}\n{remedy}")


def check_file(file: str | Path) -> None:
    """Looks at a file's place, its first bytes and its end; takes no time.

    Raises:
        InputError: It is not there, or is no file of weights, or only a part of one.
    """
    path = Path(file)
    try:
        if path.is_dir():
            there = sorted(p.name for p in path.iterdir() if p.suffix in (".pth", SAFETENSORS))
            hint = f"; in it are {', '.join(there[:5])}" if there else ""
            raise unreadable(file, f"it is a folder{hint}")
        if not path.exists():
            raise unreadable(
                file, "no such file", "A training run leaves its checkpoints in its --work-dir"
            )
        with open(path, "rb") as stream:
            head, size = stream.read(512), path.stat().st_size
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise unreadable(file, str(error)) from error
    if fault := _fault(path, head, size):
        raise unreadable(file, fault)


def _fault(path: Path, head: bytes, size: int) -> str | None:
    """What the first bytes of a file, and its end, say against it."""
    if not head:
        return "it is empty"
    if head.startswith(b"PK\x03\x04"):  # torch's format is a zip archive, whose list ends it
        return None if zipfile.is_zipfile(path) else "it is only a part of a checkpoint"
    if _is_safetensors(head):
        end = 8 + int.from_bytes(head[:8], "little")
        return "it is only a part of a checkpoint" if size < end else None
    if head.startswith(b"version https://git-lfs"):
        return "it is Git LFS's pointer to a file: git lfs pull fetches the file itself"
    if head.lstrip()[:1] == b"<":
        return "it is a web page, as one gets where a download was refused"
    if head.startswith(b"\x80"):  # a pickle, torch's former format
        return None
    binary = any(byte < 9 for byte in head)
    return "it is neither torch's format nor safetensors" if binary else "it is a text"


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and not any(head[5:8])


def read_file(file: str | Path, map_location: Any = None, glance: bool = False) -> Any:
    """What a file holds: of torch's anything but code, of safetensors a state dict.

    Args:
        glance: Whether the weights themselves stay on the disk, which takes no time.

    Raises:
        InputError: See :func:`check_file`; or it is damaged, or names what could run code.
    """
    check_file(file)
    with open(file, "rb") as stream:
        safe = _is_safetensors(stream.read(512))
    if not glance and (part := differing(file)):
        raise unreadable(file, f"it is damaged: {part} in it differs from its checksum")
    try:
        if safe:
            return _read_safetensors(file, map_location)
        if str(file).endswith(SAFETENSORS):  # by such a name newer torch leaves it to safetensors
            with open(file, "rb") as stream:
                return torch.load(stream, map_location=map_location, weights_only=True)
        mapped = glance and zipfile.is_zipfile(file)  # which torch's former format cannot be
        return torch.load(file, map_location=map_location, weights_only=True, mmap=mapped)
    except torch.cuda.OutOfMemoryError:  # of a GPU: not the file's fault
        raise
    except Exception as error:  # of hostile or damaged bytes the unpickler raises nearly anything
        why, remedy = _explained(error)
        raise unreadable(file, why, remedy) from error


def differing(file: str | Path) -> str | None:
    """The part of a file of torch's zip format that differs from its checksum; of another format,
    or where it was written without them, none. Takes as long as CRC-32 of all of it."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        return archive.testzip() if any(part.CRC for part in archive.infolist()) else None


def _read_safetensors(file: str | Path, map_location: Any) -> dict[str, Any]:
    device = str(map_location) if isinstance(map_location, (str, torch.device)) else "cpu"
    with safe_open(file, framework="pt", device=device) as stream:
        state = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        meta = (stream.metadata() or {}).get(META)
    if meta is None:
        return state
    meta = json.loads(meta)
    palette = (meta.get("dataset_meta") or {}).get("palette")
    if isinstance(palette, list):  # colours are tuples to those who draw, which JSON does not have
        meta["dataset_meta"]["palette"] = [tuple(color) for color in palette]
    return dict(state_dict=state, meta=meta)


def _explained(error: Exception) -> tuple[str, str]:
    """Why a file could not be read, and what to do; without torch's advice to read it unsafely."""
    text = str(error)
    if named := re.search(r"GLOBAL (\S+)", text):
        return f"it names {named[1]}, which could run code, and so is refused", REFUSED
    if asked := re.search(r"a checkpoint asks for [^\n]*", text):
        return f"{asked[0]}, and so is refused", REFUSED
    if found := re.search(r"WeightsUnpickler error: ([^\n]*)", text):
        text = found[1]
    first = next(iter(text.strip().splitlines()), "")[:200]
    kind = "SafetensorError" if isinstance(error, SafetensorError) else type(error).__name__
    return f"it is damaged, or only a part of a checkpoint ({kind}: {first})", REMEDY


def cached(url: str) -> Path:
    """Where a URL's file is kept: where torch keeps it, or where that is the name of many, as of
    the safetensors of a hub, or has been taken by a file of another URL, under a name of its own.
    """
    plain = Path(torch.hub.get_dir(), "checkpoints", Path(url.partition("?")[0]).name)
    own = plain.with_name(hashlib.sha256(url.encode()).hexdigest()[:16] + plain.suffix)
    if plain.suffix == SAFETENSORS or own.exists():
        return own
    known = source_of(plain)
    taken = plain.exists() and known.exists() and known.read_text().strip() != url
    return own if taken else plain


def source_of(file: Path) -> Path:
    """Beside a file that was fetched, the text that names its URL."""
    return file.with_name(f"{file.name}.url")


def read_url(url: str, map_location: Any = None) -> Any:
    """What the file at a URL holds; the first process fetches it, unless it is there.

    Raises:
        InputError: It cannot be fetched, or see :func:`read_file`.
    """
    if url.startswith(LOCAL):
        return read_file(url2pathname(url.removeprefix(LOCAL)), map_location)
    file = cached(url)
    rank, _ = get_dist_info()
    if rank == 0 and not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file))
            write_text(source_of(file), f"{url}\n")
        except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
            raise InputError(
                f"cannot download {url}: {error}\n"
                f"Where there is a network, fetch it into {file.parent}; or name a file that you "
                "have, of a backbone with\n--cfg-options model.backbone.init_cfg.checkpoint=FILE "
                "(with --data: --weights FILE). Pretraining is switched off\nwith --cfg-options "
                "model.backbone.init_cfg=None (with --data: --weights none)"
            ) from error
    barrier()
    try:
        return read_file(file, map_location)
    except InputError as error:
        remedy = f"It was fetched from {url}: remove it, and it is fetched anew"
        raise InputError(f"{error}\n{remedy}") from error


def write_weights(
    file: Path, state: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None
) -> None:
    """Writes a state dict, whole or not at all: as safetensors where the name ends so.

    Args:
        file: .safetensors, or any other ending for torch's format.
        state: Of a model; goes to the CPU.
        meta: What else is to be known of it, such as ``dataset_meta``; texts, numbers, lists.
    """
    meta = dict(meta or {})
    own = {key: value.detach().cpu() for key, value in state.items()}
    with whole(file) as part:
        if file.suffix == SAFETENSORS:  # takes no two names for one memory
            own = {key: value.clone().contiguous() for key, value in own.items()}
            save_file(own, part, metadata={"format": "pt", META: json.dumps(meta, default=str)})
        else:
            torch.save(dict(state_dict=own, meta=meta), part)
