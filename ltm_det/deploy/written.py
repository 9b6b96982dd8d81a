"""Exported files that are whole, and give numbers, or are not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from ltm_det.basics.files import sync
from ltm_det.basics.finite import check_outputs
from ltm_det.deploy.predictor import Predictor, load


@contextmanager
def written(file: str | Path, images: Tensor) -> Iterator[Path]:
    """A path to export to, which takes the file's name once it runs and what it gives is finite.

    With it come those beside it, such as the .bin of an .xml. Otherwise what was there stays.
    Where the runtime is not installed, the file is not run.

    Args:
        file: The final name; its folder is made.
        images: (1, 3, H, W), that the file takes.

    Raises:
        InputError: It gives NaN or infinity.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".") as folder:
        part = Path(folder) / file.name
        yield part
        try:
            run = load(part)
        except ImportError:
            run = None
        if run is not None:
            found = run.raw(images) if isinstance(run, Predictor) else run(images)
            check_outputs(found, f"{file} is not written")
        others = [path for path in Path(folder).iterdir() if path != part]
        for path in [*others, part]:
            sync(path)
            os.replace(path, file.with_name(path.name))
    sync(file.parent)
