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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from w2vtool.run import write_atomic

# Fixed, and not a share of the rows: what is in a batch depends on it, and so do the last bits of
# a network's output.
PART_ROWS = 128

Line = dict[str, Any]
Compute = Callable[[Sequence[Any]], Iterator[Line]]


class Work(Protocol):
    """What is done to the rows of a part; it is pickled and sent to other processes."""

    def start(self, device: str) -> Compute:
        """Load what is needed, once a process; gives what makes a line of each row, in order."""
        ...


@dataclass(frozen=True)
class Part:
    """Rows that are done together. ``key`` is a hash of what is done to what."""

    number: int
    rows: Sequence[Any]
    key: str

    def path(self, folder: Path) -> Path:
        """Where its lines are, once it is done."""
        return folder / f"part-{self.number:06d}.jsonl"


def cut(
    rows: Sequence[Any], what: Mapping[str, Any], identify: Callable[[Any], Mapping[str, Any]]
) -> list[Part]:
    """Parts of ``PART_ROWS`` rows; ``identify`` says what a row is, ``what`` all that is done."""
    head = json.dumps(what, sort_keys=True, default=str).encode()
    parts = []
    for start in range(0, len(rows), PART_ROWS):
        mine = rows[start : start + PART_ROWS]
        digest = hashlib.sha256(head)
        for row in mine:
            digest.update(json.dumps(identify(row), sort_keys=True, default=str).encode() + b"\n")
        parts.append(Part(start // PART_ROWS, mine, digest.hexdigest()))
    return parts


def write(folder: Path, part: Part, lines: Sequence[Line]) -> None:
    """Finish a part: its file appears at once and whole."""
    head = {"key": part.key, "lines": len(lines)}
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (head, *lines))
    write_atomic(part.path(folder), text)


def read(folder: Path, part: Part) -> list[Line] | None:
    """The lines of a finished part; None if it is not there, is damaged, or is of something else.

    A file of something else is left: the part's own replaces it.
    """
    try:
        text = part.path(folder).read_text(encoding="utf-8")
        head, *lines = text.removesuffix("\n").split("\n")  # texts may hold other line ends
        found = json.loads(head)
        if found["key"] != part.key or found["lines"] != len(lines):
            return None
        return [json.loads(line) for line in lines]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def is_done(folder: Path, part: Part) -> bool:
    """Whether a part is finished; looks at its first line only."""
    try:
        with part.path(folder).open(encoding="utf-8") as file:
            return bool(json.loads(file.readline())["key"] == part.key)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
