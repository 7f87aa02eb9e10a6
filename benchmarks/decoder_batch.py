"""Beam search of a large batch on one device, beside the compiled search on all cores of the host.

Goes in: a device, and a job as ``decoder.py`` takes it. Goes out: for the closed lexicon and the
open vocabulary audio seconds a second of both, the share of equal texts, and what the device is
asked to do in each frame: operations, and waits of the host for a result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import decoder
import decoder_worker
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from w2vtool import bench_machine
from w2vtool.decoder.beam import BeamOptions, Search
from w2vtool.decoder.lm import open_lm

FRAME_S = 0.02
ROUNDS = 3
COUNTED = 100  # frames over which operations are counted
VIEWS = {"select", "slice", "view", "unsqueeze", "squeeze", "expand", "t", "detach", "alias"}
WAITS = {"nonzero", "nonzero_numpy", "_unique2", "_local_scalar_dense", "masked_select"}


class Operations(TorchDispatchMode):
    """Counts what is computed, and what the host must wait for, as tensors of unknown size."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(func.overloadpacket).removeprefix("aten.")
        self.all += name not in VIEWS
        indices = args[1] if name in ("index", "index_put_") else ()
        masked = any(index is not None and index.dtype == torch.bool for index in indices)
        self.waits += name in WAITS or masked
        return func(*args, **(kwargs or {}))


def measure(device: torch.device, folder: Path, work: Path, utterances: int) -> dict[str, Any]:
    """Both searches on the job's test set, repeated until there are enough utterances."""
    job = decoder.open_job(folder, work)
    model = open_lm(job.arpa)
    frames = list(islice(cycle(decoder_worker.split(str(folder), "test")), utterances))
    found: dict[str, Any] = {
        "utterances": utterances,
        "audio_s": FRAME_S * sum(map(len, frames)),
        "ngrams": len(getattr(model, "log10", ())),
    }
    for mode in ("lexicon", "open"):
        options = BeamOptions(mode=mode)

        def search(**given: Any) -> Search:
            return Search(job.tokens, job.lexicon, model, options, **given)  # noqa: B023

        found[mode] = compared(search, device, frames)
    speeds = {mode: found[mode]["audio_s_per_s"] for mode in ("lexicon", "open")}
    return {**found, "audio_s_per_s": speeds["lexicon"]}


def compared(
    search: Callable[..., Search], device: torch.device, frames: Sequence[np.ndarray]
) -> dict[str, Any]:
    """One mode: torch on the device, numba on the cores if it is installed."""
    audio_s = FRAME_S * sum(map(len, frames))
    here = search(engine="torch", device=str(device))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, texts = timed(here, device, frames)
    found: dict[str, Any] = {"audio_s_per_s": audio_s / seconds, **asked(here, frames)}
    if device.type == "cuda":
        found["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        found |= launched(here, frames)
    if find_spec("numba") is not None:
        threads = len(os.sched_getaffinity(0))
        seconds, others = timed(search(engine="numba", threads=threads), device, frames)
        equal = sum(map(str.__eq__, texts, others)) / len(texts)
        found |= {"numba_audio_s_per_s": audio_s / seconds, "threads": threads, "equal": equal}
    return found


def timed(
    search: Search, device: torch.device, frames: Sequence[np.ndarray]
) -> tuple[float, list[str]]:
    """Seconds by the clock from frames on the host to texts, after a first time; the texts."""
    texts = [h[0].text for h in search.batch(frames)]
    spent = []
    for _ in range(ROUNDS):
        bench_machine.synchronise(device)
        begin = time.perf_counter()
        search.batch(frames)
        bench_machine.synchronise(device)
        spent.append(time.perf_counter() - begin)
    return median(spent), texts


def asked(search: Search, frames: Sequence[np.ndarray]) -> dict[str, float]:
    """Operations and waits a frame, whatever the number of utterances."""
    some = [logp_TV[:COUNTED] for logp_TV in frames[:8]]
    with Operations() as operations:
        search.batch(some)
    most = max(map(len, some))
    return {"operations_a_frame": operations.all / most, "waits_a_frame": operations.waits / most}


def launched(search: Search, frames: Sequence[np.ndarray]) -> dict[str, float]:
    """Kernels and graphs that CUDA was given a frame, and waits, as its own profiler counts."""
    some = [logp_TV[:COUNTED] for logp_TV in frames[:8]]
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        search.batch(some)
    events = {event.key: event.count for event in profile.key_averages()}
    most = max(map(len, some))
    launches = sum(n for name, n in events.items() if "LaunchKernel" in name)
    graphs = sum(n for name, n in events.items() if "GraphLaunch" in name)
    waits = sum(n for name, n in events.items() if name.startswith("cuda") and "Synchron" in name)
    return {
        "launches_a_frame": launches / most,
        "graphs_a_frame": graphs / most,
        "synchronisations_a_frame": waits / most,
    }
