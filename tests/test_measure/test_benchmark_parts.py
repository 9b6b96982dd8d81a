"""Peers have our maps; those that are timed take turns; every form gives the maps of eager."""

from contextlib import contextmanager

import pytest
import torch
from mmengine.config import Config
from torch import nn

from ltm_det.backbones.swin.weights import unfold_order
from ltm_det.measure import benchmark, benchmark_models, timing
from ltm_det.measure.benchmark import Entry
from ltm_det.measure.flops import build_backbone
from ltm_det.measure.peers import swin_order
from ltm_det.merging import MERGERS

MERGER = dict(type="Pool", compression_ratio=0.5)
SWIN = dict(type="LTMSwin", embed_dims=8, depths=(2, 3), num_heads=(1, 2), window_size=4)
SWIN |= dict(out_indices=(0, 1), merger=dict(MERGER, dense_blocks=1))
VIT = dict(type="LTMViT", embed_dims=16, depth=4, num_heads=2, patch_size=8, window_size=3)
VIT |= dict(pretrain_img_size=32, img_size=64, use_rel_pos=True, final_norm=True)
VIT |= dict(init_values=0.5, global_blocks=(1, 3), merger=dict(MERGER, merge_at=1))


def config(backbone: dict, **options) -> Config:
    return Config(dict(default_scope="mmdet", model=dict(backbone=dict(backbone, **options))))


def models_of(cfg: Config, *names: str) -> dict[str, nn.Module]:
    names = dict.fromkeys(["dense", *(names or benchmark_models.known_models(cfg))])
    return benchmark_models.build_models(
        {name: benchmark_models.model_config(cfg, name) for name in names}, "cpu"
    )


@pytest.mark.parametrize("options", [dict(), dict(depths=(1, 1, 2), out_indices=(2,))])
def test_swins_have_the_maps_of_ours(options: dict) -> None:
    options = dict(options, num_heads=(1, 2, 4)[: len(options.get("depths", "ab"))])
    models = models_of(config(SWIN, **options), "mmdet", "timm", "torchvision")
    side = 2 * 4 * models["dense"].strides[-1]
    notes = benchmark_models.check_peers(models, (side, 2 * side))
    assert [note.split()[:2] for note in notes] == [
        [name, "equals"] for name in ("mmdet", "timm", "torchvision")
    ]


def test_where_windows_are_padded_timm_pads_in_another_place() -> None:
    notes = benchmark_models.check_peers(models_of(config(SWIN)), (72, 104))
    assert [(note.split()[0], note.split()[1], note.split(" at ")[1][:7]) for note in notes] == [
        ("mmdet", "equals", "72 x 10"),
        ("timm", "differs", "72 x 10"),
        ("timm", "equals", "64 x 64"),
        ("torchvision", "equals", "72 x 10"),
    ]


@pytest.mark.parametrize("shape", [(64, 64), (45, 83)])
@pytest.mark.parametrize("options", [dict(), dict(use_rel_pos=False, use_abs_pos=False)])
def test_timms_vit_has_the_map_of_ours(options: dict, shape: tuple[int, int]) -> None:
    (note,) = benchmark_models.check_peers(models_of(config(VIT, **options), "timm"), shape)
    assert note.startswith("timm equals dense at {} x {}".format(*shape))


@pytest.mark.parametrize("wrong", ["norm1.bias", "layers.1.downsample.norm.weight"])
def test_a_weight_out_of_place_is_seen(wrong: str) -> None:
    models = models_of(config(SWIN), "timm")
    weight = models["timm"].get_parameter(wrong)
    weight.data = weight.data.flip(0)  # the dense one's tensor stays
    with pytest.raises(ValueError, match="timm has other maps.*differs from dense at 64 x 64"):
        benchmark_models.check_peers(
            {"dense": models_of(config(SWIN))["dense"], **models}, (40, 40)
        )


def test_patch_mergings_order_is_undone() -> None:
    weight = torch.rand(3, 4 * 5)
    ours = unfold_order(weight)
    assert torch.equal(swin_order(ours), weight) and not torch.equal(ours, weight)


@pytest.mark.parametrize("backbone", [SWIN, VIT])
def test_every_name_is_a_model_that_shares_the_weights(backbone: dict) -> None:
    cfg = config(backbone)
    models = models_of(cfg)
    assert set(models) >= {"timm", "dense", "merged", *MERGERS}
    weights = {p.data_ptr() for p in models["dense"].parameters()}
    image = torch.rand(1, 3, 64, 48)
    for name, model in models.items():
        shared = sum(p.data_ptr() in weights for p in model.parameters())
        unshared = 3 if name in ("timm", "torchvision") and backbone is SWIN else 0
        assert shared == len(weights) - unshared, name  # the patch merging's are copies
        model.eval()
        with torch.no_grad():
            *_, last = model(image)
        assert torch.isfinite(last).all(), name
        if name in MERGERS:
            merger = benchmark_models.model_config(cfg, name).model.backbone.merger
            assert merger == dict(backbone["merger"], type=name)


