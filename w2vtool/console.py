"""What people and programs see: results on stdout, everything for people on stderr.

The only importer of rich, and only where a terminal shows it: progress bars on a terminal's stderr,
tables on a terminal's stdout. Anywhere else progress is a plain line now and then, and tables are
aligned text, so logs and pipes stay readable.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import unicodedata
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, TextIO

PLAIN_SECONDS = 30.0  # between two progress lines where there is no terminal
NAME_WIDTH = 40  # of the first column of a table, before its words are broken


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can redraw a line."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


class Console:
    """Prints for one process: ``results=False`` silences stdout, ``people=False`` stderr."""

    def __init__(self, *, results: bool = True, people: bool = True) -> None:
        self.results, self.people = results, people
        self._live: list[Progress] = []

    def result(self, text: str) -> None:
        """A line on stdout."""
        if self.results:
            if self._live:  # a bar on the same terminal would be torn
                self._live[-1].above(text, sys.stdout)
            else:
                sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def say(self, text: str) -> None:
        """A line for people, on stderr."""
        if self.people:
            if self._live:
                self._live[-1].above(text, sys.stderr)
            else:
                sys.stderr.write(text + "\n")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table on stdout: drawn on a terminal, aligned text elsewhere."""
        if not self.results:
            return
        cells = [[str(cell) for cell in row] for row in rows]
        if is_terminal(sys.stdout):
            _draw(title, columns, cells)
        else:
            self.result("\n".join(_aligned(title, columns, cells)))

    def progress(
        self, total: float, what: str, unit: str = "", *, every: float = PLAIN_SECONDS
    ) -> Progress:
        """Progress towards ``total``; a context manager."""
        return Progress(self, total, what, unit, every=every)


class Progress:
    """``with console.progress(1000, "pretrain", "steps") as bar: bar.update(10, loss="3.2")``."""

    def __init__(
        self, console: Console, total: float, what: str, unit: str, *, every: float
    ) -> None:
        self._console, self._total, self._what, self._unit = console, total, what, unit
        self._every = every
        self._bar: Any = None
        self._task: Any = None
        self._first: tuple[float, float] | None = None  # (time, done): where a resumed run began
        self._last_line = time.monotonic()
        self._state: tuple[float, str] | None = None
        self._printed: tuple[float, str] | None = None

    def update(self, done: float, **fields: object) -> None:
        """Set what is done so far (same unit as the total) and the values to show beside it."""
        if not self._console.people:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        text = "  ".join(f"{key.replace('_', ' ')} {value}" for key, value in fields.items())
        self._state = (done, text)
        if self._bar is not None:
            parts = (self._count(done), self._left(now, done), text)  # a narrow terminal cuts text
            self._bar.update(self._task, completed=done, text="  ".join(filter(None, parts)))
        elif now - self._last_line >= self._every:
            self._line(now)

    def above(self, text: str, stream: TextIO) -> None:
        """Print a line above the bar; on the bar's own terminal it does not tear it."""
        if self._bar is not None and (stream is sys.stderr or is_terminal(stream)):
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            stream.write(text + "\n")

    def __enter__(self) -> Progress:
        if self._console.people:
            if is_terminal(sys.stderr) and not self._console._live:
                self._bar, self._task = _bar(self._total, self._what)
                self._bar.start()
            self._console._live.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._console.people:
            return
        self._console._live.remove(self)
        if self._bar is not None:
            self._bar.stop()
        elif self._state is not None and self._state != self._printed:
            self._line(time.monotonic())

    def _line(self, now: float) -> None:
        assert self._state is not None
        done, text = self._state
        parts = (f"{self._what}: {self._count(done)}", text, self._left(now, done))
        sys.stderr.write("  ".join(part for part in parts if part) + "\n")
        sys.stderr.flush()
        self._last_line, self._printed = now, self._state

    def _count(self, done: float) -> str:
        total = f"/{self._total:,.0f}" if self._total else ""
        return f"{done:,.0f}{total} {self._unit}".rstrip()

    def _left(self, now: float, done: float) -> str:
        """The time that is left, from the pace since the first update of this process."""
        assert self._first is not None
        start, begun = self._first
        if done <= begun or done >= self._total:
            return ""
        return f"eta {duration((self._total - done) * (now - start) / (done - begun))}"


def _bar(total: float, what: str) -> tuple[Any, Any]:
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    columns = (
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, min_width=min(len(what), 24)),
        ),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", markup=False),
    )
    bar = Bar(*columns, console=Terminal(stderr=True), redirect_stdout=False, redirect_stderr=False)
    return bar, bar.add_task(what, total=total or None, text="")


def _draw(title: str, columns: Sequence[str], cells: list[list[str]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console as Terminal
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE)
    for i, column in enumerate(columns):  # in a narrow terminal, names stay in one piece
        name = min(max(_width(row[0]) for row in cells), NAME_WIDTH) if cells and i == 0 else None
        justify: Literal["left", "right"] = "right" if _numeric(cells, i) else "left"
        table.add_column(Text(column), justify=justify, min_width=name, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    terminal = Terminal()
    if title:  # above the table: as its title, a path would be broken at the table's width
        terminal.print(Text(title, style="italic"), soft_wrap=True)
    terminal.print(table)


def _aligned(title: str, columns: Sequence[str], cells: list[list[str]]) -> list[str]:
    rows = [list(columns), *cells]
    widths = [max(_width(row[i]) for row in rows) for i in range(len(columns))]
    right = [_numeric(cells, i) for i in range(len(columns))]
    lines = [
        "  ".join(
            (" " * (width - _width(cell)) + cell) if flush else cell + " " * (width - _width(cell))
            for cell, width, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
    return [title, *lines] if title else lines


def _numeric(cells: list[list[str]], column: int) -> bool:
    """Whether every cell of a column is empty or starts with a digit: it is set flush right."""
    found = [row[column].lstrip("+-") for row in cells if row[column] not in ("", "-", "–")]
    return bool(found) and all(cell[:1].isdigit() for cell in found)


def _width(text: str) -> int:
    """Columns on a terminal: East Asian wide letters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def duration(seconds: float) -> str:
    """Seconds for people: ``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


class LogHandler(logging.Handler):
    """Log records as lines for people, above a progress bar if there is one."""

    def __init__(self, console: Console, level: int) -> None:
        super().__init__(level)
        self._console = console
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        self._console.say(self.format(record))
