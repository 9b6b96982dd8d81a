"""Weights of images in colour in backbones of other input channels, both families, both ways in."""

from collections.abc import Callable

import pytest
import torch
from mmengine.runner import load_checkpoint

from ltm_det.backbones import (
    LTMConvNeXt,
    LTMEfficientViT,
    LTMMobileViT,
    LTMPVTv2,
    LTMSwin,
    LTMViT,
)
from ltm_det.backbones.common import weights
from tests.test_backbones import convnext_cases, efficientvit_cases, mobilevit_cases, pvt_cases
from tests.test_backbones.checkpoints import Detector, randomise

SWIN = dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=4)
VIT = dict(embed_dims=16, depth=2, num_heads=2, patch_size=8, window_size=4, pretrain_img_size=32)
MODELS: dict[str, tuple[Callable, str]] = {
    "swin": (lambda n=3, **kw: LTMSwin(in_channels=n, **SWIN, **kw), "patch_embed.projection"),
    "vit": (lambda n=3, **kw: LTMViT(in_channels=n, **VIT, **kw), "patch_embed.proj"),
    "mobilevit": (
        lambda n=3, **kw: LTMMobileViT(in_channels=n, **mobilevit_cases.MINI, **kw),
        "stem.conv",
    ),
    "efficientvit": (
        lambda n=3, **kw: LTMEfficientViT(in_channels=n, **efficientvit_cases.MINI, **kw),
        "stem.in_conv.conv",
    ),
    "pvt": (lambda n=3, **kw: LTMPVTv2(in_channels=n, **pvt_cases.MINI, **kw), "patch_embed.proj"),
    "convnext": (
        lambda n=3, **kw: LTMConvNeXt(in_channels=n, **convnext_cases.MINI, **kw),
        "stem.0",
    ),
}


def made(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """One channel gets the sum, others the colours in turns, scaled by 3 / channels."""
    if channels == 1:
        return sum(weight[:, i : i + 1] for i in range(3))
    return torch.stack([weight[:, i % 3] for i in range(channels)], 1) * 3 / channels


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("way", ["init_cfg", "load_from", "load_state_dict"])
def test_other_channels_keep_all_other_weights(
    family, channels, way, tmp_path, monkeypatch
) -> None:
    build, name = MODELS[family]
    theirs, notes = randomise(build()), []
    monkeypatch.setattr(weights, "print_log", lambda text, *_, **__: notes.append(text))
    path = str(tmp_path / "rgb.pth")
    if way == "init_cfg":
        torch.save(theirs.state_dict(), path)
        model = build(channels, init_cfg=dict(type="Pretrained", checkpoint=path))
        model.init_weights()
    else:
        whole = Detector(build(channels))
        torch.save(Detector(theirs).state_dict(), path)
        if way == "load_from":
            load_checkpoint(whole, path, strict=True)
        else:
            whole.load_state_dict(torch.load(path))
        model = whole.backbone
    assert f"of 3 input channels, made into {channels}" in notes[-1]
    loaded, source = model.state_dict(), theirs.state_dict()
    key = f"{name}.weight"
    torch.testing.assert_close(loaded[key], made(source.pop(key), channels))
    assert all(torch.equal(loaded[key], value) for key, value in source.items())


@pytest.mark.parametrize("family", MODELS)
def test_grey_pictures_give_what_they_gave(family) -> None:
    """In colour a grey picture has three equal channels."""
    build, _ = MODELS[family]
    theirs = randomise(build())
    grey, model = torch.randn(1, 1, 64, 64), build(1)
    model.load_state_dict(theirs.state_dict())
    model.eval()
    with torch.no_grad():
        expected, found = theirs(grey.expand(-1, 3, -1, -1)), model(grey)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", MODELS)
def test_channels_of_nothing_known_are_refused(family) -> None:
    build, name = MODELS[family]
    with pytest.raises(ValueError, match=rf"{name}.weight: \(\d+, 4, \d, \d\) in the checkpoint"):
        build(3).load_state_dict(build(4).state_dict())


def test_channels_and_patches_at_once() -> None:
    """A ViT's patches are resampled as well."""
    build, name = MODELS["vit"]
    theirs = randomise(build())
    options = dict(VIT, patch_size=4, pretrain_img_size=16)
    model = LTMViT(in_channels=1, **options)
    model.load_state_dict(theirs.state_dict())
    rgb = LTMViT(**options)
    rgb.load_state_dict(theirs.state_dict())
    key = f"{name}.weight"
    torch.testing.assert_close(model.state_dict()[key], made(rgb.state_dict()[key], 1))
