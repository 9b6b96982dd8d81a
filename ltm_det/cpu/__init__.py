"""The fast way on the CPU: a second executor of the same layers, behind one door.

On one thread a piece (:mod:`.threads`), some windows at a time (:mod:`.pieces`), by the fastest
product that torch has (:mod:`.products`). Torch only.
"""

from ltm_det.cpu import merging, patches, swin, vit
from ltm_det.cpu.door import Call, Executor, choose, plain

__all__ = ["Call", "Executor", "choose", "merging", "patches", "plain", "swin", "vit"]
