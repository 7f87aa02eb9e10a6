"""The manifest: one utterance a row, read and written with every problem named; and its making.

Goes in: JSON lines ``{"id": …, "audio": …, "duration": …}`` (NeMo's ``audio_filepath`` works too),
or candidates found by a corpus scan. Goes out: ``Utterance`` rows, and a hash that a batch plan or
a run's provenance can hang on to.

Why labels live in the row and rows have ids: what is joined by line number is silently shifted by
one bad file. Why the hash leaves out where the audio lies: the same utterances on another disk are
the same data, and must be trained on in the same order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from w2vtool.audio import SAMPLE_RATE, AudioError, load
from w2vtool.errors import DataError
from w2vtool.survey import Inspected, inspect_all, inspect_piece
from w2vtool.text import frames_needed, letters

SHOWN_PROBLEMS = 20
MIN_SAMPLES = 400  # the network's receptive field: one frame
HOP_SAMPLES = 320


@dataclass(frozen=True, slots=True)
class Utterance:
    """One row. ``audio`` is relative to the manifest's folder, or absolute.

    ``offset`` and ``duration`` are seconds; ``sample_rate`` is that of the file, for information
    (reading gives 16 kHz). ``extra`` keeps the keys that w2vtool does not know.
    """

    id: str
    audio: str
    duration: float
    offset: float = 0.0
    sample_rate: int = SAMPLE_RATE
    text: str | None = None
    speaker: str | None = None
    lang: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Length at 16 kHz; exact for rows that w2vtool wrote."""
        return round(self.duration * SAMPLE_RATE)


_ORDER = ("id", "audio", "offset", "duration", "sample_rate", "text", "speaker", "lang")
_REQUIRED = ("id", "audio", "duration")
_UNSAFE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # surrogates: a file name that is not UTF-8


@dataclass(frozen=True)
class Manifest:
    """Rows and the file they came from. ``sha256`` covers all of the rows but ``audio``."""

    path: Path
    rows: list[Utterance]
    sha256: str

    @property
    def seconds(self) -> float:
        """Audio in all of the rows."""
        return math.fsum(row.duration for row in self.rows)

    def audio_path(self, row: Utterance) -> Path:
        """Where the row's audio lies."""
        return self.path.parent / row.audio

    def audio(self, row: Utterance) -> np.ndarray:
        """Float32 samples ``[S]`` of the row at 16 kHz. DataError names row, file and fact."""
        try:
            return load(self.audio_path(row), offset=row.offset, duration=row.duration).samples
        except AudioError as error:
            where = f"{self.path} ({row.id}): {error.where}"
            raise DataError(error.what, where=where, hint=error.hint) from error


def read(path: str | Path) -> Manifest:
    """Read a manifest. DataError lists every bad row as ``file:line`` (the first 20 of them).

    ``audio_filepath`` is taken for ``audio``; a row without ``id`` gets its audio path without the
    ending. An empty manifest is an error.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from error
    rows: list[Utterance] = []
    problems: list[tuple[int, str]] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _parse(line)
        except ValueError as error:
            problems += [(number, problem) for problem in error.args]
            continue
        if row.id in first_line:
            problems.append((number, f"id {row.id!r} is already in line {first_line[row.id]}"))
        first_line.setdefault(row.id, number)
        rows.append(row)
    _raise_problems(path, problems)
    if not rows:
        raise DataError(
            "the manifest is empty", where=str(path), hint="build it with w2vtool manifest"
        )
    return Manifest(path, rows, sha256(rows))


def write(path: str | Path, rows: Iterable[Utterance]) -> None:
    """Write rows as JSON lines, all or nothing; equal rows give equal bytes.

    DataError when a row breaks the rules of the format, so that what was written can be read.
    """
    path, rows = Path(path), list(rows)
    problems = [
        (number, problem)
        for number, row in enumerate(rows, start=1)
        for problem in (*_clashes(row), *_record_problems(_record(row)))
    ]
    for row_id, count in Counter(row.id for row in rows).items():
        if count > 1:
            problems.append((0, f"id {row_id!r} stands in {count} rows"))
    _raise_problems(path, problems)
    write_lines(path, (_dump(_record(row)) for row in rows))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Replace a text file at once: readers see the old or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror})", where=str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def sha256(rows: Iterable[Utterance]) -> str:
    """Hash of the rows in their order, without where the audio lies."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_dump({**_record(row), "audio": ""}).encode() + b"\n")
    return digest.hexdigest()


