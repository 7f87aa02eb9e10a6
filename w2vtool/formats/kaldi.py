"""Kaldi's data folders: ``wav.scp``, ``segments``, ``text``, ``utt2spk`` and what goes with them.

Goes in and out: a folder. Everything is joined by the id of the utterance. Paths are as Kaldi has
them: relative to the current folder when read, and absolute when written. Lines are in the order
of the C locale, by bytes. Ids and speakers with spaces are errors, as Kaldi has no quoting.

Why commands in ``wav.scp`` are refused: it would run whatever stands in somebody's file. Two that
only hand on what is read here anyway are taken for their file: ``cat X |``, ``flac -c -d -s X |``.
Source: Kaldi's documentation, "Data preparation"; ``utils/validate_data_dir.sh``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from w2vtool.audio import Info
from w2vtool.errors import DataError
from w2vtool.formats.rows import (
    CORE,
    Carrier,
    Checks,
    Options,
    Rows,
    header_of,
    is_part,
    lines,
    replacing,
    write_text,
)
from w2vtool.manifest import Utterance

HOLDS = CORE | {"id", "offset", "speaker", "lang"}
HEAD = "wav.scp"
FILES = ("segments", "text", "utt2spk", "spk2utt", "utt2dur", "utt2lang")
KEYED = ("text", "utt2spk", "utt2dur", "utt2lang")
_ARCHIVE = re.compile(r":\d+$")
_BLANKS = re.compile(r"[ \t]+")


def read(path: Path, options: Options) -> Iterator[Utterance]:
    """Rows of a folder, in the order of ``segments``, or of ``wav.scp`` where there is none.

    How long a file is stands in ``utt2dur``, else in its header.
    """
    if not (path / HEAD).is_file():
        hint = "a Kaldi folder holds wav.scp"
        raise DataError(f"no {HEAD} here", where=str(path), hint=hint)
    checks = Checks(path, options.root or Path())
    tables = {name: _table(path / name, checks) for name in (HEAD, *FILES) if name != "spk2utt"}
    audio = {key: _audio(checks, *found) for key, found in tables[HEAD].items()}
    parts = tables["segments"] or {key: (where, "") for key, (where, _) in tables[HEAD].items()}
    for name in KEYED:
        for key in tables[name].keys() - parts.keys():
            checks.problem(tables[name][key][0], f"no utterance {key!r}")
    for key, (where, line) in parts.items():
        text, speaker, given, lang = (tables[name].get(key, ("", ""))[1] or None for name in KEYED)
        known: dict[str, Any] = {"text": text, "lang": lang, "offset": 0.0}
        known["speaker"] = None if speaker == key else speaker  # Kaldi's way to say: unknown
        recording = key
        if line:
            if (times := _segment(checks, where, line)) is None:
                continue
            recording, known["offset"], known["duration"] = times
        if recording not in audio:
            checks.problem(where, f"no recording {recording!r} in {HEAD}")
        elif not (file := audio[recording]) or not _measure(checks, where, file, given, known):
            continue  # told already
        elif row := checks.row(where, file, id=key, **known):
            yield row
    checks.finish("utils/fix_data_dir.sh of Kaldi repairs some of it")


def _table(path: Path, checks: Checks) -> dict[str, tuple[str, str]]:
    """First word of each line → its place and the rest of it."""
    found: dict[str, tuple[str, str]] = {}
    if not path.is_file():
        return found
    for where, line in lines(path, checks.problem):
        key, *after = _BLANKS.split(line.strip(" \t"), maxsplit=1)
        if key in found:
            checks.problem(where, f"{key!r} is already in {found[key][0]}")
        found.setdefault(key, (where, after[0] if after else ""))
    return found


def _audio(checks: Checks, where: str, line: str) -> str:
    """The file of a line of ``wav.scp``; nothing, and a problem, where it is none."""
    if line.endswith("|"):
        if file := _unpacked(line[:-1]):
            return file
        what = f"is a command ({line[:60]}), and commands are not run"
        checks.problem(where, f"{what}; write its output to a file (wav-copy) and name that")
    elif not line or line == "-" or _ARCHIVE.search(line):
        what = f"is {line[:60]!r}, not an audio file of its own"
        checks.problem(where, f"{what}; wav-copy scp:wav.scp writes files")
    else:
        return line
    return ""


def _unpacked(command: str) -> str:
    """The file of ``cat FILE`` and ``flac -cds FILE``, which only hand it on; else nothing."""
    try:
        program, *switches, file = shlex.split(command)
    except ValueError:
        return ""
    letters = {letter for word in switches for letter in word[1:]}
    plain_switches = all(re.fullmatch("-[cds]+", word) for word in switches)
    flac = Path(program).name == "flac" and plain_switches and {"c", "d"} <= letters
    whole = flac or (Path(program).name == "cat" and not switches)
    return file if whole and re.fullmatch(r"[^-|;&<>$`*?][^|;&<>$`*?]*", file) else ""


def _segment(checks: Checks, where: str, line: str) -> tuple[str, float, float | None] | None:
    """Recording, start and length of a line of ``segments``; an end of -1 is that of the file."""
    try:
        recording, start, end, *_ = line.split()
        begin, stop = Decimal(start), Decimal(end)
        return recording, float(begin), None if stop == -1 else float(stop - begin)
    except (ValueError, InvalidOperation):
        what = f"not 'UTTERANCE RECORDING START END': {line[:60]!r}"
        checks.problem(where, what)
        return None


def _measure(
    checks: Checks, where: str, file: str, given: str | None, known: dict[str, Any]
) -> bool:
    """Find out how long a file is where no segment says it; False, and a problem, if it cannot."""
    if known.get("duration") is not None:
        return True
    if given is not None:
        try:
            known["duration"] = float(given)
        except ValueError:
            checks.problem(where, f"its duration in utt2dur is {given[:60]!r}, not a number")
            return False
    elif info := checks.measured(where, file):
        known["duration"] = info.seconds - known["offset"]
        known["sample_rate"] = info.sample_rate
    return known.get("duration") is not None


def write(path: Path, rows: Rows, options: Options, *, force: bool = False) -> Carrier:
    """Write a folder. All rows are held in memory, to be sorted."""
    carrier = Carrier("kaldi", path, HOLDS)
    kept = [row for row in rows if carrier.check(row) and _writable(carrier, row)]
    kept.sort(key=lambda row: row.id)  # by code point, which is the order of UTF-8 bytes
    first: dict[str, str] = {}
    for row in kept:
        first.setdefault(row.audio, row.id)
    seen: dict[str, Info | None] = {}
    parted = len(first) < len(kept) or any(is_part(row, header_of(row, seen)) for row in kept)
    with replacing(path.absolute(), HEAD, FILES, force=force) as stage:
        carrier.finish(
            "rename ids and speakers in the source (Kaldi has no quoting); unpack archives"
        )
        recordings = sorted((recording, audio) for audio, recording in first.items())
        write_text(stage / HEAD, (f"{key} {audio}" for key, audio in recordings))
        if parted:
            write_text(stage / "segments", (_segment_line(row, first[row.audio]) for row in kept))
        write_text(stage / "utt2dur", (f"{row.id} {plain(row.duration)}" for row in kept))
        for name, value in _VALUES.items():
            found = [f"{row.id} {value(row)}" for row in kept if value(row)]
            if found:
                write_text(stage / name, found)
        write_text(stage / "spk2utt", _speakers(kept))
    strange = sum(not row.id.startswith(row.speaker) for row in kept if row.speaker)
    if strange:
        what = "ids do not begin with the speaker's name, which Kaldi's sorting relies on"
        carrier.remarks.append(f"{strange:,} {what}")
    return carrier


_VALUES: Mapping[str, Callable[[Utterance], str | None]] = {
    "text": lambda row: row.text,
    "utt2spk": lambda row: row.speaker or row.id,
    "utt2lang": lambda row: row.lang,
}


def _writable(carrier: Carrier, row: Utterance) -> bool:
    for key in ("id", "speaker", "lang"):
        value = getattr(row, key)
        if value is not None and value.split() != [value]:
            carrier.refuse(row, f"the {key} {value[:60]!r} is empty or has spaces")
            return False
    if _ARCHIVE.search(row.audio) or row.audio.endswith("|") or row.audio != row.audio.strip():
        carrier.refuse(row, f"Kaldi would not take {row.audio!r} for a file")
        return False
    if row.text and (line_break := re.search("[\n\r]", row.text)):
        carrier.refuse(row, f"{line_break[0]!r} in its text")
        return False
    if row.text and row.text != row.text.strip(" \t"):
        carrier.lost["spaces around the text"] += 1
    if row.speaker == row.id:
        carrier.lost["a speaker called as the utterance (in Kaldi: an unknown one)"] += 1
    return True


def _segment_line(row: Utterance, recording: str) -> str:
    end = Decimal(repr(row.offset)) + Decimal(repr(row.duration))
    return f"{row.id} {recording} {plain(row.offset)} {end:f}"


def plain(seconds: float) -> str:
    """A number in full, without an exponent: what is read back is the same float."""
    return f"{Decimal(repr(seconds)):f}"


def _speakers(rows: Iterable[Utterance]) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row.speaker or row.id, []).append(row.id)
    yield from (f"{speaker} {' '.join(found[speaker])}" for speaker in sorted(found))
