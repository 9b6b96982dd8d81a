"""The rate of every parameter, whatever rule of mmengine's bears on it too."""

import logging

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMDET_CONSTRUCTORS
from mmengine.logging import MMLogger
from mmengine.optim import LinearLR, MultiStepLR, OptimWrapper
from torch import Tensor, nn

from ltm_det.engine.layer_decay import LayerDecayConstructor
from ltm_det.necks import LN2d

LR, DECAY, DEPTH = 0.5, 0.25, 2
# Layers by the beginning of the name; powers of the decay are DEPTH + 1 - layer.
LAYERS = {
    "backbone.patch_embed.": 0,
    "backbone.pos_embed": 0,
    "backbone.prefix_tokens": 0,
    "backbone.blocks.0.": 1,
    "backbone.blocks.1.": 2,
    "backbone.norm.": 3,
    "backbone.mergers.1.": 3,
    "backbone.pos_embed_of_another_kind": 3,
    "neck.": 3,
    "blocks.": 3,
    "head.": 3,
}


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 4, 2, stride=2)
        self.pos_embed = nn.Parameter(torch.ones(1, 4, 4))
        self.prefix_tokens = nn.Parameter(torch.ones(1, 1, 4))
        self.pos_embed_of_another_kind = nn.Parameter(torch.ones(1))
        blocks = [nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(DEPTH)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(4)
        self.mergers = nn.ModuleDict({"1": nn.Linear(4, 1)})


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.neck = nn.Sequential(nn.Conv2d(4, 4, 1), LN2d(4))
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])  # a name of the backbone's, elsewhere
        self.head = nn.Linear(4, 2)


def layer(name: str) -> int:
    start = max((start for start in LAYERS if name.startswith(start)), key=len)
    return LAYERS[start]


def rate(name: str) -> float:
    return LR * DECAY ** (DEPTH + 1 - layer(name))


def build(model: nn.Module, optimizer: str = "SGD", **rules) -> OptimWrapper:
    cfg = dict(type="OptimWrapper", optimizer=dict(type=optimizer, lr=LR, weight_decay=0.1))
    return LayerDecayConstructor(cfg, dict(layer_decay=DECAY, **rules))(model)


