"""Rows against the headers of their files, many at a time: what cannot be decoded, and the rates.

Goes in: rows, with where their audio lies. Goes out: for each, in order, what its file is, and why
it cannot hold the row. Damage inside of a file is not seen; that takes decoding.

Why threads: where the files lie on a network, each question to it takes a millisecond.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from w2vtool.audio import RANGE_SLACK_SECONDS, AudioError, Info, probe
from w2vtool.columns import rates
from w2vtool.manifest import Manifest
from w2vtool.rows import Utterance

THREADS = 16
_ROWS_A_TASK, _TASKS_AHEAD = 8, 16 * THREADS

Place = tuple[Path, Utterance]


class Header(NamedTuple):
    """What the file of a row is; or why it cannot be decoded, or does not hold the row."""

    row: Utterance
    info: Info | None
    error: AudioError | None


def headers(places: Iterable[Place]) -> Iterator[Header]:
    """The header of every row's file, in order; thousands of rows are held at a time."""
    rest = iter(places)
    with ThreadPoolExecutor(THREADS) as pool:
        while ahead := list(islice(rest, _ROWS_A_TASK * _TASKS_AHEAD)):
            tasks = [ahead[i : i + _ROWS_A_TASK] for i in range(0, len(ahead), _ROWS_A_TASK)]
            for found in pool.map(_look, tasks):
                yield from found


def _look(places: list[Place]) -> list[Header]:
    known: dict[tuple[Path, object], Info | AudioError] = {}  # rows of a long file stand together
    found = []
    for path, row in places:
        file = (path, row.span)
        if file not in known:
            try:
                known[file] = probe(path, span=row.span)
            except AudioError as error:
                known[file] = error
        info, wanted = known[file], row.offset + row.duration
        if isinstance(info, AudioError):
            found.append(Header(row, None, info))
        elif wanted > info.seconds + RANGE_SLACK_SECONDS:
            what = f"it has {info.seconds:.3f} s, the manifest wants {wanted:.3f} s"
            found.append(Header(row, info, AudioError(what, where=str(path), reason="range")))
        else:
            found.append(Header(row, info, None))
    return found


def sample_rates(opened: Manifest) -> Counter[int]:
    """How many rows have which rate (Hz); for those that do not say, their files are asked.

    Files that cannot be read are left out: whoever decodes them says why.
    """
    counts = rates(opened.rows)
    found = Counter({rate: rows for rate, rows in counts.items() if rate is not None})
    if None in counts:
        places = ((opened.audio_path(row), row) for row in opened.rows if row.sample_rate is None)
        found.update(info.sample_rate for _, info, _ in headers(places) if info is not None)
    return found
