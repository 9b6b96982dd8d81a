"""What ExplosionGuardHook takes of a training step, and of what comes before the first, in seconds.

    python tools/analysis/guard_cost.py configs/ltm_swin_s_maskrcnn.py --size 512 512 --steps 10

Pictures are random, as are the weights: what the guard does depends on neither.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import update_wrapper
from pathlib import Path
from statistics import median
from time import perf_counter, time
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from psutil import Process

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ltm_det.basics.files import write_text  # noqa: E402
from ltm_det.engine import ExplosionGuardHook  # noqa: E402
from ltm_det.measure.flops import without_pretraining  # noqa: E402
from ltm_det.measure.machine import machine  # noqa: E402
from ltm_det.studies.runs import commit  # noqa: E402

# isort: split
from mmdet.registry import MODELS  # noqa: E402  after ours, which stand in for mmcv's operators
from mmdet.testing import demo_mm_inputs  # noqa: E402


class Spent:
    """Seconds within some functions, less those within others that they call."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def within(self, function: Callable[..., Any], sign: int = 1) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            start = perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds += sign * (perf_counter() - start)

        return update_wrapper(timed, function)


def measured(cfg: Config, size: Sequence[int], batch: int, steps: int) -> dict[str, Any]:
    """Of ``steps`` training steps, half of which look at features."""
    model = MODELS.build(without_pretraining(cfg.model)).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    ready = time() - Process().create_time()  # imports, config and model; no data set yet
    spent, guard = Spent(), ExplosionGuardHook(interval=2)
    guard._look = spent.within(guard._look)
    wrapper.step = spent.within(wrapper.step, -1)
    with tempfile.TemporaryDirectory() as folder:
        runner: Any = SimpleNamespace(
            model=model,
            optim_wrapper=wrapper,
            hooks=[],
            iter=0,
            logger=MMLogger.get_current_instance(),
            work_dir=folder,
            _load_from=None,
            _resume=False,
        )
        start = perf_counter()
        guard.before_train(runner)
        begin = perf_counter() - start
        wrapper.step = spent.within(wrapper.step)
        before, after = (
            spent.within(call) for call in (guard.before_train_iter, guard.after_train_iter)
        )
        rows = []
        for runner.iter in range(-1, steps):  # the first is not counted
            data = demo_mm_inputs(
                batch, [[3, *size]] * batch, num_items=[8] * batch, with_mask=True
            )
            spent.seconds, start = 0.0, perf_counter()
            before(runner, runner.iter, data)
            looks = bool(guard.handles)
            outputs = model.train_step(data, wrapper)
            after(runner, runner.iter, data, outputs)
            rows.append((perf_counter() - start, spent.seconds, looks))
    if guard.bad:
        raise SystemExit(f"steps were bad, so that nothing is measured: {guard.bad}")
    step = median(seconds for seconds, _, _ in rows[1:])
    usual, looking = (
        median(own for _, own, looks in rows[1:] if looks == wanted) for wanted in (False, True)
    )
    every = ExplosionGuardHook().interval
    return dict(
        parameters=sum(p.numel() for p in model.parameters()),
        step_ms=1e3 * step,
        guard_ms=1e3 * usual,
        guard_ms_of_a_step_that_looks_at_features=1e3 * looking,
        share=(usual + (looking - usual) / every) / step,
        start_ms=1e3 * begin,
        start_share=begin / (begin + ready),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--clip", type=float, help="gradients' largest norm (default: config's)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    init_default_scope("mmdet")
    torch.manual_seed(0)
    cfg.optim_wrapper.type = "OptimWrapper"  # float32: with a loss scaler the guard does less
    if args.clip:
        cfg.optim_wrapper.clip_grad = dict(max_norm=args.clip)
    found = measured(cfg, args.size, args.batch, args.steps)
    about = dict(config=args.config, size=[*args.size], batch=args.batch, steps=args.steps)
    found = (
        dict(command=shlex.join(["python", *sys.argv]), commit=commit(), machine=machine("cpu"))
        | about
        | found
    )
    for name, value in found.items():
        print(f"{name}: {value}")
    if args.json is not None:
        write_text(args.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
