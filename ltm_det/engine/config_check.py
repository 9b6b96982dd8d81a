"""What parts of a detector's config must have in common, read off the config alone.

mmdet's classes do not know of each other: what does not fit shows in the first forward pass, or
never. What is not known here, as of other projects' classes, is passed over.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from mmdet.registry import DATASETS, MODELS
from mmengine.registry import OPTIMIZERS

from ltm_det.backbones.convnext import arguments as convnext
from ltm_det.backbones.efficientvit import arguments as efficientvit
from ltm_det.backbones.mobilevit import arguments as mobilevit
from ltm_det.backbones.pvt import arguments as pvt
from ltm_det.basics.arguments import arguments_of, nearest
from ltm_det.basics.errors import InputError

Part = Mapping[str, Any]
# Channels of ResNet's stages, as multiples of base_channels, by depth.
EXPANSION = {18: 1, 34: 1, 50: 4, 101: 4, 152: 4}
RESNETS = ("ResNet", "ResNetV1d", "ResNeXt")
SWINS = ("SwinTransformer", "LTMSwin")
# Sizes by the name of a model, and which of them are channels.
MOBILE = {
    "LTMMobileViT": (mobilevit.ARCHS, "channels"),
    "LTMEfficientViT": (efficientvit.ARCHS, "widths"),
    "LTMPVTv2": (pvt.ARCHS, "embed_dims"),
    "LTMConvNeXt": (convnext.ARCHS, "dims"),
}
EXTRACTORS = ("SingleRoIExtractor", "FastRoIExtractor")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def check_model(cfg: Any) -> None:
    """That the parts of a config's detector fit each other, and its data; its optimizer is known.

    Raises:
        InputError: Names two fields that do not.
    """
    check_optimizer(cfg.get("optim_wrapper"))
    model = cfg.get("model")
    if "model" not in cfg:
        near = nearest("model", cfg.keys()) if cfg.keys() else "it is empty"
        raise InputError(f"the config has no 'model': {near}")
    if isinstance(model, Mapping) and {"type", "backbone"} & {*model} == {"backbone"}:
        if "type" in model["backbone"]:
            return  # a backbone alone, for commands that want no more
    if not isinstance(model, Mapping) or "type" not in model:
        raise InputError(f"model={model!r}: give a dict with type, such as 'MaskRCNN'")
    for name in ("backbone", "neck", "rpn_head", "roi_head"):
        if model.get(name) is not None and not isinstance(model[name], (Mapping, list, tuple)):
            raise InputError(f"model.{name}={model[name]!r}: give a dict with type")
    if not isinstance(model.get("backbone"), Mapping):
        return  # no detector of mmdet's
    maps = backbone_channels(model["backbone"])
    check_image(model)
    check_neck(model, maps)
    check_classes(model, cfg)
    check_heads(model)


def check_optimizer(wrapper: Any) -> None:
    """That there is an optimizer of its name: mmengine would call None."""
    optimizer = wrapper.get("optimizer") if isinstance(wrapper, Mapping) else None
    kind = optimizer.get("type") if isinstance(optimizer, Mapping) else None
    if isinstance(kind, str):
        with OPTIMIZERS.switch_scope_and_registry("mmdet") as registry:
            found = registry.get(kind)
        if found is None:
            near = nearest(kind, OPTIMIZERS.module_dict)
            raise InputError(f"optim_wrapper.optimizer.type={kind!r} is unknown: {near}")


def kind_of(part: Any) -> str:
    """A part's type, without mmdet's name before it; '' for what has none."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    return kind.removeprefix("mmdet.") if isinstance(kind, str) else ""


def value_of(part: Part, name: str, cls: str) -> Any:
    """An argument of a part, or its default in a class of ours or mmdet's."""
    if name in part:
        return part[name]
    found = MODELS.get(cls)
    return arguments_of(found).get(name) if isinstance(found, type) else None


