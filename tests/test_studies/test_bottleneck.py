"""The bottleneck of a tiny detector, against one collected apart: own loop, own hooks, own maps.

Shapes: B images, W windows, N tokens in a window, P kept tokens, C channels, n boxes.
"""

import copy
import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import matplotlib.figure
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn
from torchvision.ops import roi_align

from ltm_det.engine.bottleneck import fit_centroids
from ltm_det.engine.instances import background_boxes
from ltm_det.ib import IBStatistics, assign
from ltm_det.measure.flops import build_backbone
from ltm_det.merging import LTM, Pool
from ltm_det.studies import bottleneck
from ltm_det.studies.bottleneck import (
    KINDS,
    as_table,
    data_of,
    draw,
    load_detector,
    measure,
    variant,
)
from tests.test_tools.conftest import CONFIG, SIZE, write_split

MEAN = np.array([123.675, 116.28, 103.53])  # of red, green and blue, as in mmdet's Mask R-CNN
STD = np.array([58.395, 57.12, 57.375])
WINDOW = 4
# Merges 2 x 2 windows in stage 2, and in stage 4 one of 2 x 2 tokens, the rest of it padding.
SWIN = """
_base_ = './tiny.py'
train_dataloader = dict(dataset=dict(serialize_data=False))
val_dataloader = dict(dataset=dict(serialize_data=False))
model = dict(backbone=dict(type='LTMSwin', depths=[1, 2, 1, 2],
    merger=dict(type='LTM', compression_ratio=0.5, mask='hard_soft', temperature=0.5)))
"""
VIT = """
_base_ = './swin.py'
model = dict(
    backbone=dict(
        _delete_=True, type='LTMViT', embed_dims=16, depth=4, num_heads=2, patch_size=8,
        window_size=4, pretrain_img_size=64, img_size=64,
        merger=dict(type='LTM', merge_at=2, compression_ratio=0.25)),
    neck=dict(_delete_=True, type='SimpleFPN', in_channels=16, out_channels=16))
"""
BLOCK = "model.backbone.merger.scope"
TOLERANCE = 1e-4  # of what is collected apart
SUMMARY = dict(ib=-1.25, information_x=1.5, information_y=2.75, bound=3.125, input_term=-4.0)
SUMMARY |= dict(label_entropy=2.9, softness=0.875, samples=7)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and four validation images, and configs on them."""
    root = tmp_path_factory.mktemp("ib")
    rng = np.random.default_rng(0)
    write_split(root, "train", 8, rng)
    write_split(root, "val", 4, rng)
    (root / "tiny.py").write_text(CONFIG.replace("{root}", str(root)))
    (root / "swin.py").write_text(SWIN)
    (root / "vit.py").write_text(VIT)
    return root


@pytest.fixture(scope="session")
def config(folder: Path) -> Callable[..., Config]:
    """``config(name, **{'model.backbone.depths': ...})``."""
    read = {name: Config.fromfile(folder / f"{name}.py") for name in ("tiny", "swin", "vit")}

    def load(name: str = "swin", **options: object) -> Config:
        cfg = copy.deepcopy(read[name])
        cfg.merge_from_dict(options)
        return cfg

    return load


@pytest.fixture
def saved(folder: Path) -> Callable[[Config], str]:
    """The file of a checkpoint with random weights, mask modules included, for a config."""

    def save(cfg: Config, seed: int = 0) -> str:
        generator = torch.Generator().manual_seed(seed)
        model = MODELS.build(cfg.model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                std = 1.0 if "merger" in name else 0.1
                parameter += std * torch.randn(parameter.shape, generator=generator)
        path = folder / f"{seed}.pth"
        torch.save(dict(state_dict=model.state_dict(), meta=dict()), path)
        return str(path)

    return save


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, dict]]:
    """The batches of labels, pixels and features that `measure` gathers."""
    batches = []

    class Spy(bottleneck.Bottleneck):
        def add(self, *batch: object) -> None:
            batches.append(copy.deepcopy(batch))
            super().add(*batch)

    monkeypatch.setattr(bottleneck, "Bottleneck", Spy)
    return batches


def is_mask(key: str) -> bool:
    return ".merger." in key or ".mergers." in key


def equal(ones: dict, others: dict, mask_modules: bool = True) -> bool:
    ones, others = (
        {k: v for k, v in state.items() if mask_modules or not is_mask(k)}
        for state in (ones, others)
    )
    return ones.keys() == others.keys() and all(torch.equal(ones[k], others[k]) for k in ones)


# The variants of a config


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


# Its weights


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


# The measurement, against features collected apart


def images_by_hand(folder: Path, split: str = "val") -> tuple[list[Tensor], list[Tensor], list]:
    """Normalised images (3, h, w), their boxes (n, 4) and labels."""
    coco = json.loads((folder / f"{split}.json").read_text())
    images, boxes, labels = [], [], []
    for info in coco["images"]:
        rgb = cv2.imread(str(folder / split / info["file_name"]))[:, :, ::-1]
        images.append(torch.from_numpy((rgb - MEAN) / STD).float().permute(2, 0, 1))
        own = [a for a in coco["annotations"] if a["image_id"] == info["id"]]
        xywh = torch.tensor([a["bbox"] for a in own]).float()
        boxes.append(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1))
        labels.append([a["category_id"] - 1 for a in own])
    return images, boxes, labels


def samples_by_hand(folder: Path, batch: int = 2) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Batches (B, 3, SIZE, SIZE), their boxes (n, 5), background last, and all labels."""
    images, boxes, labels = images_by_hand(folder)
    generator = torch.Generator().manual_seed(0)
    batches, rois, known = [], [], []
    for i, (image, own) in enumerate(zip(images, boxes)):
        if i % batch == 0:
            batches.append(torch.zeros(batch, 3, SIZE, SIZE))
            rois.append(torch.zeros(0, 5))
        batches[-1][i % batch, :, : image.shape[1], : image.shape[2]] = image
        own = torch.cat([own, background_boxes(own, image.shape[1:], 1, generator)])
        rois[-1] = torch.cat([rois[-1], F.pad(own, (1, 0), value=i % batch)])
        known += [*labels[i], 2]
    return batches, rois, torch.tensor(known)


