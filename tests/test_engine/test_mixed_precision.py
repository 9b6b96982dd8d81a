"""Formats of training: what a config says, what is set, and that bfloat16 trains on a CPU."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from ltm_det.basics.errors import InputError
from ltm_det.engine import mixed_precision
from ltm_det.engine.mixed_precision import (
    float16_advice,
    has_bfloat16,
    precision_of,
    set_precision,
)
from tests.test_engine.tiny_detector import build


def config(backbone: str = "SwinTransformer", **wrapper: object) -> Config:
    own = dict(optimizer=dict(type="AdamW", lr=1e-3), clip_grad=dict(max_norm=1), **wrapper)
    return Config(dict(model=dict(backbone=dict(type=backbone)), optim_wrapper=own))


def test_bfloat16_trains_on_a_cpu(root: Path, tmp_path: Path) -> None:
    kind = dict(optim_wrapper__type="CPUBfloat16OptimWrapper")
    runner = build(root, tmp_path, [], train_cfg__max_iters=2, **kind)
    seen = []
    runner.model.neck.register_forward_hook(lambda m, x, maps: seen.append(maps[0].dtype))
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    runner.train()
    assert seen == [torch.bfloat16] * 2
    after = dict(runner.model.named_parameters())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in after.values())
    changed = [name for name, p in after.items() if not torch.equal(p, before[name])]
    assert any("backbone" in name for name in changed) and any("roi_head" in n for n in changed)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("wrapper", "precision"),
    [
        (dict(type="OptimWrapper"), "float32"),
        (dict(type="AmpOptimWrapper"), "float16"),
        (dict(type="mmengine.AmpOptimWrapper", dtype=None), "float16"),
        (dict(type="AmpOptimWrapper", dtype="bfloat16"), "bfloat16"),
        (dict(type="CPUBfloat16OptimWrapper"), "bfloat16"),
    ],
)
def test_what_a_config_says(wrapper: dict, precision: str) -> None:
    assert precision_of(config(**wrapper)) == precision
    assert (float16_advice(config(**wrapper)) is not None) == (precision == "float16")
    assert float16_advice(config("ResNet", **wrapper)) is None


def test_advice_names_what_to_give() -> None:
    advice = float16_advice(config("LTMSwin", type="AmpOptimWrapper"))
    assert "\n" not in advice and "--precision float32" in advice.replace("bfloat16", "float32")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_the_format_is_set(precision: str) -> None:
    cfg = config(type="AmpOptimWrapper", loss_scale="dynamic", dtype="float16", accumulative=2)
    set_precision(cfg, precision)
    assert precision_of(cfg) == precision
    assert cfg.optim_wrapper.clip_grad.max_norm == 1 and cfg.optim_wrapper.accumulative == 2
    assert "loss_scale" not in cfg.optim_wrapper and cfg.optim_wrapper.optimizer.lr == 1e-3


def test_a_gpu_has_it_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed_precision, "get_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    cfg = config(type="AmpOptimWrapper")
    set_precision(cfg, "bfloat16")
    assert cfg.optim_wrapper.type == "AmpOptimWrapper" and cfg.optim_wrapper.dtype == "bfloat16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(InputError, match="give --precision float32"):
        set_precision(cfg, "bfloat16")


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("processor: 0\nflags\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags : fpu avx512f amx_tile amx_bf16", True),
        ("Features : fp asimd bf16", True),
        ("flags : fpu avx2 avx512f", False),
        ("", False),
    ],
)
def test_processors_that_have_it(
    text: str, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed_precision, "CPUINFO", tmp_path / "cpuinfo")
    assert not has_bfloat16("cpu")  # where nothing says so
    (tmp_path / "cpuinfo").write_text(text)
    assert has_bfloat16("cpu") == has
