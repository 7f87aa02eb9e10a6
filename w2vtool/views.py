"""Rows seen in another way: some of them, changed ones, or those of several manifests in a row.

Goes in: sequences of rows. Goes out: a sequence that makes a row when it is asked for, so that
nothing is held for all rows but numbers. Short lists stay lists. All can be sent to processes.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np

from w2vtool.columns import Rows
from w2vtool.rows import Utterance

Change = Callable[[Utterance], Utterance]


class View(Sequence[Utterance]):
    """Rows that are computed from others; what is asked for is made anew each time."""

    def __init__(self, rows: Sequence[Utterance]) -> None:
        self.rows = rows

    def row(self, number: int) -> Utterance:
        """The row of a number from 0 on."""
        return self.rows[number]

    @property
    def durations(self) -> np.ndarray:
        """Seconds of audio of each row, float64 ``[N]``."""
        return durations(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...
    @overload
    def __getitem__(self, index: slice) -> list[Utterance]: ...
    def __getitem__(self, index: int | slice) -> Utterance | list[Utterance]:
        """One row, or a list of the rows of a slice."""
        if isinstance(index, slice):
            return [self.row(number) for number in range(*index.indices(len(self)))]
        number = operator.index(index)
        number += len(self) if number < 0 else 0
        if not 0 <= number < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.row(number)


class Changed(View):
    """Every row as ``change`` gives it; ``change`` keeps durations, and can be pickled."""

    def __init__(self, rows: Sequence[Utterance], change: Change) -> None:
        super().__init__(rows)
        self.change = change

    def row(self, number: int) -> Utterance:
        """The changed row."""
        return self.change(self.rows[number])

    def __iter__(self) -> Iterator[Utterance]:
        return map(self.change, self.rows)


class Chosen(View):
    """The rows with these numbers (int64 ``[M]``), in this order."""

    def __init__(self, rows: Sequence[Utterance], numbers: np.ndarray) -> None:
        super().__init__(rows)
        self.numbers = numbers

    def row(self, number: int) -> Utterance:
        """The chosen row."""
        return self.rows[int(self.numbers[number])]

    @property
    def durations(self) -> np.ndarray:
        """Seconds of audio of each row, float64 ``[M]``."""
        return durations(self.rows)[self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Utterance]:
        return map(self.row, range(len(self)))


class Joined(View):
    """The rows of several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Utterance]]) -> None:
        super().__init__(())
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def row(self, number: int) -> Utterance:
        """The row of the part that it lies in."""
        part = int(np.searchsorted(self.ends, number, side="right"))
        return self.parts[part][number - int(self.ends[part]) + len(self.parts[part])]

    @property
    def durations(self) -> np.ndarray:
        """Seconds of audio of each row, float64 ``[N]``."""
        return np.concatenate([durations(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __iter__(self) -> Iterator[Utterance]:
        return (row for part in self.parts for row in part)


def durations(rows: Sequence[Utterance]) -> np.ndarray:
    """Seconds of audio of each row, float64 ``[N]``."""
    if isinstance(rows, Rows | View):
        return rows.durations
    return np.array([row.duration for row in rows], np.float64)


def changed(rows: Sequence[Utterance], change: Change) -> Sequence[Utterance]:
    """Every row as ``change`` gives it: made at once where the rows are in memory anyway."""
    return [change(row) for row in rows] if isinstance(rows, list) else Changed(rows, change)


def chosen(rows: Sequence[Utterance], numbers: np.ndarray) -> Sequence[Utterance]:
    """The rows with these numbers."""
    if isinstance(rows, list):
        return [rows[number] for number in numbers.tolist()]
    return Chosen(rows, numbers)


def joined(parts: Sequence[Sequence[Utterance]]) -> Sequence[Utterance]:
    """The rows of all parts, one after the other."""
    if all(isinstance(part, list) for part in parts):
        return [row for part in parts for row in part]
    return Joined(parts)


def some_hours(rows: Sequence[Utterance], hours: float) -> np.ndarray:
    """Numbers (int64 ``[M]``, rising) of always the same random part of the rows, by their ids.

    The shuffle does not know how much is asked for, so less is a part of more.
    """
    places = np.fromiter(map(_place, rows), np.uint64, len(rows))
    order = np.argsort(places, kind="stable")
    before = np.concatenate(([0.0], np.cumsum(durations(rows)[order])[:-1]))
    return np.sort(order[before < hours * 3600])


def _place(row: Utterance) -> int:
    return int.from_bytes(hashlib.blake2b(row.id.encode(), digest_size=8).digest(), "big")
