"""A model spread over the processes: each keeps a part of all weights, gradients, moments (FSDP2).

Goes in: a model that every process has whole. Goes out: the same model, whose blocks are put
together when they compute and are apart again afterwards; whole tensors for checkpoints, and back.
The numbers are those of the unsharded model, but for the order of sums.

Why gradients are summed, not averaged: an update divides them once, by the count of all processes.
Why skipped blocks still take part: LayerDrop belongs to the micro-batch, so processes skip
different blocks, and one that did not join in gathering a block would leave the others waiting.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from w2vtool.device import add_up
from w2vtool.model.regions import contexts


def shard(model: nn.Module, device: torch.device) -> None:
    """Spread a model over all processes, block by block and the rest as a whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # it warns of outputs that are views, lest they be changed in place, which nothing here does
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for context in contexts(model, "loop.shard"):
        context.lockstep = True
        for block in context.blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other


def _parts(model: nn.Module) -> list[Any]:
    """The modules that are gathered as a whole, the model itself first; none if not sharded."""
    return [m for m in model.modules() if hasattr(m, "set_gradient_divide_factor")]


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Keep the weights together in here, where processes make different numbers of passes."""
    parts = _parts(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def local(x: Tensor) -> Tensor:
    """The part of a tensor that is here: all of it, if it is not sharded."""
    part: Tensor = x.to_local() if hasattr(x, "to_local") else x
    return part


def total_norm(gradients: list[Tensor], *, sharded: bool) -> Tensor:
    """Norm of all gradients; of sharded ones, whose parts are given, over all processes."""
    norm = nn.utils.get_total_norm(gradients)
    return add_up(norm.square()).sqrt() if sharded else norm


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors put together from all processes, in host memory; those that are whole as they are.

    All processes must ask for the same; only the first gets them, for the others would be in the
    way of what they compute.
    """
    found = {}
    for name, value in tensors.items():
        if not hasattr(value, "full_tensor"):
            found[name] = value
            continue
        full = value.full_tensor()
        if dist.get_rank() == 0:
            found[name] = full.cpu()
    return found


def like(mine: Tensor, full: Tensor) -> Tensor:
    """``full``, which every process has, on the device and in the parts of ``mine``."""
    if not hasattr(mine, "placements"):
        return full.to(mine.device)
    from torch.distributed.tensor import distribute_tensor

    parts: Any = mine
    return distribute_tensor(
        full.to(mine.device), parts.device_mesh, parts.placements, src_data_rank=None
    )
