"""What runs around the training loop: hooks, optimisers, and the checks before it.

Registers its hooks and constructors of optimisers.
"""

from ltm_det.engine.distill_hook import DistillHook
from ltm_det.engine.explosion_hook import ExplosionError, ExplosionGuardHook
from ltm_det.engine.ib_hook import IBHook
from ltm_det.engine.layer_decay import LayerDecayConstructor
from ltm_det.engine.merger_loss_hook import MergerLossHook
from ltm_det.engine.mixed_precision import CPUBfloat16OptimWrapper
from ltm_det.engine.preflight import PreflightError
from ltm_det.engine.resume_hook import ExactResumeHook
from ltm_det.engine.safe_checkpoint_hook import SafeCheckpointHook

__all__ = [
    "CPUBfloat16OptimWrapper",
    "DistillHook",
    "ExactResumeHook",
    "ExplosionError",
    "ExplosionGuardHook",
    "IBHook",
    "LayerDecayConstructor",
    "MergerLossHook",
    "PreflightError",
    "SafeCheckpointHook",
]
