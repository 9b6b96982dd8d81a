"""One of two ranks on the CPU: trains a sharded backbone for a step, and the whole one beside it.

python -m tests.test_backbones.sharded RANK FILE FSDP FAMILY:MERGER ...
"""

import copy
import sys
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

import ltm_det  # noqa: F401  first: it makes mmdet's models importable

# isort: split
from ltm_det.backbones.vit.layers import LTMViTBlock
from tests.test_backbones.conftest import FAMILIES

RANKS = 2


def is_unit(module: nn.Module) -> bool:
    """Blocks, and the linear layers of patch merging, which nothing may read unasked."""
    block = hasattr(module, "norm1") and hasattr(module, "norm2")
    reduction = isinstance(module, nn.Linear) and module.in_features == 2 * module.out_features
    return block or reduction


def shard(model: nn.Module, version: str) -> nn.Module:
    if version == "1":
        policy = partial(lambda_auto_wrap_policy, lambda_fn=is_unit)
        return FullyShardedDataParallel(
            model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
        )
    mesh = init_device_mesh("cpu", (RANKS,))
    for module in model.modules():
        if is_unit(module):
            fully_shard(module, mesh=mesh)
            if isinstance(module, LTMViTBlock):  # the backbone reads them for a merger
                register_fsdp_forward_method(module, "cues")
    return fully_shard(model, mesh=mesh)


def check(rank: int, version: str, family: str, kind: str) -> None:
    """Two steps on images of its own: the sharded model and the averaged whole one stay alike."""
    cases = FAMILIES[family]
    merger = None if kind == "dense" else dict(type=kind, **cases.layouts["later"])
    whole = cases.build(merger).train()
    sharded = shard(copy.deepcopy(whole), version)
    torch.manual_seed(rank)
    images, outs = torch.randn(1, 3, 37, 50), []
    for model in (whole, sharded):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            maps = model(images)
            sum(m.square().mean() for m in maps).backward()
            if model is whole:
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        dist.all_reduce(parameter.grad)
                        parameter.grad /= RANKS
            optimizer.step()
        model.eval()
        with torch.no_grad():
            outs.append([maps, model(images)])
    for one, other in zip(*outs):
        for a, b in zip(one, other, strict=True):
            apart = (a - b).abs().max() / a.abs().max()
            assert apart < 1e-3, (family, kind, apart)


def main(rank: int, file: str, version: str, *cases: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=RANKS)
    for case in cases:
        check(rank, version, *case.split(":"))
        print("same")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
