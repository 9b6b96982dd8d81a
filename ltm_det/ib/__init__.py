"""The information bottleneck of merged tokens: torch only.

IB = I(X~; X) - I(X~; Y) asks of merged features X~ to forget the input X and to keep the class Y.
It is counted over clusters of both (arXiv 2407.15219). The sources of the four defects that its
published loss has, and this room has not, are named where they are mended: a constant first term
(:func:`input_term`), Q of other centroids than phi's (Q is taken from the sums of one assignment,
:class:`IBStatistics`), a fixed temperature (``beta``), logarithms of zero and of half precision
(:data:`ltm_det.ib.bound.EPS`, :func:`assign`).
"""

from ltm_det.ib.assignment import assign, full_precision, unit
from ltm_det.ib.bound import (
    bound,
    bound_gradient,
    class_conditional,
    class_cost,
    class_posterior,
    input_term,
    mask_gradient,
)
from ltm_det.ib.information import entropy, mutual_information
from ltm_det.ib.statistics import IBStatistics

__all__ = [
    "IBStatistics",
    "assign",
    "bound",
    "bound_gradient",
    "class_conditional",
    "class_cost",
    "class_posterior",
    "entropy",
    "full_precision",
    "input_term",
    "mask_gradient",
    "mutual_information",
    "unit",
]