def backbone_channels(backbone: Part) -> list[int] | None:
    """Channels of the maps of a backbone, None where they are not known."""
    kind = kind_of(backbone)
    outs = value_of(backbone, "out_indices", kind) if kind in (*SWINS, *RESNETS) else None
    try:
        if kind in SWINS:
            return [value_of(backbone, "embed_dims", kind) * 2**i for i in outs]
        if kind == "LTMViT":
            return [value_of(backbone, "embed_dims", kind)]
        if kind == "HSTViT":
            width = value_of(backbone, "embed_dims", kind)
            return [width * 2**i for i in value_of(backbone, "out_indices", kind)]
        if kind in MOBILE:
            arch, (archs, channels) = value_of(backbone, "arch", kind), MOBILE[kind]
            widths = (archs[arch] if isinstance(arch, str) else arch)[channels]
            widths = widths[1:] if kind == "LTMEfficientViT" else widths  # the stem's
            return [widths[i] for i in value_of(backbone, "out_indices", kind)]
        if kind in RESNETS:
            base = backbone.get("base_channels", 64) * EXPANSION[backbone["depth"]]
            return [base * 2**i for i in outs]
    except (TypeError, KeyError, IndexError):  # what the backbone itself refuses
        return None
    return None


def check_image(model: Part) -> None:
    """Channels of the images, as normalised and as the backbone takes them."""
    mean = (model.get("data_preprocessor") or {}).get("mean")
    backbone = model["backbone"]
    if not isinstance(mean, Sequence) or kind_of(backbone) not in (
        *SWINS,
        *RESNETS,
        "LTMViT",
        *MOBILE,
    ):
        return
    given = backbone.get("in_channels", 3)
    if len(mean) not in (1, given):
        raise InputError(
            f"model.data_preprocessor.mean has {len(mean)} channels, model.backbone.in_channels is "
            f"{given}: make them equal"
        )


def check_neck(model: Part, maps: list[int] | None) -> None:
    """Channels that the neck takes, and the levels that it gives."""
    neck = model.get("neck")
    kind = kind_of(neck)
    if kind not in ("FPN", "SimpleFPN"):
        return
    given = neck.get("in_channels")
    if maps is not None and given is not None:
        wanted = maps if kind == "FPN" else maps[-1]
        same = list(given) == wanted if isinstance(given, (list, tuple)) else given == wanted
        if not same:
            raise InputError(
                f"model.neck.in_channels={given!r}, but the maps of model.backbone have {wanted}: "
                "set it to that"
            )
    outs = value_of(neck, "num_outs", kind)
    width = value_of(neck, "out_channels", kind)
    steps: dict[str, Any] = {}
    for name in ("rpn_head", "bbox_head"):
        head = model.get(name)
        if not isinstance(head, Mapping):
            continue
        expect(f"model.{name}.in_channels", head.get("in_channels"), "neck.out_channels", width)
        anchors = head.get("anchor_generator")
        if kind_of(anchors) == "AnchorGenerator" and isinstance(outs, int):
            strides = anchors.get("strides")
            if isinstance(strides, Sequence) and len(strides) != outs:
                raise InputError(
                    f"model.{name}.anchor_generator.strides={list(strides)} are of {len(strides)} "
                    f"maps, but model.neck.num_outs={outs}: give one stride for each map"
                )
            steps[f"model.{name}.anchor_generator.strides"] = strides
    for path, extractor in extractors(model):
        expect(f"{path}.out_channels", extractor.get("out_channels"), "neck.out_channels", width)
        strides = extractor.get("featmap_strides")
        known = isinstance(strides, Sequence)
        if known and isinstance(outs, int) and len(strides) > outs:
            raise InputError(
                f"{path}.featmap_strides={list(strides)} are of {len(strides)} maps, but "
                f"model.neck.num_outs={outs}: leave the last ones out"
            )
        for other, own in steps.items() if known else ():
            if isinstance(own, Sequence) and list(own)[: len(strides)] != list(strides):
                raise InputError(
                    f"{path}.featmap_strides={list(strides)}, but {other}={list(own)}: both are "
                    "of the neck's maps, give them the same pixels for each map"
                )


def extractors(model: Part) -> Iterator[tuple[str, Part]]:
    """Region extractors of the RoI head, by their paths."""
    for name in ("bbox_roi_extractor", "mask_roi_extractor"):
        for path, part in parts(model.get("roi_head"), name):
            if kind_of(part) in EXTRACTORS:
                yield path, part


def parts(head: Any, name: str) -> Iterator[tuple[str, Part]]:
    """A part of the RoI head, or those of its stages, by their paths."""
    found = head.get(name) if isinstance(head, Mapping) else None
    listed = isinstance(found, (list, tuple))
    for i, part in enumerate(found if listed else [found]):
        if isinstance(part, Mapping):
            yield f"model.roi_head.{name}" + (f".{i}" if listed else ""), part


