"""A function over many items in processes that may die: each death costs the item that caused it.

Goes in: a function of one item, and the items. Goes out: one result an item, in their order; for an
item that killed its process, what ``lost`` makes of the exit code.

Why not concurrent.futures: its pool breaks as a whole when a process dies, without a word on which
item it was. Why spawned: a fork of a process that has threads (torch) can hang.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from w2vtool.errors import DataError
from w2vtool.limits import DEFAULT, Limits, allow, confine

T = TypeVar("T")
R = TypeVar("R")

_ITEMS_PER_TASK = 16
_TASKS_AHEAD = 4  # for each worker, while a slow one holds the results back
_MAX_FALSE_STARTS = 3
_IDLE = -1
_CONTEXT = multiprocessing.get_context("spawn")


def each(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    jobs: int,
    lost: Callable[[T, int], R],
    limits: Limits = DEFAULT,
) -> Iterator[R]:
    """Results of ``function`` in the order of ``items``, by up to ``jobs`` processes under limits.

    ``lost(item, exit code)`` gives the result of an item whose process died; the code is minus the
    signal, ``-SIGALRM`` when time was up. DataError when processes die before they take an item.
    """
    rest = iter(items)
    first = list(itertools.islice(rest, _ITEMS_PER_TASK * jobs))
    size = max(1, min(_ITEMS_PER_TASK, -(-len(first) // jobs)))
    rest = itertools.chain(first, rest)
    tasks = (_Task[T, R](part) for part in iter(lambda: list(itertools.islice(rest, size)), []))
    workers = [_Worker(function, lost, limits) for _ in range(min(jobs, -(-len(first) // size)))]
    ahead: deque[_Task[T, R]] = deque()
    try:
        while True:
            for worker in workers:
                if worker.task is None and len(ahead) < _TASKS_AHEAD * len(workers):
                    ahead.extend(itertools.islice(tasks, 1))
                    if ahead and not ahead[-1].begun:
                        worker.take(ahead[-1])
            if not ahead:
                return
            if ahead[0].done:
                yield from ahead.popleft().results()
                continue
            busy = [worker for worker in workers if worker.task is not None]
            ready = wait([worker.connection for worker in busy])
            for worker in busy:
                if worker.connection in ready:
                    worker.collect()
    finally:
        for worker in workers:
            worker.end()


@dataclass
class _Task(Generic[T, R]):
    """A few items, and the results that are known of them, by their place."""

    items: list[T]
    known: dict[int, R] = field(default_factory=dict)
    begun: bool = False

    @property
    def done(self) -> bool:
        return len(self.known) == len(self.items)

    @property
    def open(self) -> list[int]:
        return [place for place in range(len(self.items)) if place not in self.known]

    def results(self) -> Iterator[R]:
        return (self.known[place] for place in range(len(self.items)))


class _Worker(Generic[T, R]):
    """A process, and the task that it is at."""

    def __init__(
        self, function: Callable[[T], R], lost: Callable[[T, int], R], limits: Limits
    ) -> None:
        self.function, self.lost, self.limits = function, lost, limits
        self.task: _Task[T, R] | None = None
        self.false_starts = 0
        self.at = _CONTEXT.RawValue(ctypes.c_long, _IDLE)  # which of the items sent; shared memory
        self._start()

    def _start(self) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self.at.value = _IDLE
        self.process = _CONTEXT.Process(
            target=_serve, args=(theirs, self.at, self.function, self.limits), daemon=True
        )
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the connection

    def take(self, task: _Task[T, R]) -> None:
        task.begun, self.task = True, task
        self._send()

    def _send(self) -> None:
        assert self.task is not None
        try:
            self.connection.send([self.task.items[place] for place in self.task.open])
        except OSError:  # the process is gone; what it was at is told by collect()
            return

    def collect(self) -> None:
        """Take the results; or if the process died, start another one with the rest."""
        assert self.task is not None
        places = self.task.open
        try:
            results: list[R] = self.connection.recv()
        except (EOFError, OSError):
            self._bury(places)
            return
        self.task.known.update(zip(places, results, strict=True))
        self.task, self.false_starts = None, 0

    def _bury(self, places: list[int]) -> None:
        assert self.task is not None
        self.process.join(timeout=2)  # its code is its own only if it was not ended from here
        self.end()
        if self.at.value == _IDLE:
            self.false_starts += 1
            if self.false_starts == _MAX_FALSE_STARTS:
                what = f"processes end before they begin (exit code {self.process.exitcode})"
                raise DataError(what, hint="is there memory left? their words are on stderr")
        else:
            place, self.false_starts = places[self.at.value], 0
            self.task.known[place] = self.lost(self.task.items[place], self.process.exitcode or 0)
        self._start()
        if self.task.done:
            self.task = None
        else:
            self._send()

    def end(self) -> None:
        """End the process; it holds nothing that is needed."""
        self.connection.close()
        if self.task is not None:
            self.process.kill()
        self.process.join()


def _serve(
    connection: Connection[Any, Any], at: Any, function: Callable[[Any], Any], limits: Limits
) -> None:
    """Answer lists of items with lists of results until the other end is closed."""
    confine(limits)
    while True:
        try:
            items = connection.recv()
        except EOFError:
            return
        results = []
        for at.value, item in enumerate(items):
            allow(limits.seconds)
            results.append(function(item))
        allow(0)
        at.value = _IDLE
        connection.send(results)
