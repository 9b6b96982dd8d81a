"""Peers have our maps; what is timed is a row; exponents of known numbers."""

import json

import numpy as np
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
from ltm_det.pictures.benchmark import draw

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
    times, failures = benchmark.time_entries(
        models, [*entries, bad], (4, 6), batch=3, mode=mode, rounds=3, warm_up=1
    )
    assert failures == {bad: "TypeError: no bfloat16"}
    assert list(times) == entries and all(len(own) == 3 for own in times.values())
    assert {call[1:2] + call[3:] for call in calls} == {((3, 3, 4, 6), (train, train, True))}
    order = [(name, amp) for name, _, amp, _ in calls]
    once = [(name, amp) for name in "ab" for amp in (False, True)]
    assert order[:4] == once and len(order) == 4 * 5
    rounds = [order[i : i + 4] for i in range(4, 20, 4)]
    assert rounds in ([once, once[::-1]] * 2, [once[::-1], once] * 2)


def test_rows_have_ratios_to_the_base_and_to_it_the_same_way() -> None:
    a, b = Entry("a", "eager", "float32"), Entry("b", "eager", "float32")
    a2, b2, b3 = (x._replace(how=how) for x, how in ((a, "frozen"), (b, "frozen"), (b, "exported")))
    times = {a: [4.0, 4.0, 8.0], b: [2.0, 1.0, 2.0], a2: [3.0] * 3, b2: [1.5] * 3}
    macs = dict(a=4 * 10**9, b=10**9)
    rows = benchmark.rows_of([a, b, b3, a2, b2], times, {b3: "why"}, macs, a)
    assert [row["model"] + row["how"] for row in rows] == [
        *("aeager", "beager", "bexported", "afrozen", "bfrozen")
    ]
    assert rows[1]["median_ms"] == 2000 and rows[1]["ratio"] == 0.5
    assert rows[1]["quartiles"] == (0.25, 0.375)  # of 0.5, 0.25, 0.25
    assert rows[1]["gmacs"] == 1 and rows[1]["gmacs_ratio"] == 0.25
    assert rows[4]["ratio"] == 0.375 and rows[4]["same_way"] == 0.5
    assert rows[2]["failure"] == "why" and "seconds" not in rows[2]
    table = benchmark.as_table(rows).splitlines()
    assert len(table) == 7 and table[-1] == "b exported float32 does not run: why"
    assert (
        table[2].split() == "b eager float32 1.00 0.250 2000.0 0.500 0.250 to 0.375 0.500".split()
    )
    assert table[3].split()[-4:] == ["-"] * 4
    with pytest.raises(ValueError, match="b exported float32, the base of all ratios.*why"):
        benchmark.rows_of([b3], times, {b3: "why"}, macs, b3)


def test_exponents_of_known_numbers() -> None:
    pixels = np.array([1e4, 5e4, 2e6])
    assert benchmark.exponent(pixels, 3 * pixels**1.25) == pytest.approx(1.25)
    with pytest.raises(ValueError, match="two sizes"):
        benchmark.exponent([100, 100], [1, 2])
    rows = [
        dict(model=m, how="eager", dtype="amp", batch=b, mode="training", shape=s, seconds=[1])
        | dict(median_ms=b * (s[0] * s[1]) ** power)
        for m, power in dict(a=1.0, b=2.0).items()
        for b in (1, 4)
        for s in ((4, 9), (8, 8), (3, 3))
    ]
    alone = [dict(rows[0], model="c"), dict(model="d", failure="x")]
    found = benchmark.exponents([*rows, *alone])
    assert [(f["model"], f["batch"]) for f in found] == [("a", 1), ("a", 4), ("b", 1), ("b", 4)]
    assert [f["exponent"] for f in found] == pytest.approx([1, 1, 2, 2])


def test_picture(tmp_path) -> None:
    rows = []
    for shape in ((64, 64), (128, 96)):
        times = {Entry(m, "eager", "float32"): [1.0, 2.0] for m in "ab"}
        own = benchmark.rows_of(times, times, {}, dict(a=2, b=1), Entry("a", "eager", "float32"))
        rows += [row | dict(shape=shape, batch=1, mode="inference") for row in own]
    out = tmp_path / "new" / "plot.svg"
    assert draw(rows, benchmark.exponents(rows), "a title", out)
    assert "<svg" in out.read_text()[:1000]
    assert not draw([], [], "", tmp_path / "none.png") and not (tmp_path / "none.png").exists()


def test_machine_is_told() -> None:
    found = benchmark.machine("cpu")
    assert found["cpu"] and found["cores"] >= 1 and found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__ and found["device"] == "cpu"
    json.dumps(found)


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
        times, failures = benchmark.time_entries(
            models, entries, (64, 64), batch=2, mode=mode, rounds=2, warm_up=1, device="cuda"
        )
        assert not failures and min(min(own) for own in times.values()) > 0


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, marks=[pytest.mark.slow] * (how in ("compiled", "frozen")))
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
