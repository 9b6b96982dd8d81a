"""The variants of a detector whose bottleneck is measured: their merge points and their weights."""

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from torch import Tensor

from ltm_det.measure.flops import build_backbone
from ltm_det.merging import LTM, Pool
from ltm_det.studies.bottleneck import KINDS, load_detector, measure, variant
from tests.test_studies.tiny_study import BLOCK


def is_mask(key: str) -> bool:
    return ".merger." in key or ".mergers." in key


def equal(ones: dict, others: dict, mask_modules: bool = True) -> bool:
    ones, others = (
        {k: v for k, v in state.items() if mask_modules or not is_mask(k)}
        for state in (ones, others)
    )
    return ones.keys() == others.keys() and all(torch.equal(ones[k], others[k]) for k in ones)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swin", {"model.backbone.merger.compression_ratio": [0.6, 0.3, 1.0, 0.5]}),
        ("swin", {"model.backbone.merger.dense_blocks": [[0], [1], 1, 0]}),
        ("swin", {BLOCK: "block", "model.backbone.merger.compression_ratio": 0.3}),
        (
            "swin",
            {
                "model.backbone.merger.update": "gradient",
                "model.backbone.merger.clusters": 5,
                "model.backbone.merger.beta": 3.0,
            },
        ),
        (
            "vit",
            {
                "model.backbone.merger.merge_at": [1, 3],
                "model.backbone.merger.compression_ratio": [0.6, 0.3],
            },
        ),
    ],
    ids=["ratios", "dense blocks", "block scope", "gradient", "vit"],
)
def test_twins_merge_at_the_same_points_and_the_config_stays(
    config: Callable, name: str, options: dict
) -> None:
    cfg = config(name, **options)
    before = copy.deepcopy(cfg.to_dict())
    twins = {kind: variant(cfg, kind) for kind in KINDS}
    mergers = {kind: build_backbone(twin).mergers_by_point() for kind, twin in twins.items()}
    assert len(mergers["merged"]) >= 2
    assert all(isinstance(merger, LTM) for merger in mergers["merged"].values())
    assert mergers["dense"] == {}
    assert list(mergers["pool"]) == list(mergers["merged"])
    for point, pool in mergers["pool"].items():
        assert isinstance(pool, Pool)
        assert (pool.window, pool.tokens) == (
            mergers["merged"][point].window,
            mergers["merged"][point].tokens,
        )
    assert twins["merged"].to_dict() == before
    for twin in twins.values():
        del twin.model.backbone["merger"]  # of the twin alone
    assert cfg.to_dict() == before
    del before["model"]["backbone"]["merger"]
    assert all(twin.to_dict() == before for twin in twins.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_that_merges_nowhere_is_refused(config: Callable, kind: str) -> None:
    """A foreign backbone, merger=None, and one whose blocks all stay dense."""
    for cfg in (
        config("tiny"),
        config("swin", **{"model.backbone.merger": None}),
        config("swin", **{"model.backbone.depths": [1, 1, 1, 1]}),
    ):
        with pytest.raises(ValueError, match="merges nowhere.*dense detector"):
            measure(cfg, kind, None)


@pytest.mark.parametrize("name", ["swin", "vit"])
@pytest.mark.parametrize("bare", [False, True])
def test_a_merged_checkpoint_loads_into_all_kinds(
    config: Callable, saved: Callable, name: str, bare: bool
) -> None:
    cfg = config(name)
    path = saved(cfg)
    weights = torch.load(path)["state_dict"]
    assert any(map(is_mask, weights))
    if bare:
        torch.save(weights, path)
    for kind in KINDS:
        model = load_detector(cfg, kind, path, "cpu")
        assert not any(module.training for module in model.modules())
        assert bool(model.backbone.mergers_by_point()) == (kind != "dense")
        assert equal(model.state_dict(), weights, mask_modules=kind == "merged")


@pytest.mark.parametrize("source", ["LTMSwin", "SwinTransformer"])
def test_a_dense_checkpoint_loads_into_all_kinds_and_masks_start_as_pooling(
    config: Callable, saved: Callable, source: str
) -> None:
    cfg = config()
    dense = config(**{"model.backbone.merger": None})
    if source != "LTMSwin":
        dense = config("tiny", **{"model.backbone.depths": cfg.model.backbone.depths})
    path = saved(dense)
    theirs = MODELS.build(dense.model)
    theirs.load_state_dict(torch.load(path)["state_dict"])
    theirs.eval()
    images = torch.randn(2, 3, 48, 64)
    models = {kind: load_detector(cfg, kind, path, "cpu") for kind in KINDS}
    with torch.no_grad():
        expected = theirs.backbone(images)
        maps = {kind: model.backbone(images) for kind, model in models.items()}
    state = models["dense"].state_dict()
    weights = theirs.state_dict()
    assert state.keys() == {key for key in weights if "relative_position_index" not in key}
    assert all(torch.equal(state[key], weights[key]) for key in state)
    for model in models.values():
        assert equal(model.state_dict(), state, mask_modules=False)
    for i, scale in enumerate(x.abs().max() for x in expected):
        assert (maps["dense"][i] - expected[i]).abs().max() < 1e-5 * scale
    # From the last merge point on; without attraction a soft mask starts as pooling up to a small
    # share, and the tokens' own path starts at nothing.
    plain = {"model.backbone.merger.mask": "soft", "model.backbone.merger.affinity": 0}
    soft = load_detector(config(**plain), "merged", path, "cpu")
    with torch.no_grad():
        (*_, start) = soft.backbone(images)
    assert (start - maps["pool"][-1]).abs().max() < 0.01 * start.abs().max()
    assert (maps["dense"][-1] - maps["pool"][-1]).abs().max() > 0.02 * start.abs().max()


def test_a_checkpoint_that_does_not_fit_is_named_with_what_does_not(
    config: Callable, saved: Callable, folder: Path
) -> None:
    cfg = config()
    other = config(**{"model.backbone.depths": [1, 2, 2, 2]})
    head = config(**{"model.roi_head.bbox_head.num_classes": 5})
    partial = folder / "partial.pth"
    weights = torch.load(saved(cfg))["state_dict"]
    torch.save({k: v for k, v in weights.items() if "stages.3.mergers" not in k}, partial)
    headless = folder / "headless.pth"
    torch.save({k: v for k, v in weights.items() if k.startswith("backbone.")}, headless)
    for kind in KINDS:
        with pytest.raises(ValueError, match="stages.2.blocks.1"):
            load_detector(cfg, kind, saved(other), "cpu")
        with pytest.raises(ValueError, match="0.pth does not fit(?s:.)*bbox_head.fc_cls"):
            load_detector(cfg, kind, saved(head), "cpu")
        with pytest.raises(ValueError, match="headless.pth does not fit(?s:.)*neck"):
            load_detector(cfg, kind, str(headless), "cpu")
    with pytest.raises(ValueError, match="stages.3.mergers"):
        load_detector(cfg, "merged", str(partial), "cpu")
    load_detector(cfg, "dense", str(partial), "cpu")
    load_detector(cfg, "pool", str(partial), "cpu")


def test_untrained_weights_depend_on_the_configs_seed_alone(config: Callable) -> None:
    def state(kind: str, seed: int | None) -> dict[str, Tensor]:
        random.random(), torch.rand(3)
        cfg = config(**{"randomness.seed": seed})
        return load_detector(cfg, kind, None, "cpu").state_dict()

    merged = state("merged", 1)
    assert equal(merged, state("merged", 1))
    assert equal(merged, state("dense", 1), mask_modules=False)
    assert equal(merged, state("pool", 1), mask_modules=False)
    assert equal(state("dense", None), state("dense", 0))
    other = state("merged", 2)
    for key in ("backbone.stages.0.blocks.0.ffn.layers.0.0.weight", "rpn_head.rpn_conv.weight"):
        assert not torch.equal(merged[key], other[key])


def test_untrained_weights_come_from_the_pretrained_file_and_trained_ones_do_not(
    config: Callable, saved: Callable
) -> None:
    init = "model.backbone.init_cfg"
    path = saved(config(**{"model.backbone.merger": None}))
    weights = torch.load(path)["state_dict"]
    cfg = config(**{init: dict(type="Pretrained", checkpoint=path)})
    for kind in KINDS:
        state = load_detector(cfg, kind, None, "cpu").state_dict()
        for key in weights:
            if key.startswith("backbone."):
                assert torch.equal(state[key], weights[key])
        assert not torch.equal(
            state["rpn_head.rpn_conv.weight"], weights["rpn_head.rpn_conv.weight"]
        )
    cfg = config(**{init: dict(type="Pretrained", checkpoint="gone.pth")})
    assert equal(load_detector(cfg, "dense", path, "cpu").state_dict(), weights)
