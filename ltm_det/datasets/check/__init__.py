"""What is wrong with a COCO data set, before a detector meets it; a file each.

``source`` says what is looked at, ``reading``, ``categories``, ``images``, ``annotations`` and
``segmentations`` look at the annotation file, ``pictures`` at the image files, ``mending`` writes a
copy without what was found.
"""

from ltm_det.datasets.check.dataset import check
from ltm_det.datasets.check.findings import Finding, as_json, as_text, errors
from ltm_det.datasets.check.mending import write_mended
from ltm_det.datasets.check.source import Source, sources

__all__ = [
    "Finding",
    "Source",
    "as_json",
    "as_text",
    "check",
    "errors",
    "sources",
    "write_mended",
]
