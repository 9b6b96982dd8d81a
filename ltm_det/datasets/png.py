"""A PNG writer whose output depends on no compression library.

zlib, zlib-ng and their versions compress the same pixels to different bytes. So the deflate stream
here is made of stored (uncompressed) blocks only, which leaves nothing to choose. Source: PNG
specification (ISO/IEC 15948), RFC 1950 and RFC 1951.
"""

import struct
import zlib

import numpy as np

_MAX_STORED = 0xFFFF  # bytes in one stored deflate block


def encode_png(image: np.ndarray) -> bytes:
    """Encode an RGB image, the same bytes everywhere.

    Args:
        image: (H, W, 3) uint8.

    Raises:
        ValueError: another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row starts with filter type 0
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    chunks = ((b"IHDR", header), (b"IDAT", _store(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _store(data: bytes) -> bytes:
    """A zlib stream (RFC 1950) of stored deflate blocks (RFC 1951, 3.2.4)."""
    parts = [b"\x78\x01"]
    for start in range(0, len(data), _MAX_STORED):
        block = data[start : start + _MAX_STORED]
        last = start + _MAX_STORED >= len(data)
        parts.append(struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF) + block)
    return b"".join(parts) + struct.pack(">I", zlib.adler32(data))
