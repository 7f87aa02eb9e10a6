"""Log-probabilities of a model, computed once and kept.

Goes in: rows, and what computes their log-probabilities. Goes out: the same arrays, from a file of
the cache folder if they were computed before. A file holds those of one part of a job (128 rows);
its name is a hash of the model, of how it computes and of the audio of the rows, so that a file is
found if and only if it holds what would be computed. Transcripts do not count: they may be mended.

Why safetensors: arrays that are read without running anything that the file says. Why a CRC-32 in
it: wrong numbers look like any others, and SHA-256 takes twice the time (measured), which a greedy
search would feel; forgers are not kept out. What does not match, or has no checksum, since an older
version kept it, is computed again: nothing else vouches for it.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from w2vtool import checkpoint, emissions, parts
from w2vtool.device import choose
from w2vtool.emissions import Job, Precision
from w2vtool.manifest import Utterance
from w2vtool.parts import Compute
from w2vtool.run import make_folder, write_atomic

log = logging.getLogger(__name__)
Kind = Literal["float32", "float16"]
Made = Iterator[tuple[Utterance, np.ndarray]]
CHECKSUM = "crc32"  # among the names of the arrays, which are numbers
_NOT_HEARD = ("id", "text", "speaker", "lang", "extra")  # of a row


@dataclass(frozen=True)
class Cache:
    """A folder of log-probabilities. ``what`` is all that they depend on beside the rows."""

    folder: Path
    what: Mapping[str, Any]
    kind: Kind = "float32"

    def __post_init__(self) -> None:
        """Raise ConfigError for what can be no folder, before the network is asked."""
        make_folder(self.folder, "--cache")

    def path(self, rows: Sequence[Job]) -> Path:
        """Where the log-probabilities of the rows of one part are, or will be."""
        [part] = parts.cut(rows, {**self.what, "kind": self.kind}, _heard)
        return self.folder / f"emissions-{part.key()[:40]}.safetensors"

    def read(self, rows: Sequence[Job]) -> list[np.ndarray] | None:
        """Float32 ``[T, V]`` of each row; None if they are not there, or the file is damaged."""
        try:
            found = load(self.path(rows).read_bytes())
            arrays = [found[str(number)] for number in range(len(rows))]
            if not np.array_equal(found[CHECKSUM], checksum(arrays)):
                return None
            return [array.astype(np.float32, copy=False) for array in arrays]
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, rows: Sequence[Job], arrays: Sequence[np.ndarray]) -> None:
        """Keep arrays ``[T, V]``; the file appears at once and whole."""
        kept = {
            str(number): np.ascontiguousarray(array, self.kind)
            for number, array in enumerate(arrays)
        }
        kept[CHECKSUM] = checksum(kept.values())
        write_atomic(self.path(rows), save(kept))

    def through(self, rows: Sequence[Job], make: Callable[[], Made]) -> Made:
        """What is kept for the rows of one part; else what ``make`` gives, which is then kept.

        With float16, both are rounded.
        """
        found = self.read(rows)
        if found is not None:
            yield from zip((row for _, row in rows), found, strict=True)
            return
        if (path := self.path(rows)).exists():
            log.warning("%s: damaged, or kept by an older version: computed again", path)
        arrays = []
        for row, logp_TV in make():
            arrays.append(logp_TV.astype(self.kind))
            yield row, arrays[-1].astype(np.float32)
        if len(arrays) == len(rows):  # or some were rejected
            self.write(rows, arrays)


def checksum(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """CRC-32 (uint32 ``[1]``) of contiguous arrays: of their types, shapes and bytes."""
    found = 0
    for array in arrays:
        found = zlib.crc32(array.data, zlib.crc32(f"{array.dtype}{array.shape}".encode(), found))
    return np.array([found], np.uint32)


def origin(path: Path, precision: Precision, batch_seconds: float) -> dict[str, Any]:
    """What log-probabilities depend on beside the rows; ``path`` is the checkpoint's."""
    return {
        "checkpoint": checkpoint.fingerprint(path),
        "precision": precision,
        "batch": batch_seconds,
    }


def _heard(job: Job) -> dict[str, Any]:
    """What log-probabilities depend on of a row."""
    return {key: value for key, value in emissions.identify(job).items() if key not in _NOT_HEARD}


@dataclass(frozen=True)
class Emitting:
    """Work for ``engines.run``: fills a cache; gives the number of frames of each row."""

    checkpoint: Path
    cache: Cache
    precision: Precision
    batch_seconds: float

    def start(self, device: str) -> Compute:
        """Load the network, once."""
        model = checkpoint.load(self.checkpoint).ctc()

        def compute(rows: Sequence[Job]) -> Iterator[dict[str, Any]]:
            def make() -> Made:
                return emissions.log_probabilities(
                    rows,
                    model,
                    device=choose(device),
                    batch_seconds=self.batch_seconds,
                    precision=self.precision,
                )

            for row, logp_TV in self.cache.through(rows, make):
                yield {"id": row.id, "frames": len(logp_TV)}

        return compute
