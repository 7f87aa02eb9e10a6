"""The loader beside a plain loop over the same files: what checks, crops and masks cost.

Goes in: a split. Goes out: audio seconds that one core gets through a second, by the loader and by
``soundfile.read`` alone, and their ratio: the share of the time that is decoding. Both read the
same rows in turn, bin by bin, in one process, and CPU time is counted, not the clock's: what else
runs on the machine then slows neither more than the other.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from functools import partial

from w2vtool.batches import load
from w2vtool.feed import Split
from w2vtool.manifest import Manifest

WARMUP = 2  # bins before those that are timed


def against_soundfile(split: Split, bins: int) -> dict[str, float]:
    """Time ``bins`` bins, after some for warming up.

    ``ratio`` is the loop's CPU time over the loader's; below 1 the loader is slower.
    """
    batches = load(split.manifest, split.plan, split.collate, range(WARMUP + bins))
    loader = loop = audio = 0.0
    for number in range(WARMUP + bins):
        if number == WARMUP:
            loader = loop = audio = 0.0
        rows = split.plan.bin(number).rows.tolist()
        loader += _cpu(partial(next, batches))
        loop += _cpu(partial(_plain, split.manifest, rows))
        audio += sum(split.manifest.rows[row].duration for row in rows)
    return {
        "loader_s_per_cpu_s": audio / loader,
        "soundfile_s_per_cpu_s": audio / loop,
        "ratio": loop / loader,
    }


def _cpu(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def _plain(manifest: Manifest, numbers: Sequence[int]) -> None:
    """Decode the files of rows the shortest way there is."""
    import soundfile

    for row in map(manifest.rows.__getitem__, numbers):
        path = manifest.audio_path(row)
        if row.start is None:
            soundfile.read(path, dtype="float32")
            continue
        with path.open("rb") as file:
            file.seek(row.start)
            soundfile.read(io.BytesIO(file.read(row.length or 0)), dtype="float32")
