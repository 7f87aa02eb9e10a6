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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from w2vtool.audio import RANGE_SLACK_SECONDS, SAMPLE_RATE, AudioError, load
from w2vtool.columns import Collector, Rows, open_rows, save, settle
from w2vtool.errors import DataError
from w2vtool.rows import Utterance, hashed, parse, value_problem, written
from w2vtool.scan import Ids, OnProgress, checked, lines, raise_problems
from w2vtool.survey import Inspected
from w2vtool.survey_parts import Verify, look_at
from w2vtool.text import frames_needed, letters
from w2vtool.views import durations

__all__ = ["Utterance"]  # also from here; all other names are this module's own

MIN_SAMPLES = 400  # the network's receptive field: one frame
HOP_SAMPLES = 320
CACHE_BYTES = 16 << 20  # about 100,000 rows: a manifest from here on gets columns beside it


@dataclass(frozen=True)
class Manifest:
    """Rows and the file they came from. ``sha256`` covers all of the rows but ``audio``."""

    path: Path
    rows: Sequence[Utterance]
    sha256: str

    @property
    def durations(self) -> np.ndarray:
        """Seconds of audio of each row, float64 ``[N]``."""
        return durations(self.rows)

    @property
    def seconds(self) -> float:
        """Audio in all of the rows."""
        if isinstance(self.rows, Rows):
            return self.rows.columns.seconds
        return math.fsum(self.durations)

    def audio_path(self, row: Utterance) -> Path:
        """Where the row's audio lies."""
        return self.path.parent / row.audio

    def audio(self, row: Utterance) -> np.ndarray:
        """Float32 samples ``[S]`` of the row at 16 kHz. AudioError names row, file and fact."""
        try:
            path = self.audio_path(row)
            return load(path, offset=row.offset, duration=row.duration, span=row.span).samples
        except AudioError as error:
            place = f"{self.path} ({row.id}): {error.where}"
            hint = error.hint or f"w2vtool manifest check {self.path} names all such rows"
            raise AudioError(error.what, where=place, hint=hint, reason=error.reason) from error


def read(path: str | Path, *, on_progress: OnProgress | None = None) -> Manifest:
    """Read a manifest. DataError lists every bad row as ``file:line`` (the first 20 of them).

    ``audio_filepath`` is taken for ``audio``; a row without ``id`` gets its audio path without the
    ending. An empty manifest is an error. The rows of a large one (``CACHE_BYTES``) are parsed when
    they are asked for; its first reading checks them all, tells ``on_progress`` (bytes, of bytes),
    and leaves a file with columns beside it. The next reading then takes no time.
    """
    path = Path(path)
    if _size(path) >= CACHE_BYTES:
        found = open_rows(path, on_progress)
        return Manifest(path, found, found.columns.sha256)
    rows, digest = [], hashlib.sha256()
    for row, _, part in checked(path):
        rows.append(row)
        digest.update(part)
    return Manifest(path, rows, digest.hexdigest())


def stream(path: str | Path) -> Iterator[Utterance]:
    """The rows of a manifest one by one, in memory for one row (and 8 bytes more for each).

    DataError as by ``read``, at the end: rows before the first bad one come out before it.
    """
    return (found.row for found in checked(Path(path)))


def write(path: str | Path, rows: Iterable[Utterance]) -> None:
    """Write rows as JSON lines, all or nothing; equal rows give equal bytes.

    ``rows`` may be a generator: one row is in memory at a time. DataError when a row breaks the
    rules of the format, so that what was written can be read.
    """
    with Writer(path) as out:
        for row in rows:
            out.add(row)


class Writer:
    """Writes a manifest row by row; the file appears when the ``with`` block ends well.

    DataError at the end lists every row that breaks the rules of the format. Readers see the old
    file or the new one, never a part.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows = 0
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._problems: list[tuple[int, str]] = []
        self._ids, self._columns, self._bytes = Ids(), Collector(), 0

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
        except OSError as error:
            raise self._refusal(error) from error
        return self

    def add(self, row: Utterance) -> None:
        """Write one row."""
        self.rows += 1
        try:
            line, part = written(row)
        except ValueError as error:
            self._problems += [(self.rows, problem) for problem in error.args]
            return
        try:
            self._file.write(line)
        except OSError as error:
            raise self._refusal(error) from error
        self._ids.add(row.id)
        self._columns.add(row, self._bytes, part)
        self._bytes += len(line)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            with self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
            if error is None:
                self._finish()
        except OSError as failure:
            raise self._refusal(failure) from error
        finally:
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        if twice := self._ids.twice():
            rows = (parse(line) for _, _, line in lines(self._partial))
            counts = Counter(row.id for row in rows if hash(row.id) in twice)
            self._problems += [
                (0, f"id {row_id!r} stands in {count} rows")
                for row_id, count in counts.items()
                if count > 1
            ]
        raise_problems(self.path, self._problems)
        self._partial.replace(self.path)
        if self._bytes >= CACHE_BYTES:
            save(self.path, self._columns.columns(settle(self.path)))

    def _refusal(self, error: OSError) -> DataError:
        return DataError(f"cannot be written ({error.strerror})", where=str(self.path))


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


def write_list(path: Path, records: Iterable[Mapping[str, Any]]) -> Path | None:
    """Write what was rejected, or delete the list of an earlier, worse attempt; where it is now."""
    lines = [json.dumps(dict(record)) for record in records]
    if not lines:
        path.unlink(missing_ok=True)
        return None
    write_lines(path, lines)
    return path


def sha256(rows: Iterable[Utterance]) -> str:
    """Hash of the rows in their order, without where the audio lies."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(hashed(row))
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from error


