"""What whole detectors cost on the clock, from images to boxes and masks, and each part of it.

An untrained detector finds nothing, or a thousand times the same: so that all have as much to do as
on a picture, the threshold of scores is put where the base finds as many objects as asked for.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import nn

from ltm_det.backbones.common.weights import share_weights
from ltm_det.basics.words import some
from ltm_det.compat.state_dicts import origin, under_own_names
from ltm_det.detectors import FAST
from ltm_det.engine.building import building
from ltm_det.measure import peers
from ltm_det.measure.benchmark_models import DENSE, MERGED, PEERS, model_config, our_type
from ltm_det.measure.detector_forms import EAGER, FORMS, batch_of
from ltm_det.measure.load import busy
from ltm_det.measure.precision import autocast
from ltm_det.measure.timing import interleaved
from ltm_det.measure.torchvision_detector import TorchvisionDetector, fits

# After the name of one of our backbones: with the heads of mmdet's, or those of a lean recipe.
SLOW_HEADS, LEAN_HEADS = "+mmdet", "+lean"
TORCHVISION = "torchvision"
# The modules inside a detector, and the method, that a part of the time goes to.
PARTS = {
    "preprocess": ("data_preprocessor", "forward"),
    "backbone": ("backbone", "forward"),
    "neck": ("neck", "forward"),
    "RPN convs": ("rpn_head", "forward"),
    "RPN boxes": ("rpn_head", "predict_by_feat"),
    "RoIAlign": ("roi_head.bbox_roi_extractor", "forward"),
    "box head": ("roi_head.bbox_head", "forward"),
    "NMS": ("roi_head.bbox_head", "predict_by_feat"),
    "mask RoIAlign": ("roi_head.mask_roi_extractor", "forward"),
    "mask head": ("roi_head.mask_head", "forward"),
    "paste": ("roi_head.mask_head", "predict_by_feat"),
}


def known_detectors(cfg: Config) -> list[str]:
    """Names of detectors for a config: others' backbones and heads, ours, ours with exact fast
    heads, with mmdet's and with lean ones.

    Raises:
        ValueError: Its backbone or its detector is none that there is a faster form of.
    """
    backbones = PEERS[our_type(cfg)]
    if kind_of(cfg.model) not in FAST:
        raise ValueError(f"the detector is a {cfg.model.type}: give one of {[*FAST]}")
    others = [next(iter(backbones))]
    if TORCHVISION in backbones and fits(cfg):
        others.append(TORCHVISION)
    own = [DENSE] if cfg.model.backbone.get("merger") is None else [DENSE, MERGED]
    return [*others, *own, *(name + more for more in (SLOW_HEADS, LEAN_HEADS) for name in own)]


def kind_of(model: Any) -> str:
    """The name of mmdet's detector that a model's config is of, or of a fast one."""
    kind = model["type"].removeprefix("mmdet.")
    return {fast: own for own, fast in FAST.items()}.get(kind, kind)


def build_detectors(
    cfg: Config,
    names: Iterable[str],
    device: str,
    state: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, nn.Module]:
    """Detectors by name in evaluation mode, all of one set of weights.

    Args:
        cfg: Of the detector; its recipe, or else the common one, is that of lean heads alone.
        names: Of :func:`known_detectors`.
        device: Where they go.
        state: Of the config's own detector. None: random weights.

    Raises:
        ValueError: On an unknown name, or a state that is not the detector's.
    """
    register_all_modules()
    known, built = known_detectors(cfg), {}
    for name in dict.fromkeys([DENSE, *names]):
        if name not in known:
            raise ValueError(f"unknown detector {name!r}: choose from {known}")
        backbone = name.removesuffix(SLOW_HEADS).removesuffix(LEAN_HEADS)
        own = model_config(cfg, backbone).model
        kind = kind_of(own)
        own.type = FAST[kind] if name.removesuffix(LEAN_HEADS) in (DENSE, MERGED) else kind
        recipe = own.pop("lean", None) or True
        if name.endswith(LEAN_HEADS):
            own.lean = recipe
        own.backbone.init_cfg = None
        with torch.random.fork_rng(), building(cfg):
            torch.manual_seed(0)
            model = MODELS.build(own)
        built[name] = model.to(device).eval()
    dense = built[DENSE]
    if state is not None:
        load_shared(dense, state)
    for name, model in built.items():
        if name == DENSE:
            continue
        heads = {k: v for k, v in dense.state_dict().items() if not k.startswith("backbone.")}
        model.load_state_dict({**model.state_dict(), **heads}, assign=True)
        if isinstance(model.backbone, peers.PeerSwin):
            model.backbone.share(dense.backbone)
        else:
            share_weights(dense.backbone, model.backbone)
        if state is not None and MERGED in name:
            load_shared(model, state)
        if name == TORCHVISION:
            built[name] = TorchvisionDetector(model, model.backbone).eval()
    return {name: built[name] for name in names}


def load_shared(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Loads a state dict whose mask modules a model may lack.

    Raises:
        ValueError: Anything else is missing or of another shape.
    """
    own = model.state_dict()
    state, _ = under_own_names(own, state)
    missing = [k for k in own if k not in state and ".merger" not in k]
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    if missing or wrong:
        raise ValueError(f"{origin(state)} is of another detector: {some(missing or wrong, 3)}")
    model.load_state_dict({**own, **{k: v for k, v in state.items() if k in own}})


