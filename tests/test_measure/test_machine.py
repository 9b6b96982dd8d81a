"""The machine's make, as far as it is told."""

import json
from pathlib import Path

import pytest
import torch

from ltm_det.cpu import products
from ltm_det.measure import machine


def test_machine_is_told() -> None:
    found = machine.machine("cpu")
    assert found["cpu"] and found["cores"] >= 1 and found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__ and found["device"] == "cpu"
    if products.HAS_ONEDNN:
        assert found["product"] == products.way(torch.float32)
    json.dumps(found)


def test_make_of_the_cpu_is_read_or_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, caches = tmp_path / "cpuinfo", tmp_path / "cache"
    monkeypatch.setattr(machine, "CPUINFO", info)
    monkeypatch.setattr(machine, "CACHES", caches)
    found = machine.machine("cpu")
    assert found["flags"] is None and found["l2_kib"] is None
    one = "model name\t: A CPU\nflags\t\t: fpu avx amx_tile avx2 sse\npower management:\n\n"
    info.write_text(one + one.replace("A CPU", "B"))
    for name, level, size in (("index0", 1, "32K"), ("index1", 1, "32K"), ("index2", 2, "2048K")):
        (caches / name).mkdir(parents=True)
        (caches / name / "level").write_text(f"{level}\n")
        (caches / name / "size").write_text(f"{size}\n")
    found = machine.machine("cpu")
    assert (found["cpu"], found["flags"], found["l2_kib"]) == ("A CPU", ["avx2", "amx_tile"], 2048)
    (caches / "index2" / "size").unlink()
    assert machine.machine("cpu")["l2_kib"] is None
