"""mmengine's checkpoints load under torch's restricted unpickler; others are refused."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from ltm_det.basics.errors import InputError


class Reduced:
    """Pickles as the call of any function: what an attacker would write."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


class Points(Dataset):
    metainfo = dict(classes=("a", "b"), palette=[(1, 2, 3), (4, 5, 6)])

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(inputs=torch.full((2,), float(index)))


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    def forward(self, inputs: Any, mode: str = "tensor") -> Any:
        out = self.layer(inputs)
        return dict(loss=out.square().mean()) if mode == "loss" else [out]


class Metric(BaseMetric):
    default_prefix = "coco"

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1)

    def compute_metrics(self, results: list) -> dict:
        return dict(bbox_mAP=np.float64(0.25), found=np.int64(3))


def _runner(work_dir: Path, max_iters: int, resume: bool = False) -> Runner:
    """What mmdet's configs hold that leaves a trace in a checkpoint, on a toy model."""
    loader = dict(dataset=Points(), batch_size=4, collate_fn=dict(type="default_collate"))
    runner = Runner(
        model=Model(),
        work_dir=str(work_dir),
        train_dataloader=dict(sampler=dict(type="InfiniteSampler"), **loader),
        val_dataloader=dict(sampler=dict(type="DefaultSampler", shuffle=False), **loader),
        train_cfg=dict(by_epoch=False, max_iters=max_iters, val_interval=2),
        val_cfg=dict(),
        val_evaluator=dict(type=Metric),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.01), clip_grad=dict(max_norm=1.0)),
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=3),
            dict(type="MultiStepLR", milestones=[4], by_epoch=False),
        ],
        default_hooks=dict(
            checkpoint=dict(type="CheckpointHook", interval=2, by_epoch=False, save_best="auto")
        ),
        custom_hooks=[dict(type="EMAHook")],
        resume=resume,
        log_level="WARNING",
        experiment_name=f"{work_dir.name}_{max_iters}_{resume}",
    )
    runner.message_hub.update_info("threshold", np.float32(0.5))
    runner.message_hub.update_info("done", np.bool_(True))
    return runner


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("checkpoint")
    _runner(work_dir, max_iters=4).train()
    return work_dir


@pytest.mark.parametrize("name", ["iter_4.pth", "best_coco_bbox_mAP_iter_2.pth"])
def test_checkpoint_loads_in_full(work_dir, name):
    file = str(work_dir / name)
    loaded = CheckpointLoader.load_checkpoint(file, map_location="cpu")
    trusted = torch.load(file, weights_only=False)  # written by this very test
    assert loaded.keys() == trusted.keys()
    assert {"state_dict", "message_hub", "ema_state_dict"} <= loaded.keys()
    if name == "iter_4.pth":
        assert {"optimizer", "param_schedulers"} <= loaded.keys()
    hub, expected = loaded["message_hub"], trusted["message_hub"]
    assert hub["runtime_info"] == expected["runtime_info"]
    assert isinstance(hub["runtime_info"]["threshold"], np.float32)
    for key, buffer in expected["log_scalars"].items():
        assert isinstance(hub["log_scalars"][key], HistoryBuffer)
        for ours, theirs in zip(hub["log_scalars"][key].data, buffer.data, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert hub["log_scalars"][key].statistics("mean") == buffer.mean()


def test_training_resumes(work_dir):
    saved = CheckpointLoader.load_checkpoint(str(work_dir / "iter_4.pth"))
    old = saved["message_hub"]["log_scalars"]["train/loss"].data[0]
    runner = _runner(work_dir, max_iters=6, resume=True)
    runner.train()
    assert runner.iter == 6
    losses = runner.message_hub.get_scalar("train/loss").data[0]
    assert len(losses) == 6
    np.testing.assert_array_equal(losses[:4], old)


@pytest.mark.parametrize(("old", "new"), [("core", "_core"), ("_core", "core")])
def test_names_of_both_numpys_load(work_dir, tmp_path, old, new):
    """numpy 1 saves `numpy.core.multiarray`, numpy 2 `numpy._core.multiarray`."""
    source, target = work_dir / "iter_4.pth", tmp_path / "renamed.pth"
    with zipfile.ZipFile(source) as read, zipfile.ZipFile(target, "w") as write:
        for name in read.namelist():
            data = read.read(name)
            if name.endswith("data.pkl"):
                data = data.replace(f"numpy.{old}.multi".encode(), f"numpy.{new}.multi".encode())
                assert f"numpy.{new}.multiarray".encode() in data
            write.writestr(name, data)
    loaded, expected = (CheckpointLoader.load_checkpoint(str(f)) for f in (target, source))
    assert loaded["message_hub"]["runtime_info"] == expected["message_hub"]["runtime_info"]


@pytest.mark.parametrize("source", ["file", "url"])
def test_checkpoint_that_runs_code_is_refused(tmp_path, monkeypatch, source):
    proof, name = tmp_path / "ran", "evil.pth"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / name  # as already downloaded: no network is touched
    file.parent.mkdir()
    torch.save(dict(state_dict={}, meta=Reduced(os.system, f"touch {proof}")), file)
    with pytest.raises(InputError, match="evil.*system"):
        CheckpointLoader.load_checkpoint(
            str(file) if source == "file" else f"https://models.invalid/{name}"
        )
    assert not proof.exists()


@pytest.mark.parametrize(
    "call",
    [
        (getattr, HistoryBuffer, "__init__"),
        (getattr, np.ndarray, "tofile"),
        (getattr, HistoryBuffer, "register_statistics"),
        (eval, "1"),
    ],
    ids=lambda call: f"{call[0].__name__}-{call[-1]}",
)
def test_way_around_the_allow_list_is_refused(tmp_path, call):
    torch.save(Reduced(*call), tmp_path / "evil.pth")
    with pytest.raises(InputError, match=f"evil.pth.*{call[0].__name__}"):
        CheckpointLoader.load_checkpoint(str(tmp_path / "evil.pth"))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="absent.pth: no such file"):
        CheckpointLoader.load_checkpoint(str(tmp_path / "absent.pth"))