def groups(model: nn.Module, wrapper: OptimWrapper) -> dict[str, dict]:
    """The group of each parameter, of which each has one of its own."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for group in wrapper.optimizer.param_groups:
        (parameter,) = group["params"]
        assert names[parameter] not in found
        found[names[parameter]] = group
    return found


def rates(model: nn.Module, wrapper: OptimWrapper) -> dict[str, float]:
    return {name: group["lr"] for name, group in groups(model, wrapper).items()}


def expected(model: nn.Module) -> dict[str, float]:
    return {name: pytest.approx(rate(name)) for name, _ in model.named_parameters()}


def test_rate_of_every_parameter() -> None:
    model = Detector()
    assert rates(model, build(model)) == expected(model)
    assert {layer(name) for name, _ in model.named_parameters()} == set(range(DEPTH + 2))


def test_no_decay_is_one_rate() -> None:
    model = Detector()
    cfg = dict(optimizer=dict(type="SGD", lr=LR))
    wrapper = LayerDecayConstructor(cfg, dict(layer_decay=1))(model)
    assert set(rates(model, wrapper).values()) == {LR}


def test_custom_keys_multiply() -> None:
    model = Detector()
    keys = {
        "pos_embed": dict(decay_mult=0.0),
        "blocks.1": dict(lr_mult=3.0),
        "merger": dict(lr_mult=10.0, decay_mult=0.5),
    }
    found = groups(model, build(model, custom_keys=keys))
    for name, group in found.items():
        lr_mult = 10 if "merger" in name else 3 if "blocks.1" in name else 1
        decay_mult = 0.5 if "merger" in name else 0 if "pos_embed" in name else 1
        assert group["lr"] == pytest.approx(lr_mult * rate(name)), name
        assert group["weight_decay"] == pytest.approx(decay_mult * 0.1), name


def test_norms_and_biases_without_weight_decay() -> None:
    model = Detector()
    rules = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, bias_lr_mult=2.0)
    found = groups(model, build(model, **rules))
    norms = ("backbone.norm.", "backbone.blocks.0.0.", "backbone.blocks.1.0.", "neck.1.")
    for name, group in found.items():
        norm, bias = name.startswith(norms), name.endswith(".bias")
        assert group["weight_decay"] == (0 if norm or bias else 0.1), name
        assert group["lr"] == pytest.approx((2 if bias and not norm else 1) * rate(name)), name


def test_frozen_parameters_are_left_out() -> None:
    model = Detector()
    model.backbone.patch_embed.requires_grad_(False)
    model.backbone.blocks[0].requires_grad_(False)
    kept = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = rates(model, build(model))
    assert found.keys() == kept
    assert found == {name: value for name, value in expected(model).items() if name in kept}


def test_wrapped_models() -> None:
    model = Detector()
    assert rates(model, build(nn.DataParallel(model))) == expected(model)


def test_schedulers_keep_the_ratios() -> None:
    model = Detector()
    wrapper = build(model)
    schedulers = [
        LinearLR(wrapper, start_factor=0.1, by_epoch=False, end=4),
        MultiStepLR(wrapper, milestones=[6], gamma=0.1, by_epoch=False),
    ]
    factors = []
    for _ in range(8):
        found = rates(model, wrapper)
        ratios = [value / rate(name) for name, value in found.items()]
        assert max(ratios) == pytest.approx(min(ratios))
        factors.append(ratios[0])
        wrapper.step()
        for scheduler in schedulers:
            scheduler.step()
    assert factors == pytest.approx([0.1, 0.4, 0.7, 1, 1, 1, 0.1, 0.1])


def test_one_step_moves_each_parameter_by_its_rate() -> None:
    model = Detector().double()
    wrapper = build(model, custom_keys={"": dict(decay_mult=0.0)})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss: Tensor = sum((parameter * 3).sum() for parameter in model.parameters())
    wrapper.update_params(loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name] - 3 * rate(name), msg=name)


def test_names_are_those_of_the_backbone() -> None:
    """Nothing of it but what is new or follows the blocks is trained at the full rate."""
    merger = dict(type="LTM", merge_at=1, compression_ratio=0.25)
    options = dict(prefix_tokens=1, final_norm=True, init_values=0.1, use_rel_pos=True)
    backbone = dict(type="LTMViT", embed_dims=8, depth=DEPTH, num_heads=2, window_size=2)
    model = nn.Module()
    model.backbone = MODELS.build(dict(backbone, img_size=32, merger=merger, **options))
    found = rates(model, build(model, norm_decay_mult=0.0))
    assert found == expected(model)
    assert {layer(name) for name in found} == set(range(DEPTH + 2))
    full = {name.split(".")[1] for name, value in found.items() if value == LR}
    assert full == {"norm", "mergers"}


@pytest.fixture
def lines():
    """What the current logger is given."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    messages: list[str] = []
    logger = MMLogger.get_instance("layer_decay")
    logger.addHandler(Keep(logging.INFO))
    yield messages
    MMLogger._instance_dict.pop("layer_decay")
    assert not logger.filters


def test_one_line_is_logged(lines: list[str]) -> None:
    model = Detector()
    model.backbone.patch_embed.requires_grad_(False)
    build(model, norm_decay_mult=0.0)
    (line,) = lines
    assert "layers 0 to 3: 0.00781 0.0312 0.125 0.5;" in line
    total = len(list(model.parameters()))
    assert f"{total - 2} of {total} parameters are trained" in line


@pytest.mark.parametrize("value", [None, 0, 0.0, -0.7, 1.01, float("nan"), "0.7"])
def test_layer_decay_out_of_range(value) -> None:
    rules = {} if value is None else dict(layer_decay=value)
    with pytest.raises(ValueError, match=r"layer_decay=.* must lie in \(0, 1\].*dict\(layer_decay"):
        LayerDecayConstructor(dict(optimizer=dict(type="SGD", lr=LR)), rules)


def test_an_optimizer_without_a_rate() -> None:
    with pytest.raises(ValueError, match="has no lr: name the rate"):
        LayerDecayConstructor(dict(optimizer=dict(type="AdamW")), dict(layer_decay=0.7))


@pytest.mark.parametrize("part", ["backbone", "blocks"])
def test_a_model_without_blocks(part: str, lines: list[str]) -> None:
    model = Detector()
    delattr(model if part == "backbone" else model.backbone, part)
    kind = "Detector" if part == "backbone" else "Backbone"
    with pytest.raises(ValueError, match=f"{kind} lacks: leave out optim_wrapper.constructor"):
        build(model)


def test_it_is_a_constructor_of_mmdet() -> None:
    assert MMDET_CONSTRUCTORS.get("LayerDecayConstructor") is LayerDecayConstructor
