"""What the machine says while something is timed: its name, peak memory, compilations.

Goes in: a device. Goes out: numbers for the results of ``bench`` and ``benchmarks/peers.py``.
"""

from __future__ import annotations

import gc
import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """The most memory that was in use since this was made.

    On CUDA: bytes of tensors on the device. On a CPU: how far the resident set of this process grew
    at most; where the system cannot start its peak anew, what was in use before may hide some.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with suppress(OSError):  # not Linux, or not allowed
            Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use
        self.before = resident("VmRSS")

    @property
    def bytes(self) -> int:
        """The peak so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return max(0, resident("VmHWM") - self.before)


def resident(field: str) -> int:
    """Bytes of this process in memory: now (``VmRSS``) or at the peak (``VmHWM``).

    Where there is no ``/proc`` both are the peak.
    """
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) << 10
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def compilations() -> int:
    """Graphs that ``torch.compile`` has made in this process."""
    dynamo: Any = sys.modules.get("torch._dynamo.utils")  # not imported: nothing was compiled
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
