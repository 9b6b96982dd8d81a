"""State dicts as files keep them: under which entry, under which names.

What projects wrap about one is taken off in two steps. `weights_of` finds the state dict in a
file's content and takes away what wrappers of modules put into names. `under_own_names` takes away
what lies before all names of one model, which has to be known for that: to a model whose weights
are all in ``model``, the names ``model.*`` are its own.
"""

import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from ltm_det.basics.words import some

# Where files keep their state dict, first come, first taken: mmengine and most others; the Swin
# repository, MAE and YOLO's descendants; self-distillation (DINO), which has that of a teacher and
# of a student; averages of weights of timm and of mmengine, where they are all there is.
ENTRIES = ("state_dict", "model", "teacher", "state_dict_ema", "model_ema", "ema_state_dict")
# What torch.compile, FSDP and activation checkpointing put into names, wherever they wrap.
INSERTED = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
WRAPPED = "module."  # before all names, where DDP or an average was saved with its wrapper
COUNTERS = ("steps", "n_averaged")  # of averages, beside the weights
FILE = "ltm_det.file"  # in a state dict's _metadata: where it comes from
CHOSEN = "teacher"  # of models that lie side by side in one state dict
ENOUGH = 0.25  # of a model's names, to be sure that a state dict is its own


def find_state(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The state dict in the content of a file.

    Returns:
        What lies innermost of `ENTRIES`, or else the content; and a line for the log where that
        was no matter of course.
    """
    state, taken = content, []
    for _ in ENTRIES:
        entry = next((e for e in ENTRIES if isinstance(state.get(e), Mapping)), None)
        if entry is None:
            break
        if entry not in ENTRIES[:2]:
            taken.append(f"took {entry!r} of {some(state)}")
        state = state[entry]
    return state, "; ".join(taken)


def weights_of(content: Any, file: str) -> tuple[dict[str, Any], str]:
    """The content of a file as mmengine knows it, with a ``state_dict`` of plain names.

    Returns:
        It, and a line for the log if anything was chosen or renamed.

    Raises:
        ValueError: It holds no tensors by name.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not weights by their names")
    state, note = find_state(content)
    if not all(isinstance(key, str) for key in state):
        raise ValueError(f"the names of its weights are no texts: {some(state, 3)}")
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"it holds no weights; at its top are: {some(content) or 'nothing'}")
    named, gone = plain_names(state)
    named._metadata = {**(getattr(state, "_metadata", None) or {}), FILE: file}
    rest = {} if state is content else content
    return {**rest, "state_dict": named}, "; ".join(filter(None, [note, gone]))


def origin(state: Mapping[str, Any]) -> str:
    """The file that a state dict was read from, for messages."""
    return (getattr(state, "_metadata", None) or {}).get(FILE, "the checkpoint")


def plain_names(state: Mapping[str, Any]) -> tuple[OrderedDict[str, Any], str]:
    """A state dict without what wrappers of modules put into names, and a line for the log if
    there was any."""
    names, gone = {key: INSERTED.sub("", key) for key in state}, []
    if any(key != name for key, name in names.items()):
        gone.append("what wrappers put into names")
    weights = [name for name in names.values() if name not in COUNTERS]
    if weights and all(name.startswith(WRAPPED) for name in weights):
        names = {k: n.removeprefix(WRAPPED) for k, n in names.items() if n not in COUNTERS}
        gone.append(f"{WRAPPED!r} before all names")
    named = OrderedDict((name, state[key]) for key, name in names.items())
    return named, f"left out {' and '.join(gone)}" if gone else ""


def under_own_names(
    own: Collection[str], state: Mapping[str, Any]
) -> tuple[Mapping[str, Any], str]:
    """A model's state dict without what lies before all of its names, such as Lightning's
    ``model.``; as it is where any name is the model's, or none is with whatever taken away.

    Args:
        own: Names of the model's weights.
        state: Of a file.

    Returns:
        The state dict, and a line for the log if anything was taken away.

    Raises:
        ValueError: Several models lie side by side, and none of them is a teacher.
    """
    own = set(own)
    if not own.isdisjoint(state):
        return state, ""
    found: Counter[str] = Counter()
    for key in state:
        for match in re.finditer(r"\.", key):
            if key[match.end() :] in own:
                found[key[: match.end()]] += 1
    known = [prefix for prefix, names in found.items() if names >= ENOUGH * len(own)]
    if not known:
        return state, ""
    chosen = known if len(known) == 1 else [p for p in known if CHOSEN in p]
    if len(chosen) != 1:
        raise ValueError(
            f"{origin(state)} holds several models, under {some(known)}\n"
            "Save the weights of one of them alone"
        )
    prefix = chosen[0]
    kept = OrderedDict(
        (key.removeprefix(prefix), value) for key, value in state.items() if key.startswith(prefix)
    )
    kept._metadata = getattr(state, "_metadata", None) or {}
    left = [key for key in state if not key.startswith(prefix)]
    note = f"took the weights under {prefix!r}" + (f"; left out {some(left)}" if left else "")
    return kept, note
