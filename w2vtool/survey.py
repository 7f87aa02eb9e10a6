"""Decode many audio files once, in parallel, and say of each what it is or why it cannot be used.

Goes in: paths. Goes out: one ``Inspected`` per path, in the same order, whatever happens to a file.

Why processes, and why spawned: a damaged file may crash its C decoder, which must cost one row and
not the scan; and a fork of a process that has threads (torch) can hang.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from w2vtool.audio import AudioError, Info, load

SILENCE_PEAK = 1e-4  # -80 dB of full scale
_FILES_PER_TASK = 16
T = TypeVar("T")


class Inspected(NamedTuple):
    """One decoded file, or why not."""

    info: Info = Info(0, 0, 0)
    samples: int = 0  # at 16 kHz
    silent: bool = False
    digest: bytes = b""  # of the samples at 16 kHz: equal audio in any lossless container
    reason: str = ""
    detail: str = ""


def inspect(path: Path) -> Inspected:
    """Decode one file to the end."""
    return inspect_piece((path, 0.0, None))


def inspect_piece(piece: tuple[Path, float, float | None]) -> Inspected:
    """Decode a part of a file: path, offset and duration in seconds (None: to its end)."""
    path, offset, duration = piece
    try:
        whole = not offset and duration is None
        samples, info = load(path) if whole else load(path, offset=offset, duration=duration)
    except AudioError as error:
        return Inspected(reason=error.reason, detail=error.what)
    except Exception as error:  # noqa: BLE001  one odd file must not end the scan of a corpus
        return Inspected(reason="unreadable", detail=f"{type(error).__name__}: {error}")
    silent = float(np.abs(samples).max()) < SILENCE_PEAK
    digest = hashlib.blake2b(samples.tobytes(), digest_size=16).digest()
    return Inspected(info, len(samples), silent, digest)


def inspect_all(
    paths: Sequence[T], *, jobs: int, inspect: Callable[[T], Inspected]
) -> Iterator[Inspected]:
    """Inspect files, or pieces, in their order; in a process pool when there are enough.

    A decoder that crashes takes its process along: the rest then goes file by file, and the file
    that did it is rejected as ``decoder-crash``.
    """
    tasks = [paths[i : i + _FILES_PER_TASK] for i in range(0, len(paths), _FILES_PER_TASK)]
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        yield from map(inspect, paths)
        return
    done = 0
    try:
        with _pool(jobs) as pool:
            for part in pool.map(partial(_inspect_part, inspect), tasks):
                yield from part
                done += len(part)
    except BrokenProcessPool:
        yield from _inspect_singly(paths[done:], inspect)


def _inspect_part(inspect: Callable[[T], Inspected], paths: Sequence[T]) -> list[Inspected]:
    return [inspect(path) for path in paths]


def _inspect_singly(paths: Sequence[T], inspect: Callable[[T], Inspected]) -> Iterator[Inspected]:
    rest = list(paths)
    while rest:
        with _pool(1) as pool:
            try:
                while rest:
                    yield pool.submit(inspect, rest[0]).result()
                    del rest[0]
            except BrokenProcessPool:
                yield Inspected(reason="decoder-crash", detail="the decoder crashed on this file")
                del rest[0]


def _pool(jobs: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    """One thread a process, Ctrl-C is the parent's, and no chatter of C decoders on stderr."""
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Path(os.devnull).open("w") as sink:
        os.dup2(sink.fileno(), 2)