def test_of_mmdets_swin_there_are_peers_and_no_mergers() -> None:
    cfg = config(dict(SWIN, type="mmdet.SwinTransformer"))
    del cfg.model.backbone["merger"]
    assert benchmark_models.known_models(cfg) == ["mmdet", "timm", "torchvision", "dense"]
    assert set(models_of(cfg)) == {"mmdet", "timm", "torchvision", "dense"}
    with pytest.raises(ValueError, match="unknown model 'ToMe': choose from.*has no merger"):
        benchmark_models.model_config(cfg, "ToMe")


def test_what_a_peer_lacks_is_named() -> None:
    cfg = benchmark_models.model_config(config(SWIN, qkv_bias=False), "torchvision")
    with pytest.raises(ValueError, match="TorchvisionSwin cannot have qkv_bias=False"):
        build_backbone(cfg)
    cfg = benchmark_models.model_config(config(VIT, prefix_tokens=1), "timm")
    with pytest.raises(ValueError, match="TimmViTDet cannot have prefix_tokens=1"):
        build_backbone(cfg)
    with pytest.raises(ValueError, match="the backbone is a ResNet"):
        benchmark_models.known_models(config(dict(type="ResNet")))


class Spy(nn.Module):
    """Notes each pass; refuses bfloat16."""

    def __init__(self, name: str, calls: list) -> None:
        super().__init__()
        self.name, self.calls = name, calls
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        if x.dtype == torch.bfloat16:
            raise TypeError("no bfloat16\nat all")
        amp = torch.is_autocast_enabled("cpu")
        grad = torch.is_grad_enabled(), self.training, self.weight.grad is None
        self.calls.append((self.name, tuple(x.shape), amp, grad))
        return [x * self.weight]


@pytest.mark.parametrize("mode", benchmark.MODES)
def test_entries_take_turns(mode: str) -> None:
    calls, train = [], mode == "training"
    models = {name: Spy(name, calls) for name in "ab"}
    entries = [Entry(name, "eager", dtype) for name in "ab" for dtype in ("float32", "amp")]
    bad = Entry("a", "eager", "bfloat16")
    found, failures = benchmark.time_entries(
        models, [*entries, bad], (4, 6), batch=3, mode=mode, rounds=3, warm_up=1, loads=(0, 1)
    )
    assert failures == {bad: "TypeError: no bfloat16"} and list(found) == [0, 1]
    for times in found.values():
        assert list(times) == entries and all(len(own) == 3 for own in times.values())
    assert {call[1:2] + call[3:] for call in calls} == {((3, 3, 4, 6), (train, train, True))}
    order = [(name, amp) for name, _, amp, _ in calls]
    once = [(name, amp) for name in "ab" for amp in (False, True)]
    assert order[:4] == once and len(order) == 4 * 9
    for start in (4, 20):  # the loads one after the other, all turns inside each
        rounds = [order[i : i + 4] for i in range(start, start + 16, 4)]
        assert rounds in ([once, once[::-1]] * 2, [once[::-1], once] * 2)


@pytest.mark.parametrize("loads", [(2, 0), (1,)])
def test_passes_are_timed_inside_their_load(loads: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the first pass of each, which may compile it, is outside."""
    log = []

    @contextmanager
    def busy(number: int):
        log.append(f"{number} starts")
        yield
        log.append(f"{number} ends")

    monkeypatch.setattr(benchmark, "busy", busy)
    entries = [Entry(name, "eager", "float32") for name in "ab"]
    counts = dict(batch=1, mode="inference", rounds=1, warm_up=0)
    models = {name: Spy(name, log) for name in "ab"}
    benchmark.time_entries(models, entries, (4, 6), **counts, loads=loads)
    log = [entry if isinstance(entry, str) else entry[0] for entry in log]
    own = [[f"{load} starts", "b", "a", f"{load} ends"] for load in loads]
    assert log == ["a", "b", *sum(own, [])]


def test_cuda_is_timed_by_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    log = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait for all"))
    assert timing.cuda_seconds(lambda: log.append("work")) == 0.25
    assert log == ["wait for all", "record", "work", "record", "wait"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_models_are_timed_on_a_gpu() -> None:
    cfg = config(SWIN)
    configs = {name: benchmark_models.model_config(cfg, name) for name in ("dense", "merged")}
    models = benchmark_models.build_models(configs, "cuda")
    entries = [Entry(name, "eager", dtype) for name in models for dtype in ("float32", "amp")]
    for mode in benchmark.MODES:
        found, failures = benchmark.time_entries(
            models, entries, (64, 64), batch=2, mode=mode, rounds=2, warm_up=1, device="cuda"
        )
        assert not failures and min(min(own) for own in found[0].values()) > 0


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(
            how, marks=[pytest.mark.slow] * (how in ("compiled", "frozen", "openvino_bfloat16"))
        )
        for how in benchmark.RUNNERS
    ],
)
def test_every_form_gives_the_maps_of_eager(how: str) -> None:
    models = models_of(config(SWIN, depths=(1, 2)), "merged")
    model, image = models["merged"].eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad(), benchmark.many_compiled():
        for a, b in zip(benchmark.RUNNERS[how](model, image)(image), model(image), strict=True):
            near = 0.1 if "bfloat16" in how else 1e-4
            torch.testing.assert_close(a, b, rtol=near, atol=near)
