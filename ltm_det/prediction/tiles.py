"""Large pictures in tiles, and what was found in them joined over the tiles' borders.

SAHI lays the tiles. What it does with masks afterwards, it does to polygons that it matches by
their boxes, so that holes are filled and neighbours may become one; here run lengths are compared
and joined as they are.

Shapes: a picture of H x W pixels, K objects.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco

from ltm_det.basics.errors import InputError
from ltm_det.deploy import Detections

Size = tuple[int, int]
Box = tuple[int, int, int, int]  # x1, y1, x2, y2
Find = Callable[[list[np.ndarray]], list[Detections]]

NEAR = 2  # pixels: objects that come so near to a tile's border may go on beyond it


@dataclass(frozen=True)
class Tiles:
    """How pictures are cut.

    Args:
        size: Height and width of a tile in pixels, or one number for both; None: what the detector
            takes without resizing. Smaller pictures are not cut.
        overlap: Share of a tile that its neighbour has too.
        whole: Whether the detector sees the whole picture too, for objects larger than a tile.
        batch: Tiles at a time.
        match: Share of the smaller of two objects that has to lie in the other, for both to be one.

    Raises:
        InputError: A value is out of its range.
    """

    size: int | Sequence[int] | None = None
    overlap: float = 0.2
    whole: bool = True
    batch: int = 1
    match: float = 0.5

    def __post_init__(self) -> None:
        sides = [] if self.size is None else list(np.atleast_1d(self.size))
        if len(sides) > 2 or any(side < 16 or side != int(side) for side in sides):
            raise InputError(f"tiles of size={self.size}: give height and width, 16 pixels or more")
        if not 0 <= self.overlap <= 0.9:
            raise InputError(f"tiles with overlap={self.overlap}: give 0 to 0.9")
        if self.batch < 1:
            raise InputError(f"tiles with batch={self.batch}: give at least 1")
        if not 0 < self.match <= 1:
            raise InputError(f"tiles with match={self.match}: give more than 0, up to 1")

    def size_for(self, own: Size | None) -> Size:
        """Height and width of a tile, for a detector that takes its ``own`` without resizing.

        Raises:
            InputError: Neither is known.
        """
        if self.size is not None:
            sides = [int(side) for side in np.atleast_1d(self.size)]
            return sides[0], sides[-1]
        if own is None:
            raise InputError("the detector takes pictures of any size: give the tiles' size")
        return own


def laid(picture: Size, tile: Size, overlap: float) -> list[Box]:
    """The tiles of a picture; of one that is no larger than a tile, itself.

    Raises:
        ImportError: SAHI is not installed.
    """
    if picture[0] <= tile[0] and picture[1] <= tile[1]:
        return [(0, 0, picture[1], picture[0])]
    try:
        from sahi.slicing import get_slice_bboxes
    except ImportError as error:
        raise ImportError(f"{error}: tiles need pip install 'ltm_det[tiles]'") from error
    found = get_slice_bboxes(
        image_height=picture[0],
        image_width=picture[1],
        slice_height=tile[0],
        slice_width=tile[1],
        auto_slice_resolution=False,
        overlap_height_ratio=overlap,
        overlap_width_ratio=overlap,
    )
    return list(dict.fromkeys(tuple(map(int, box)) for box in found))


def find_in_tiles(
    find: Find, image: np.ndarray, tiles: Tiles, own: Size | None, score: float
) -> Detections:
    """What a detector finds on a picture (H, W, 3), tile by tile.

    Args:
        find: From pictures to what is on them.
        own: Height and width that the detector takes without resizing.
        score: Objects below it do not count.
    """
    size = image.shape[:2]
    boxes = laid(size, tiles.size_for(own), tiles.overlap)
    views = [*boxes, (0, 0, size[1], size[0])] if tiles.whole and len(boxes) > 1 else boxes
    found = []
    for start in range(0, len(views), tiles.batch):
        part = views[start : start + tiles.batch]
        for box, objects in zip(part, find([crop(image, box) for box in part]), strict=True):
            found.append(placed(objects.above(score), box, size))
    return found[0] if len(found) == 1 else joined(found, views, tiles.match)


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    x1, y1, x2, y2 = box
    return np.ascontiguousarray(image[y1:y2, x1:x2])


def placed(objects: Detections, box: Box, size: Size) -> Detections:
    """Objects of a tile as those of its picture of this height and width."""
    if box == (0, 0, size[1], size[0]):
        return objects
    shift = np.array([box[0], box[1]] * 2, objects.boxes.dtype)
    masks = objects.masks
    if masks is not None:
        masks = [placed_mask(mask, box[0], box[1], size) for mask in masks]
    return Detections(
        objects.boxes + shift, objects.scores, objects.labels, objects.names, masks, size
    )


def placed_mask(mask: dict[str, Any], x: int, y: int, size: Size) -> dict[str, Any]:
    """The run lengths of a mask whose tile begins at (x, y) of a picture of this height and width;
    the picture's pixels are never laid out."""
    tall = size[0]
    columns = np.pad(coco.decode(mask).T.astype(np.int8), ((0, 0), (1, 1)))  # runs go down these
    change = np.diff(columns, axis=1)
    starts, ends = (
        (x + column) * tall + y + row for column, row in map(np.nonzero, (change > 0, change < 0))
    )
    apart = starts[1:] != ends[:-1]  # a run may go on in the next column
    starts, ends = starts[np.r_[True, apart][: len(starts)]], ends[np.r_[apart, True][: len(ends)]]
    edges = np.stack([starts, ends], 1).flatten()
    counts = np.diff(np.r_[0, edges, tall * size[1]]).tolist()
    counts = counts[:-1] if counts[-1] == 0 else counts  # as pycocotools writes them
    return coco.frPyObjects(dict(size=list(size), counts=counts), *size)


