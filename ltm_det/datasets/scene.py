"""Demo scenes: handwritten digits as objects on crops of photographs, in whole numbers only.

Every step is integer arithmetic, and random numbers are the raw output of PCG64, whose stream NumPy
guarantees (NEP 19; the `Generator` methods built on it may change). So a scene is the same on every
machine and version.

Letters: S side of the image, h x w an object's canvas in pixels, K objects in a scene.
"""

from dataclasses import dataclass

import numpy as np

MIN_HEIGHT, MAX_HEIGHT = 28, 88  # of a digit's 8 rows, in pixels; boxes come out at about 24 to 96
MAX_OBJECTS = 5
INK = 3  # 0 to 16; where the enlarged digit is at least this dark, it is part of the object
MIN_VISIBLE = 60  # per cent; an object less visible than this is taken out of its scene


class Draw:
    """Whole random numbers that depend on the key alone.

    Args:
        key: whole numbers >= 0, for example (seed, split, image).
    """

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def __call__(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        # 64 bits against spans of at most a few thousand: the modulo's bias is below 1e-15.
        return low + int(self._bits.random_raw()) % (high - low + 1)


@dataclass(frozen=True)
class Thing:
    """One object before occlusion: its class, its canvas in the image, its ink and its colour."""

    label: int
    digit: int  # index of the handwritten digit
    top: int
    left: int
    ink: np.ndarray  # (h, w) int64, 0 to 255; 0 outside the object
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """An image and its objects, back to front, with the pixels of each that are seen."""

    image: np.ndarray  # (S, S, 3) uint8
    things: list[Thing]
    masks: list[np.ndarray]  # (S, S) bool each, disjoint


def enlarge(digit: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear enlargement with exact whole numbers (pixel centres aligned, edges repeated).

    Args:
        digit: (n, m) whole numbers.

    Returns:
        (height, width) int64: the interpolated value times 4 * height * width, not rounded.
    """
    rows, cols = _weights(digit.shape[0], height), _weights(digit.shape[1], width)
    return np.einsum("in,nm,jm->ij", rows, digit.astype(np.int64), cols)


def _weights(source: int, target: int) -> np.ndarray:
    """(target, source) int64 interpolation weights; each row sums to 2 * target."""
    # The centre of pixel i lies at ((2i + 1) * source - target) / (2 * target) of the source.
    place = np.clip(
        (2 * np.arange(target) + 1) * source - target, 0, 2 * target * (source - 1)
    ).astype(np.int64)
    index, part = place // (2 * target), place % (2 * target)
    weights = np.zeros((target, source), np.int64)
    np.add.at(weights, (np.arange(target), index), 2 * target - part)
    np.add.at(weights, (np.arange(target), np.minimum(index + 1, source - 1)), part)
    return weights


def draw_scene(
    draw: Draw,
    photos: list[np.ndarray],
    digits: np.ndarray,
    labels: np.ndarray,
    pool: np.ndarray,
    size: int,
) -> Scene:
    """One scene.

    Args:
        draw: the scene's own random numbers.
        photos: (H, W, 3) uint8 each.
        digits: (D, 8, 8) whole numbers from 0 to 16.
        labels: (D,) the class of each digit.
        pool: indices of the digits that may appear.
        size: S, in pixels.
    """
    image = _crop(draw, photos[draw(0, len(photos) - 1)], size)
    things = [_draw_thing(draw, digits, labels, pool, size) for _ in range(draw(1, MAX_OBJECTS))]
    masks = visible(things, size)
    # Taking one out only uncovers others, so what was seen well enough before still is.
    things = [
        thing
        for thing, mask in zip(things, masks, strict=True)
        if 100 * mask.sum() >= MIN_VISIBLE * (thing.ink > 0).sum()
    ]
    masks = visible(things, size)
    for thing, mask in zip(things, masks, strict=True):
        ink = np.zeros((size, size), np.int64)
        h, w = thing.ink.shape
        ink[thing.top : thing.top + h, thing.left : thing.left + w] = thing.ink
        image[mask] = ink[mask][:, None] * np.array(thing.colour) // 255
    return Scene(image, things, masks)


def visible(things: list[Thing], size: int) -> list[np.ndarray]:
    """The pixels (S, S) of each object that no later object covers."""
    owner = np.full((size, size), -1)
    for i, thing in enumerate(things):
        h, w = thing.ink.shape
        owner[thing.top : thing.top + h, thing.left : thing.left + w][thing.ink > 0] = i
    return [owner == i for i in range(len(things))]


def _crop(draw: Draw, photo: np.ndarray, size: int) -> np.ndarray:
    """A square crop, brought to (S, S, 3) by taking the nearest pixels; flipped half the time."""
    side = draw(min(size, *photo.shape[:2]), min(2 * size, *photo.shape[:2]))
    top, left = (draw(0, full - side) for full in photo.shape[:2])
    pick = (2 * np.arange(size) + 1) * side // (2 * size)
    crop = photo[top + pick][:, left + pick]
    return crop[:, ::-1].copy() if draw(0, 1) else crop


def _draw_thing(
    draw: Draw, digits: np.ndarray, labels: np.ndarray, pool: np.ndarray, size: int
) -> Thing:
    digit = int(pool[draw(0, len(pool) - 1)])
    # A margin of empty pixels lets strokes that touch the digit's edge end softly.
    padded = np.pad(digits[digit], 1)
    rows, cols = padded.shape
    height = draw(MIN_HEIGHT, min(MAX_HEIGHT, 3 * size // 5))
    width = height * draw(80, 120) // 100
    h, w = height * rows // 8, width * cols // 8
    value = enlarge(padded, h, w)
    unit = 4 * h * w  # one step of the digit's 0 to 16
    ink = np.where(value >= INK * unit, 55 + 200 * value // (16 * unit), 0)
    ys, xs = np.nonzero(ink.any(1))[0], np.nonzero(ink.any(0))[0]
    ink = ink[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    h, w = ink.shape
    top, left = draw(0, size - h), draw(0, size - w)
    colour = tuple(draw(64, 255) for _ in range(3))
    return Thing(int(labels[digit]), digit, top, left, ink, colour)
