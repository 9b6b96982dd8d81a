"""Measured times of choices, each of which can only be cheaper than the milder one before it."""

from collections.abc import Sequence

from sklearn.isotonic import IsotonicRegression

from ltm_det.conversion.ratio_search import Label


def without_noise(labels: Sequence[Label], times: Sequence[float]) -> list[float]:
    """Times that fall as less is kept, nearest to the given ones (isotonic regression).

    A process beside a measurement makes a choice look dearer than one that computes more. Choices
    of a unit that have another place, as in "0.5 from block 3", are compared among themselves.

    Args:
        labels: Unit and choice; a choice begins with what is kept, or is later in the list where it
            keeps less.
        times: Of the whole model, in any unit.
    """
    chains: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for index, (unit, choice) in enumerate(labels):
        kept, _, place = choice.partition(" ")
        try:
            strength = -float(kept)
        except ValueError:
            strength, place = float(index), ""
        chains.setdefault((unit, place), []).append((strength, index))
    found = list(times)
    for chain in chains.values():
        order = [index for _, index in sorted(chain)]
        fit = IsotonicRegression(increasing=False)
        values = fit.fit_transform(range(len(order)), [times[index] for index in order])
        for index, value in zip(order, values, strict=True):
            found[index] = float(value)
    return found
