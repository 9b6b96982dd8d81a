"""Weights written and read again, in both formats; and a glance, which reads no weights."""

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from ltm_det.basics.errors import InputError
from ltm_det.compat.checkpoint import check_weights, fitting
from ltm_det.compat.weight_files import write_weights

META = dict(dataset_meta=dict(classes=["a", "é"], palette=[(1, 2, 3), (4, 5, 6)]), epoch=3)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_written_is_read(suffix, tmp_path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    state = {"a": shared, "b": shared.T, "half": torch.ones(2).half(), "n": torch.tensor(3)}
    file = tmp_path / "new" / f"w{suffix}"
    write_weights(file, state, META)
    check_weights(str(file))
    found = CheckpointLoader.load_checkpoint(str(file), map_location="cpu")
    assert found["meta"] == META
    assert found["meta"]["dataset_meta"]["palette"] == [(1, 2, 3), (4, 5, 6)]  # as painters want
    assert found["state_dict"].keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(found["state_dict"][key], value)
        assert found["state_dict"][key].dtype == value.dtype
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_what_json_does_not_know_is_written_as_text(tmp_path) -> None:
    write_weights(tmp_path / "a.safetensors", {"a": torch.ones(1)}, dict(score=np.float64(0.5)))
    found = CheckpointLoader.load_checkpoint(str(tmp_path / "a.safetensors"))
    assert float(found["meta"]["score"]) == 0.5


def test_the_format_is_told_by_content(tmp_path) -> None:
    for suffix, other in ((".pth", ".safetensors"), (".safetensors", ".pth")):
        write_weights(tmp_path / f"a{suffix}", {"a": torch.ones(1)})
        (tmp_path / f"a{suffix}").rename(tmp_path / f"b{other}")
        found = CheckpointLoader.load_checkpoint(str(tmp_path / f"b{other}"))
        assert torch.equal(found["state_dict"]["a"], torch.ones(1))


def test_a_folder_tells_what_is_in_it(tmp_path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "iter_4.pth")
    for look in (check_weights, CheckpointLoader.load_checkpoint):
        with pytest.raises(InputError, match="it is a folder; in it are iter_4.pth"):
            look(str(tmp_path))


def test_where_all_has_to_fit(tmp_path) -> None:
    """mmengine warns of what does not; training, testing and drawing end there."""

    def model(width: int = 2, classes: int = 3) -> nn.ModuleDict:
        return nn.ModuleDict(dict(backbone=nn.Linear(2, width), head=nn.Linear(2, classes)))

    file = str(tmp_path / "a.pth")
    torch.save(model().state_dict(), file)
    others = dict(classes=model(classes=4), width=model(width=5))
    for other in others.values():
        load_checkpoint(other, file)  # as mmengine has it
    with fitting():
        load_checkpoint(model(), file)
        for other in others.values():
            with pytest.raises(InputError, match="a.pth does not fit the model"):
                load_checkpoint(other, file)
    with fitting("backbone"):
        load_checkpoint(others["classes"], file)
        with pytest.raises(InputError, match="a.pth .*another(?s:.)*of other sizes: backbone"):
            load_checkpoint(others["width"], file)


@pytest.mark.parametrize("restricted", [None, "0", "1"])
def test_other_loaders_are_restricted_too(restricted, tmp_path, monkeypatch) -> None:
    """Such as that of s3://, which leaves torch.load to its default."""
    seen = []

    def load_from_else(filename: str, map_location: object) -> dict:
        seen.append(torch.load(tmp_path / "a.pth", map_location))
        return seen[-1]

    if restricted is None:
        monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    else:
        monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", restricted)
    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))
    CheckpointLoader.register_scheme("else://", loader=load_from_else, force=True)
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    assert CheckpointLoader.load_checkpoint("else://a")["state_dict"]["a"] == 1
    torch.save(nn.Linear(1, 1), tmp_path / "a.pth")
    with pytest.raises(InputError, match="cannot read the checkpoint else://a"):
        CheckpointLoader.load_checkpoint("else://a")
    assert len(seen) == 1
