"""How many pictures a training step may have on this machine."""

from collections.abc import Sequence

from ltm_det.measure.trial import Step


def memory_at(steps: Sequence[Step], pictures: int) -> float:
    """Bytes that a step of so many pictures takes at its peak: measured, or on the line through
    the last two that were measured.

    Args:
        steps: Two at least, in ascending order.
        pictures: Of the step.
    """
    for step in steps:
        if step.pictures == pictures:
            return step.memory
    before, last = steps[-2:]
    slope = (last.memory - before.memory) / (last.pictures - before.pictures)
    return last.memory + max(0.0, slope) * (pictures - last.pictures)


def largest_batch(steps: Sequence[Step], memory: float, most: int) -> int:
    """The largest of 1, 2, 4, ... pictures that fit, 0 where not even one does.

    Args:
        steps: That were measured, two at least, in ascending order.
        memory: Bytes that a step may take.
        most: Pictures, at most.
    """
    fits, pictures = 0, 1
    while pictures <= most and memory_at(steps, pictures) <= memory:
        fits, pictures = pictures, 2 * pictures
    return fits
