"""Device, precision, and the processes that torchrun started."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from w2vtool.errors import ConfigError


def choose(name: str) -> torch.device:
    """``auto`` is CUDA when there is one; under torchrun each process takes its own device.

    Raises ConfigError for an unknown or absent device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise ConfigError(f"unknown device {name!r}", hint="auto, cpu or cuda") from exc
    if device.type == "cpu":
        # oneDNN prepares kernels per shape and keeps 1024 of them; the bins of a plan have more,
        # and preparing them anew took half of a small model's step. Read at the first kernel.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"unknown device {name!r}", hint="auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name} was asked for, and is not there", hint="device=cpu")
    return device


def inference_precision(
    asked: Literal["auto", "float32", "bf16"], device: torch.device
) -> Literal["float32", "bf16"]:
    """``auto`` is bf16 where the device multiplies in it, else float32."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    found = torch.cpu.get_capabilities()
    return "bf16" if found.get("avx512_bf16") or found.get("amx_bf16") else "float32"


def autocast(
    device: torch.device, precision: Literal["float32", "bf16"]
) -> AbstractContextManager[None]:
    """Where the forward pass runs in bf16; weights, norms and losses stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def processes(device: torch.device) -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started; gives (rank, world size), (0, 1) when alone.

    The group stays until the process ends.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield 0, 1
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():  # a pipeline trains twice, and gloo cannot be joined twice
        _meet("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    yield dist.get_rank(), world


def _meet(backend: str) -> None:
    """Join the other processes, of this attempt where torchrun has restarted them.

    Why not the plain call: torchrun's store outlives a restart, and whoever is first would be sent
    to the addresses of the dead. Over several nodes the attempts are not counted alike: there it
    takes TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment.
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend)
        return
    store, rank, world = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt-{attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)


def add_up(values: Tensor) -> Tensor:
    """Sum over all processes, in place; nothing to do when alone."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def add_up_gradients(model: nn.Module) -> None:
    """Sum the gradients of all processes; a parameter that got none here counts as zero.

    Why not DistributedDataParallel: the gradients of an update's micro-batches are summed first and
    exchanged once, the sum is the same as one process would make, and blocks that LayerDrop skipped
    need no search for unused parameters.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if not (dist.is_available() and dist.is_initialized()):
        return
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    pieces = flat.split([p.numel() for p in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad = piece.view_as(parameter)
