"""Sharded training by FSDP 1 and 2: two ranks on the CPU do what one does."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

CASES = {
    "1": ["swin-stage:dense", "swin-stage:LTM", "swin-block:LTM", "vit:dense", "vit:LTM"],
    # a ViT's merger that reads the attention of a block needs FSDP 2's register_fsdp_forward_method
    "2": ["swin-stage:LTM", "swin-block:ToMe", "vit:dense", "vit:LTM", "vit:ToMe"],
}


@pytest.mark.slow
@pytest.mark.parametrize("version", CASES)
def test_two_ranks(tmp_path, version):
    """Steps change the sharded model as the whole one: nothing reads a weight unasked."""
    arguments = [str(tmp_path / "meeting"), version, *CASES[version]]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.test_backbones.sharded", str(rank), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in ranks:
            out, error = process.communicate(timeout=600)
            assert process.returncode == 0, error[-2000:]
            assert out.split().count("same") == len(CASES[version])
    finally:
        for process in ranks:
            process.kill()
