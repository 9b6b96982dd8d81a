"""Ways to make a training explode, as parts of a config."""

from typing import Any

import torch
from mmdet.registry import HOOKS, TRANSFORMS
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor


@HOOKS.register_module()
class PoisonHook(Hook):
    """Before an iteration puts NaN into the first number of a weight, or from then on of its
    gradient."""

    def __init__(self, at: int, name: str, gradient: bool = False) -> None:
        self.at, self.name, self.gradient = at, name, gradient

    def before_train_iter(self, runner: Runner, *args: Any, **more: Any) -> None:
        if runner.iter == self.at:
            weight = runner.model.get_parameter(self.name)
            if self.gradient:
                weight.register_hook(with_nan)
            else:
                weight.data.flatten()[0] = torch.nan


def with_nan(x: Tensor) -> Tensor:
    x = x.clone()
    x.flatten()[0] = torch.nan
    return x


@TRANSFORMS.register_module()
class PoisonPicture:
    """Makes a pixel of a picture NaN, or a corner of its boxes; after PackDetInputs."""

    def __init__(self, img_id: int, part: str) -> None:
        self.img_id, self.part = img_id, part

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        sample = results["data_samples"]
        if sample.img_id == self.img_id:
            if self.part == "pixel":
                results["inputs"] = with_nan(results["inputs"].float())
            else:
                boxes = sample.gt_instances.bboxes
                boxes.tensor = with_nan(boxes.tensor)
        return results
