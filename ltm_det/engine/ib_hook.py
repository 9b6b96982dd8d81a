"""Measures the information bottleneck while a detector trains, and lowers it if asked to."""

import inspect
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ltm_det.backbones.common.merge_points import MergeWatch
from ltm_det.basics.arguments import checked, choice, many, number, optional, text, whole
from ltm_det.basics.errors import InputError
from ltm_det.engine.bottleneck import Bottleneck
from ltm_det.engine.instances import instance_boxes, pool_boxes

TAGS = dict(train="ib", val="ib_val")  # by source, of what is logged


@HOOKS.register_module()
class IBHook(Hook):
    """Logs IB = I(X~; X) - I(X~; Y) and its bound at merge points; optionally trains on the bound.

    Samples are the instances of each image and boxes of background: X~ are the merged tokens on the
    full map, averaged over the box, X its pixels, Y its category. At each refresh new centroids are
    fitted to the samples since the last one, Q is taken from the same assignment, and the
    bottleneck goes to the log and to the visualizer's backends as ``ib/POINT/...``, or with
    source='val' as ``ib_val/POINT/...``, so that a run may have a hook of either source.

    With ``weight`` > 0 each point adds ``loss_ib_POINT`` = weight * IBB, less its constant term, to
    the detector's losses. Mask modules with ``update='gradient'`` are given centroids, Q and prior
    at the first refresh from training data.

    It works with any optimiser wrapper (the bound is in float32 under AMP), on several ranks
    (sums over all of them, equal on each), and its state is in the checkpoint, where samples not
    yet used are those of the first rank. Boxes of background are drawn from seed, rank,
    iteration and batch, and touch no other random number.

    Args:
        source: 'train' or 'val': the samples of which loop are gathered. In 'val' the refresh is at
            the loop's end, and boxes follow the images' ``scale_factor``, as in mmdet's pipelines,
            which load annotations after resizing.
        points: Merge points, see :mod:`ltm_det.backbones.common.merge_points`; None for all. For a
            dense backbone (LTMSwin or LTMViT with merger=None) they must be named.
        weight: Of the bound in the loss. 0: it is measured alone.
        begin: Share of the training iterations before the bound counts, in [0, 1).
        interval: Iterations between refreshes; None for one pass over the training data.
        num_clusters: K, for merged features and for pixels.
        beta: Inverse temperature of the assignment to clusters.
        background: Boxes of background in each image.
        crop: Pixels of the side to which an instance's pixels are averaged.
        capacity: The most samples that are kept on each rank.

    Raises:
        InputError: On settings out of range, and a bound that is to be trained on validation data.
    """

    priority = "NORMAL"

    @checked(
        source=choice(TAGS),
        points=optional(many(text)),
        weight=number(0),
        begin=number(0, below=1),
        interval=optional(whole(1)),
        num_clusters=whole(2),
        beta=number(above=0),
        background=whole(),
        crop=whole(1),
        capacity=whole(1),
    )
    def __init__(
        self,
        source: str = "train",
        points: list[str] | None = None,
        weight: float = 0.0,
        begin: float = 0.3,
        interval: int | None = None,
        num_clusters: int = 32,
        beta: float = 10.0,
        background: int = 1,
        crop: int = 8,
        capacity: int = 8192,
    ) -> None:
        if weight and source == "val":
            raise InputError(f"IBHook: weight={weight} needs source='train': samples to train on")
        whole(num_clusters)("IBHook: capacity", capacity)
        self.source, self.points = source, points
        self.weight, self.begin, self.interval = weight, begin, interval
        self.clusters, self.beta, self.capacity = num_clusters, beta, capacity
        self.background, self.crop = background, crop
        self.bottleneck: Bottleneck | None = None
        self.given = False  # whether mask modules have got their centroids
        self.batch = 0  # of validation
        self._state: dict[str, Any] | None = None  # of a checkpoint, until there is a bottleneck

    def __deepcopy__(self, memo: dict) -> "IBHook":
        """Itself: a copy of the hooked detector, such as EMAHook's, takes no copy of the runner."""
        return self

    def before_run(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.runner, self.detector = runner, model
        self.watch = MergeWatch(model.backbone, self.points)
        if not self.watch.names:
            raise InputError("IBHook: the backbone merges nowhere: name the points to watch")
        loader = runner.cfg.get(f"{self.source}_dataloader")
        if loader is None:
            raise InputError(f"IBHook: source={self.source!r}, but the config has no data for it")
        self.watch.__enter__()
        self.handle = model.register_forward_hook(self._after_forward, with_kwargs=True)

    def after_run(self, runner: Runner) -> None:
        self.handle.remove()
        self.watch.__exit__()

    def before_train(self, runner: Runner) -> None:
        if self.source == "train":
            self._start(runner.train_dataloader.dataset.metainfo)
            self.every = self.interval or iterations_of_a_pass(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        if self.source == "val":
            self._start(runner.val_dataloader.dataset.metainfo)
            self.bottleneck.clear()

    def before_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        if self.source == "val":
            self.batch = batch_idx

    def _start(self, metainfo: dict[str, Any]) -> None:
        if self.bottleneck is not None:
            return
        classes = len(metainfo["classes"]) + 1
        self.bottleneck = Bottleneck(
            self.watch.names, classes, self.clusters, self.beta, self.capacity
        )
        if self._state is not None:
            self.bottleneck.load_state_dict(self._state)

    def _after_forward(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Gathers the batch's samples; in training, gives back the losses with the bound's."""
        given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        mode = {"train": "loss", "val": "predict"}[self.source]
        training = self.source == "train"
        if self.bottleneck is None or given.get("mode") != mode or model.training != training:
            self.watch.seen.clear()
            return output
        images, samples = given["inputs"], given["data_samples"]
        seen = self.watch.seen
        rois, labels = instance_boxes(
            samples, self.background, self.bottleneck.classes - 1, self._generator(), not training
        )
        features = {
            name: pool_boxes(point.merged_map(), rois, point.stride) for name, point in seen.items()
        }
        seen.clear()
        self.bottleneck.add(labels, pool_boxes(images, rois, 1, self.crop), features)
        if not training or not self._counts():
            return output
        return output | {
            f"loss_ib_{name}": self.weight * self.bottleneck.loss(name, x, labels)
            for name, x in features.items()
        }

    def _counts(self) -> bool:
        late = self.runner.iter >= self.begin * self.runner.max_iters
        return self.weight > 0 and late and self.bottleneck.ready

    def _generator(self) -> torch.Generator:
        runner = self.runner
        # the number of samples alone stays the same once there are as many as are kept
        number = len(self.bottleneck.labels) + self.batch
        key = (runner.seed, runner.rank, runner.iter, number)
        return torch.Generator().manual_seed(hash(key) % 2**63)

    def after_train_iter(self, runner: Runner, batch_idx: int, *_, **__) -> None:
        if self.source == "train" and (runner.iter + 1) % self.every == 0:
            self._refresh(runner.iter + 1)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if self.source == "val":
            self._refresh(runner.iter)

    def _refresh(self, step: int) -> None:
        runner = self.runner
        gathered = len(self.bottleneck.labels)
        summaries = self.bottleneck.refresh()
        if not summaries:
            runner.logger.warning(
                f"IBHook: {gathered} samples on this rank are too few for {self.clusters} "
                "clusters; nothing is refreshed"
            )
        for name, summary in summaries.items():
            tag = f"{TAGS[self.source]}/{name}"
            scalars = {f"{tag}/{key}": value for key, value in summary.items()}
            runner.visualizer.add_scalars(scalars, step=step)
            told = ("ib", "information_x", "information_y", "bound", "input_term")
            told = ", ".join(f"{key} {summary[key]:.3f}" for key in told)
            runner.logger.info(f"IBHook: {tag}: {told} nats, {summary['samples']} samples")
        if summaries and not self.given and self.source == "train":
            self._give()

    def _give(self) -> None:
        """Sets the centroids and Q of mask modules that compute their step from them."""
        self.given = True
        self.bottleneck.give(self.detector.backbone.mergers_by_point())

    @property
    def key(self) -> str:
        """Of its state in a checkpoint."""
        return f"{TAGS[self.source]}_hook"

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        state = self._state if self.bottleneck is None else self.bottleneck.state_dict()
        if state is not None:
            checkpoint[self.key] = state | dict(given=self.given)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume and self.key in checkpoint:
            self._state = dict(checkpoint[self.key])
            self.given = self._state.pop("given")


def iterations_of_a_pass(runner: Runner) -> int:
    """Iterations in which all ranks together see the training data once."""
    loader = runner.train_dataloader
    infinite = isinstance(loader.batch_sampler.sampler, InfiniteSampler)  # as long as on one rank
    return max(len(loader) // (get_world_size() if infinite else 1), 1)
