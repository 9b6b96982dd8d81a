"""The cheapest detector that loses no more AP than is allowed: a few candidates are evaluated."""

from collections.abc import Callable, Mapping
from typing import Any

from ltm_det.compression.choice import Choice, nothing
from ltm_det.compression.evaluation import loss_of
from ltm_det.compression.merging import converted
from ltm_det.conversion.ratio_search import BudgetError

NEAR = 0.02  # of the dense cost: nearer limits are not told apart

# Of a limit, the choice with its ``loss`` in points of AP; None where nothing costs so little.
Trial = Callable[[int, float], Mapping[str, Any]]


def bisect(trial: Trial, most: float, number: int, dense: float) -> dict[str, Any]:
    """Halves the range of costs between none and our dense detector's.

    Args:
        trial: Tries a limit, a part of the dense cost.
        most: Points of AP that may be lost.
        number: Of trials.
        dense: Our dense detector's cost.

    Returns:
        The cheapest choice within ``most``, that to merge nothing where there is none; with
        ``tried``, the cost and the loss of each trial.
    """
    low, high, best = 0.0, 1.0, nothing(dense) | dict(loss=0.0)
    tried = []
    for count in range(number):
        limit = (low + high) / 2
        found = trial(count, limit)
        tried.append({key: found[key] for key in ("cost_ratio", "loss")})
        if found["loss"] is None:
            low = max(limit, found["cost_ratio"] - NEAR / 2)
        elif found["loss"] <= most:
            best, high = dict(found), min(limit, found["cost_ratio"])
        else:
            low = limit
        if high - low < NEAR:
            break
    return best | dict(tried=tried)


def tried(
    choice: Choice,
    kept: Mapping[str, Any],
    limit: float,
    dense: Mapping[str, Any],
    evaluated: Callable[[Any], Mapping[str, Any]],
    say: Callable[[str], Any],
) -> dict[str, Any]:
    """A choice for a part of our dense detector's cost, converted, calibrated and evaluated.

    Args:
        kept: Of :meth:`Choice.measured`.
        dense: AP of the dense detector.
        evaluated: AP of a detector.
    """
    try:
        found = choice.picked(kept, limit)
    except BudgetError as error:
        return dict(cost_ratio=error.least / kept["dense"], loss=None)
    model, _ = converted(choice, found, say)
    loss = loss_of(dense, evaluated(model))
    say(f"at {found['cost_ratio']:.3f} of our dense detector: {loss:.2f} points of AP lost")
    return found | dict(loss=loss)
