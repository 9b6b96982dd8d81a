"""Exported files take their names once what they give is a number."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ltm_det import deploy
from ltm_det.basics.errors import InputError


class Product(nn.Module):
    """Finite weights, whose product with an image may not be."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 3, 1, 1), factor))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images * self.weight]


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_a_file_that_overflows_is_not_left_under_its_name(ending: str, tmp_path: Path) -> None:
    file, images = tmp_path / f"product{ending}", torch.full((1, 3, 4, 4), 4.0)
    with deploy.written(file, images) as part:
        deploy.save(Product(2.0), images, part)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert file.name in whole and (deploy.load(file)(images)[0] == 8).all()
    with pytest.raises(InputError, match=f"product{ending} is not written: NaN or infinite"):
        with deploy.written(file, images) as part:
            deploy.save(Product(3e38), images, part)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="^half$"):
        with deploy.written(tmp_path / "new" / "a.onnx", torch.zeros(1)) as part:
            part.write_bytes(b"half of")
            raise RuntimeError("half")
    assert list(tmp_path.rglob("*.onnx")) == []


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_an_exported_backbone_with_nan_is_refused_as_it_runs(ending: str, tmp_path: Path) -> None:
    """One that was written by another version, or by other means."""
    file, images = tmp_path / f"product{ending}", torch.ones(1, 3, 4, 4)
    deploy.save(Product(torch.nan), images, file)
    backbone = deploy.ExportedBackbone(file).eval()
    with pytest.raises(InputError, match="NaN or infinite numbers in output 0"):
        backbone(images)
