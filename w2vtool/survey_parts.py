"""Looking at many files so that none is looked at twice: not after a kill, not by a second run.

Goes in: paths, and a folder to keep what is found in. Goes out: one ``Inspected`` per path, in the
same order. Files go by parts; what was found of a part is kept in one file, under a hash of the
names, sizes and times of its audio files.

Why parts end where the names of files say so: a new file then changes one part, and not all parts
after it. Why the hash is the name: a survey that was killed, one that is repeated, and one with
other processes share what any of them has finished, and a changed file is never taken for the old.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from w2vtool import __version__
from w2vtool.audio import Info
from w2vtool.errors import DataError
from w2vtool.survey import Inspected, glance, inspect, inspect_all

Verify = Literal["decode", "header"]
_LOOKS: dict[Verify, Callable[[Path], Inspected]] = {"decode": inspect, "header": glance}
_MEAN_FILES, _MOST_FILES = 32, 128  # of a part
_FORMAT = 1  # of kept parts
_THREADS = 16  # that ask for sizes and times: a network answers each question in a millisecond
_NAMES_AHEAD = 1024  # parts
POLL_SECONDS = 0.2

Part = Sequence[str]


def look_at(
    paths: Sequence[Path],
    *,
    jobs: int,
    verify: Verify = "decode",
    keep: Path | None = None,
    engine: Literal["local", "ray"] = "local",
    poll: Callable[[], None] = lambda: None,
) -> Generator[Inspected, None, None]:
    """Decode files, or read their headers, in their order, by ``jobs`` processes (0: this one).

    With ``keep``, parts that are kept in this folder are not looked at again, and at the end those
    of other files are removed from it. On Ray (``engine``) and under torchrun, the folder is where
    processes give each other what they found; while they wait, ``poll`` is called, and may raise.
    """
    look = _LOOKS[verify]
    if keep is None:
        yield from inspect_all(paths, jobs=jobs, inspect=look)
        return
    here = Path.cwd()
    parts = list(cut([str(path) if path.is_absolute() else f"{here}/{path}" for path in paths]))
    names = list(_names(parts, verify))
    _elsewhere(parts, names, keep, verify, jobs, engine, poll)
    missing = [not _place(keep, name).is_file() for name in names]
    new = [Path(p) for part, needed in zip(parts, missing, strict=True) if needed for p in part]
    found = inspect_all(new, jobs=jobs, inspect=look)
    for part, name, needed in zip(parts, names, missing, strict=True):
        kept = None if needed else _kept(keep, name, len(part))
        if kept is None:  # or damaged, and then not among the new ones
            more = found if needed else inspect_all([*map(Path, part)], jobs=jobs, inspect=look)
            kept = []
            for item in islice(more, len(part)):
                kept.append(item)
                yield item
            _save(keep, name, kept)
        else:
            yield from kept
    _sweep(keep, set(names))


@dataclass(frozen=True)
class Surveying:
    """What a process of a Ray cluster does: looks at a part, and keeps what it found."""

    verify: Verify
    keep: Path

    def __call__(self) -> Callable[[tuple[Part, str]], None]:
        """Give what does it."""
        return self.do

    def do(self, item: tuple[Part, str]) -> None:
        """Look at a part, under limits."""
        part, name = item
        found = inspect_all([*map(Path, part)], jobs=1, inspect=_LOOKS[self.verify])
        _save(self.keep, name, list(found))


def _elsewhere(
    parts: Sequence[Part],
    names: Sequence[str],
    keep: Path,
    verify: Verify,
    jobs: int,
    engine: Literal["local", "ray"],
    poll: Callable[[], None],
) -> None:
    """Let a cluster, or the processes that torchrun started, fill the folder."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if engine == "local" and world == 1:
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot be made ({error.strerror})", where=str(keep)) from error
    items = [item for item in zip(parts, names, strict=True) if not _place(keep, item[1]).is_file()]
    if engine == "ray" and rank == 0:
        from w2vtool import engines

        for _ in engines.on_ray(Surveying(verify, keep.absolute()), items, jobs=jobs, poll=poll):
            pass
        return
    if engine == "local":
        mine = [(part, name) for part, name in items if int(name[:8], 16) % world == rank]
        found = inspect_all(
            [Path(path) for part, _ in mine for path in part], jobs=jobs, inspect=_LOOKS[verify]
        )
        for part, name in mine:
            poll()
            _save(keep, name, list(islice(found, len(part))))
    while not all(_place(keep, name).is_file() for _, name in items):
        poll()
        time.sleep(POLL_SECONDS)


def cut(paths: Sequence[str]) -> Iterator[Part]:
    """Parts of about 32 files; where one ends follows from the names alone."""
    first = 0
    for number, path in enumerate(paths, start=1):
        ends = zlib.crc32(os.fsencode(path)) % _MEAN_FILES == 0
        if ends or number - first == _MOST_FILES:
            yield paths[first:number]
            first = number
    if first < len(paths):
        yield paths[first:]


def _names(parts: Sequence[Part], verify: Verify) -> Iterator[str]:
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(parts), _NAMES_AHEAD):
            yield from pool.map(partial(_name, verify), parts[first : first + _NAMES_AHEAD])


def _name(verify: Verify, part: Part) -> str:
    """A hash of all that what is found depends on."""
    digest = hashlib.blake2b(f"{_FORMAT} {__version__} {verify}".encode(), digest_size=16)
    for path in part:
        try:
            status = os.stat(path)  # noqa: PTH116  a third of the price of Path.stat
            mark = (path, status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):
            mark = (path, -1, -1)
        digest.update(repr(mark).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _place(keep: Path, name: str) -> Path:
    return keep / name[:2] / f"{name[2:]}.json"


def _kept(keep: Path, name: str, count: int) -> list[Inspected] | None:
    """What was found earlier; None if there is nothing, or nothing that can be read."""
    try:
        rows = json.loads(_place(keep, name).read_bytes())
        found = [_unpacked(*row) for row in rows]
    except (OSError, ValueError, TypeError):
        return None
    return found if len(found) == count else None


def _unpacked(
    info: list[int],
    samples: int,
    silent: bool,
    digest: str,
    reason: str,
    detail: str,
    warnings: list[str],
) -> Inspected:
    twin = bytes.fromhex(digest)
    return Inspected(Info(*info), samples, silent, twin, reason, detail, tuple(warnings))


def _save(keep: Path, name: str, found: Sequence[Inspected]) -> None:
    """Keep a part. Where that fails, it is found again next time."""
    path = _place(keep, name)
    partial_ = path.with_suffix(f".{os.getpid()}.tmp")
    rows = [(*item[:3], item.digest.hex(), *item[4:]) for item in found]
    with suppress(OSError):
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        partial_.write_text(json.dumps(rows), encoding="ascii")
        partial_.replace(path)


def _sweep(keep: Path, used: set[str]) -> None:
    for path in keep.glob("??/*"):
        if path.parent.name + path.stem not in used:
            with suppress(OSError):
                path.unlink()
