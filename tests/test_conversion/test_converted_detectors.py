"""Small dense detectors of random weights, converted."""

from pathlib import Path

import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.models import SwinTransformer
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from ltm_det.backbones import LTMSwin, LTMViT
from ltm_det.conversion.convert import (
    convert,
    dense_backbone,
    merged_config,
    save_converted,
    written_files,
)
from tests.test_backbones.checkpoints import randomise

SWIN = "depths=[1, 2, 1, 2], num_heads=[1, 2, 4, 4], embed_dims=8, window_size=4"
VIT = "depth=4, num_heads=2, embed_dims=8, patch_size=8, window_size=4, pretrain_img_size=64"
FPN = "in_channels=[8, 16, 32, 64], out_channels=8"
PYRAMID = "_delete_=True, type='SimpleFPN', in_channels=8, out_channels=8, num_outs=5"
BACKBONES = {
    "SwinTransformer": (SWIN, FPN),
    "mmdet.SwinTransformer": (SWIN, FPN),
    "LTMSwin": (f"{SWIN}, merger=None", FPN),
    "LTMViT": (VIT, PYRAMID),
}
CONFIG = """
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py']
load_from = 'coco.pth'
model = dict(
    backbone=dict(
        _delete_=True, type='{kind}', {sizes},
        init_cfg=dict(type='Pretrained', checkpoint='imagenet.pth')),
    neck=dict({neck}),
    rpn_head=dict(in_channels=8, feat_channels=8),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=8),
        bbox_head=dict(in_channels=8, fc_out_channels=16, num_classes=2)),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20)))
test_dataloader = dict(dataset=dict(type='CocoDataset', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
"""
META = dict(classes=("box", "slab"), palette=[(1, 2, 3), (4, 5, 6)])
HALF = dict(type="LTM", compression_ratio=0.5)


def config(kind: str) -> Config:
    sizes, neck = BACKBONES[kind]
    return Config.fromstring(CONFIG.format(kind=kind, sizes=sizes, neck=neck), ".py")


def dense_detector(cfg: Config) -> nn.Module:
    init_default_scope("mmdet")
    cfg = Config(cfg.to_dict(), format_python_code=False)
    cfg.model.backbone.init_cfg = cfg.model.backbone.pop("init_cfg") and None
    return randomise(MODELS.build(cfg.model))


@pytest.fixture(params=BACKBONES)
def kind(request) -> str:
    return request.param


@pytest.fixture
def checkpoint(kind: str, tmp_path: Path) -> tuple[nn.Module, str]:
    """A dense detector, and the file that has its weights."""
    detector, path = dense_detector(config(kind)), tmp_path / "dense.pth"
    torch.save(dict(state_dict=detector.state_dict(), meta=dict(dataset_meta=META)), path)
    return detector, str(path)


def outputs(detector: nn.Module) -> list[torch.Tensor]:
    """Maps of the neck and raw boxes and scores of the RPN, for images of odd sizes."""
    torch.manual_seed(1)
    with torch.no_grad():
        maps = detector.extract_feat(torch.randn(2, 3, 75, 90))
        scores, boxes = detector.rpn_head(maps)
    return [*maps, *scores, *boxes]


def test_the_config_gets_the_merger_and_loses_pretraining(kind: str) -> None:
    cfg = config(kind)
    before = cfg.to_dict()
    merged = merged_config(cfg, HALF)
    assert cfg.to_dict() == before
    backbone = merged.model.backbone
    assert backbone.type == ("LTMViT" if kind == "LTMViT" else "LTMSwin")
    assert backbone.merger == HALF
    assert "init_cfg" not in backbone and merged.load_from is None
    assert merged.custom_imports == dict(imports=["ltm_det"])
    own = {"type", "merger", "init_cfg"}
    sizes = {key: value for key, value in before["model"]["backbone"].items() if key not in own}
    assert {key: value for key, value in backbone.items() if key not in own} == sizes
    assert {k: v for k, v in merged.model.items() if k != "backbone"} == {
        k: v for k, v in cfg.model.items() if k != "backbone"
    }


@pytest.mark.parametrize(
    "given, expected",
    [
        (dict(imports="mine"), dict(imports=["mine", "ltm_det"])),
        (dict(imports=["ltm_det", "mine"]), dict(imports=["ltm_det", "mine"])),
        (
            dict(imports=["mine"], allow_failed_imports=True),
            dict(imports=["mine", "ltm_det"], allow_failed_imports=True),
        ),
    ],
)
def test_the_config_keeps_its_own_imports(given: dict, expected: dict) -> None:
    cfg = config("LTMViT")
    cfg.custom_imports = given
    assert merged_config(cfg, HALF).custom_imports == expected