def _record(row: Utterance) -> dict[str, Any]:
    """The row as it is written: keys in fixed order, without the empty ones."""
    known = {key: getattr(row, key) for key in _ORDER}
    known |= {"offset": float(row.offset), "duration": float(row.duration)}
    extra = json.loads(json.dumps(row.extra, sort_keys=True)) if row.extra else {}
    return {key: value for key, value in known.items() if value is not None} | extra


def _clashes(row: Utterance) -> list[str]:
    return [f"{key!r} in extra" for key in (*_ORDER, "audio_filepath") if key in row.extra]


def _dump(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def _raise_problems(path: Path, problems: list[tuple[int, str]]) -> None:
    if not problems:
        return
    named = [f"{path}:{number}: {what}" if number else what for number, what in problems]
    hint = "a row needs id, audio (a path) and duration (seconds); see w2vtool manifest --help"
    if len(problems) == 1 and problems[0][0]:
        raise DataError(problems[0][1], where=f"{path}:{problems[0][0]}", hint=hint)
    rest = len(named) - SHOWN_PROBLEMS
    shown = [*named[:SHOWN_PROBLEMS], *([f"… and {rest} more"] if rest > 0 else [])]
    raise DataError("\n  ".join([f"{len(named)} bad rows", *shown]), where=str(path), hint=hint)


def _parse(line: bytes) -> Utterance:
    """One row; ValueError with all of its problems as arguments."""
    record = _load(line)
    if "audio_filepath" in record:
        if "audio" in record:
            raise ValueError("both 'audio' and 'audio_filepath'")
        record["audio"] = record.pop("audio_filepath")
    if "id" not in record and isinstance(record.get("audio"), str):
        record["id"] = str(Path(record["audio"]).with_suffix("")) if record["audio"] else ""
    if problems := _record_problems(record):
        raise ValueError(*problems)
    known = {key: record.pop(key) for key in _ORDER if key in record}
    known = {key: value for key, value in known.items() if value is not None}  # null: not there
    known |= {key: float(known[key]) for key in ("offset", "duration") if key in known}
    return Utterance(**known, extra=record)


def _load(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line)") from error
    try:
        record = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read (nested too deeply)") from error
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object: {text.strip()[:60]}")
    if "\\ud" in text.lower():  # half of a surrogate pair is no text, and cannot be written again
        try:
            _dump(record).encode()
        except UnicodeEncodeError as error:
            raise ValueError("half a surrogate pair (\\ud…) in a string") from error
    return record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"key {twice[0]!r} stands twice")
    return record


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _record_problems(record: Mapping[str, Any]) -> list[str]:
    missing = [f"missing key {key!r}" for key in _REQUIRED if record.get(key) is None]
    found = (_value_problem(key, record[key]) for key in _ORDER if record.get(key) is not None)
    return missing + [problem for problem in found if problem]


def _value_problem(key: str, value: Any) -> str | None:
    shown = f"{key!r} is {str(value)[:60]!r}"
    if key in ("offset", "duration"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) < 1e9:
            return f"{shown}, not a number of seconds"
        if value < 0 or (key == "duration" and value == 0):
            return f"{shown}; it must be {'above' if key == 'duration' else 'at least'} 0"
        return None
    if key == "sample_rate":
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return None if whole else f"{shown}, not a whole number of Hz above 0"
    if not isinstance(value, str):
        return f"{shown}, not a string"
    if key in ("id", "audio") and (not value or _UNSAFE.search(value)):
        return f"{shown}: empty, or with control characters or bytes that are not UTF-8"
    return None


