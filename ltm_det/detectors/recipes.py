"""What may be left out of a detector's heads, one by one: the parts of lean recipes."""

from collections.abc import Mapping
from typing import Any

from ltm_det.detectors.lean import LEAN, Recipe

PARTS: list[tuple[str, Any]] = [
    ("proposals", 300),
    ("proposals", 100),
    ("rpn_finest", "strided"),
    ("rpn_finest", "half"),
    ("rpn_finest", "none"),
    ("neck_finest", 5 / 7),
    ("neck_finest", 0.5),
    ("mask_score", 0.1),
    ("masks", 50),
]
# Of a detector with other numbers of proposals and objects than mmdet's, the same shares.
SHARES = dict(proposals=1000, masks=100)


def parts_of(test_cfg: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """`PARTS`, in a detector's own numbers."""
    return [(key, own_value(key, value, test_cfg)) for key, value in PARTS]


def common_recipe(test_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What `LEAN` leaves out, in a detector's own numbers."""
    given = {k: v for k, v in LEAN.as_dict().items() if v != getattr(Recipe(), k)}
    return {key: own_value(key, value, test_cfg) for key, value in given.items()}


def own_value(key: str, value: Any, test_cfg: Mapping[str, Any]) -> Any:
    most = dict(proposals=test_cfg["rpn"]["max_per_img"], masks=test_cfg["rcnn"]["max_per_img"])
    return max(1, round(value / SHARES[key] * most[key])) if key in SHARES else value


def name_of(key: str, value: Any) -> str:
    """Of a part, such as neck_finest=0.714."""
    return f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
