"""Work for the engines' tests, in a module that other processes can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2vtool import engines
from w2vtool.errors import CheckpointError, DataError
from w2vtool.parts import REJECTED, Compute


@dataclass(frozen=True)
class Squares:
    """The squares of numbers; each is noted in ``notes``, so that a test can count what was done.

    A number in ``deadly`` kills its process the first time that it is met, ``always`` every time;
    one in ``bad`` cannot be squared, one in ``unfit`` is rejected; ``slow`` takes a second each.
    """

    notes: Path
    deadly: tuple[int, ...] = ()
    always: bool = False
    bad: tuple[int, ...] = ()
    slow: bool = False
    unfit: tuple[int, ...] = ()  # of these rows there is none
    endless: bool = False  # a number takes until nobody wants it
    lost: bool = False  # it cannot even start

    def start(self, device: str) -> Compute:
        if self.lost:
            raise CheckpointError("no such checkpoint", where="runs/gone")

        def compute(rows: Sequence[int]) -> Iterator[dict[str, Any]]:
            for row in rows:
                self.meet(row)
                if row not in self.unfit:
                    yield {"id": row, "square": row * row}
            for number, row in enumerate(rows):
                if row in self.unfit:
                    yield {REJECTED: number, "id": row}

        return compute

    def meet(self, row: int) -> None:
        before = self.notes / f"met-{row}"
        first = not before.exists()
        before.touch()
        with (self.notes / "all").open("a") as file:
            file.write(f"{row}\n")
        if row in self.deadly and (first or self.always):
            os.kill(os.getpid(), signal.SIGKILL)
        if row in self.bad:
            raise DataError(f"{row} cannot be squared", where="numbers.txt:7", hint="leave it out")
        if self.slow:
            time.sleep(1)
        if self.endless:
            for _ in range(1000):
                engines.heed()
                time.sleep(0.01)
            (self.notes / "nobody came").touch()

    def done(self) -> list[int]:
        """All numbers that were met, as often as they were."""
        path = self.notes / "all"
        return sorted(map(int, path.read_text().split())) if path.exists() else []
