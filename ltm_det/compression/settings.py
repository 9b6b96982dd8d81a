"""What is asked of a compression."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ltm_det.basics.errors import InputError
from ltm_det.conversion.calibration import STEPS
from ltm_det.conversion.search import RATIOS

LATENCY, GMACS, MAX_AP_LOSS = "latency", "gmacs", "max-ap-loss"
FORMATS = dict(onnx=".onnx", openvino=".xml", none=None)  # of exported files, and their endings
PACKAGES = dict(onnx=("onnx", "onnxscript", "onnxruntime"), openvino=("onnx", "openvino"), none=())
EPOCHS, LEAST, MOST = 12, 500, 20_000  # of a fine-tuning whose iterations are not said


@dataclass(frozen=True)
class Budget:
    """What the detector may cost.

    Attributes:
        kind: `LATENCY`, milliseconds of the whole detector; `GMACS`, its multiply-accumulates; or
            `MAX_AP_LOSS`.
        value: Part of what mmdet's own detector takes, in (0, 1); or points of AP.
    """

    kind: str
    value: float

    @classmethod
    def of(cls, text: str) -> "Budget":
        """Of 'latency=0.5', 'gmacs=0.6' or 'max-ap-loss=0.5'.

        Raises:
            InputError: It is none of them.
        """
        kind, _, number = text.partition("=")
        example = "give latency=0.5, gmacs=0.6 or max-ap-loss=0.5"
        if kind not in (LATENCY, GMACS, MAX_AP_LOSS):
            raise InputError(f"--budget {text!r}: {example}")
        try:
            value = float(number)
        except ValueError as error:
            raise InputError(f"--budget {text!r} has no number: {example}") from error
        most = 100 if kind == MAX_AP_LOSS else 1
        if not 0 < value < most:
            what = "points of AP" if kind == MAX_AP_LOSS else "the part of mmdet's that may be left"
            raise InputError(f"--budget {text!r}: give {what}, above 0 and below {most}")
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"


@dataclass(frozen=True)
class Settings:
    """All that can be chosen.

    Attributes:
        budget: What the detector may cost.
        cost: What is counted while it is searched, `LATENCY` or `GMACS`.
        merger: The merger's type and options, without ratios.
        ratios: Kept fractions to choose from.
        unit: What gets its ratio in one piece, 'stage' or 'block'; None: stage, and block where
            that does not meet the budget. A ViT has none.
        images: Training pictures that the search measures on.
        calibration: Training pictures for calibration, 0 for none.
        steps: Of calibration, a batch each.
        trials: Candidates that are evaluated for `MAX_AP_LOSS`.
        finetune: Iterations, 0 for no fine-tuning, None for as many as suit the data.
        batch: Pictures a step of it; None: the config's.
        distill: Whether maps follow the dense twin's meanwhile.
        export: Of `FORMATS`.
        pictures: In the report.
    """

    budget: Budget
    cost: str = LATENCY
    merger: Mapping[str, Any] = field(default_factory=lambda: dict(type="LTM"))
    ratios: Sequence[float] = RATIOS
    unit: str | None = None
    images: int = 64
    calibration: int = 128
    steps: int = STEPS
    trials: int = 5
    finetune: int | None = 0
    batch: int | None = None
    distill: bool = True
    export: str = "onnx"
    pictures: int = 10


def iterations_of(settings: Settings, pictures: int, batch: int) -> int:
    """Of the fine-tuning: those asked for, or 12 times through the pictures, 500 to 20000."""
    if settings.finetune is not None:
        return settings.finetune
    return min(MOST, max(LEAST, EPOCHS * -(-pictures // batch)))
