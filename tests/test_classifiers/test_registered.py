"""The classifiers that timm knows: weights and logits of its own models, and fewer tokens."""

import pytest
import timm
import torch
from timm.data import resolve_data_config

from ltm_det.backbones import LTMMobileViT
from ltm_det.basics.errors import InputError
from ltm_det.classifiers.registered import MODELS, twin_of
from ltm_det.measure.flops import count_backbone, parameters
from tests.test_backbones.harness import randomise

SMALL = "ltm_mobilevit_xs"
LARGE = ("ltm_vit_base", "ltm_swin_base")
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] * name.startswith(LARGE), id=name)
    for name in MODELS
]
# At the size of the paper's table: its GFLOPs, dense and merged.
PAPER = {
    ("ltm_mobilevit_xs", 256): (0.70, 0.52),
    ("ltm_mobilevit_s", 256): (1.4, 1.17),
    ("ltm_efficientvit_b1", 224): (0.52, 0.44),
    ("ltm_efficientvit_b1", 288): (0.86, 0.70),
    ("ltm_vit_small_patch16_224", 224): (4.3, 3.7),
    ("ltm_vit_base_patch16_224", 224): (17.6, 12.9),
    ("ltm_swin_tiny_patch4_window7_224", 224): (4.5, 3.8),
    ("ltm_swin_base_patch4_window7_224", 224): (15.4, 12.0),
}


def images(side=224, channels=3, number=1):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, channels, side, side, generator=generator)


@torch.no_grad()
def logits(model, x):
    return model.eval()(x)


@pytest.mark.parametrize("name", NAMES)
def test_dense_models_are_timms(name):
    twin = randomise(timm.create_model(twin_of(name)))
    model = timm.create_model(name, merger=False)
    model.load_state_dict(twin.state_dict())
    assert not model.backbone.mergers_by_point()
    joined = model.num_features if "vit_small" in name or "vit_base" in name else 0
    assert parameters(model) == parameters(twin) - joined  # the class token and its position
    expected = logits(twin, images())
    assert expected.std() > 0.01
    torch.testing.assert_close(logits(model, images()), expected, atol=1e-4, rtol=1e-4)
    features = model.forward_features(images())
    torch.testing.assert_close(
        model.forward_head(features, pre_logits=True),
        twin.forward_head(twin.forward_features(images()), pre_logits=True),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("name", "side"),
    [pytest.param(*key, marks=[pytest.mark.slow] * key[0].startswith(LARGE)) for key in PAPER],
)
def test_gmacs_fall_as_the_papers_do_or_more(name, side):
    models = [timm.create_model(name, merger=merger) for merger in (False, True)]
    dense, merged = (count_backbone(model, (side, side)).macs["backbone"] for model in models)
    before, after = PAPER[name, side]
    assert 0.6 < merged / dense < after / before
    few, more = map(parameters, models)
    assert 1 < more / few < 1.02


def test_weights_are_found_as_timms_are():
    assert set(MODELS) == set(timm.list_models("ltm_*"))
    for name in MODELS:
        own, theirs = (timm.models.get_arch_pretrained_cfgs(n) for n in (name, twin_of(name)))
        assert {tag.removeprefix("ltm_") for tag in own} == set(theirs)
        for tag, entry in own.items():
            there = theirs[tag.removeprefix("ltm_")]
            assert (entry.hf_hub_id, entry.mean) == (there.hf_hub_id, there.mean)
        default = (
            timm.models.get_pretrained_cfg(name),
            timm.models.get_pretrained_cfg(twin_of(name)),
        )
        assert default[0].tag == default[1].tag
    assert "ltm_efficientvit_b1.r288_in1k" in timm.list_pretrained("ltm_*")


