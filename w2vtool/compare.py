"""A manifest beside its audio: rows whose file is gone, changed, or cannot hold what they say.

Goes in: a manifest. Goes out: a ``Mismatch`` for each thing that is wrong with a row, in the order
of the rows, and after them what only shows when all rows are known: the same audio in two rows, and
a file that is longer than the one row that uses it.

Why a longer file is reported: the row was made of another version of it. A row that begins later,
or shares its file with others, is a part of it, and says nothing about its length.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from w2vtool.audio import RANGE_SLACK_SECONDS, AudioError, Info, load, probe
from w2vtool.manifest import Manifest, emission_frames
from w2vtool.rows import Utterance, parse
from w2vtool.scan import lines
from w2vtool.survey import lost
from w2vtool.survey_parts import Verify
from w2vtool.text import frames_needed, letters
from w2vtool.workers import each

_ROWS_PER_REPORT = 64
Line = tuple[int, bytes]  # number and content


class Mismatch(NamedTuple):
    """One thing that is wrong: the line, the id, a stable code, the fact."""

    line: int
    id: str
    reason: str
    detail: str


class _Compared(NamedTuple):
    """What a row came to."""

    found: list[Mismatch]
    longer: Mismatch | None  # than the row is the file
    file: int = 0  # a mark of the row's file
    part: int = 0  # a mark of the row's part of it


def compare(
    opened: Manifest,
    *,
    jobs: int = 0,
    verify: Verify = "header",
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Mismatch]:
    """Everything about the rows that does not fit their files; 16 bytes a row are held.

    ``verify="decode"`` decodes the audio of every row; else headers are read. ``jobs``: processes
    that do it; 0: this one. Lengths may differ by 20 ms. ``on_progress(rows, of rows)`` may raise
    to stop.
    """
    _info.cache_clear()
    work = partial(_compare, opened.path.parent, verify)
    rows = ((number, line) for number, _, line in lines(opened.path))
    results = each(work, rows, jobs=jobs, lost=_lost) if jobs else map(work, rows)
    longer: list[tuple[int, Mismatch]] = []
    files, parts = array("Q"), array("Q")
    for done, row in enumerate(results, start=1):
        yield from row.found
        longer += [] if row.longer is None else [(row.file, row.longer)]
        files.append(row.file)
        parts.append(row.part)
        if on_progress and (done % _ROWS_PER_REPORT == 0 or done == len(opened.rows)):
            on_progress(done, len(opened.rows))
    shared = _repeated(files)
    yield from (found for mark, found in longer if mark not in shared)
    if twice := _repeated(parts):
        yield from _twins(opened.path, twice)


def _compare(folder: Path, verify: Verify, numbered: Line) -> _Compared:
    number, line = numbered
    row = parse(line)
    file = (row.audio, row.span)
    marks = (_mark(file), _mark((file, row.offset, row.duration)))
    info = _info(folder / row.audio, row.span)
    if isinstance(info, AudioError):
        return _Compared([Mismatch(number, row.id, info.reason, info.fact)], None, *marks)
    reasons = list(_differences(row, info)) or list(_damage(folder, row, verify))
    longer = None
    if row.offset == 0 and info.seconds > row.duration + RANGE_SLACK_SECONDS:
        what = f"the file has {info.seconds:.3f} s, the row {row.duration:.3f} s"
        longer = Mismatch(number, row.id, "longer", f"{row.audio}: {what}")
    return _Compared([Mismatch(number, row.id, *why) for why in reasons], longer, *marks)


@lru_cache(maxsize=64)  # rows of one long file follow one another
def _info(path: Path, span: tuple[int, int] | None) -> Info | AudioError:
    try:
        return probe(path, span=span)
    except AudioError as error:
        return error


def _differences(row: Utterance, info: Info) -> Iterator[tuple[str, str]]:
    """Reason and fact of all that header and row disagree about."""
    end = row.offset + row.duration
    if end > info.seconds + RANGE_SLACK_SECONDS:
        yield "range", f"{row.audio}: the row ends at {end:.3f} s, the file at {info.seconds:.3f} s"
    if row.sample_rate not in (None, info.sample_rate):
        what = f"the file has {info.sample_rate} Hz, the row {row.sample_rate}"
        yield "rate", f"{row.audio}: {what}"
    if row.text:
        needed, frames = frames_needed(letters(row.text)), emission_frames(row.samples)
        if needed > frames:
            yield "text-too-long", f"its text takes {needed} frames, the audio has {frames}"


def _damage(folder: Path, row: Utterance, verify: Verify) -> Iterator[tuple[str, str]]:
    if verify == "decode":
        try:
            load(folder / row.audio, offset=row.offset, duration=row.duration, span=row.span)
        except AudioError as error:
            yield error.reason, error.fact


def _lost(numbered: Line, code: int) -> _Compared:
    """What is known of a row whose process died."""
    number, line = numbered
    row = parse(line)
    why = lost(Path(row.audio), code)
    return _Compared([Mismatch(number, row.id, why.reason, f"{row.audio}: {why.detail}")], None)


def _mark(what: object) -> int:
    """64 bits that stand for a value, in every process."""
    digest = hashlib.blake2b(repr(what).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1  # 0 is nothing


def _repeated(marks: array[int]) -> set[int]:
    """The marks that stand more than once."""
    found = np.sort(np.frombuffer(marks, np.uint64)) if marks else np.zeros(0, np.uint64)
    return set(found[1:][found[1:] == found[:-1]].tolist()) - {0}


def _twins(path: Path, marks: set[int]) -> Iterator[Mismatch]:
    first: dict[int, tuple[int, str]] = {}
    for number, _, line in lines(path):
        row = parse(line)
        mark = _mark(((row.audio, row.span), row.offset, row.duration))
        if mark in marks:
            before = first.setdefault(mark, (number, row.id))
            if before[0] != number:
                what = f"the same audio as {before[1]!r} in line {before[0]}"
                yield Mismatch(number, row.id, "same-audio", what)
