"""A training that has exploded is stopped before it costs its last good checkpoint."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, update_wrapper
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from ltm_det.basics.errors import InputError
from ltm_det.basics.finite import check_finite, named, not_finite, tensors_in
from ltm_det.engine import explosion

TIMES = 1000.0  # as large as before, and a loss, or the weights, have exploded
RECENT = 100  # losses that a loss is compared with
OVERFLOWS = 24  # in a row: in 16 of them a loss scale of 2**16 has come down to 1
BAD, HOPELESS = 1, 2
REMEDY = """\
Lower the learning rate (optim_wrapper.optimizer.lr, now {:.3g}), clip gradients
(optim_wrapper.clip_grad.max_norm=1), look at the pictures named above; then go on with --resume"""
DATA_REMEDY = "Mend or leave out the pictures named above; then go on with --resume"


class ExplosionError(InputError):
    """A training has exploded. The message says where, on which pictures, and what to do."""


@HOOKS.register_module()
class ExplosionGuardHook(Hook):
    """Stops a training that yields NaN, infinity, or numbers a thousand times too large.

    A step is bad if a loss is not finite or :data:`TIMES` the largest of the last :data:`RECENT`;
    if gradients are not finite, where the update is left out, so that the weights stay as they
    were; or if features of the backbone or what its mergers hand on (LTM's mask logits) are not
    finite, which is looked at every ``interval`` steps and after a bad step. Bad steps are logged
    with their pictures. The run ends with :class:`ExplosionError` after ``limit`` bad steps of the
    last ``window``, and at once where it can't recover: weights are not finite or :data:`TIMES`
    their size, or the data themselves are not finite.

    No checkpoint is written of such weights, EMAHook's averages included, nor of a bad step, unless
    its update was left out. Before a test, and as training
    begins, weights have to be finite.

    In mixed precision a loss scaler looks at gradients itself and leaves updates out, which is
    not bad: the guard reads no gradient there, and counts only from the :data:`OVERFLOWS`-th
    update in a row on. Without one it reads one number before each update; losses it reads when
    mmengine has just done so. Of several processes all stop, for what one of them sees.

    Args:
        limit: Bad steps that end the run.
        window: Steps in which they are counted; with gradients accumulated over n batches, n times
            as many.
        interval: Steps between two looks at features.

    Raises:
        InputError: On a number below 1, or a limit above the window.
    """

    priority = "LOW"  # after what logs the step, before CheckpointHook

    def __init__(self, limit: int = 5, window: int = 10, interval: int = 50) -> None:
        for name, value in dict(limit=limit, window=window, interval=interval).items():
            if not isinstance(value, int) or value < 1:
                raise InputError(f"ExplosionGuardHook: {name} must be 1 or more, got {value!r}")
        if limit > window:
            raise InputError(f"ExplosionGuardHook: limit={limit} must not exceed window={window}")
        self.limit, self.window, self.interval = limit, window, interval
        self.bad: deque[tuple[int, str]] = deque()  # iteration, what was seen
        self.losses: deque[float] = deque(maxlen=RECENT)
        self.seen: list[tuple[str, Tensor]] = []  # of this step: what, whether it is finite
        self.faults: list[str] = []  # of this step's gradients
        self.overflows = 0  # updates in a row that the loss scaler left out
        self.left_out: bool | Tensor | None = None  # whether this step's was, if there was one
        self.bad_now = self.skipped = False  # whether this step is bad, and its update left out
        self.handles: list[Any] = []  # of what looks at features
        self.posts: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        self.model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.averages = [own.ema_model for own in runner.hooks if isinstance(own, EMAHook)]
        for state in self._states():
            check_finite(state, f"training starts from {explosion.start_of(runner)}")
        self.names = [name for name, _ in self.model.named_parameters()]
        self.at_start = self._norms()
        self.batches = max(wrapper._accumulative_counts for wrapper in explosion.wrappers(runner))
        for wrapper in explosion.wrappers(runner):
            if explosion.scales(wrapper):
                self.posts.append(wrapper.optimizer.register_step_post_hook(self._updated))
            elif explosion.clips_by_norm(wrapper):
                wrapper.clip_func = self._clip
            # with what schedulers have put on it, which count its calls
            wrapper.step = update_wrapper(partial(self._step, wrapper, wrapper.step), wrapper.step)
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                hook._save_checkpoint = partial(self._save, hook._save_checkpoint)
                hook._save_best_checkpoint = partial(self._save, hook._save_best_checkpoint)

    def after_train(self, runner: Runner) -> None:
        while self.posts:
            self.posts.pop().remove()
        for wrapper in explosion.wrappers(runner):
            del wrapper.step
            if wrapper.clip_grad_kwargs and wrapper.clip_func == self._clip:
                wrapper.clip_func = clip_grad_norm_
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                del hook._save_checkpoint, hook._save_best_checkpoint

    def before_test_epoch(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        check_finite(model.state_dict(), str(runner._load_from or "the detector to test"))

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any | None = None
    ) -> None:
        self.faults, self.seen, self.left_out, self.skipped = [], [], None, False
        if self.bad_now or self.every_n_train_iters(runner, self.interval):
            self._watch()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any | None = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        while self.handles:
            self.handles.pop().remove()
        faults = [*self._of_losses(outputs or {}), *self.faults]
        if self.left_out is not None:
            self.overflows = self.overflows + 1 if self.left_out else 0
        if self.overflows >= OVERFLOWS:
            faults.append(f"{self.overflows} updates in a row left out by the loss scaler")
        faults += [f"{what} are not finite" for what, finite in self.seen if not finite]
        data: list[str] = []
        weights: list[str] = []
        if faults or self.overflows:
            data = explosion.faults_of_data(data_batch)
        if faults:
            weights = self._of_weights()
        verdict = explosion.of_all(HOPELESS if data or weights else BAD if faults else 0)
        self.bad_now = verdict > 0
        if not verdict:
            return
        seen = "; ".join([*data, *weights, *faults]) or "seen by another process"
        self.bad.append((runner.iter, seen))
        while self.bad[0][0] <= runner.iter - self.window * self.batches:
            self.bad.popleft()
        of = explosion.pictures(data_batch)
        runner.logger.warning(f"ExplosionGuardHook: a bad step: {seen}; pictures {of}")
        if verdict == HOPELESS or len(self.bad) >= self.limit:
            lines = [f"pictures of the last step: {of}"]
            if not data and not weights:
                wrapper = next(explosion.wrappers(runner))
                module = explosion.first_bad_module(self.model, data_batch, wrapper)
                lines += [f"the first module whose output is not finite: {module}"] * bool(module)
            raise self._error(runner, lines, bool(data))

    def _step(self, wrapper: OptimWrapper, step: Callable[..., None], **options: Any) -> None:
        """In the place of the wrapper's own: no update by gradients that are not finite."""
        if explosion.scales(wrapper):
            self.left_out = True  # unless the optimizer runs
            step(**options)
            return
        parameters = [p for group in wrapper.param_groups for p in group["params"]]
        self.norm = explosion.norms([p.grad for p in parameters if p.grad is not None]).norm()
        if not explosion.of_all(not math.isfinite(self.norm.item())):
            step(**options)
            return
        self.skipped = True
        given = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        self.faults.append(explosion.gradients_told(not_finite(given), len(given)))

    def _clip(
        self, parameters: Sequence[Tensor], max_norm: float, norm_type: float = 2.0, **options: Any
    ) -> Tensor:
        """In the place of torch's own, which would reckon the norm a second time."""
        factor = (max_norm / (self.norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([p.grad for p in parameters], factor)
        return self.norm

    def _updated(self, optimizer: Optimizer, args: Any, options: Any) -> None:
        """After an update, which a fused optimizer leaves out itself, as the scaler tells it."""
        self.left_out = getattr(optimizer, "found_inf", False)

    def _of_losses(self, outputs: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with the step's losses."""
        known = {
            name: value.detach().float().flatten()[0]
            for name, value in outputs.items()
            if isinstance(value, Tensor) and value.numel() == 1
        }
        values = dict(zip(known, torch.stack([*known.values()]).tolist() if known else []))
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            yield ", ".join(f"{name} is {value}" for name, value in bad.items())
        elif "loss" in values:
            largest = max([1.0, *self.losses])
            if self.losses and values["loss"] > TIMES * largest:
                yield f"loss is {values['loss']:.3g}, of late it was {largest:.3g} at most"
            else:
                self.losses.append(values["loss"])

    def _of_weights(self) -> list[str]:
        """What is wrong with the weights, from which no step leads back."""
        for state in self._states():
            if bad := not_finite(state):
                return [f"weights are not finite: {named(bad)}"]
        now = self._norms()
        if now.norm() <= TIMES * self.at_start.norm().clamp(min=1.0):
            return []
        rows = explosion.grown_most(self.names, now.tolist(), self.at_start.tolist())
        return ["weights have exploded: {} has a norm of {:.3g}, {:.3g} at the start".format(*rows)]

    def _states(self) -> list[dict[str, Tensor]]:
        """The weights, and EMAHook's averages of them, which checkpoints have as well."""
        return [own.state_dict() for own in (self.model, *self.averages)]

    def _norms(self) -> Tensor:
        return explosion.norms([parameter.detach() for parameter in self.model.parameters()])

    def _save(self, save: Callable[..., None], runner: Runner, *args: Any) -> None:
        """In the place of a checkpoint hook's own: what has exploded takes no good one's place."""
        weights = self._of_weights()
        if explosion.of_all(HOPELESS if weights else 0):
            self.bad.append((runner.iter, "; ".join(weights) or "seen by another process"))
            raise self._error(runner)
        if self.bad_now and not self.skipped:
            runner.logger.warning("ExplosionGuardHook: no checkpoint is written of a bad step")
            return
        save(runner, *args)

    def _watch(self) -> None:
        """Looks at the features of one pass, and at what mergers hand on."""
        backbone = getattr(self.model, "backbone", None)
        if backbone is None:
            return
        parts = {"features of the backbone": backbone}
        mergers = getattr(backbone, "mergers_by_point", dict)()
        parts |= {f"mask logits of the backbone's {name}": own for name, own in mergers.items()}
        for what, module in parts.items():
            self.handles.append(module.register_forward_hook(partial(self._look, what)))

    def _look(self, what: str, module: nn.Module, args: Any, output: Any) -> None:
        for tensor in tensors_in(output):
            if tensor.is_floating_point():
                self.seen.append((what, torch.isfinite(tensor.detach()).all()))

    def _error(
        self, runner: Runner, more: Sequence[str] = (), data: bool = False
    ) -> ExplosionError:
        """What is said in the end: the bad steps, ``more``, and what to do; in all processes."""
        lines = [f"iteration {step + 1}: {seen}" for step, seen in self.bad] + [*more]
        if get_world_size() > 1:
            told = all_gather_object((lines, data))
            lines = [f"process {i}: {line}" for i, (own, _) in enumerate(told) for line in own]
            data = any(own for _, own in told)
        latest = find_latest_checkpoint(runner.work_dir)
        lines.append(f"last good checkpoint: {latest or 'none has been written'}")
        rates = [group["lr"] for w in explosion.wrappers(runner) for group in w.param_groups]
        remedy = DATA_REMEDY if data else REMEDY.format(max(rates))
        what = "its data are not finite" if data else "it has exploded"
        text = "\n  ".join(lines)
        return ExplosionError(
            f"training is stopped at iteration {runner.iter + 1}: {what}\n  {text}\n{remedy}"
        )