def test_pretrained_weights_come_from_a_file(tmp_path):
    """Also for other classes and channels, as in timm's own model."""
    twin = randomise(timm.create_model(twin_of(SMALL)))
    file = tmp_path / "weights.pth"
    torch.save(twin.state_dict(), file)
    options = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(file)))
    model = timm.create_model(SMALL, merger=False, **options)
    torch.testing.assert_close(
        logits(model, images(64)), logits(twin, images(64)), atol=1e-4, rtol=1e-4
    )
    options |= dict(num_classes=5, in_chans=1)
    gray, theirs = (timm.create_model(n, **options) for n in (SMALL, twin_of(SMALL)))
    assert logits(gray, images(64, 1)).shape == (1, 5)
    torch.testing.assert_close(gray.backbone.stem.conv.weight, theirs.stem.conv.weight)
    merged = timm.create_model(SMALL, checkpoint_path=str(file))
    assert len(merged.backbone.mergers_by_point()) == 3
    torch.testing.assert_close(merged.head.fc.weight, twin.head.fc.weight)


def test_a_trained_classifier_is_loaded_again_and_starts_a_detector(tmp_path):
    model = randomise(timm.create_model(SMALL, num_classes=3))
    file = tmp_path / "trained.pth.tar"
    torch.save(dict(state_dict=model.state_dict()), file)
    again = timm.create_model(SMALL, num_classes=3, checkpoint_path=str(file))
    torch.testing.assert_close(logits(again, images(64)), logits(model, images(64)))
    start = dict(type="Pretrained", checkpoint=str(file))
    merger = dict(type="LTM", compression_ratio=0.25)
    backbone = LTMMobileViT(arch="xs", init_cfg=start, merger=merger)
    backbone.init_weights()
    for name, value in backbone.state_dict().items():
        torch.testing.assert_close(value, model.backbone.state_dict()[name])


@pytest.mark.parametrize("side", [61, 224])
def test_sizes_of_images(side):
    model = randomise(timm.create_model("ltm_vit_small_patch16_224", num_classes=2))
    assert logits(model, images(side, number=2)).isfinite().all()
    assert resolve_data_config({}, model=model)["input_size"] == (3, 224, 224)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(compression_ratio=2), "compression_ratio"),
        (dict(compression_ratio=0.5, merger=False), "leave one of them out"),
        (dict(compression_ratio=0.5, merger=dict(compression_ratio=0.3)), "leave one of them out"),
        (dict(merger=3), "give False for the dense model"),
        (dict(merger="Pol"), "unknown merger type 'Pol'"),
        (dict(merger=dict(tempreture=1)), "tempreture"),
        (dict(compresion_ratio=0.5), "did you mean 'compression_ratio'"),
        (dict(features_only=True), "features_only"),
    ],
    ids=str,
)
def test_bad_arguments(given, said):
    with pytest.raises(InputError, match=said):
        timm.create_model(SMALL, **given)


def test_pooling_of_a_vit_is_its_class_token():
    with pytest.raises(InputError, match="class token"):
        timm.create_model("ltm_vit_small_patch16_224", global_pool="avg")


@pytest.mark.parametrize(
    ("given", "kind", "kept"),
    [
        (dict(), "LTM", 4),
        (dict(compression_ratio=0.5), "LTM", 9),
        (dict(merger="Pool"), "Pool", 4),
        (dict(merger=dict(type="Pool"), compression_ratio=0.5), "Pool", 9),
        (dict(merger=dict(dense_blocks=1)), "LTM", 4),
    ],
    ids=str,
)
def test_mergers(given, kind, kept):
    model = timm.create_model(SMALL, **given)
    mergers = model.backbone.mergers_by_point().values()
    assert {type(merger).__name__ for merger in mergers} == {kind}
    assert {model.backbone.stages[i][-1].kept[-1] for i in (2, 3, 4)} == {kept}


def test_weights_of_something_else_are_refused():
    other = timm.create_model("resnet18").state_dict()
    with pytest.raises(ValueError, match="does not fit the model"):
        timm.create_model(SMALL).load_state_dict(other)
