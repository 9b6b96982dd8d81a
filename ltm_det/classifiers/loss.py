"""The information bottleneck's bound in timm's training loops, as a loss around timm's own.

Shapes: B images, C channels, Y classes.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltm_det.backbones.common.merge_points import MergeWatch
from ltm_det.basics.arguments import checked, number, whole
from ltm_det.basics.errors import InputError
from ltm_det.classifiers.classifier import Classifier
from ltm_det.engine.bottleneck import Bottleneck
from ltm_det.merging import BottleneckStep

_logger = logging.getLogger(__name__)


class IBLoss(nn.Module):
    """timm's loss, and the bound IBB at the merge points of a classifier (arXiv 2407.15219).

    What :class:`.IBHook` is for detectors. A sample is an image: X~ are its merged tokens, averaged
    over the map, X its pixels, averaged to ``crop`` x ``crop``, Y its class; of classes that are
    mixed, the largest for Q, and all for the bound. Samples are gathered in each training step. At
    each refresh new centroids are fitted to those since the last one, Q is taken from the same
    assignment, and the bottleneck is logged.

    It acts in training passes alone, sees the model's passes by hooks, which have to be there
    before it is compiled, and works on several ranks and under autocast. What it has gathered is
    in its own state dict, not in the model's: without that, a resumed run counts its steps from 0
    again, and has no bound until the next refresh.

    Args:
        loss: Of logits (B, Y), and of classes (B,) or their probabilities (B, Y).
        model: A :class:`.Classifier` that merges, or what timm wraps one in.
        weight: Of the bound, for each merge point. 0: it is measured alone.
        begin: Training steps before the bound counts. The paper's: 0.3 of all.
        interval: Training steps between refreshes. The paper's: those of an epoch.
        num_clusters: K.
        beta: Inverse temperature of the assignment to clusters.
        crop: Pixels of a side.
        capacity: The most samples that are kept on each rank.

    Raises:
        InputError: A setting is out of its range, or the model merges nowhere.
    """

    @checked(
        weight=number(0),
        begin=whole(),
        interval=whole(1),
        num_clusters=whole(2),
        beta=number(above=0),
        crop=whole(1),
        capacity=whole(1),
    )
    def __init__(
        self,
        loss: nn.Module,
        model: nn.Module,
        *,
        weight: float = 0.1,
        begin: int = 0,
        interval: int,
        num_clusters: int = 32,
        beta: float = 10.0,
        crop: int = 8,
        capacity: int = 32768,
    ) -> None:
        super().__init__()
        whole(num_clusters)("IBLoss: capacity", capacity)
        self.loss, self.weight = loss, weight
        self.begin, self.interval, self.crop = begin, interval, crop
        model = classifier_in(model)
        self.watch = MergeWatch(model.backbone)
        if not self.watch.names:
            raise InputError("IBLoss: the model merges nowhere: leave the loss as it is")
        self.mergers = model.backbone.mergers_by_point
        if not model.num_classes:
            raise InputError("IBLoss: the model has no classes: give it some (num_classes)")
        for merger in self.mergers().values():
            check_step(getattr(merger, "step", None), model.num_classes, num_clusters)
        self.bottleneck = Bottleneck(
            self.watch.names, model.num_classes, num_clusters, beta, capacity
        )
        self.steps, self.pixels = 0, None
        self.to_give = False  # centroids to mask modules, which no backward pass may wait for
        self.watch.__enter__()
        model.backbone.register_forward_pre_hook(self._before_pass)

    def __deepcopy__(self, memo: dict) -> "IBLoss":
        """Itself: the copy of a model that its mean is kept in asks for it."""
        return self

    def _before_pass(self, backbone: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Keeps the pixels X of the batch, (B, 3 * crop * crop)."""
        if backbone.training:
            if self.to_give:
                self.bottleneck.give(self.mergers())
                self.to_give = False
            self.pixels = F.adaptive_avg_pool2d(args[0].detach().float(), self.crop).flatten(1)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """timm's loss of logits (B, Y), and in training the bound's.

        Raises:
            InputError: The model's pass was not seen.
        """
        loss = self.loss(output, target)
        if not self.training or not output.requires_grad:
            return loss
        features = {
            name: point.merged_map().float().mean((2, 3)) for name, point in self.watch.seen.items()
        }
        if self.pixels is None or not features:
            raise InputError(
                "IBLoss has not seen the model's pass: build it with the model that is trained, "
                "before that is compiled"
            )
        self.watch.seen.clear()
        pixels, self.pixels = self.pixels, None
        labels = target.argmax(1) if target.ndim == 2 else target
        self.steps += 1
        if self.weight and self.steps > self.begin and self.bottleneck.ready:
            known = target if target.ndim == 2 else labels
            bounds = [self.bottleneck.loss(name, x, known) for name, x in features.items()]
            loss = loss + self.weight * torch.stack(bounds).sum()
        self.bottleneck.add(labels, pixels, features)
        if self.steps % self.interval == 0:
            self._refresh()
        return loss

    def _refresh(self) -> None:
        first = not self.bottleneck.ready
        gathered = len(self.bottleneck.labels)
        summaries = self.bottleneck.refresh()
        if not summaries:
            _logger.warning(
                f"IBLoss: {gathered} samples on this rank are too few for "
                f"{self.bottleneck.clusters} clusters; nothing is refreshed"
            )
        self.to_give |= first and self.bottleneck.ready
        for name, found in summaries.items():
            told = ("ib", "information_x", "information_y", "bound", "input_term")
            told = ", ".join(f"{key} {found[key]:.3f}" for key in told)
            _logger.info(f"IBLoss: {name}: {told} nats, {found['samples']} samples")

    def get_extra_state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        own = dict(steps=self.steps, to_give=self.to_give)
        return own | dict(bottleneck=self.bottleneck.state_dict())

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the state is of other points, classes or clusters."""
        self.bottleneck.load_state_dict(state["bottleneck"])
        self.steps, self.to_give = state["steps"], state["to_give"]


def classifier_in(model: nn.Module) -> Classifier:
    """The classifier in what timm, DistributedDataParallel or torch.compile have wrapped it.

    Raises:
        InputError: There is none.
    """
    whole = model
    while not isinstance(model, Classifier):
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            raise InputError(
                f"IBLoss: {type(whole).__name__} is no classifier of ltm_det: create one by "
                "timm.create_model('ltm_...')"
            )
        model = inner
    return model


def check_step(step: Any, classes: int, clusters: int) -> None:
    """Raises InputError of an ``update='gradient'`` with other classes or clusters, which could not
    take the loss's."""
    if isinstance(step, BottleneckStep) and step.log_q.shape != (classes, clusters):
        theirs = "classes={}, clusters={}".format(*step.log_q.shape)
        raise InputError(
            f"IBLoss: update='gradient' has {theirs}, the loss classes={classes}, "
            f"clusters={clusters}: give the merger these"
        )