def expect(path: str, given: Any, other: str, wanted: Any) -> None:
    """That two numbers, where both are there, are equal."""
    if isinstance(given, int) and isinstance(wanted, int) and given != wanted:
        raise InputError(f"{path}={given}, but model.{other}={wanted}: make them equal")


def check_heads(model: Part) -> None:
    """Channels and sizes of regions, and that all heads know the same classes."""
    head = model.get("roi_head")
    whole = isinstance(head, Mapping) and head.get("shared_head") is None  # that changes both
    for what in ("bbox", "mask") if whole else ():
        found = next(parts(head, f"{what}_roi_extractor"), None)
        if found is None or kind_of(found[1]) not in EXTRACTORS:
            continue
        name, extractor = found[0].removeprefix("model."), found[1]
        layer = extractor.get("roi_layer")
        size = layer.get("output_size") if isinstance(layer, Mapping) else None
        for path, part in parts(head, f"{what}_head"):
            given, width = part.get("roi_feat_size"), extractor.get("out_channels")
            expect(f"{path}.in_channels", part.get("in_channels"), f"{name}.out_channels", width)
            expect(f"{path}.roi_feat_size", given, f"{name}.roi_layer.output_size", size)
    known = list(class_counts(model))
    for path, count in known[1:]:
        first, wanted = known[0]
        expect(path, count, first.removeprefix("model."), wanted)


def class_counts(model: Part) -> Iterator[tuple[str, int]]:
    """Numbers of classes of all heads that name one, by their paths."""
    for name in ("bbox_head", "mask_head"):
        found = list(parts(model.get("roi_head"), name))
        if isinstance(model.get(name), Mapping) and "roi_head" not in model:
            found.append((f"model.{name}", model[name]))
        for path, part in found:
            count = part.get("num_classes")
            if isinstance(count, int) and not part.get("class_agnostic"):
                yield f"{path}.num_classes", count


def check_classes(model: Part, cfg: Any) -> None:
    """That heads have a number for each class of the data, and all data the same classes."""
    if "language_model" in model:
        return  # whose classes are words, other ones for each data set
    for path, count in class_counts(model):
        for loader in LOADERS:
            data = (cfg.get(loader) or {}).get("dataset")
            for dataset in leaf_datasets(data):
                names = classes_of(dataset)
                if names is not None and count < len(names):
                    raise InputError(
                        f"{path}={count}, but the data of {loader} has {len(names)} classes "
                        f"({', '.join(map(str, names[:3]))}, ...): set it to {len(names)}, or "
                        f"name fewer in {loader}.dataset.metainfo.classes"
                    )
    if next(class_counts(model), None):
        check_order_of_classes(cfg)


def check_order_of_classes(cfg: Any) -> None:
    """That a label means the same in training and in evaluation."""
    known = [
        (loader, tuple(names))
        for loader in LOADERS
        for dataset in leaf_datasets((cfg.get(loader) or {}).get("dataset"))
        if (names := classes_of(dataset)) is not None
    ]
    for loader, names in known[1:]:
        first = known[0][1]
        if names == first:
            continue
        place = next(i for i, pair in enumerate(zip_longest(first, names)) if len({*pair}) == 2)
        told = [repr(own[place]) if place < len(own) else "missing" for own in (first, names)]
        raise InputError(
            f"class {place} is {told[0]} in the data of {known[0][0]} and {told[1]} in those of "
            f"{loader}: give all of them the same metainfo.classes, in one order"
        )


def leaf_datasets(dataset: Any) -> Iterator[Any]:
    """The data sets on disk inside any nesting of wrappers."""
    if not isinstance(dataset, Mapping):
        return
    inner = dataset.get("datasets") or [dataset.get("dataset")]
    if any(isinstance(one, Mapping) for one in inner):
        for one in inner:
            yield from leaf_datasets(one)
    else:
        yield dataset


def classes_of(dataset: Part) -> Sequence[str] | None:
    """The classes of a data set: its config's, or those of its type; None if not known."""
    own = dataset.get("metainfo") or {}
    if isinstance(own, Mapping) and "classes" in own:
        names = own["classes"]
    else:
        cls = DATASETS.get(kind_of(dataset)) if kind_of(dataset) else None
        own = getattr(cls, "METAINFO", {})
        names = own.get("thing_classes", own.get("classes"))
    return names if isinstance(names, (list, tuple)) else None
