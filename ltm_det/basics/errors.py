"""The error that a user can mend, and where an error came from."""

from collections.abc import Iterator
from types import FrameType

TRACEBACK = "LTM_DET_TRACEBACK"  # variable of the environment: 1 shows where errors come from


class InputError(ValueError):
    """What was given can't be used: a config's field, a file, a folder.

    The message names the file or field, the value, and the remedy. Commands print it and exit
    with 2, and with the variable of above show where it comes from; whatever is no InputError
    shows its traceback, since then the fault is ours.

    Attributes:
        of_a_process: Whether, of many processes, others may not know of it: each says its own.
    """

    of_a_process = False


def frames_of(error: BaseException) -> Iterator[FrameType]:
    """Of its traceback, the outermost first."""
    entry = error.__traceback__
    while entry is not None:
        yield entry.tb_frame
        entry = entry.tb_next
