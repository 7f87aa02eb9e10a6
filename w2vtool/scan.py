"""The rows of a manifest file in their order, checked as a whole, in bounded memory.

Goes in: the path of a manifest. Goes out: row after row, with where its line begins and what of it
goes into the manifest's hash; at the end a DataError with everything that is wrong with the file.

Why ids are kept as hashes: eight bytes an id find the few that may stand twice, and only then is
the file read again, to compare the ids themselves.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from w2vtool.errors import DataError, shortened
from w2vtool.rows import Utterance, parse, parse_hashed

_BOM = b"\xef\xbb\xbf"
_NO_ROW = ("not JSON", "not a JSON", "not UTF-8")  # how the problem of such a line begins
_NEEDED = "a manifest is needed: w2vtool manifest FOLDER-OR-TABLE --out data.jsonl"
_ROWS_PER_REPORT = 1 << 16

Problem = tuple[int, str]  # line number (0: none in particular), and what is wrong
OnProgress = Callable[[int, int], None]  # bytes read, bytes in all


class Found(NamedTuple):
    """A row, the byte that its line begins at, and what of it is hashed."""

    row: Utterance
    start: int
    hashed: bytes


class Ids:
    """Which ids may stand twice, at eight bytes an id. ``hash`` is that of this process."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, row_id: str) -> None:
        """Take note of an id."""
        self._hashes.append(hash(row_id))

    def twice(self) -> set[int]:
        """Hashes that were met more than once: of ids that stand twice, or (rarely) collide."""
        hashes = np.frombuffer(self._hashes, np.int64) if self._hashes else np.zeros(0, np.int64)
        hashes = np.sort(hashes)
        return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Lines that hold something: number from 1, first byte, content. DataError when unreadable."""
    try:
        with path.open("rb") as file:
            start = 0
            for number, line in enumerate(file, start=1):
                content = line.removeprefix(_BOM) if number == 1 else line
                if content.strip():
                    yield number, start + len(line) - len(content), content
                start += len(line)
    except OSError as error:
        what, hint = f"cannot be read ({error.strerror})", _NEEDED if path.is_dir() else ""
        raise DataError(what, where=str(path), hint=hint) from error


def checked(path: Path, on_progress: OnProgress | None = None) -> Iterator[Found]:
    """All rows of a manifest, up to the first bad one.

    The rest is then read too, and DataError lists every bad row (the first 20 of them) as
    ``file:line``. What came out before is right as far as it goes, but for ids that stand twice.
    """
    problems: list[Problem] = []
    ids, rows = Ids(), 0
    size = path.stat().st_size if on_progress else 0
    for number, start, line in lines(path):
        try:
            row, part = parse_hashed(line)
        except ValueError as error:
            problems += [(number, problem) for problem in error.args]
            continue
        ids.add(row.id)
        rows += 1
        if on_progress and rows % _ROWS_PER_REPORT == 0:
            on_progress(start, size)
        if not problems:
            yield Found(row, start, part)
    strange = all(what.startswith(_NO_ROW) for _, what in problems)
    if problems and strange and not rows and path.suffix != ".jsonl":
        what = "is not a manifest: no line is a JSON object"
        raise DataError(what, where=str(path), hint=_NEEDED)
    if twice := ids.twice():
        problems += _repeated(path, twice)
    raise_problems(path, sorted(problems, key=lambda problem: problem[0]))
    if not rows:
        what, hint = "the manifest is empty", "build it with w2vtool manifest"
        raise DataError(what, where=str(path), hint=hint)


def _repeated(path: Path, hashes: set[int]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for number, _, line in lines(path):
        try:
            row_id = parse(line).id
        except ValueError:
            continue
        if hash(row_id) in hashes and first.setdefault(row_id, number) != number:
            yield number, f"id {row_id!r} is already in line {first[row_id]}"


def raise_problems(path: Path, problems: Sequence[Problem]) -> None:
    """Raise DataError if there is anything in ``problems``."""
    if not problems:
        return
    hint = "a row needs id, audio (a path) and duration (seconds); see w2vtool manifest --help"
    if len(problems) == 1 and problems[0][0]:
        raise DataError(problems[0][1], where=f"{path}:{problems[0][0]}", hint=hint)
    shown = shortened([f"{path}:{line}: {what}" if line else what for line, what in problems])
    raise DataError("\n  ".join([f"{len(problems)} bad rows", *shown]), where=str(path), hint=hint)
