"""Configs that cannot be right: one message with file or field, value and remedy; exit code 2."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ltm_det.cli import main as console

# By name: what a file holds, its ending, and what the message has to say.
FILES = {
    "syntax": ("model = dict(\n", ".py", "bad.py: .*syntax error.*line"),
    "missing base": (
        "_base_ = 'gone.py'\n",
        ".py",
        "bad.py inherits from a missing file: .*gone.py",
    ),
    "unknown package": ("_base_ = 'mmdet::gone.py'\n", ".py", "bad.py: .*package"),
    "circle": ("_base_ = 'bad.py'\n", ".py", "bad.py inherits from itself.*_base_"),
    "empty": ("", ".py", "the config has no 'model'"),
    "model misspelled": ("modle = dict(type='MaskRCNN')\n", ".py", "did you mean 'modle'"),
    "model without type": ("model = dict(backbone=dict())\n", ".py", "give a dict with type"),
    "model is a name": ("model = 'MaskRCNN'\n", ".py", "model='MaskRCNN': give a dict with type"),
    "raises": ("a = 1\nb = a / 0\n", ".py", "bad.py, line 2: ZeroDivisionError: division by zero"),
    "import": ("custom_imports = dict(imports=['no.such'])\n", ".py", "bad.py.*no.such"),
    "json": ("{", ".json", "bad.json: JSONDecodeError"),
    "json list": ("[1, 2]", ".json", "bad.json: .*"),
    "yaml": ("a: [1\nb: }", ".yaml", "bad.yaml: .*Error"),
    "text": ("model", ".txt", r"bad.txt is no config: .*'.py'"),
    "binary": (b"\x80\x02\xff\x00", ".py", "bad.py is no config, but cannot be read as text"),
}
HEAD = "model.roi_head.bbox_head"
# Settings of a good config, and what the message has to say.
SETTINGS = {
    "model.type=MaskRCN": "model.type='MaskRCN' is unknown: did you mean .*'MaskRCNN'",
    "model.backbone.type=LTMSwinn": "model.backbone.type='LTMSwinn' is unknown: .*'LTMSwin'",
    "model.neck.type=FPNN": "model.neck.type='FPNN' is unknown: did you mean .*'FPN'",
    "model.backbone.windw_size=4": "model.backbone: .*no argument 'windw_size': .*'window_size'",
    "model.neck.out_chanels=4": "model.neck: FPN has no argument 'out_chanels': .*'out_channels'",
    "model.backbone=LTMSwin": "model.backbone='LTMSwin': MaskRCNN takes a dict",
    "model.neck.in_channels=[16,32,64,64]": r"neck.in_channels=.*backbone have \[16, 32, 64, 128\]",
    "model.neck.in_channels=None": "model.neck: FPN: ",
    "model.neck.num_outs=4": "anchor_generator.strides=.* 5 maps, but model.neck.num_outs=4",
    "model.rpn_head.in_channels=8": "model.rpn_head.in_channels=8, but model.neck.out_channels=16",
    f"{HEAD}.in_channels=8": f"{HEAD}.in_channels=8, but .*extractor.out_channels=16",
    f"{HEAD}.num_classes=1": f"{HEAD}.num_classes=1, but .* has 2 classes .*box.*: set it to 2",
    f"{HEAD}.num_classes=3": "mask_head.num_classes=2, but model.roi_head.bbox_head.num_classes=3",
    f"{HEAD}.roi_feat_size=5": "roi_feat_size=5, but .*roi_layer.output_size=7: make them equal",
    "val_dataloader.dataset.metainfo.classes=[slab,box]": (
        "class 0 is 'box' in the data of train_dataloader and 'slab' in those of val_dataloader"
    ),
    "val_dataloader.dataset.metainfo.classes=[box]": "class 1 is 'slab' .* and missing in those of",
    "model.backbone.init_cfg.type=No": "init_cfg.*takes type='Pretrained' or None",
    "model.backbone.num_heads=[3,2,4,8]": r"num_heads\[0\]=3 does not divide the 16 channels",
    "model.data_preprocessor.mean=[1,2]": "mean has 2 channels, model.backbone.in_channels is 3",
    "model.rpn_head.0.type=a": "model.rpn_head: RPNHead has no argument '0'",
    "model.type.x=1": "--cfg-options model.type.x=1: model.type is 'MaskRCNN', which has no parts",
    "model=None": "model=None: give a dict with type",
    "model.backbone.window_size=0": "model.backbone: .*window_size",
    "model.test_cfg.rpn.nms_pre=x": "model.test_cfg.rpn.nms_pre must be a whole number.*'x'",
    "model.test_cfg.rcnn.nms.iou_threshold=2": "rcnn.nms.iou_threshold must lie in .*got 2",
    "model.train_cfg.rpn_proposal.max_per_img=0": "rpn_proposal.max_per_img must be .* got 0",
    "train_dataloader.batch_size=0": "train_dataloader.batch_size must be a whole number from 1",
    "randomness.seed=x": "randomness.seed must be a whole number from 0 on, got 'x'",
    "log_level=FOO": "unknown log_level 'FOO': choose one of .*INFO",
    "optim_wrapper.clip_grad.max_norm=-1": "clip_grad.max_norm must be .* above 0, got -1",
    "model.rpn_head=None": "model.rpn_head=None: MaskRCNN takes a dict",
    "model.data_preprocessor=None": "model.data_preprocessor=None: MaskRCNN takes a dict",
    f"{HEAD}.loss_bbox.loss_weight=x": f"{HEAD}.loss_bbox.loss_weight='x': .* takes a number",
    "model.train_cfg.rpn.assigner.pos_iou_thr=x": "pos_iou_thr='x': MaxIoUAssigner takes a number",
    "val_evaluator.ann_file=3": "val_evaluator.ann_file must be a path, got 3",
    "train_dataloader.dataset.metainfo.classes=3": "classes must be a list of names, got 3",
    "model.backbone=None": "model.backbone=None: MaskRCNN takes a dict",
    "model.roi_head.bbox_roi_extractor.featmap_strides=3": "SingleRoIExtractor: .*'int'",
    "train_dataloader=3": "train_dataloader must be a dict, got 3",
    "custom_hooks=x": "custom_hooks must be a list, got 'x'",
    "load_from=3": "load_from must be a file or a URL, got 3",
    "launcher=x": "unknown launcher 'x'",
    "train_dataloader.sampler=None": "train_dataloader.sampler must be a dict, got None",
    "image_size=64": "image_size is a variable of the config's file, of which its parts",
    "data_root=nowhere/": "no run reads 'data_root': did you mean",
    "modl.neck=None": "no run reads 'modl': did you mean 'model'",
    "test_dataloader.drop_last=True": "test_dataloader.drop_last=True leaves pictures out",
    "val_dataloader.dataset.indices=2": "dataset.indices=2 leaves pictures out, which AP would",
    "val_evaluator=[]": "val_evaluator must have 1 or more entries",
    "test_evaluator.iou_thrs=[0.75]": "test_evaluator.iou_thrs=.*leave it out, AP comes at 0.5",
    "val_evaluator.proposal_nums=[1,10]": "val_evaluator.proposal_nums must hold 100, of which AP",
    "test_dataloader.sampler.type=InfiniteSampler": "test_dataloader.sampler.type=.* never ends",
    "test_evaluator.proposal_nums=[x]": r"test_evaluator.proposal_nums\[0\] must be a whole",
    "model.data_preprocessor.std=[0,0,0]": r"data_preprocessor.std\[0\] must be .* above 0",
    "model.data_preprocessor.pad_size_divisor=0": "pad_size_divisor must be a whole number from 1",
    "model.rpn_head.anchor_generator.ratios=[0,1]": r"ratios\[0\] must be finite and above 0",
    f"{HEAD}.bbox_coder.target_stds=[0,0,0,0]": r"target_stds\[0\] must be finite and above 0",
    f"{HEAD}.bbox_coder.target_means=[0,0]": "target_means must have 4 or more entries",
    "model.roi_head.bbox_roi_extractor.finest_scale=0": "finest_scale must be .* above 0, got 0",
    "train_dataloader.dataset.pipeline=None": "dataset.pipeline must be a list, got None",
    "train_dataloader.dataset.data_prefix=x": "dataset.data_prefix must be a dict, got 'x'",
    "train_dataloader.dataset.data_prefix.img=3": "data_prefix.img must be a path, got 3",
    "val_dataloader.dataset.data_root=3": "val_dataloader.dataset.data_root must be a path, got 3",
    "val_dataloader.dataset.type=3": "dataset.type must be the name of a class, got 3",
    "val_dataloader.dataset.pipeline.3.type=None": r"pipeline\[3\].type must be the name",
    "model.roi_head.mask_roi_extractor.roi_layer=3": "model.roi_head.mask_roi_extractor: ",
    "train_dataloader.dataset.filter_cfg=x": "dataset.filter_cfg must be a dict, got 'x'",
    "train_dataloader.dataset.pipeline.3.type=Mosaic": r"pipeline\[3\].type='Mosaic' mixes",
    "model.train_cfg.rcnn.sampler.num=0": "sampler.num must be a whole number from 1 on, got 0",
    "model.neck.in_channels.7=1": "--cfg-options .*: model.neck.in_channels is a list of 4: give 0",
}
SWIN = "_base_ = '{base}'\nmodel = dict(backbone=dict(type='LTMSwin'))\nimage_size = 64\n"


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs a command that must end with 2; gives its message, in one line."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert console([*map(str, words)]) == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told
        return " ".join(told.split())

    return run


@pytest.fixture
def swin(tiny_config: Path, tmp_path: Path) -> Path:
    """A good config of ours."""
    file = tmp_path / "swin.py"
    file.write_text(SWIN.format(base=tiny_config))
    return file


@pytest.mark.parametrize("name", FILES)
def test_bad_files(name: str, refuses: Callable, tmp_path: Path) -> None:
    content, suffix, told = FILES[name]
    file = tmp_path / f"bad{suffix}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    commands = [["flops"], ["memory"], ["train", "--work-dir", tmp_path / "w"]]
    for command, *rest in commands if name in ("syntax", "empty") else commands[:1]:
        assert re.search(told, refuses(command, file, *rest))
    assert re.search(told, refuses("test", file, "none.pth"))


def test_a_folder(refuses: Callable, tmp_path: Path) -> None:
    assert f"{tmp_path} is a folder: give a config file in it" in refuses("flops", tmp_path)


@pytest.mark.parametrize("command", ["flops", "visualize", "predict", "draw", "search", "memory"])
def test_a_model_without_backbone(command: str, refuses: Callable, tmp_path: Path) -> None:
    """Such as one that tracks what a detector in it finds."""
    config, checkpoint, picture = (tmp_path / name for name in ("a.py", "a.pth", "a.png"))
    config.write_text("model = dict(type='QDTrack', detector=dict(type='FasterRCNN'))\n")
    torch.save(dict(state_dict={}), checkpoint)
    picture.touch()
    words = {
        "visualize": [checkpoint, picture, "--out-dir", tmp_path / "drawn"],
        "predict": [checkpoint, "--images", picture, "--out", tmp_path / "found"],
        "draw": [checkpoint, "--out", tmp_path / "b.png"],
        "search": [checkpoint, "--budget", 0.5, "--out", tmp_path / "b.py"],
    }
    told = refuses(command, config, *words.get(command, []))
    assert "a QDTrack has no backbone: give a detector's config" in told


@pytest.mark.parametrize("setting", SETTINGS)
def test_bad_settings(setting: str, refuses: Callable, swin: Path) -> None:
    told = SETTINGS[setting]
    assert re.search(told, refuses("flops", swin, "--cfg-options", setting))


@pytest.mark.parametrize("setting", ["model.neck.type=FPNN", "model.backbone.mlp_ratio=x"])
@pytest.mark.parametrize(
    "command", ["train", "test", pytest.param("memory", marks=pytest.mark.slow)]
)
def test_other_commands(
    command: str, setting: str, refuses: Callable, swin: Path, tmp_path
) -> None:
    checkpoint = tmp_path / "c.pth"
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), checkpoint)
    words = dict(test=[checkpoint]).get(command, [])
    rest = [] if command == "memory" else ["--work-dir", tmp_path / "w"]
    picture = ["--picture", 32, 32] if command == "memory" else []
    told = refuses(command, swin, *words, *rest, *picture, "--cfg-options", setting)
    assert setting.split("=")[0].rpartition(".")[0] in told


@pytest.mark.parametrize(
    "setting, told",
    [
        ("optim_wrapper.optimizer.type=AdamX", "optim_wrapper.*'AdamX'.*did you mean .*'Adam"),
        ("optim_wrapper.optimizer.lrr=1", "AdamW has no argument 'lrr': did you mean 'lr'"),
        ("train_dataloader.dataset.type=Coco", "train_dataloader.dataset.type='Coco' is unknown"),
        ("train_cfg.max_iters=x", "train_cfg"),
        ("model.roi_head.mask_head=None", "metric=.*'segm'.*roi_head has no mask_head"),
        ("train_cfg=None", "train_cfg=None: training takes a dict"),
        ("optim_wrapper=None", "optim_wrapper=None: training takes a dict"),
        ("train_dataloader=None", "train_dataloader=None: training takes a dict"),
        ("train_cfg.max_iters=0", "train_cfg.max_iters must be a whole number from 1 on, got 0"),
        ("train_cfg.max_iters=-1", "train_cfg.max_iters must be a whole number from 1 on"),
        ("train_cfg.val_interval=0", "train_cfg.val_interval must be a whole number from 1"),
        ("default_hooks.checkpoint.interval=x", "checkpoint: .*interval must be .* got 'x'"),
        ("default_hooks.checkpoint.max_keep_ckpts=x", "checkpoint: .*max_keep_ckpts must be"),
        ("param_scheduler.0.type=Cos", "param_scheduler.0.type='Cos' is unknown"),
        ("default_hooks.logger.type=Log", "type='Log' is unknown"),
    ],
)
def test_what_only_training_builds(
    setting: str, told: str, refuses: Callable, swin: Path, tmp_path: Path
) -> None:
    words = ["train", swin, "--work-dir", tmp_path / "w", "--cfg-options", setting]
    assert re.search(told, refuses(*words))


def test_a_setting_without_value(swin: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        console(["flops", str(swin), "--cfg-options", "model.type"])
    assert end.value.code == 2
    assert "KEY=VALUE" in capsys.readouterr().err
