"""Parts of long recordings: only what a crop needs is decoded.

Goes in: a row of a manifest. Goes out: its samples, all of them or a stretch, the same bits either
way. That holds where a decoder can begin anywhere and gives what it gives in a whole read: WAV
(PCM, float, A-law and µ-law) and FLAC, at 16 kHz. All else is decoded whole and then cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np

from w2vtool.audio import RANGE_SLACK_SECONDS, SAMPLE_RATE, probe
from w2vtool.errors import DataError
from w2vtool.manifest import Manifest, Utterance

_PLAIN_WAV = {1, 3, 6, 7, 0xFFFE}  # PCM, float, A-law, µ-law, and the form that says which of these


class Samples(Protocol):
    """What a row sounds like: an array ``[S]``, or something that gives stretches of it."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """A stretch, or with ``[:]`` all of it."""


class Excerpt:
    """A long row of which no more is decoded than is asked for.

    ``error`` is what the last stretch asked for could not be read for.
    """

    def __init__(
        self, manifest: Manifest, row: Utterance, samples: int, whole: Callable[[], np.ndarray]
    ) -> None:
        self.manifest, self.row, self.samples, self.whole = manifest, row, samples, whole
        self.error: DataError | None = None

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, part: slice) -> np.ndarray:
        first, last, _ = part.indices(self.samples)
        try:
            if (first, last) == (0, self.samples):
                return self.whole()
            begin = round(self.row.offset * SAMPLE_RATE) + first
            seconds = begin / SAMPLE_RATE, (last - first) / SAMPLE_RATE
            return self.manifest.audio(replace(self.row, offset=seconds[0], duration=seconds[1]))
        except DataError as error:
            self.error = error
            raise


def excerpt(manifest: Manifest, row: Utterance, whole: Callable[[], np.ndarray]) -> Excerpt | None:
    """The row as something to read stretches of; None where it has to be decoded whole.

    So it is with rows that cannot be read at all: ``whole`` then says why.
    """
    path = manifest.audio_path(row)
    try:
        with path.open("rb") as file:
            file.seek(row.start or 0)
            if not _begins_anywhere(file.read(64)):
                return None
        info = probe(path, span=row.span)
    except (OSError, DataError):
        return None
    inside = row.offset + row.duration <= info.seconds + RANGE_SLACK_SECONDS
    if info.sample_rate != SAMPLE_RATE or not inside:
        return None
    there = info.samples - round(row.offset * SAMPLE_RATE)
    return Excerpt(manifest, row, min(there, row.samples), whole)


def _begins_anywhere(head: bytes) -> bool:
    """Whether a decoder of this file gives the same samples wherever it begins, by its start."""
    if head[:4] == b"RIFF":
        return head[12:16] == b"fmt " and int.from_bytes(head[20:22], "little") in _PLAIN_WAV
    return head[:4] == b"fLaC"