def map_by_hand(tokens: Tensor, side: int) -> Tensor:
    """(B, W, N, C) to (B, C, side, side), token by token; what lies beyond is padding."""
    b, w, n, c = tokens.shape
    across, m = math.isqrt(w), math.isqrt(n)
    out = torch.zeros(b, c, side, side)
    for y in range(side):
        for x in range(side):
            window, token = y // m * across + x // m, y % m * m + x % m
            out[:, :, y, x] = tokens[:, window, token]
    return out


def merged_by_hand(merging, tokens: Tensor) -> Tensor:
    """G times the normed G^T Z, (B, W, N, C), with both matrices written out."""
    z = tokens - tokens.mean(-1, keepdim=True)
    z = z / (z.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    if merging is None:
        return z
    b, w, n, c = z.shape
    gather = merging.merge(torch.eye(n).expand(b, w, n, n))  # (B, W, P, N)
    restore = merging.unmerge(torch.eye(gather.shape[2]).expand(b, w, -1, -1))  # (B, W, N, P)
    assert gather.shape[2] < n
    return torch.einsum("bwnp,bwpm,bwmc->bwnc", restore, gather, z)


class Ear:
    """Own hooks: (B, W, N, C) tokens and their merging at each of the points."""

    def __init__(self, backbone: nn.Module, modules: dict[str, str]) -> None:
        self.heard: dict[str, tuple] = {}
        for point, path in modules.items():
            module = backbone.get_submodule(path)
            module.register_forward_hook(lambda m, args, out, p=point: self.hear(p, args[0], out))

    def hear(self, point: str, tokens: Tensor, out: object) -> None:
        merging = None if isinstance(out, Tensor) or not hasattr(out[0], "merge") else out[0]
        if tokens.ndim == 3:  # (B, L, C), of a square map: cut into windows, zeros beyond it
            side = math.isqrt(tokens.shape[1])
            across = -(-side // WINDOW)
            windows = torch.zeros(len(tokens), across**2, WINDOW**2, tokens.shape[2])
            for i in range(tokens.shape[1]):
                y, x = divmod(i, side)
                at = y // WINDOW * across + x // WINDOW, y % WINDOW * WINDOW + x % WINDOW
                windows[:, at[0], at[1]] = tokens[:, i]
            tokens = windows
        self.heard[point] = tokens.clone(), merging


STAGE_POINTS = ("stages.1.blocks.1", "stages.3.blocks.1")
BLOCK_POINTS = ("stages.1.blocks.1.ffn", "stages.3.blocks.1.ffn")
SWIN_SIDES, VIT_SIDES = (8, 2), (8,)  # of the maps of SIZE pixels at the points
CASES = {  # name, options, kind, modules to hook at the points, sides
    f"stage {kind}": ("swin", {}, kind, dict(zip(STAGE_POINTS, modules)), SWIN_SIDES)
    for kind, modules in dict(
        dense=STAGE_POINTS,
        pool=("stages.1.mergers.1", "stages.3.mergers.1"),
        merged=("stages.1.mergers.1", "stages.3.mergers.1"),
    ).items()
}
CASES |= {
    f"block {kind}": ("swin", {BLOCK: "block"}, kind, dict(zip(BLOCK_POINTS, modules)), SWIN_SIDES)
    for kind, modules in dict(
        dense=("stages.1.blocks.1.norm2", "stages.3.blocks.1.norm2"),
        merged=("stages.1.blocks.1.merger", "stages.3.blocks.1.merger"),
    ).items()
}
CASES |= {
    "vit dense": ("vit", {}, "dense", {"blocks.2": "blocks.2"}, VIT_SIDES),
    "vit merged": ("vit", {}, "merged", {"blocks.2": "mergers.2"}, VIT_SIDES),
}


def summaries_by_hand(
    model: nn.Module,
    folder: Path,
    modules: dict[str, str],
    sides: Sequence[int],
    clusters: int,
    beta: float,
) -> dict[str, dict[str, float]]:
    ear = Ear(model.backbone, modules)
    batches, rois, labels = samples_by_hand(folder)
    pixels, features = [], {point: [] for point in modules}
    for batch, boxes in zip(batches, rois):
        model.backbone(batch)
        pixels.append(roi_align(batch, boxes, 8, 1.0, -1, aligned=True).flatten(1))
        for (point, (tokens, merging)), side in zip(ear.heard.items(), sides, strict=True):
            features[point].append(
                roi_align(
                    map_by_hand(merged_by_hand(merging, tokens), side),
                    boxes,
                    output_size=1,
                    spatial_scale=side / SIZE,
                    sampling_ratio=-1,
                    aligned=True,
                ).flatten(1)
            )
    pixels = torch.cat(pixels)
    phi_in = assign(pixels, fit_centroids(pixels, clusters), beta)
    summaries = {}
    for point in modules:
        x = torch.cat(features[point])
        phi = assign(x, fit_centroids(x, clusters), beta)
        statistics = IBStatistics(clusters, clusters, 3).update(phi, phi_in, labels)
        summaries[point] = statistics.summary()
    return summaries


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_it_is_what_features_collected_apart_give(
    config: Callable, saved: Callable, folder: Path, case: str
) -> None:
    name, options, kind, modules, sides = CASES[case]
    cfg = config(name, **options)
    path = saved(cfg)
    found = measure(cfg, kind, path, clusters=4, betas=(2.0, 10.0))
    model = load_detector(cfg, kind, path, "cpu")
    for summaries, beta in zip(found, (2.0, 10.0), strict=True):
        expected = summaries_by_hand(model, folder, modules, sides, 4, beta)
        assert list(summaries) == list(expected) == list(modules)
        for point in modules:
            assert summaries[point] == pytest.approx(expected[point], abs=TOLERANCE)
            assert summaries[point]["samples"] == 12
            assert summaries[point]["label_entropy"] == pytest.approx(math.log(3))


def test_kinds_differ_and_masks_count(config: Callable, saved: Callable) -> None:
    """By far more than the tolerance of the comparison above, which else would say little."""
    path = saved(config())
    kinds = [measure(config(), kind, path, clusters=4)[0] for kind in KINDS]
    for one, other in itertools.combinations(kinds, 2):
        for point in STAGE_POINTS:
            assert abs(one[point]["bound"] - other[point]["bound"]) > 10 * TOLERANCE
        last = STAGE_POINTS[-1]
        assert abs(one[last]["softness"] - other[last]["softness"]) > 0.05


def test_it_repeats_itself_whatever_was_drawn_before(config: Callable, saved: Callable) -> None:
    cfg = config()
    path = saved(cfg)
    first = measure(cfg, "merged", path, "train", clusters=4, betas=[3.0])
    random.random(), torch.rand(5)
    assert measure(cfg, "merged", path, "train", clusters=4, betas=[3.0]) == first


@pytest.mark.parametrize("split", ["val", "train"])
def test_all_kinds_see_the_same_samples(
    config: Callable, saved: Callable, samples: list, split: str
) -> None:
    """Also in training data, whose augmentation draws anew: from a seed that is not the model's."""
    gradient = {"model.backbone.merger.update": "gradient", "randomness.seed": 5}
    runs = []
    path = saved(config())
    for kind, cfg, checkpoint in [
        *((kind, config(), path) for kind in KINDS),
        ("merged", config(**gradient), None),
    ]:
        measure(cfg, kind, checkpoint, split, clusters=4)
        runs.append([torch.cat(parts) for parts in list(zip(*samples))[:2]])
        samples.clear()
    for labels, pixels in runs:
        assert torch.equal(labels, runs[0][0]) and torch.equal(pixels, runs[0][1])
    images = dict(val=4, train=8)[split]
    labels = runs[0][0].bincount(minlength=3)
    assert labels[:2].tolist() == [images, images] and 0 < labels[2] <= images


@pytest.mark.parametrize(("split", "images"), [("val", 4), ("train", 8)])
def test_a_split_is_read_in_its_order(config: Callable, split: str, images: int) -> None:
    """The config's own loader shuffles, and batches images of one shape."""
    cfg = config()
    before = cfg.to_dict()
    loader = data_of(cfg, split)
    ids = [[sample.img_id for sample in batch["data_samples"]] for batch in loader]
    assert ids == [[i, i + 1] for i in range(1, images, 2)]
    assert loader.num_workers == 0 and cfg.to_dict() == before


@pytest.mark.parametrize(("images", "seen"), [(1, 2), (2, 2), (3, 4), (4, 4), (99, 4), (None, 4)])
def test_images_are_the_first_in_whole_batches(
    config: Callable, samples: list, images: int | None, seen: int
) -> None:
    cfg = config()
    (summaries,) = measure(cfg, "dense", None, images=images, clusters=4)
    assert {s["samples"] for s in summaries.values()} == {3 * seen}
    pixels = torch.cat([batch[1] for batch in samples])
    samples.clear()
    measure(cfg, "dense", None, clusters=4)
    assert torch.equal(pixels, torch.cat([batch[1] for batch in samples])[: 3 * seen])


def test_several_betas_are_the_same_as_one_after_another(
    config: Callable, saved: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, betas = config(), (1.0, 10.0, math.inf)
    path = saved(cfg)
    together = measure(cfg, "pool", path, clusters=4, betas=betas)
    apart = [measure(cfg, "pool", path, clusters=4, betas=[beta])[0] for beta in betas]
    assert together == apart
    softness = [summaries[STAGE_POINTS[0]]["softness"] for summaries in together]
    assert softness[0] > softness[1] > softness[2] == 0


def test_fewer_samples_than_clusters_are_refused(config: Callable) -> None:
    measure(config(), "dense", None, clusters=12)
    with pytest.raises(ValueError, match="12 samples are too few for 13 clusters: take more"):
        measure(config(), "dense", None, clusters=13)
    with pytest.raises(ValueError, match="6 samples are too few for 7"):
        measure(config(), "dense", None, images=1, clusters=7)


def pixels_of(samples: list, label: int) -> Tensor:
    """(n, 3, CROP, CROP) of a category, in order."""
    labels, pixels = (torch.cat(parts) for parts in list(zip(*samples))[:2])
    return pixels[labels == label].unflatten(1, (3, 8, 8))


def assert_slabs(pixels: Tensor) -> None:
    """They are the last to be drawn, so all of them is to be seen, in grey value 200."""
    inner = pixels[:, :, 2:-2, 2:-2].permute(0, 2, 3, 1).double().numpy()
    assert np.abs(inner * STD + MEAN - 200).max() < 1


def test_validation_boxes_follow_a_resized_image(config: Callable, samples: list) -> None:
    crops = {}
    for scale in (1, 2):
        cfg = config()
        cfg.val_dataloader.dataset.pipeline[1].scale = (SIZE * scale, SIZE * scale)
        measure(cfg, "dense", None, clusters=4)
        crops[scale] = [pixels_of(samples, label) for label in range(3)]
        samples.clear()
    for one, two in zip(crops[1], crops[2], strict=True):
        assert one.shape == two.shape and len(one)
        inner = (one - two)[:, :, 2:-2, 2:-2]  # the enlarged image is blurred at edges
        assert inner.abs().max() < 0.1  # of about 1, the spread of pixels
    assert_slabs(crops[2][1])


def test_training_boxes_are_those_of_the_augmented_image(config: Callable, samples: list) -> None:
    cfg = config()
    load, annotations, *_, pack = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [
        load,
        annotations,
        dict(type="RandomChoiceResize", scales=[(96, 96), (128, 128)], keep_ratio=True),
        dict(type="RandomFlip", prob=0.5),
        pack,
    ]
    measure(cfg, "dense", None, "train", clusters=4)
    slabs = pixels_of(samples, 1)
    assert len(slabs) == 8
    assert_slabs(slabs)


# Table and picture


def test_a_table_has_a_line_for_each_row_and_point() -> None:
    other = {key: 10 * value for key, value in SUMMARY.items()}
    table = as_table({"dense": {"a": SUMMARY, "b": other}, "dense, untrained": {"a": other}})
    header, *lines = table.splitlines()
    assert header.split() == "merge point IB I(X~;X) I(X~;Y) bound constant softness".split()
    numbers = ["-1.250", "1.500", "2.750", "3.125", "-4.000", "0.875"]
    tens = ["-12.500", "15.000", "27.500", "31.250", "-40.000", "8.750"]
    assert [line.split() for line in lines] == [
        ["dense", "a", *numbers],
        ["dense", "b", *tens],
        ["dense,", "untrained", "a", *tens],
    ]
    assert len({len(line) for line in (header, *lines)}) == 1


def rows_of(*names: str, points: Sequence[str] = ("stages.1.blocks.1", "p")) -> dict:
    rows = {}
    for i, name in enumerate(names):
        rows[name] = {
            point: {k: v + i + 10 * j for k, v in SUMMARY.items()} for j, point in enumerate(points)
        }
    return rows


@pytest.mark.parametrize("betas", [["10"], ["1", "inf"]])
@pytest.mark.parametrize(
    "names", [["pool"], ["dense, untrained", "dense", "merged, untrained", "merged"]]
)
def test_the_picture_shows_every_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, betas: list[str], names: list[str]
) -> None:
    figures = []

    class Figure(matplotlib.figure.Figure):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            figures.append(self)

    monkeypatch.setattr(bottleneck, "Figure", Figure)
    measured = {beta: rows_of(*names) for beta in betas}
    measured[betas[-1]] = rows_of(*names, points=("stages.1.blocks.1", "p"))
    measured[betas[-1]][names[0]]["p"]["ib"] = -3.5
    out = tmp_path / "new" / "a.png"
    draw(measured, "of a test", out)
    picture = cv2.imread(str(out))
    assert picture.std() > 10 and picture.shape[0] > 500

    (figure,) = figures
    assert figure.get_suptitle() == "of a test"
    axes = np.array(figure.axes).reshape(3, len(betas))
    for column, beta in zip(axes.T, betas, strict=True):
        title = column[0].get_title()
        assert title == ("hard clusters" if beta == "inf" else f"beta {beta}")
        for axis, key in zip(column, ("ib", "information_x", "information_y"), strict=True):
            assert len(axis.containers) == len(names)
            for name, bars in zip(names, axis.containers, strict=True):
                heights = [bar.get_height() for bar in bars]
                points = measured[beta][name].values()
                assert bars.get_label() == name
                assert heights == [point[key] for point in points]
                assert {bar.get_alpha() for bar in bars} == {0.4 if "untrained" in name else 1.0}
                low, high = axis.get_ylim()
                assert low < min(heights) and high > max(heights)
        ticks = [text.get_text() for text in column[-1].get_xticklabels()]
        assert ticks == ["stages.1.blocks.1", "p"]
        entropy = [line for line in column[2].lines if line.get_label() == "H(Y)"]
        assert [line.get_ydata()[0] for line in entropy] == [SUMMARY["label_entropy"]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["H(Y)", *names]
    colours = {}
    for bars in axes[0, 0].containers:
        kind = bars.get_label().partition(",")[0]
        assert colours.setdefault(kind, bars[0].get_facecolor()[:3]) == bars[0].get_facecolor()[:3]
    assert len(set(colours.values())) == len(colours)