@torch.no_grad()
def find_threshold(detector: nn.Module, images: torch.Tensor, objects: int) -> float:
    """The score above which a detector finds so many objects on the first image, if it can."""
    cfg = detector.roi_head.test_cfg
    before = cfg.score_thr, cfg.max_per_img
    cfg.score_thr, cfg.max_per_img = 0.0, objects + 1
    try:
        (found,) = detector.test_step(batch_of(images[:1]))
    finally:
        cfg.score_thr, cfg.max_per_img = before
    scores = found.pred_instances.scores
    return float(scores[-2:].mean()) if len(scores) > objects else 0.0


def set_threshold(detector: nn.Module, score: float) -> None:
    """Objects of a lower score are not found."""
    if isinstance(detector, TorchvisionDetector):
        detector.model.roi_heads.score_thresh = score
    else:
        detector.roi_head.test_cfg.score_thr = score


def time_detectors(
    detectors: Mapping[str, nn.Module],
    images: torch.Tensor,
    dtype: str,
    device: str,
    rounds: int,
    warm_up: int,
    loads: Sequence[int] = (0,),
    forms: Sequence[str] = (EAGER,),
) -> dict[int, dict[str, dict[str, Any]]]:
    """Seconds of each detector, in turns inside each load, and of its parts in rounds of their own.

    Args:
        detectors: By name, on the device.
        images: (B, 3, H, W), of 0 to 255, on the CPU, as a loader has them.
        dtype: 'float32' or 'amp'.
        device: 'cpu' or a CUDA device, which is waited for.
        rounds: That are measured.
        warm_up: Rounds before.
        loads: Numbers of busy processes beside it.
        forms: Of `FORMS`, each of each detector, but torchvision's eager alone. Nothing is compiled
            under load.

    Returns:
        By load and name, which has the form after it where that is not eager: ``how``, the form;
        ``seconds`` of each round; the number of ``objects``; and of eager ones ``parts`` with the
        median seconds of each, and the number of ``proposals``.
    """
    waits = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None

    @torch.no_grad()
    def once(run: Callable[[torch.Tensor], Any]) -> Any:
        with autocast(dtype, device):
            found = run(images)
        waits()
        return found

    runs, ways = {}, {}
    for name, detector in detectors.items():
        for how in forms:
            if how != EAGER and isinstance(detector, TorchvisionDetector):
                continue
            key = name if how == EAGER else f"{name} {how}"
            runs[key] = partial(once, FORMS[how](detector, images))
            ways[key] = dict(how=how, objects=count(runs[key]()))
    results = {}
    for load in loads:
        with busy(load):
            seconds = interleaved(runs, rounds, warm_up)
            results[load] = {key: dict(own, seconds=seconds[key]) for key, own in ways.items()}
            for name in detectors:
                if name in runs:
                    own = parts_of(runs[name], detectors[name], waits, min(rounds, 3))
                    results[load][name] |= own
    return results


def count(found: Sequence[Any]) -> int:
    """Of the objects on all images."""
    return sum(len(getattr(sample, "pred_instances", sample)) for sample in found)


def parts_of(
    once: Callable[[], Any], detector: nn.Module, wait: Callable[[], object], rounds: int
) -> dict[str, Any]:
    """The median seconds of the parts of a pass, and what went through it."""
    regions, _ = next(owners_of(detector, "RoIAlign"))
    seen: list[int] = []
    handle = regions.register_forward_hook(lambda _, __, found: seen.append(len(found)))
    with parts_timed(detector, wait) as spent:
        for _ in range(rounds):
            once()
    handle.remove()
    return dict(
        parts={part: median(sums(own, rounds)) for part, own in spent.items()},
        proposals=seen[-1],
    )


def sums(values: Sequence[float], groups: int) -> list[float]:
    """Of as many groups of as many values one after the other."""
    size = len(values) // groups
    return [sum(values[i : i + size]) for i in range(0, size * groups, size)] if size else [0.0]


@contextmanager
def parts_timed(
    detector: nn.Module, wait: Callable[[], object]
) -> Iterator[dict[str, list[float]]]:
    """The seconds of each call of each of `PARTS` inside."""
    spent: dict[str, list[float]] = {}
    taken = []
    for part in PARTS:
        for module, method in owners_of(detector, part):
            spent.setdefault(part, [])
            setattr(module, method, timed(getattr(module, method), spent[part], wait))
            taken.append((module, method))
    try:
        yield spent
    finally:
        for module, method in taken:
            delattr(module, method)  # the class's own is there again


def owners_of(detector: nn.Module, part: str) -> Iterator[tuple[nn.Module, str]]:
    """The modules of one of `PARTS`, several in a Cascade, and their method that it is."""
    path, method = getattr(detector, "parts", PARTS)[part]
    owner: Any = detector
    for name in path.split("."):
        owner = getattr(owner, name, None)
    owners = owner if isinstance(owner, nn.ModuleList) else [owner]
    for module in owners:
        if module is None or not hasattr(module, method):
            continue
        if method == "predict_by_feat" and module is not owners[-1]:
            continue  # only a Cascade's last one has something to do
        yield module, method


def timed(
    function: Callable[..., Any], spent: list[float], wait: Callable[[], object]
) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        wait()
        start = perf_counter()
        out = function(*args, **options)
        wait()
        spent.append(perf_counter() - start)
        return out

    return run
