"""What all formats share: rows with their problems, what a format can carry, files put in place.

Goes in: lines of somebody's file, or rows. Goes out: checked ``Utterance`` rows with absolute audio
paths, one error that lists every bad line, and for a writer the list of what was lost.

Why a reader yields good rows and only then raises: conversion streams, and who fixes a file wants
all of its problems at once. What was written meanwhile is thrown away.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from w2vtool.audio import RANGE_SLACK_SECONDS, SAMPLE_RATE, AudioError, Info, probe
from w2vtool.errors import SHOWN_PROBLEMS, ConfigError, DataError
from w2vtool.manifest import Utterance
from w2vtool.rows import KEYS, record_problems

CORE = frozenset(("audio", "duration", "text"))  # what every format carries
OURS = KEYS  # of a row, in the order in which they are written
SPAN = ("start", "length")
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class Options(NamedTuple):
    """``columns`` maps our keys to those of a table; ``root`` is where relative audio lies."""

    columns: Mapping[str, str] = {}
    root: Path | None = None


@dataclass(frozen=True)
class Rows:
    """Rows that can be gone through more than once: each pass reads the source anew."""

    make: Callable[[], Iterator[Utterance]]

    def __iter__(self) -> Iterator[Utterance]:
        return self.make()


def listed(path: Path, problems: Sequence[str], count: int, noun: str, hint: str) -> DataError:
    """One error for all problems of a file, the first 20 of them in full."""
    if count == 1:
        return DataError(problems[0], hint=hint)
    rest = count - len(problems)
    shown = [f"{count} {noun}", *problems, *([f"… and {rest} more"] if rest > 0 else [])]
    return DataError("\n  ".join(shown), where=str(path), hint=hint)


class Checks:
    """Makes rows of what a reader found, and gathers what cannot be one."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root.absolute()
        self.problems: list[str] = []
        self.bad = 0
        self._seen: dict[str, str] = {}
        self._last: dict[str, Info | None] = {}  # what the file of the last row is

    def problem(self, where: str, what: str) -> None:
        """Note a problem; the pass goes on, ``finish`` raises."""
        self.bad += 1
        if self.bad <= SHOWN_PROBLEMS:
            self.problems.append(f"{where}: {what}")

    def row(self, where: str, audio: Any, **given: Any) -> Utterance | None:
        """The row, with an absolute audio path; None when it is bad or its id was there before.

        A sample rate that is not given is that of the file's header, if the file is here: what is
        only supposed to be 16 kHz would pass ``strict_rate``.
        """
        if not isinstance(audio, str) or not audio or _CONTROL.search(audio):
            self.problem(where, f"audio is {str(audio)[:60]!r}, not a path")
            return None
        if _URL.match(audio):
            self.problem(where, f"audio is the URL {audio[:60]!r}; fetch the file first")
            return None
        row = Utterance(audio=str(self.root / audio), **{"sample_rate": None, **given})
        found = record_problems({key: getattr(row, key) for key in KEYS})
        if not found and row.id in self._seen:
            found = [f"id {row.id!r} is already that of {self._seen[row.id]}"]
        for what in found:
            self.problem(where, what)
        self._seen.setdefault(row.id if isinstance(row.id, str) else "", where)
        return None if found else with_rate(row, self._last)

    def rate(self, audio: str, start: int | None, length: int | None) -> int | None:
        """The sample rate of a file, or of bytes of it, by its header; None if it is not here."""
        row = Utterance("", str(self.root / audio), 0.0, start=start, length=length)
        info = header_of(row, self._last)
        return info.sample_rate if info else None

    def measured(self, where: str, audio: str) -> Info | None:
        """What the header of an audio file says, where the format does not say how long it is."""
        try:
            return probe(self.root / audio)
        except AudioError as error:
            what = f"no duration is given, and {audio} {error.what}"
            self.problem(where, what)
            return None

    def finish(self, hint: str = "") -> None:
        """Raise DataError if there was a problem, or not a single row."""
        if self.bad:
            raise listed(self.path, self.problems, self.bad, "problems", hint)
        if not self._seen:
            raise DataError("no utterances here", where=str(self.path), hint=hint)


def lines(path: Path, problem: Callable[[str, str], None]) -> Iterator[tuple[str, str]]:
    """``file:line`` and text of each line that holds something. Strict UTF-8; BOM and CRLF go."""
    for where, line in all_lines(path, problem):
        if line.strip():
            yield where, line


def all_lines(path: Path, problem: Callable[[str, str], None]) -> Iterator[tuple[str, str]]:
    """The same with empty lines, for formats in which the number of a line counts."""
    for where, line in raw_lines(path, problem):
        yield where, line.removesuffix("\n").removesuffix("\r")


def raw_lines(path: Path, problem: Callable[[str, str], None]) -> Iterator[tuple[str, str]]:
    """The same with what ends a line. One that is not UTF-8 is a problem, and empty.

    A file called ``….gz`` is unpacked on the way.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                where = f"{path}:{number}"
                if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    problem(where, "is UTF-16; convert the file to UTF-8")
                    return
                raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                try:
                    yield where, raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    byte = f"byte 0x{raw[error.start]:02x}"
                    problem(where, f"not UTF-8 (column {error.start + 1}, {byte})")
                    yield where, "\n"
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"is not a whole gzip file ({error})", where=str(path)) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from error


def fields_of(record: dict[str, Any], audio: str) -> dict[str, Any]:
    """Takes our keys out of a record that is keyed as our rows; the rest becomes ``extra``.

    Without an ``id``, the row is called as its audio without the ending, and a part of a file also
    by where it begins.
    """
    known = {key: record.pop(key, None) for key in OURS if key != "audio"}
    known = {key: value for key, value in known.items() if value is not None}
    for key in ("id", "speaker"):
        if type(known.get(key)) is int:  # of JSON, where a name may be a number
            known[key] = str(known[key])
    if "id" not in known:
        begin = f"-{known['offset']}" if known.get("offset") else ""
        known["id"] = Path(audio).with_suffix("").as_posix() + begin if audio else ""
    for key in ("offset", "duration"):
        if type(known.get(key)) is int:
            known[key] = float(known[key])
    return {**known, "extra": extra_of(record)}


def extra_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of another tool; one that is called as ours is not ours, and gets a prefix."""
    taken = (*OURS, "audio_filepath")
    return {(f"custom.{key}" if key in taken else key): item for key, item in record.items()}