class Candidate(NamedTuple):
    """What a corpus scan found, before the audio was looked at.

    With ``offset`` or ``duration`` (seconds), it is a part of a longer file; ``extra`` are further
    keys of its row.
    """

    id: str
    path: Path
    text: str | None = None
    speaker: str | None = None
    where: str = ""  # file:line of the transcript
    offset: float = 0.0
    duration: float | None = None  # None: to the end of the file
    lang: str | None = None
    extra: Mapping[str, Any] = {}

    @property
    def whole(self) -> bool:
        """Whether it is all of its file."""
        return self.offset == 0 and self.duration is None


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
    warned: dict[str, list[str]] = field(default_factory=dict)  # "clipped", … → ids; kept
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # id, id of its twin; kept


def emission_frames(samples: int) -> int:
    """Frames that the network makes of samples at 16 kHz: 16,000 → 49."""
    return max(0, (samples - MIN_SAMPLES) // HOP_SAMPLES + 1)


def build(
    candidates: Sequence[Candidate],
    *,
    jobs: int = 0,
    verify: Verify = "decode",
    keep: Path | None = None,
    engine: Literal["local", "ray"] = "local",
    on_progress: Callable[[int, int], None] | None = None,
) -> Built:
    """Look at the file of every candidate once; rows come in the order of the candidates.

    ``verify`` is ``decode``, or ``header`` for a quick look that finds no damage inside, no silence
    and no twins. ``jobs``: processes that do it; 0: this one, which a broken decoder takes along.
    What they found is kept in the folder ``keep``; that, and ``engine``, is of ``survey_parts``.
    Rejected: audio that ``audio.load`` refuses, parts that are not within their file, less than 400
    samples, an id that was there before, and text that needs more CTC frames than the audio has.
    Silent and duplicate audio is kept, and named. ``on_progress(done, total)`` is called after each
    candidate, and may raise to stop.
    """
    built = Built()
    ids: dict[str, Path] = {}
    twins: dict[bytes, str] = {}
    uses = Counter(candidate.path for candidate in candidates)
    known: dict[Path, Inspected] = {}  # files that more candidates follow of

    def poll() -> None:
        if on_progress:
            on_progress(0, len(candidates))

    found = look_at(list(uses), jobs=jobs, verify=verify, keep=keep, engine=engine, poll=poll)
    with contextlib.closing(found):  # a stop ends the processes too
        for done, candidate in enumerate(candidates, start=1):
            file = known.get(candidate.path) or next(found)
            uses[candidate.path] -= 1
            if uses[candidate.path]:
                known[candidate.path] = file
            else:
                known.pop(candidate.path, None)
            seconds = _seconds(candidate, file)
            reason, detail = _objection(candidate, file, seconds, ids)
            if reason:
                built.rejected.append(Rejected(str(candidate.path), reason, detail))
            else:
                ids[candidate.id] = candidate.path
                _accept(built, candidate, file, seconds, twins)
            if on_progress:
                on_progress(done, len(candidates))
        next(found, None)  # lets it tidy up what it kept
    return built


def _seconds(candidate: Candidate, file: Inspected) -> float:
    """Length of the candidate's audio, 0 where it is not within the file."""
    end = file.samples / SAMPLE_RATE
    if candidate.whole:
        return end
    length = end - candidate.offset if candidate.duration is None else candidate.duration
    within = candidate.offset + length <= end + RANGE_SLACK_SECONDS
    return min(length, end - candidate.offset) if within and candidate.offset >= 0 else 0.0


def _objection(
    candidate: Candidate, file: Inspected, seconds: float, ids: Mapping[str, Path]
) -> tuple[str, str]:
    if file.reason:
        return file.reason, file.detail
    if problem := value_problem("audio", str(candidate.path)) or value_problem("id", candidate.id):
        return "bad-name", problem
    where = f" ({candidate.where})" if candidate.where else ""
    if not candidate.whole and not seconds > 0:
        end = file.samples / SAMPLE_RATE
        asked = "the end" if candidate.duration is None else f"{candidate.duration:g} s"
        return (
            "range",
            f"{asked} from {candidate.offset:g} s on is not within its {end:.3f} s{where}",
        )
    samples = round(seconds * SAMPLE_RATE)
    if samples < MIN_SAMPLES:
        return "too-short", f"{samples} samples; one frame takes {MIN_SAMPLES}"
    if candidate.id in ids:
        return "duplicate-id", f"id {candidate.id!r} is already that of {ids[candidate.id]}"
    if candidate.text:
        needed, frames = frames_needed(letters(candidate.text)), emission_frames(samples)
        if needed > frames:
            what = f"its text takes {needed} frames, the audio has {frames}{where}"
            return "text-too-long", what
    return "", ""


def _accept(
    built: Built, candidate: Candidate, file: Inspected, seconds: float, twins: dict[bytes, str]
) -> None:
    rate = file.info.sample_rate
    built.rows.append(
        Utterance(
            candidate.id,
            str(candidate.path),
            seconds,
            candidate.offset,
            rate,
            candidate.text,
            candidate.speaker,
            candidate.lang,
            dict(candidate.extra),
        )
    )
    if rate != SAMPLE_RATE:
        built.resampled[rate] += 1
    built.mixed_down += file.info.channels > 1
    for warning in file.warnings:
        built.warned.setdefault(warning, []).append(candidate.id)
    if file.silent:
        built.silent.append(candidate.id)
    elif candidate.whole and file.digest in twins:
        built.duplicates.append((candidate.id, twins[file.digest]))
    if candidate.whole and file.digest:
        twins.setdefault(file.digest, candidate.id)
