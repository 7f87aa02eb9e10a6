"""One row of a manifest: what it may hold, from a line of JSON to an ``Utterance`` and back.

Goes in: a line of JSON, in our keys or with NeMo's ``audio_filepath``. Goes out: an ``Utterance``,
or a ValueError with everything that is wrong with the line; and ``SCHEMA``, the same rules as a
JSON schema for other programs.

Why two ways to read a line: nearly all lines are as ``written`` makes them, and those are known by
one regular expression at a third of the price of reading JSON and looking at every value. Whatever
it does not match is read with all checks, so both ways accept and refuse the same lines.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2vtool.audio import SAMPLE_RATE

MAX_SECONDS = 1e9
MAX_BYTES = 1 << 62


@dataclass(frozen=True, slots=True)
class Utterance:
    """One row. ``audio`` is relative to the manifest's folder, or absolute.

    ``offset`` and ``duration`` are seconds; ``sample_rate`` is that of the file, for information
    (reading gives 16 kHz), None where the line does not say. ``extra`` keeps the keys that w2vtool
    does not know. Where ``audio`` is an archive (a shard), ``start`` and ``length`` are the bytes
    of it that are the audio file.
    """

    id: str
    audio: str
    duration: float
    offset: float = 0.0
    sample_rate: int | None = SAMPLE_RATE
    text: str | None = None
    speaker: str | None = None
    lang: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    start: int | None = None
    length: int | None = None

    @property
    def samples(self) -> int:
        """Length at 16 kHz; exact for rows that w2vtool wrote."""
        return round(self.duration * SAMPLE_RATE)

    @property
    def span(self) -> tuple[int, int] | None:
        """First byte and number of bytes in ``audio``; None where ``audio`` is the file itself."""
        return None if self.start is None or self.length is None else (self.start, self.length)


KEYS = (
    *("id", "audio", "start", "length", "offset", "duration", "sample_rate"),
    *("text", "speaker", "lang"),
)
_REQUIRED = ("id", "audio", "duration")
_SECONDS = ("offset", "duration")
_BYTES = ("start", "length")
_UNSAFE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # surrogates: a file name that is not UTF-8
_SURROGATE = "half a surrogate pair (\\ud…) in a string"
_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_NAME = r"[^\"\\\x00-\x1f\x7f]+"
_TEXT = r"[^\"\\\x00-\x1f]*"
_NUMBER = r"(?:0|[1-9]\d{0,8})\.\d+"
_COUNT = r"0|[1-9]\d{0,17}"
_PLAIN = re.compile(
    rf'\{{"id": "({_NAME})", "audio": "({_NAME})(?:", "start": ({_COUNT}), "length": '
    rf'([1-9]\d{{0,17}})|"), "offset": ({_NUMBER}), "duration": ({_NUMBER}), '
    rf'"sample_rate": ([1-9]\d{{0,8}})(?:, "text": "({_TEXT})")?(?:, "speaker": "({_TEXT})")?'
    rf'(?:, "lang": "({_TEXT})")?\}}[ \t\r\n]*',
    re.ASCII,
)


def parse(line: bytes) -> Utterance:
    """The row of a line. ValueError with all of its problems as arguments."""
    found = _plain(line)
    return found[0] if found else _parsed(line)


def parse_hashed(line: bytes) -> tuple[Utterance, bytes]:
    """The row of a line, and what of it goes into the hash of a manifest (``hashed``)."""
    if (found := _plain(line)) is None:
        row = _parsed(line)
        return row, hashed(row)
    row, text, match = found
    written = match[5] == repr(row.offset) and match[6] == repr(row.duration)
    if not written:
        return row, hashed(row)
    rest = text[match.start(5) : match.end()].rstrip()
    return row, f'{text[: match.start(2)]}", "offset": {rest}\n'.encode()


def _plain(line: bytes) -> tuple[Utterance, str, re.Match[str]] | None:
    """The row of a line that is as ``written`` makes most of them; None for all others."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return None
    match = _PLAIN.fullmatch(text)
    if match is None:
        return None
    name, audio, start, length, offset, duration, rate, words, speaker, lang = match.groups()
    seconds = float(duration)
    if not seconds > 0:
        return None
    bytes_ = (None, None) if start is None else (int(start), int(length))
    row = Utterance(
        name, audio, seconds, float(offset), int(rate), words, speaker, lang, {}, *bytes_
    )
    return row, text, match


