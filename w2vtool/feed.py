"""What the loop is fed: the bins of each process, in order, for training and for validation.

Goes in: a split (manifest, plan, how bins become batches). Goes out: ``Batch`` after ``Batch``.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from w2vtool.batches import Batch, Collate, load
from w2vtool.errors import DataError, shortened
from w2vtool.headers import headers
from w2vtool.manifest import Manifest
from w2vtool.plan import Plan
from w2vtool.schema import LoopConfig


@dataclass(frozen=True)
class Split:
    """A manifest, its plan, and how its bins become batches."""

    manifest: Manifest
    plan: Plan
    collate: Collate


class BinNumbers:
    """Numbers of the bins that this process takes, from an update on, in order.

    With a plan, the bins of an update are dealt out so that no process has much more to do than
    the others, who would wait for it; without, in turn.
    """

    def __init__(
        self, first: int, last: int, bins: int, rank: int, world: int, plan: Plan | None = None
    ) -> None:
        self.first, self.last, self.bins, self.rank, self.world = first, last, bins, rank, world
        self.plan = plan if bins > world and bins % world == 0 else None

    def __iter__(self) -> Iterator[int]:
        for update in range(self.first, self.last):
            numbers = np.arange(update * self.bins, (update + 1) * self.bins)
            if self.plan is not None and self.world > 1:
                numbers = numbers[deal(self.plan.costs(numbers), self.world) == self.rank]
            else:
                numbers = numbers[self.rank :: self.world]
            yield from numbers.tolist()

    def __len__(self) -> int:
        mine = len(range(self.rank, self.bins, self.world))
        return mine * max(0, self.last - self.first)


def deal(costs: np.ndarray, world: int) -> np.ndarray:
    """The process that takes each bin, ``[bins]``: as many bins each, of about equal cost.

    In rounds from the costliest bins to the cheapest, the process with the least so far takes the
    costliest of the round (longest processing time first, with equal numbers).
    """
    order = np.argsort(-costs, kind="stable")
    owner, load = np.zeros(len(costs), np.int64), np.zeros(world)
    for first in range(0, len(costs), world):
        bins = order[first : first + world]
        owner[bins] = np.argsort(load, kind="stable")[: len(bins)]
        load[owner[bins]] += costs[bins]
    return owner


@dataclass
class Pass:
    """A pass over a split, the same every time; batches are kept while there is room for them.

    Iterating gives (batch, whether it counts). Each process has the same number of rounds, so that
    they can talk in every one; where there is no bin left, the first one fills in, uncounted.
    """

    split: Split
    loop: LoopConfig
    rank: int = 0
    world: int = 1
    kept: list[Batch] = field(default_factory=list)  # the first ones

    def __post_init__(self) -> None:
        self.room = self.loop.cache_megabytes << 20
        bins = self.split.plan.bins_per_epoch
        rounds = -(-bins // self.world)
        mine = range(self.rank, rounds * self.world, self.world)
        self.counted = [number < bins for number in mine]
        self.numbers = [number if number < bins else 0 for number in mine]

    def __iter__(self) -> Iterator[tuple[Batch, bool]]:
        yield from zip(self._batches(), self.counted, strict=True)

    def _batches(self) -> Iterator[Batch]:
        yield from list(self.kept)
        missing = self.numbers[len(self.kept) :]
        if not missing:
            return
        for batch in read(self.split, missing, self.loop, cache_megabytes=0):
            self.room -= sum(v.nbytes for v in vars(batch).values() if isinstance(v, Tensor))
            if self.room >= 0:
                self.kept.append(batch)
            yield batch


def read(
    split: Split,
    numbers: Iterable[int],
    loop: LoopConfig,
    *,
    cache_megabytes: int | None = None,
    pin: bool = False,
    stand_in: bool = False,
) -> Iterator[Batch]:
    """Batches of the bins with these numbers, in this order, by ``loop.workers`` processes.

    With ``stand_in``, other rows take the places of those that cannot be read.
    """
    batches = load(
        split.manifest,
        split.plan,
        split.collate,
        numbers,
        workers=loop.workers,
        pin=pin,
        cache_megabytes=loop.cache_megabytes if cache_megabytes is None else cache_megabytes,
        stand_in=stand_in,
    )
    with _signals_held() if loop.workers else nullcontext():
        first = next(batches, None)
    if first is not None:
        yield first
        yield from batches


def check_files(split: Split) -> None:
    """Raise DataError that names the files of a split that are missing, cut short or changed.

    Their headers are read, many at a time; no audio is decoded.
    """
    bins = (split.plan.bin(number).rows for number in range(split.plan.bins_per_epoch))
    numbers = sorted(row for rows in bins for row in rows.tolist())
    rows = (split.manifest.rows[number] for number in numbers)
    found = headers((split.manifest.audio_path(row), row) for row in rows)
    problems = [f"{row.id}: {error.fact}" for row, _, error in found if error is not None]
    if problems:
        raise DataError(
            "\n  ".join([f"{len(problems)} utterances cannot be read", *shortened(problems)]),
            where=str(split.manifest.path),
            hint="repair them, or leave them out of the manifest",
        )


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let signals wait while loader processes start: they would die before they ignore them."""
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    )
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def loader_errors() -> Iterator[None]:
    """Raise DataError when a loader process dies, whatever the loop was doing meanwhile."""
    try:
        yield
    except RuntimeError as exc:
        if "DataLoader worker (pid" not in str(exc):
            raise
        raise DataError(
            f"a loader process died: {str(exc).splitlines()[0]}",
            hint="out of memory? lower loop.workers, loop.cache_megabytes or loop.bin_seconds",
        ) from exc
