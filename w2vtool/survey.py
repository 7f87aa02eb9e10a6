"""Decode many audio files once, in parallel, and say of each what it is or why it cannot be used.

Goes in: paths. Goes out: one ``Inspected`` per path, in the same order, whatever happens to a file.

Why processes: a damaged file may crash its C decoder, hang it or eat the memory, which must cost
one row and not the scan (``workers``, ``limits``).
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from w2vtool import workers
from w2vtool.audio import AudioError, Info, opened, probe
from w2vtool.limits import DEFAULT, Limits

SILENCE_PEAK = 1e-4  # -80 dB of full scale
CLIPPED_PEAK = 0.999  # of full scale: what a converter gives when it can give no more
CLIPPED_SHARE = 1e-3  # of all samples; 16 in a second, where speech at full level has one or two
DC_OFFSET = 0.02  # of full scale, -34 dB: the mean of all samples; speech has less than 0.001


class Inspected(NamedTuple):
    """One decoded file, or why not."""

    info: Info = Info(0, 0, 0)
    samples: int = 0  # at 16 kHz
    silent: bool = False
    digest: bytes = b""  # of the mono samples: equal audio in any lossless container
    reason: str = ""
    detail: str = ""
    warnings: tuple[str, ...] = ()  # of what is kept: "clipped", "dc-offset"


def inspect(path: Path) -> Inspected:
    """Decode one file to the end, block by block: in the same memory however long it is."""
    digest = hashlib.sha256()  # processors have instructions for it: twice as fast as blake2b
    peak, total, clipped, frames = 0.0, 0.0, 0, 0
    try:
        with opened(path) as (info, blocks):
            for block in blocks:
                digest.update(np.ascontiguousarray(block).data)
                highest = max(float(block.max()), -float(block.min()))
                if highest >= CLIPPED_PEAK:
                    clipped += int(np.count_nonzero(np.abs(block) >= CLIPPED_PEAK))
                peak, total = max(peak, highest), total + float(block.sum(dtype=np.float64))
                frames += len(block)
    except AudioError as error:
        return Inspected(reason=error.reason, detail=error.what)
    except MemoryError as error:
        detail = f"takes more memory than a file may ({error})"
        return Inspected(reason="memory", detail=detail)
    except Exception as error:  # noqa: BLE001  one odd file must not end the scan of a corpus
        return Inspected(reason="unreadable", detail=f"{type(error).__name__}: {error}")
    found = (
        ("clipped", clipped >= CLIPPED_SHARE * frames),
        ("dc-offset", abs(total) >= DC_OFFSET * frames),
    )
    return Inspected(
        info,
        info.samples,
        peak < SILENCE_PEAK,
        digest.digest()[:16],
        warnings=tuple(name for name, there in found if there),
    )


def glance(path: Path) -> Inspected:
    """Read the header of one file: damage inside, silence and twins stay unknown."""
    try:
        info = probe(path)
    except AudioError as error:
        return Inspected(reason=error.reason, detail=error.what)
    except Exception as error:  # noqa: BLE001  one odd file must not end the scan of a corpus
        return Inspected(reason="unreadable", detail=f"{type(error).__name__}: {error}")
    return Inspected(info, info.samples)


def inspect_all(
    paths: Sequence[Path],
    *,
    jobs: int,
    inspect: Callable[[Path], Inspected] = inspect,
    limits: Limits = DEFAULT,
) -> Iterator[Inspected]:
    """Inspect files in their order, in ``jobs`` processes under limits; 0: in this one, without.

    A file that kills its process is rejected as ``decoder-crash``, one that takes too long as
    ``timeout``, one that takes too much memory as ``memory``.
    """
    if jobs == 0:
        return map(inspect, paths)
    return workers.each(inspect, paths, jobs=jobs, lost=lost, limits=limits)


def lost(path: Path, code: int) -> Inspected:
    """What is known of a file whose process died."""
    if code == -signal.SIGALRM:
        return Inspected(reason="timeout", detail="was not decoded in the time that a file has")
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Inspected(reason="decoder-crash", detail=f"the decoder crashed on this file ({how})")
