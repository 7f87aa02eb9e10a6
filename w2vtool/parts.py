"""A job over many rows, cut into parts that are done once, whoever does them.

Goes in: rows, and what is done to them. Goes out: a file for each finished part, which holds the
part's lines and says of what they were made; and the lines of all parts in the order of the rows.

Why the result is the completion mark: a file that appears under its name in one step is whole, and
nothing has to be kept in step with it. Why the key in it: a part is taken over by a later run, on
whatever engine, if and only if the same would be done to the same rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from w2vtool.run import write_atomic

# Fixed, and not a share of the rows: what is in a batch depends on it, and so do the last bits of
# a network's output.
PART_ROWS = 128

REJECTED = "rejected"  # key of a line that says why a row has none; its value: which row

Line = dict[str, Any]
# lines of rows, in their order; those of the rejected ones anywhere
Compute = Callable[[Sequence[Any]], Iterator[Line]]


class Work(Protocol):
    """What is done to the rows of a part; it is pickled and sent to other processes."""

    def start(self, device: str) -> Compute:
        """Load what is needed, once a process; gives what makes a line of each row, in order."""
        ...


class Part:
    """Rows that are done together. ``hashed`` gives a hash of what is done to some of them."""

    def __init__(
        self, number: int, rows: Sequence[Any], hashed: Callable[[Sequence[Any]], str]
    ) -> None:
        self.number, self.rows, self._hashed = number, rows, hashed
        self._keys: dict[tuple[int, ...], str] = {}  # by the numbers of the rows left out

    def key(self, rejected: Sequence[int] = ()) -> str:
        """A hash of what is done to its rows, but for these; of the files as they are found now.

        Why only when it is asked for: it looks at every file, and nothing waits for all parts.
        """
        without = tuple(rejected)
        if without not in self._keys:
            rows = [row for number, row in enumerate(self.rows) if number not in without]
            self._keys[without] = self._hashed(rows)
        return self._keys[without]

    def path(self, folder: Path) -> Path:
        """Where its lines are, once it is done."""
        return folder / f"part-{self.number:06d}.jsonl"

    def __reduce__(self) -> tuple[Any, ...]:
        self.key()  # for all processes the same
        return _sent, (self.number, list(self.rows), self._hashed, self._keys)


def _sent(
    number: int,
    rows: Sequence[Any],
    hashed: Callable[[Sequence[Any]], str],
    keys: dict[tuple[int, ...], str],
) -> Part:
    part = Part(number, rows, hashed)
    part._keys = keys
    return part


def cut(
    rows: Sequence[Any],
    what: Mapping[str, Any],
    identify: Callable[[Any], Mapping[str, Any]],
    size: int = 0,
) -> list[Part]:
    """Parts of ``size`` rows (0: ``PART_ROWS``).

    ``identify`` says what a row is, ``what`` all that is done.
    """
    size = size or PART_ROWS
    head = json.dumps(what, sort_keys=True, default=str).encode()
    return [
        Part(start // size, rows[start : start + size], partial(_hash, head, identify))
        for start in range(0, len(rows), size)
    ]


def _hash(head: bytes, identify: Callable[[Any], Mapping[str, Any]], rows: Sequence[Any]) -> str:
    digest = hashlib.sha256(head)
    for row in rows:
        digest.update(json.dumps(identify(row), sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def finish(
    folder: Path, part: Part, compute: Compute, tick: Callable[[int], None] = lambda rows: None
) -> None:
    """Do what a part lacks. ``tick(rows)`` is told what is done, and may raise to stop."""
    lines = read(folder, part) or []
    missing = _rejected(lines) if lines else range(len(part.rows))
    rows = list(part.rows)
    part.key()  # of the files that are read, and not of what is there when it is finished
    tick(len(rows) - len(missing))
    good, bad = [], {}
    for line in compute([rows[number] for number in missing]):
        if REJECTED in line:
            bad[missing[line[REJECTED]]] = line
        else:
            good.append(line)
        tick(1)
    fresh, known = iter(good), dict(enumerate(lines))
    for number in missing:
        known[number] = {**bad[number], REJECTED: number} if number in bad else next(fresh)
    write(folder, part, [known[number] for number in range(len(rows))])


def write(folder: Path, part: Part, lines: Sequence[Line]) -> None:
    """Leave the lines of a part, one a row: its file appears at once and whole."""
    rejected = _rejected(lines)
    head = {"key": part.key(rejected), "lines": len(lines)}
    head |= {REJECTED: rejected} if rejected else {}
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (head, *lines))
    write_atomic(part.path(folder), text)


def read(folder: Path, part: Part) -> list[Line] | None:
    """The lines of a part; None if it is not there, is damaged, or is of something else.

    A file of something else is left: the part's own replaces it.
    """
    try:
        text = part.path(folder).read_text(encoding="utf-8")
        head, *lines = text.removesuffix("\n").split("\n")  # texts may hold other line ends
        found = json.loads(head)
        if found["key"] != part.key(found.get(REJECTED, ())) or found["lines"] != len(lines):
            return None
        return [json.loads(line) for line in lines]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def done(folder: Path, part: Part) -> int:
    """How many rows of a part are done, and not rejected; looks at its first line only."""
    try:
        with part.path(folder).open(encoding="utf-8") as file:
            head = json.loads(file.readline())
        rejected = head.get(REJECTED, [])
        return len(part.rows) - len(rejected) if head["key"] == part.key(rejected) else 0
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def is_done(folder: Path, part: Part) -> bool:
    """Whether all rows of a part are done, and none was rejected."""
    return done(folder, part) == len(part.rows)


def _rejected(lines: Sequence[Line]) -> list[int]:
    return [number for number, line in enumerate(lines) if REJECTED in line]
