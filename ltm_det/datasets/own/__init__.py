"""A user's own data, whatever form they have, as COCO annotations with their pictures.

A form is a module with ``found_in(folder) -> OwnData | None``, in the order of `FORMS`.
"""

from pathlib import Path

from ltm_det.basics.errors import InputError
from ltm_det.datasets.own import coco, voc, yolo
from ltm_det.datasets.own.data import OwnData, Split

__all__ = ["OwnData", "Split", "own_data"]

FORMS = (yolo, coco, voc)
KNOWN = """\
Known are
    COCO    a .json, or a folder with annotations/*.json or */_annotations.coco.json
    YOLO    a folder with data.yaml, or that file
    VOC     a folder with Annotations/*.xml and JPEGImages/"""


def own_data(path: str | Path, share: float = 0.2) -> OwnData:
    """What is to be trained and validated on.

    Args:
        path: A folder, or a file that describes the data.
        share: Of the pictures that are kept for validation where the data have no split of their
            own: each fifth by default, always the same ones.

    Raises:
        InputError: It is of no known form, or something in it can't be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no data at {path}\n{KNOWN}")
    for form in FORMS:
        found = form.found_in(path)
        if found is not None:
            return found.split(share)
    raise InputError(f"the data at {path} are of no known form\n{KNOWN}")