def joined(found: Sequence[Detections], views: Sequence[Box], match: float) -> Detections:
    """One picture's objects of several views as one list, each object once, the best first.

    Two are one where enough of the smaller lies in the other, and the views differ: a view has told
    its own apart. Their classes are the same, or one is cut by its tile's border and so may be
    taken for something else. Of one object that several views show, the best whole one stays; where
    all are cut, they are joined.

    Args:
        found: Of each view, in the picture's pixels.
        views: Where the views lie.
        match: Share of the smaller.
    """
    size = found[0].size
    view = np.repeat(np.arange(len(found)), [len(objects) for objects in found])
    boxes = np.concatenate([objects.boxes for objects in found])
    scores = np.concatenate([objects.scores for objects in found])
    labels = np.concatenate([objects.labels for objects in found])
    masks = None
    if all(objects.masks is not None for objects in found):
        masks = [mask for objects in found for mask in objects.masks]
    cut = cut_by_borders(boxes, np.array(views)[view], size)
    likely = view[:, None] != view[None]
    likely &= (labels[:, None] == labels[None]) | cut[:, None] | cut[None]
    shares = np.where(likely, shared(boxes, masks), 0)
    rows = []
    for group in groups(shares, view, match):
        whole = group[~cut[group]]
        best = max(whole if len(whole) else group, key=lambda i: scores[i])
        members = np.array([best]) if len(whole) else group
        low, high = boxes[members, :2].min(0), boxes[members, 2:].max(0)
        mask = None if masks is None else coco.merge([masks[i] for i in members])
        rows.append((scores[best], labels[best], np.r_[low, high], mask))
    rows.sort(key=lambda row: -row[0])
    kept = np.array([row[1] for row in rows], labels.dtype)
    names = None
    if all(objects.names is not None for objects in found):
        known = dict(zip(labels.tolist(), [name for o in found for name in o.names]))
        names = [known[label] for label in kept.tolist()]
    return Detections(
        np.array([row[2] for row in rows], boxes.dtype).reshape(-1, 4),
        np.array([row[0] for row in rows], scores.dtype),
        kept,
        names,
        None if masks is None else [row[3] for row in rows],
        size,
    )


def cut_by_borders(boxes: np.ndarray, views: np.ndarray, size: Size) -> np.ndarray:
    """Which boxes (K, 4) reach a border of their view (K, 4) that is none of the picture's: (K,)
    of bool."""
    low = (boxes[:, :2] <= views[:, :2] + NEAR) & (views[:, :2] > 0)
    high = (boxes[:, 2:] >= views[:, 2:] - NEAR) & (views[:, 2:] < np.array([size[1], size[0]]))
    return (low | high).any(1)


def shared(boxes: np.ndarray, masks: list[dict[str, Any]] | None) -> np.ndarray:
    """What share of the smaller of two objects lies in the other, by masks where there are: (K, K).

    Masks that are empty share nothing.
    """
    if not len(boxes):
        return np.zeros((0, 0))
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).astype(np.float64)
    objects = sides if masks is None else masks
    # to pycocotools, the share of an object that lies in a crowd
    inside = np.asarray(coco.iou(objects, objects, [1] * len(boxes)))
    return np.maximum(inside, inside.T)


def groups(shares: np.ndarray, view: np.ndarray, match: float) -> list[np.ndarray]:
    """Which objects are one: those that share most first, and of a view one alone.

    Args:
        shares: (K, K).
        view: That each was found in, (K,).
        match: The least share.

    Returns:
        Numbers of objects; each is in one group.
    """
    group = np.arange(len(view))
    members = {i: [i] for i in range(len(view))}
    first, second = np.nonzero(np.triu(shares >= match, 1))
    for at in np.argsort(-shares[first, second], kind="stable"):
        one, other = group[first[at]], group[second[at]]
        if one == other or {*view[members[one]]} & {*view[members[other]]}:
            continue
        group[members[other]] = one
        members[one] += members.pop(other)
    return [np.array(own) for own in members.values()]
