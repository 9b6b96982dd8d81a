"""The error that a user can mend."""

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