@dataclass
class Carrier:
    """What a format can hold of the rows: losses are counted, what cannot be is an error.

    ``holds`` are the keys of ``Utterance`` that it holds; ``extra`` among them, all other keys.
    """

    name: str
    path: Path
    holds: frozenset[str]
    lost: Counter[str] = field(default_factory=Counter)  # what, and of how many rows
    remarks: list[str] = field(default_factory=list)
    rows: int = 0
    _refused: list[str] = field(default_factory=list)
    _bad: int = 0

    def check(self, row: Utterance) -> bool:
        """Count what is lost of a row; False when it cannot be written at all."""
        self.rows += 1
        before = self._bad
        if row.start is not None and "start" not in self.holds:
            self.refuse(row, f"its audio lies inside of {row.audio}, and {self.name} reads files")
        if row.offset and "offset" not in self.holds:
            self.refuse(row, f"it is a part of a file (from {row.offset} s on)")
        self.lost.update(self._losses(row))
        return self._bad == before

    def refuse(self, row: Utterance, what: str) -> None:
        """Note a row that the format cannot hold."""
        self._bad += 1
        if self._bad <= SHOWN_PROBLEMS:
            self._refused.append(f"{row.id!r}: {what}")

    def finish(self, hint: str = "") -> None:
        """Raise DataError when a row was refused, or there was none."""
        if self._bad:
            what = f"rows that {self.name} cannot hold"
            named = [f"{self.path}: row {refused}" for refused in self._refused]
            raise listed(self.path, named, self._bad, what, hint)
        if not self.rows:
            raise DataError("no utterances to write", where=str(self.path))

    def _losses(self, row: Utterance) -> Iterator[str]:
        for key in ("id", "text", "speaker", "lang"):
            if key not in self.holds and getattr(row, key) is not None:
                yield key
        if "sample_rate" not in self.holds and row.sample_rate not in (None, SAMPLE_RATE):
            yield "sample_rate"
        if "extra" not in self.holds:
            yield from (f"extra key {key!r}" for key in row.extra if key not in self.holds)
        if row.text == "" and "empty text" not in self.holds:
            yield "text that is empty (it becomes none)"


def relative(audio: str, folder: Path) -> str:
    """A path as it is written: relative to ``folder`` when it lies below, else absolute."""
    path = Path(audio)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def moved(row: Utterance, source: Path, out: Path) -> Utterance:
    """A row of a manifest in the folder ``source``, as it reads in one in the folder ``out``."""
    audio = str(source.absolute() / row.audio)
    return replace(row, audio=relative(audio, out.absolute()))


def header_of(row: Utterance, found: dict[str, Info | None]) -> Info | None:
    """What the file of a row is, from its header; None where it is not here or cannot be read."""
    key = f"{row.audio} {row.span}"
    if key not in found:
        found.clear()  # rows of one file stand together; all files of a corpus are too many to keep
        try:
            found[key] = probe(row.audio, span=row.span)
        except AudioError:
            found[key] = None
    return found[key]


def with_rate(row: Utterance, found: dict[str, Info | None]) -> Utterance:
    """A row that does not say its sample rate, with that of its file, if that is here."""
    if row.sample_rate is None and (info := header_of(row, found)):
        return replace(row, sample_rate=info.sample_rate)
    return row


def is_part(row: Utterance, info: Info | None) -> bool:
    """Whether a row is less than its file, as far as is known."""
    end = row.offset + row.duration
    return bool(row.offset) or (info is not None and end < info.seconds - RANGE_SLACK_SECONDS)


@contextlib.contextmanager
def replacing(
    folder: Path, head: str, others: Iterable[str] = (), *, force: bool = False
) -> Iterator[Path]:
    """A hidden folder to write files into, which then take their places in ``folder``.

    ``head`` comes last and an old one goes first, so that who sees it sees the whole set; of the
    ``others``, old ones that were not written anew go. Other files stay. ConfigError when any is
    there and ``force`` was not asked for.
    """
    others = tuple(others)
    old = refuse_old(folder, (head, *others), force=force)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{head}.", suffix=".part", dir=folder))
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror})", where=str(folder)) from error
    try:
        yield stage
        if old:
            (folder / head).unlink(missing_ok=True)
        for name in (*others, head):
            if (stage / name).exists():
                (stage / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror})", where=str(folder)) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def refuse_old(folder: Path, names: Iterable[str], *, force: bool) -> list[str]:
    """Which of the names are in a folder already; ConfigError unless that was asked for."""
    old = [name for name in names if (folder / name).exists()]
    if old and not force:
        what = f"there already: {', '.join(old)}"
        raise ConfigError(what, where=str(folder), hint="--force writes over it")
    return old


def write_text(path: Path, written: Iterable[str]) -> None:
    """Lines as UTF-8, on the disk before this returns."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in written)
        file.flush()
        os.fsync(file.fileno())
