"""Large manifests without their rows in memory: two numbers a row, and the file for the rest.

Goes in: the path of a manifest. Goes out: ``Rows``, a sequence that parses a row when it is asked
for, beside columns for what is needed of all rows: where the line of each begins (int64 ``[N]``)
and how long its audio is (float64 ``[N]``, seconds). The columns lie in ``.NAME.columns`` beside
the manifest, mapped into memory, so that the second reading of ten million rows takes no second.

Why the file may be trusted: it names the size and the times of the manifest that it was made from
(mtime, and ctime, which nobody can set back), holds checksums of itself, and is made only of a
manifest whose last change is old enough that the next one must show in these times.
"""

from __future__ import annotations

import json
import logging
import math
import operator
import os
import struct
import time
import weakref
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np

from w2vtool.errors import DataError
from w2vtool.rows import Utterance, parse
from w2vtool.scan import OnProgress, checked

log = logging.getLogger(__name__)
_MAGIC = b"w2vtool columns2"  # the last letter is the version of the format
_PREFIX = struct.Struct("<16sQI")  # magic, length of the header, checksum of the header
_CLOCK_NS = 100_000_000  # no clock of a file system that counts below seconds is coarser
_COARSE_NS = 3_000_000_000  # those that count in seconds
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Columns:
    """What is known of all rows. ``key`` tells the file that it is known of."""

    key: tuple[int, ...]
    sha256: str
    seconds: float
    rates: Counter[int | None]  # Hz → rows
    starts: np.ndarray  # int64 [N], bytes
    durations: np.ndarray  # float64 [N], seconds
    cached: bool = False


class Collector:
    """Columns of rows that come one after another."""

    def __init__(self) -> None:
        self._starts, self._durations = array("q"), array("d")
        self._rates: Counter[int | None] = Counter()
        self._digest = sha256()

    def add(self, row: Utterance, start: int, hashed: bytes) -> None:
        """Take note of a row whose line begins at ``start``."""
        self._starts.append(start)
        self._durations.append(row.duration)
        self._rates[row.sample_rate] += 1
        self._digest.update(hashed)

    def columns(self, key: tuple[int, ...]) -> Columns:
        """All that was collected."""
        durations = np.frombuffer(self._durations, np.float64)
        return Columns(
            key,
            self._digest.hexdigest(),
            math.fsum(self._durations),
            self._rates,
            np.frombuffer(self._starts, np.int64),
            durations,
        )


class Rows(Sequence[Utterance]):
    """Rows of a manifest file, each parsed when it is asked for. Can be sent to other processes.

    The file is held open: what is put in its place later changes nothing here.
    """

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self.columns = path, columns
        self._file = _open(path)
        weakref.finalize(self, os.close, self._file)
        if _key(os.fstat(self._file)) != columns.key:
            raise DataError("the manifest was changed while it is in use", where=str(path))

    @property
    def durations(self) -> np.ndarray:
        """Seconds of audio of each row, float64 ``[N]``."""
        return self.columns.durations

    def __len__(self) -> int:
        return len(self.columns.starts)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...
    @overload
    def __getitem__(self, index: slice) -> list[Utterance]: ...
    def __getitem__(self, index: int | slice) -> Utterance | list[Utterance]:
        """One row, or a list of the rows of a slice."""
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step == 1:
                return list(self._parsed(first, max(first, last)))
            return [self[number] for number in range(first, last, step)]
        number = operator.index(index)
        number += len(self) if number < 0 else 0
        if not 0 <= number < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return next(self._parsed(number, number + 1))

    def __iter__(self) -> Iterator[Utterance]:
        return self._parsed(0, len(self))

    def __reduce__(self) -> tuple[Any, ...]:
        if self.columns.cached:  # the other process maps the same file
            return reopen, (self.path, self.columns.key)
        return Rows, (self.path, self.columns)

    def _parsed(self, first: int, last: int) -> Iterator[Utterance]:
        """Rows ``first`` to ``last``, from blocks of about a megabyte."""
        while first < last:
            begin = int(self.columns.starts[first])
            reach = np.searchsorted(self.columns.starts[first:last], begin + _BLOCK)
            stop = min(last, first + max(1, int(reach)))
            edges = self.columns.starts[first : stop + 1].tolist()
            edges += [self.columns.key[0]] if len(edges) == stop - first else []
            block = os.pread(self._file, edges[-1] - begin, begin)
            for left, right in pairwise(edges):
                try:
                    yield parse(block[left - begin : right - begin])
                except ValueError as error:
                    what = "the manifest was changed while it is in use"
                    raise DataError(what, where=str(self.path)) from error
            first = stop


