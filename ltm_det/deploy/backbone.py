"""An exported backbone in a detector."""

from pathlib import Path

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from ltm_det.basics.arguments import checked, optional, whole
from ltm_det.basics.errors import InputError
from ltm_det.basics.finite import check_outputs
from ltm_det.deploy.runtime import load_runner


@MODELS.register_module()
class ExportedBackbone(BaseModule):
    """A file written by ``ltm-det export``, in the place of the backbone that it was made from.

    It runs on the CPU and has no parameters: those of the detector's checkpoint are left out.

    Args:
        file: .onnx or .xml, see :func:`ltm_det.deploy.load`.
        threads: That its runtime may use; None: as many as it chooses.

    Raises:
        InputError: The file is a detector's.
        RuntimeError: When it is to be trained.
        InputError: When there is NaN or infinity in the first maps that it gives.
    """

    @checked(threads=optional(whole(1)))
    def __init__(self, file: str | Path, threads: int | None = None) -> None:
        super().__init__()
        self.file, self.known = str(file), False  # known: to give numbers
        self.run, loaded = load_runner(file, threads)
        if loaded.about is not None:
            raise InputError(f"{file} holds a whole detector: give it to ltm-det test itself")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to the maps (B, C_i, H_i, W_i)."""
        if self.training:
            raise RuntimeError(f"{self.file} is an exported backbone: train the one it came from")
        maps = self.run(x)
        if not self.known:
            check_outputs(maps, self.file)
            self.known = True
        return maps

    def extra_repr(self) -> str:
        return f"file={self.file}"
