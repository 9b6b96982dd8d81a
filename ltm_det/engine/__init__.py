"""What runs around the training loop: hooks, and the checks before it. Registers its hooks."""

from ltm_det.engine.preflight import PreflightError
from ltm_det.engine.resume_hook import ExactResumeHook

__all__ = ["ExactResumeHook", "PreflightError"]
