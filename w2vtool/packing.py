"""Shards of a whole manifest: which rows go where, and what is there already.

Goes in: a manifest. Goes out: ``shard-00000.tar`` and so on, and ``manifest.jsonl`` with the same
rows in the same order, which points into them; the same bytes whatever the number of processes.
What is complete is not made again: that is how a packing that was stopped goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing.synchronize import Event
from pathlib import Path

from w2vtool.errors import ConfigError, DataError, Stopped, shortened
from w2vtool.manifest import Manifest, Utterance, write, write_lines
from w2vtool.shard_writer import Order, Packed, Packing, pack

FLAC_BYTES_A_SAMPLE = 1.2  # of speech, about: to plan the sizes of shards with
MEMBER_BYTES = 3072  # headers and padding of a row's members, and the small ones whole
POLL_SECONDS = 0.2
_stop: Event | None = None  # of a worker: set when it is to give up


@dataclass
class Summary:
    """What was packed; ``changed`` rows have another offset, length or rate than before."""

    shards: int = 0
    bytes: int = 0
    encoded: int = 0
    rounded: int = 0
    changed: int = 0


def pack_all(
    manifest: Manifest,
    out: Path,
    *,
    size: int,
    packing: Packing,
    jobs: int = 1,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Summary:
    """Pack a manifest into shards of about ``size`` bytes, and write ``out/manifest.jsonl``.

    ``on_progress`` is called with the number of rows done, and may raise to stop; the next call
    goes on after the shards that are complete. Raises DataError for rows that cannot be read,
    a disk without room, and a folder that holds other shards.
    """
    with _alone(out):
        cuts, total = _cuts(manifest, size, packing)
        _check_plan(manifest, out, size, packing, cuts)
        paths = [out / f"shard-{number:05d}.tar" for number in range(len(cuts) - 1)]
        _check_room(out, total, paths)
        orders = (
            Order(path, manifest.path.parent, manifest.rows[first:last], packing)
            for path, first, last in zip(paths, cuts, cuts[1:], strict=False)
        )
        summary, problems = Summary(shards=len(paths)), list[str]()

        def rows() -> Iterator[Utterance]:
            results = _run(orders, min(jobs, len(paths)), on_progress)
            for packed, first, last in zip(results, cuts, cuts[1:], strict=False):
                summary.encoded += packed.encoded
                summary.rounded += packed.rounded
                problems.extend(packed.problems)
                if not problems:
                    was = manifest.rows[first:last]
                    summary.changed += sum(map(_changed, packed.rows, was))
                    yield from packed.rows
            if problems:
                raise _cannot_read(manifest.path, problems)

        write(out / "manifest.jsonl", rows())
        summary.bytes = sum(path.stat().st_size for path in paths)
        return summary


def _changed(now: Utterance, was: Utterance) -> bool:
    return replace(now, audio=was.audio, start=was.start, length=was.length) != was


def _cannot_read(where: Path, problems: list[str]) -> DataError:
    return DataError(
        "\n  ".join([f"{len(problems)} utterances cannot be read", *shortened(problems)]),
        where=str(where),
        hint="repair them or leave them out of the manifest; shards without them are kept",
    )


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep others from packing into the same folder, and clear away what a killed one left."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError("another process is packing into it", where=str(out)) from error
            for left in out.glob(".shard-*.tar.*.tmp"):
                left.unlink()
            yield
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror})", where=str(out)) from error


def _cuts(manifest: Manifest, size: int, packing: Packing) -> tuple[list[int], int]:
    """Numbers of the rows that shards begin with, and of the last one + 1; bytes of all of them."""
    cuts, filled, total = [0], 0, 0
    here: set[tuple[str, int | None]] = set()  # files that are in the shard already
    problems = []
    for number, row in enumerate(manifest.rows):
        name = (row.audio, row.start)
        try:
            there = _room(manifest.audio_path(row), row, packing)
        except OSError as error:
            problems.append(f"{row.id}: {row.audio}: {error.strerror}")
            continue
        more = MEMBER_BYTES + (0 if name in here and not packing.flac else there)
        if filled and filled + more > size:
            cuts.append(number)
            here, filled, more = set(), 0, MEMBER_BYTES + there
        here.add(name)
        filled, total = filled + more, total + more
    if problems:
        raise _cannot_read(manifest.path, problems)
    return [*cuts, len(manifest.rows)], total


def _room(path: Path, row: Utterance, packing: Packing) -> int:
    if packing.flac:
        return int(row.samples * FLAC_BYTES_A_SAMPLE)
    return path.stat().st_size if row.length is None else row.length


def _check_plan(
    manifest: Manifest, out: Path, size: int, packing: Packing, cuts: list[int]
) -> None:
    """Write down what is packed here; DataError if something else is, so that they never mix."""
    path = out / "shards.json"
    here = {"manifest": manifest.sha256, "size": size, **vars(packing), "first_rows": cuts}
    text = json.dumps(here)
    try:
        there = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        if any(out.glob("shard-*.tar")):
            raise DataError("holds shards that are not known", where=str(out)) from None
        write_lines(path, [text])
        return
    if there != text:
        raise DataError(
            "holds shards of other rows, of audio that was changed since, or with other options",
            where=str(out),
            hint="give another --out, or delete the folder",
        )


def _check_room(out: Path, total: int, paths: Sequence[Path]) -> None:
    missing = sum(not path.exists() for path in paths) / len(paths) * total
    free = shutil.disk_usage(out).free
    if missing > free:
        raise DataError(
            f"no room: about {missing / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free",
            where=str(out),
        )


def _run(
    orders: Iterator[Order], jobs: int, on_progress: Callable[[int], None]
) -> Iterator[Packed]:
    """Packed shards in their order, made by ``jobs`` processes."""
    done = 0
    if jobs <= 1:
        for order in orders:
            yield pack(order, partial(_further, on_progress, done))
            done += len(order.rows)
            on_progress(done)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    stop, waiting = context.Event(), deque[tuple[int, Future[Packed]]]()
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_join, initargs=(stop,)) as pool:
        try:
            while True:
                for order in islice(orders, 2 * jobs - len(waiting)):
                    waiting.append((len(order.rows), pool.submit(_pack_here, order)))
                if not waiting:
                    return
                rows, future = waiting.popleft()
                while not future.done():
                    on_progress(done)
                    with contextlib.suppress(TimeoutError):
                        future.exception(timeout=POLL_SECONDS)
                done += rows
                on_progress(done)
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a packing process died: out of memory, or a file that its decoder cannot stand",
                hint="try again with jobs=1; w2vtool manifest names such files",
            ) from error
        finally:
            stop.set()
            for _, future in waiting:
                future.cancel()


def _further(on_progress: Callable[[int], None], before: int, rows: int) -> None:
    on_progress(before + rows)


def _join(stop: Event) -> None:
    """Begin as a worker: signals are for the parent, which tells when it is time to give up."""
    global _stop
    _stop = stop
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def _pack_here(order: Order) -> Packed:
    def give_up(_: int) -> None:
        if _stop is not None and _stop.is_set():
            raise Stopped(signal.SIGTERM)

    return pack(order, give_up)