def record(row: Utterance) -> dict[str, Any]:
    """The row as it is written: keys in fixed order, without the empty ones."""
    known = {key: getattr(row, key) for key in KEYS}
    known |= {"offset": float(row.offset), "duration": float(row.duration)}
    extra = json.loads(json.dumps(row.extra, sort_keys=True)) if row.extra else {}
    return {key: value for key, value in known.items() if value is not None} | extra


def hashed(row: Utterance) -> bytes:
    """What of a row goes into the hash of a manifest: all but where the audio lies."""
    return _hashed(record(row))


def written(row: Utterance) -> tuple[bytes, bytes]:
    """The line of a row, with its end, and what of it is hashed.

    ValueError with everything that would keep it from being read back.
    """
    found = record(row)
    wrong = [f"{key!r} in extra" for key in (*KEYS, "audio_filepath") if key in row.extra]
    if wrong := wrong + record_problems(found):
        raise ValueError(*wrong)
    try:
        return _json(found).encode() + b"\n", _hashed(found)
    except UnicodeEncodeError as error:
        raise ValueError(_SURROGATE) from error


def value_problem(key: str, value: Any) -> str | None:
    """What is wrong with the value of one key; None if nothing is."""
    shown = f"{key!r} is {str(value)[:60]!r}"
    if key in _SECONDS:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) < MAX_SECONDS:
            return f"{shown}, not a number of seconds"
        if value < 0 or (key == "duration" and value == 0):
            return f"{shown}; it must be {'above' if key == 'duration' else 'at least'} 0"
        return None
    if key == "sample_rate":
        whole = _is_whole(value) and value > 0
        return None if whole else f"{shown}, not a whole number of Hz above 0"
    if key in _BYTES:
        least = 1 if key == "length" else 0
        fits = _is_whole(value) and least <= value < MAX_BYTES
        return None if fits else f"{shown}, not a whole number of bytes from {least} on"
    if not isinstance(value, str):
        return f"{shown}, not a string"
    if key in ("id", "audio") and (not value or _UNSAFE.search(value)):
        return f"{shown}: empty, or with control characters or bytes that are not UTF-8"
    return None


def _is_whole(value: Any) -> bool:
    """As JSON has it: 16000.0 is what tables of floats write for 16000."""
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def record_problems(record: Mapping[str, Any]) -> list[str]:
    """What is wrong with a row as JSON has it."""
    found = [f"missing key {key!r}" for key in _REQUIRED if record.get(key) is None]
    values = (value_problem(key, record[key]) for key in KEYS if record.get(key) is not None)
    found += [problem for problem in values if problem]
    half = [key for key in _BYTES if record.get(key) is not None]
    if len(half) == 1:
        found.append(f"{half[0]!r} alone; a part of a shard has both 'start' and 'length'")
    return found


def _parsed(line: bytes) -> Utterance:
    found = _load(line)
    if "audio_filepath" in found:
        if "audio" in found:
            raise ValueError("both 'audio' and 'audio_filepath'")
        found["audio"] = found.pop("audio_filepath")
    if "id" not in found and isinstance(found.get("audio"), str):
        found["id"] = str(Path(found["audio"]).with_suffix("")) if found["audio"] else ""
    if wrong := record_problems(found):
        raise ValueError(*wrong)
    known = {key: found.pop(key) for key in KEYS if key in found}
    known = {key: value for key, value in known.items() if value is not None}  # null: not there
    known |= {key: float(known[key]) for key in _SECONDS if key in known}
    known |= {key: int(known[key]) for key in (*_BYTES, "sample_rate") if key in known}
    known.setdefault("sample_rate", None)
    try:
        _json(found)
    except ValueError as error:  # 1e999 is read as infinity, which cannot be written
        raise ValueError("a number in extra beyond 1.8e308") from error
    return Utterance(**known, extra=found)


def _load(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line)") from error
    try:
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read (nested too deeply)") from error
    if not isinstance(found, dict):
        raise ValueError(f"not a JSON object: {text.strip()[:60]}")
    if "\\ud" in text.lower():  # half of a surrogate pair is no text, and cannot be written again
        try:
            _json(found).encode()
        except UnicodeEncodeError as error:
            raise ValueError(_SURROGATE) from error
    return found


def _hashed(record: dict[str, Any]) -> bytes:
    """One that does not say its rate counts as it always has: as one that says 16 kHz."""
    named = {"audio": "", "sample_rate": record.get("sample_rate", SAMPLE_RATE)}
    kept = {key: named.get(key, record.get(key)) for key in KEYS if key in record or key in named}
    kept |= {key: value for key, value in record.items() if key not in KEYS}
    return _json({key: kept[key] for key in kept if key not in _BYTES}).encode() + b"\n"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"key {twice[0]!r} stands twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
