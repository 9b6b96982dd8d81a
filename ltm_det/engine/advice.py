"""What is said of a machine before a training, which goes on all the same."""

import os

import torch
from mmengine.device import get_device


def busy_advice() -> str:
    """What to do where a training has to share its processors with others; empty elsewhere."""
    if get_device() != "cpu" or torch.get_num_threads() == 1 or not hasattr(os, "getloadavg"):
        return ""
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    words = (
        f"{processors} processors are busy already (load {load:.1f}): threads that wait for one "
        "another may make steps many times slower there than OMP_NUM_THREADS=1"
    )
    return words if load >= processors else ""