def rates(rows: Sequence[Utterance]) -> Counter[int | None]:
    """How many rows say which sample rate (Hz); None: they say nothing."""
    if isinstance(rows, Rows):
        return rows.columns.rates
    return Counter(row.sample_rate for row in rows)


def open_rows(path: Path, on_progress: OnProgress | None = None) -> Rows:
    """Rows of a manifest: from the columns beside it, or of a full reading that makes them.

    DataError as by ``checked``. Where no columns can be written, they are made again next time.
    """
    found = load(path)
    if found is None:
        log.info("%s is read in full, to make its columns", path)
        found = make(path, on_progress)
    return Rows(path, found)


def make(path: Path, on_progress: OnProgress | None = None) -> Columns:
    """Read a manifest, check all of it, and leave its columns beside it."""
    before = settle(path)
    collector = Collector()
    for row, start, hashed in checked(path, on_progress):
        collector.add(row, start, hashed)
    columns = collector.columns(before)
    if _key_of(path) != before:
        raise DataError("the manifest was changed while it was read", where=str(path))
    return save(path, columns)


def settle(path: Path) -> tuple[int, ...]:
    """Wait until any further change of a file must show in its times; what tells it is returned."""
    status = path.stat()
    age = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns)
    if 0 <= age < _CLOCK_NS:
        time.sleep((_CLOCK_NS - age) / 1e9)
    return _key(status)


def load(path: Path) -> Columns | None:
    """The columns that lie beside a manifest; None when there are none that can be trusted."""
    key = _key_of(path)
    cache = place(path)
    try:
        with cache.open("rb") as file:
            head = file.read(_PREFIX.size)
            magic, length, checksum = _PREFIX.unpack(head)
            text = file.read(min(length, 1 << 24))
            if magic != _MAGIC or zlib.crc32(text) != checksum:
                return None
            header = json.loads(text)
            if tuple(header["key"]) != key:
                return None
            body, total = 0, 0
            while block := file.read(_BLOCK):
                body, total = zlib.crc32(block, body), total + len(block)
    except (OSError, struct.error):
        return None
    count = header["rows"]
    if total != 16 * count or body != header["checksum"]:
        log.info("%s is damaged, it is made again", cache)
        return None
    data = np.memmap(cache, np.int64, "r", _PREFIX.size + length, (2, count))
    known = Counter({int(rate) or None: rows for rate, rows in header["rates"].items()})
    numbers = np.asarray(data)
    return Columns(
        key, header["sha256"], header["seconds"], known, numbers[0], numbers[1].view(float), True
    )


def save(path: Path, columns: Columns) -> Columns:
    """Leave columns beside the manifest, at once or not at all; failing costs only the time."""
    status_ns = max(columns.key[1:])
    coarse = columns.key[1] % 1_000_000_000 == 0
    if coarse and time.time_ns() - status_ns < _COARSE_NS:
        return columns
    body = zlib.crc32(columns.durations.data, zlib.crc32(columns.starts.data))
    header = {
        "key": columns.key,
        "rows": len(columns.starts),
        "sha256": columns.sha256,
        "seconds": columns.seconds,
        "rates": {str(rate or 0): rows for rate, rows in columns.rates.items()},
        "checksum": body,
    }
    text = json.dumps(header).encode()
    text += b" " * (-(_PREFIX.size + len(text)) % 64)  # so that the numbers are aligned
    partial = place(path).with_suffix(f".{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(_PREFIX.pack(_MAGIC, len(text), zlib.crc32(text)) + text)
            columns.starts.tofile(file)
            columns.durations.tofile(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(place(path))
    except OSError as error:
        log.info("no columns beside %s: %s", path, error.strerror)
        return columns
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return load(path) or columns


def place(path: Path) -> Path:
    """Where the columns of a manifest lie."""
    return path.with_name(f".{path.name}.columns")


def reopen(path: Path, key: tuple[int, ...]) -> Rows:
    """Rows in another process. DataError if the manifest is not the same any more."""
    found = load(path)
    if found is None:
        found = make(path)
    if found.key != key:
        raise DataError("the manifest was changed while it is in use", where=str(path))
    return Rows(path, found)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from error


def _key_of(path: Path) -> tuple[int, ...]:
    try:
        return _key(path.stat())
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from error


def _key(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
