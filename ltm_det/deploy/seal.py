"""A digest at the end of an exported file: weights that were damaged on their way give no error of
their own, but other objects.

What is added changes nothing for those who read the file without it: in .onnx a further entry of
the model's ``metadata_props`` (parts of a protocol buffer may follow each other), in .xml a
comment. The .bin beside an .xml is in its digest.
"""

import hashlib
from pathlib import Path

from ltm_det.basics.errors import InputError

KEY = b"ltm_det.sha256"
LENGTH = 64  # of a SHA-256 in hexadecimal


def seal(file: Path) -> None:
    """Adds the digest to a file that has been written, .onnx or .xml."""
    end = ending(file, digest_of(file, file.stat().st_size))
    with open(file, "ab") as stream:
        stream.write(end)


def check_seal(file: Path) -> None:
    """Compares a file with its digest; one without is passed over.

    Raises:
        InputError: They differ.
    """
    size = file.stat().st_size
    length = len(ending(file, "0" * LENGTH))
    with open(file, "rb") as stream:
        stream.seek(max(size - length, 0))
        end = stream.read()
    if KEY in end and end != ending(file, digest_of(file, size - length)):
        beside = f" and {file.with_suffix('.bin').name}" if file.suffix == ".xml" else ""
        raise InputError(
            f"{file}{beside} is not what was written, as its digest says: copy it again, or export "
            "it anew"
        )


def digest_of(file: Path, size: int) -> str:
    """Of a file's first bytes, and of the .bin beside an .xml."""
    total = hashlib.sha256()
    parts = [(file, size)]
    if file.suffix == ".xml":
        weights = file.with_suffix(".bin")
        parts.append((weights, weights.stat().st_size))
    for path, left in parts:
        with open(path, "rb") as stream:
            while left and (part := stream.read(min(left, 2**20))):
                total.update(part)
                left -= len(part)
    return total.hexdigest()


def ending(file: Path, digest: str) -> bytes:
    """What is added at the end of a file."""
    value = digest.encode()
    if file.suffix == ".xml":
        return b"\n<!-- " + KEY + b" " + value + b" -->\n"
    key, text = (bytes([tag, len(part)]) + part for tag, part in ((0x0A, KEY), (0x12, value)))
    return bytes([14 << 3 | 2, len(key + text)]) + key + text  # field 14, of given length
