"""Device, precision, and the processes that torchrun started."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from w2vtool.errors import ConfigError, UserError

MOST_KERNELS = 16_384
KERNEL_BYTES = 320_000  # 24 MB for the 77 kernels of one shape of a small network in bf16


class PeerLost(UserError):
    """Another process of the run has died, so that this one cannot go on either."""

    exit_code = 7


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
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_kernels_kept()))
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"unknown device {name!r}", hint="auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name} was asked for, and is not there", hint="device=cpu")
    return device


def _kernels_kept() -> int:
    """How many kernels oneDNN may keep in this process, which it reads at its first kernel.

    Why more than its 1,024: it prepares dozens for each shape, the bins of a plan have up to 200
    shapes, and preparing them anew took half of a small model's step. Why a quarter of the memory
    at most: where all bins have been met, these kernels can be most of what a process holds.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    share = memory // 4 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MOST_KERNELS, share // KERNEL_BYTES)


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


def send(numbers: Sequence[float], device: torch.device) -> Tensor:
    """Numbers of the host as float64 on the device, without waiting: from pinned memory to CUDA."""
    held = torch.tensor(numbers, dtype=torch.float64, pin_memory=device.type == "cuda")
    return held.to(device, non_blocking=True)


@contextmanager
def processes(device: torch.device) -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started; gives (rank, world size), (0, 1) when alone.

    The group stays until the process ends. Raises PeerLost when another process dies meanwhile.
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
    try:
        yield dist.get_rank(), world
    except RuntimeError as exc:
        if not _of_a_peer(exc):
            raise
        raise PeerLost(
            f"another process of this run died, or cannot be reached: {str(exc).splitlines()[0]}",
            where=f"process {dist.get_rank()} of {world}",
            hint="its own message says why; torchrun --max-restarts starts all of them again, and "
            "--resume goes on from the newest checkpoint",
        ) from exc


def _of_a_peer(error: RuntimeError) -> bool:
    """Whether an exchange with the other processes failed: NCCL has a type for it, gloo a text."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


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


def add_up_gradients(leaves: Sequence[Tensor], *, summed: bool = False) -> None:
    """Sum the gradients of all processes, unless they are; what got none here counts as zero.

    Why not DistributedDataParallel: the gradients of an update's micro-batches are summed first and
    exchanged once, the sum is the same as one process would make, and blocks that LayerDrop skipped
    need no search for unused parameters.
    """
    for leaf in leaves:
        if leaf.grad is None:
            leaf.grad = torch.zeros_like(leaf)
    if summed or not (dist.is_available() and dist.is_initialized()):
        return
    flat = torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None])
    dist.all_reduce(flat)
    pieces = flat.split([leaf.numel() for leaf in leaves])
    for leaf, piece in zip(leaves, pieces, strict=True):
        leaf.grad = piece.view_as(leaf)
