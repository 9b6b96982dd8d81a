"""Files that are no weights of a detector, each with a word of the message about it; and weights of
one as other projects wrap them."""

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]


class Call:
    """Pickles as the call of any function: what an attacker would write."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def hostile_files(folder: Path, state: State) -> dict[Path | str, str]:
    """Makes them, of a detector's weights.

    Returns:
        File, or URL, to a word that its message has. One that runs code leaves ``folder/ran``.
    """
    found: dict[Path | str, str] = {}

    def new(name: str, word: str) -> Path:
        found[folder / name] = word
        return folder / name

    run = Call(os.system, f"touch {folder / 'ran'}")
    torch.save(dict(state_dict=state, meta=run), new("code.pth", "system"))
    torch.save(dict(state_dict=run), new("code_weights.pth", "system"))
    torch.save(run, new("code_old.pth", "system"), _use_new_zipfile_serialization=False)
    torch.save(Call(eval, "1"), new("code_eval.pth", "eval"))
    torch.save(Call(getattr, torch.Tensor, "tofile"), new("code_getattr.pth", "getattr"))
    torch.save(torch.nn.Linear(2, 2), new("module.pth", "Linear"))
    whole = folder / "whole.pth"
    torch.save(dict(state_dict=state), whole)
    data = whole.read_bytes()
    new("half.pth", "part").write_bytes(data[: len(data) // 2])
    new("head.pth", "part").write_bytes(data[:100])
    old = folder / "old.bin"
    torch.save(dict(state_dict=state), old, _use_new_zipfile_serialization=False)
    new("half_old.pth", "damaged").write_bytes(old.read_bytes()[: len(data) // 2])
    middle = bytearray(data)
    middle[: len(data) // 2] = bytes(len(data) // 2)
    new("zeroed.pth", "neither").write_bytes(middle)
    new("empty.pth", "empty").touch()
    new("text.pth", "a text").write_text("weights, please\n")
    new("page.pth", "web page").write_text("<!DOCTYPE html><html>404</html>")
    new("pointer.pth", "Git LFS").write_text("version https://git-lfs.github.com/spec/v1\noid 1\n")
    new("noise.pth", "neither").write_bytes(bytes(range(1, 9)) * 99)
    with zipfile.ZipFile(new("documents.pth", "damaged"), "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
    torch.save([torch.zeros(1)], new("list.pth", "a list"))
    torch.save(torch.zeros(3), new("tensor.pth", "a Tensor"))
    torch.save(dict(epoch=3, names=["a"]), new("numbers.pth", "no weights"))
    torch.save(dict(state_dict={}), new("hollow.pth", "no weights"))
    torch.save({0: torch.zeros(1)}, new("numbered.pth", "no texts"))
    save_file(state, folder / "whole.safetensors")
    safe = (folder / "whole.safetensors").read_bytes()
    new("half.safetensors", "damaged").write_bytes(safe[: len(safe) // 2])
    new("head.safetensors", "part").write_bytes(safe[:50])
    header = b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'
    lie = struct.pack("<Q", len(header)) + header + bytes(4)
    new("lie.safetensors", "damaged").write_bytes(lie)
    new("folder.pth", "a folder").mkdir()
    found[folder / "missing.pth"] = "missing.pth"
    found[folder / "text.pth" / "below.pth"] = "below.pth"
    found["http://127.0.0.1:9/none.pth"] = "cannot download"
    return found


def unfit_files(folder: Path, state: State) -> dict[Path, str]:
    """Weights, but not of this detector."""
    kinds = {
        "resnet": {"conv1.weight": torch.zeros(4, 3, 7, 7), "bn1.weight": torch.zeros(4)},
        "other_size": {k: torch.zeros([2 * n for n in v.shape]) for k, v in state.items()},
        "half_of_keys": {k: v for i, (k, v) in enumerate(state.items()) if i % 2},
        "backbone_alone": {
            k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")
        },
        "heads_alone": {k: v for k, v in state.items() if not k.startswith("backbone.")},
        "two_models": {f"{name}.{k}": v for name in ("first", "second") for k, v in state.items()},
    }
    for name, weights in kinds.items():
        torch.save(dict(state_dict=weights), folder / f"{name}.pth")
    return {folder / f"{name}.pth": f"{name}.pth" for name in kinds}


def before(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def between(state: State) -> State:
    """As where the backbone alone is compiled, and its first stage checkpointed."""
    inside = {k.replace("backbone.", "backbone._orig_mod.", 1): v for k, v in state.items()}
    return {
        k.replace("stages.0.", "stages.0._checkpoint_wrapped_module."): v for k, v in inside.items()
    }


# By name: what a file holds, of a detector's state dict.
WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": dict,
    "state_dict": lambda state: dict(state_dict=state, meta={}),
    "compiled": before("_orig_mod."),
    "compiled DDP": before("module._orig_mod."),
    "compiled backbone": between,
    "DDP": before("module."),
    "Lightning": lambda state: dict(state_dict=before("model.")(state), epoch=3),
    "Lightning, compiled": lambda state: dict(state_dict=before("model._orig_mod.")(state)),
    "Lightning with a loss": lambda state: dict(
        state_dict=before("model.")(state) | {"criterion.weight": torch.ones(2)}
    ),
    "model": lambda state: dict(model=state, optimizer={}, epoch=1),
    "teacher": lambda state: dict(
        teacher=state, student={k: torch.zeros_like(v) for k, v in state.items()}
    ),
    "teacher's keys": lambda state: (
        before("student.")({k: torch.zeros_like(v) for k, v in state.items()})
        | before("teacher.")(state)
    ),
    "state_dict_ema": lambda state: dict(state_dict_ema=state, epoch=1),
    "model_ema": lambda state: dict(model_ema=before("module.")(state)),
    "ema_state_dict": lambda state: dict(
        ema_state_dict=before("module.")(state) | dict(steps=torch.tensor(7))
    ),
    "swa": lambda state: before("module.")(state) | dict(n_averaged=torch.tensor(7)),
}
