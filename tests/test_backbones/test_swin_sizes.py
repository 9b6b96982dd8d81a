"""The published sizes T, S, B and L: as many parameters as timm's models of the same names."""

import pytest
import timm
import torch

from ltm_det.backbones import LTMSwin

SIZES = {
    "swin_tiny_patch4_window7_224": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_small_patch4_window7_224": (96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin_base_patch4_window7_224": (128, (2, 2, 18, 2), (4, 8, 16, 32), 7),
    "swin_large_patch4_window12_384": (192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}


@pytest.mark.parametrize("name", SIZES)
def test_size(name: str) -> None:
    embed_dims, depths, num_heads, window = SIZES[name]
    merger = dict(type="LTM", compression_ratio=0.51)
    ours = LTMSwin(
        embed_dims=embed_dims, depths=depths, num_heads=num_heads, window_size=window, merger=merger
    )
    with torch.device("meta"):
        theirs = timm.create_model(name, pretrained=False, num_classes=0)
    known = [p.numel() for n, p in ours.named_parameters() if ".mergers." not in n]
    # timm's classifier normalises the last stage alone, a detector's backbone every stage
    output_norms = sum(2 * embed_dims * 2**i for i in range(3))
    assert sum(known) - output_norms == sum(p.numel() for p in theirs.parameters())

    side = round(window * 0.51**0.5)
    assert [stage.kept[-1] for stage in ours.stages] == [side**2] * 4
    ours = ours.eval().to("meta")
    maps = ours(torch.empty(1, 3, 100, 132, device="meta"))
    assert [m.shape[1:] for m in maps] == [
        (embed_dims, 25, 33),
        (2 * embed_dims, 13, 17),
        (4 * embed_dims, 7, 9),
        (8 * embed_dims, 4, 5),
    ]