class Candidate(NamedTuple):
    """What a corpus scan found, before the audio was looked at."""

    id: str
    path: Path
    text: str | None = None
    speaker: str | None = None
    where: str = ""  # file:line of the transcript
    offset: float = 0.0  # seconds
    duration: float | None = None  # seconds; None is all that follows
    lang: str | None = None
    extra: Mapping[str, Any] = {}  # other labels, such as emotion


class Rejected(NamedTuple):
    """What did not become a row: the file or ``file:line``, a stable code, the fact."""

    path: str
    reason: str
    detail: str


@dataclass
class Built:
    """Rows (``audio`` as the candidates had it), and all that a person should be told."""

    rows: list[Utterance] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    resampled: Counter[int] = field(default_factory=Counter)  # rate in Hz → rows
    mixed_down: int = 0  # rows with more than one channel
    silent: list[str] = field(default_factory=list)  # ids; kept
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # id, id of its twin; kept


def emission_frames(samples: int) -> int:
    """Frames that the network makes of samples at 16 kHz: 16,000 → 49."""
    return max(0, (samples - MIN_SAMPLES) // HOP_SAMPLES + 1)


def build(
    candidates: Sequence[Candidate],
    *,
    jobs: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Built:
    """Decode every candidate in ``jobs`` processes; rows come in the order of the candidates.

    Rejected: audio that ``audio.load`` refuses, less than 400 samples, an id that was there before,
    and text that needs more CTC frames than the audio has. Silent and duplicate audio is kept, and
    named. ``on_progress(done, total)`` is called after each file, and may raise to stop.
    """
    built = Built()
    ids: dict[str, Path] = {}
    twins: dict[bytes, str] = {}
    pieces = [(item.path, item.offset, item.duration) for item in candidates]
    found = inspect_all(pieces, jobs=jobs, inspect=inspect_piece)
    for done, (candidate, file) in enumerate(zip(candidates, found, strict=True), start=1):
        reason, detail = _objection(candidate, file, ids)
        if reason:
            built.rejected.append(Rejected(str(candidate.path), reason, detail))
        else:
            ids[candidate.id] = candidate.path
            _accept(built, candidate, file, twins)
        if on_progress:
            on_progress(done, len(candidates))
    return built


def _objection(candidate: Candidate, file: Inspected, ids: Mapping[str, Path]) -> tuple[str, str]:
    if file.reason:
        return file.reason, file.detail
    if problem := _value_problem("audio", str(candidate.path)) or _value_problem(
        "id", candidate.id
    ):
        return "bad-name", problem
    if file.samples < MIN_SAMPLES:
        return "too-short", f"{file.samples} samples; one frame takes {MIN_SAMPLES}"
    if candidate.id in ids:
        return "duplicate-id", f"id {candidate.id!r} is already that of {ids[candidate.id]}"
    needed, frames = frames_needed(letters(candidate.text or "")), emission_frames(file.samples)
    if needed > frames:
        where = f" ({candidate.where})" if candidate.where else ""
        return "text-too-long", f"its text takes {needed} frames, the audio has {frames}{where}"
    return "", ""


def _accept(built: Built, candidate: Candidate, file: Inspected, twins: dict[bytes, str]) -> None:
    seconds, rate = file.samples / SAMPLE_RATE, file.info.sample_rate
    row = Utterance(candidate.id, str(candidate.path), seconds, sample_rate=rate)
    row = replace(row, offset=candidate.offset, lang=candidate.lang, extra=dict(candidate.extra))
    built.rows.append(replace(row, text=candidate.text, speaker=candidate.speaker))
    if rate != SAMPLE_RATE:
        built.resampled[rate] += 1
    built.mixed_down += file.info.channels > 1
    if file.silent:
        built.silent.append(candidate.id)
    elif file.digest in twins:
        built.duplicates.append((candidate.id, twins[file.digest]))
    twins.setdefault(file.digest, candidate.id)