def test_at_ratio_one_it_is_the_dense_detector(checkpoint: tuple, kind: str) -> None:
    dense, path = checkpoint
    _, converted = convert(config(kind), path, dict(type="LTM", compression_ratio=1.0))
    assert not converted.training and not converted.backbone.mergers_by_point()
    for one, other in zip(outputs(dense), outputs(converted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_below_one_it_merges_with_the_dense_weights(checkpoint: tuple, kind: str) -> None:
    dense, path = checkpoint
    cfg, converted = convert(config(kind), path, HALF)
    assert isinstance(converted.backbone, LTMViT if kind == "LTMViT" else LTMSwin)
    assert len(converted.backbone.mergers_by_point()) == (1 if kind == "LTMViT" else 2)
    weights = converted.state_dict()
    for key, value in dense.named_parameters():
        assert torch.equal(weights[key], value), key
    assert converted.dataset_meta == META
    difference = outputs(dense)[0] - outputs(converted)[0]
    assert difference.abs().max() > 1e-3

    x = torch.randn(1, 3, 64, 96)
    twin = dense_backbone(cfg, converted)
    assert not twin.training and not twin.mergers_by_point()
    with torch.no_grad():
        for one, other in zip(dense.backbone(x), twin(x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_saved_loads_with_the_config_beside_it(
    checkpoint: tuple, kind: str, tmp_path: Path
) -> None:
    cfg, converted = convert(config(kind), checkpoint[1], HALF)
    out = tmp_path / "new" / "half.v1.pth"
    save_converted(cfg, converted, out)
    assert {path.name for path in out.parent.iterdir()} == {"half.v1.pth", "half.v1.py"}
    image = torch.randint(0, 256, (60, 64, 3)).byte().numpy()
    for source in (dict(model=str(out.with_suffix(".py"))), {}):  # the checkpoint has it too
        inferencer = DetInferencer(**source, weights=str(out), device="cpu", show_progress=False)
        assert inferencer.model.dataset_meta["classes"] == META["classes"]
        for one, other in zip(outputs(converted), outputs(inferencer.model), strict=True):
            assert torch.equal(one, other)
        assert len(inferencer(image)["predictions"]) == 1
    save_converted(cfg, converted, out)  # replaces what is there
    assert len(list(out.parent.iterdir())) == 2


def test_classes_of_an_mmdet_2_checkpoint_are_kept(tmp_path: Path) -> None:
    cfg, path = config("LTMViT"), tmp_path / "old.pth"
    state = dense_detector(cfg).state_dict()
    for meta, expected in (
        (dict(CLASSES=["a", "b"], epoch=3), dict(classes=["a", "b"])),
        (dict(epoch=3), {}),
        (None, {}),
    ):
        torch.save(dict(state_dict=state, **(dict(meta=meta) if meta else {})), path)
        assert convert(cfg, str(path), HALF)[1].dataset_meta == expected
    save_converted(*convert(cfg, str(path), HALF), tmp_path / "new.pth")
    assert "dataset_meta" not in torch.load(tmp_path / "new.pth", weights_only=True)["meta"]


def test_what_cannot_be_converted_is_named(tmp_path: Path) -> None:
    cfg = config("SwinTransformer")
    cfg.model.backbone.type = "ResNet"
    with pytest.raises(ValueError, match="a ResNet cannot be converted: .*'SwinTransformer'"):
        merged_config(cfg, HALF)
    cfg.model.backbone.type = SwinTransformer  # as lazy configs have it
    assert merged_config(cfg, HALF).model.backbone.type == "LTMSwin"
    with pytest.raises(ValueError, match="merges already.*give the dense detector's config"):
        merged_config(merged_config(cfg, HALF), HALF)
    with pytest.raises(ValueError, match="scope='block' is not for a ViT.*merge_at"):
        merged_config(config("LTMViT"), dict(HALF, scope="block"))
    with pytest.raises(ValueError, match="name the checkpoint"):
        written_files(tmp_path / "a.py")


@pytest.mark.parametrize(
    "merger, message",
    [
        (dict(type="No", compression_ratio=0.5), "unknown merger type 'No'"),
        (dict(type="LTM", compression_ratio=1.5), "compression_ratio must lie in"),
        (dict(type="LTM", compression_ratio=[0.5, 0.5]), "2 entries for 4 stages"),
        (dict(HALF, scope="window"), "unknown scope 'window'"),
        (
            dict(HALF, colour="red"),
            "model.backbone: LTMSwin: merger of type 'LTM' has no argument 'colour'",
        ),
    ],
)
def test_a_bad_merger_is_named(merger: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(config("LTMSwin"), "unread.pth", merger)


def test_every_key_is_accounted_for(tmp_path: Path) -> None:
    cfg, path = config("SwinTransformer"), tmp_path / "odd.pth"
    state = dense_detector(cfg).state_dict()
    backbone, head = "backbone.stages.1.blocks.0.norm1.weight", "rpn_head.rpn_cls.weight"
    for key in (backbone, head):
        lacking = {name: value for name, value in state.items() if name != key}
        for odd in (
            lacking,
            dict(lacking, **{f"{key}s": state[key]}),
            dict(state, more=state[key]),
        ):
            torch.save(dict(state_dict=odd), path)
            with pytest.raises(ValueError, match="odd.pth does not fit"):
                convert(cfg, str(path), HALF)
    torch.save(state, path)  # not wrapped
    assert convert(cfg, str(path), HALF)[1].dataset_meta == {}
