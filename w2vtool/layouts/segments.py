"""Corpora of long recordings with times: TED-LIUM, GigaSpeech.

- TED-LIUM 3: ``legacy/{train,dev,test}/stm/TALK.stm`` with lines
  ``TALK CHANNEL SPEAKER START END <LABELS> TEXT``, the audio in ``sph/TALK.sph`` beside it.
- GigaSpeech: ``GigaSpeech.json``, several gigabytes of one object, with the segments of every
  recording and the subsets they belong to (``{XS}``…``{XL}``, ``{DEV}``, ``{TEST}``); the audio is
  where it says, ``audio/…/ID.opus``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from w2vtool.errors import ConfigError, DataError
from w2vtool.layouts.reading import (
    Misfit,
    Rows,
    choose,
    existing,
    extra,
    files,
    is_file,
    nothing,
    parsed,
    span,
)
from w2vtool.manifest import Candidate, Rejected

UNSCORED = "ignore_time_segment_in_scoring"
SUBSETS = ("XS", "S", "M", "L", "XL", "DEV", "TEST")
_PUNCTUATION = re.compile("<(COMMA|PERIOD|QUESTIONMARK|EXCLAMATIONPOINT)>")
_GARBAGE = re.compile("<(SIL|MUSIC|NOISE|OTHER)>")
_STM = re.compile(r"(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(?:<([^>]*)>\s*)?(.*)")
_CHUNK = 1 << 20


def tedlium(root: Path) -> Rows:
    """A split of TED-LIUM. Words that its authors could not tell (``<unk>``) vanish from the text.

    ``extra.unclear`` says how many they were, so that such rows can be left out.
    """
    tables = [path for path in files(root) if path.suffix == ".stm"]
    if not tables:
        raise nothing("no *.stm in this folder", root, "name a split: legacy/train")

    def row(line: str, where: str) -> Candidate | None:
        if line.startswith(";;"):
            return None
        match = _STM.fullmatch(line.strip())
        if match is None:
            raise Misfit("bad-line", f"not 'TALK CHANNEL SPEAKER START END TEXT': {line[:60]!r}")
        talk, _, speaker, start, end, _, raw = match.groups()
        if raw.strip() == UNSCORED:
            return None
        offset, duration = span(start, end)
        text, unclear = spoken(raw)
        if not text:
            raise Misfit("no-text", f"nothing to be read in {raw[:60]!r}")
        audio = existing(_talk(table, talk), f"{talk}.sph")
        name = f"{talk}-{round(100 * offset):07d}-{round(100 * (offset + duration)):07d}"
        labels = extra(unclear=unclear or None)
        return Candidate(name, audio, text, speaker, where, offset, duration, extra=labels)

    for table in tables:
        yield from parsed(table, row)


def spoken(raw: str) -> tuple[str, int]:
    """The text of an STM line as it is written elsewhere, and how many words are unclear.

    ``it 's <unk> the(2) {NOISE} best`` → ``it's the best``, 1
    """
    unclear = raw.count("<unk>")
    text = re.sub(r"<[^>]*>|\{[^}]*\}|\[[^\]]*\]|\(\d+\)", " ", raw)
    text = re.sub(r"\s+(?=')", "", text)
    return " ".join(text.split()), unclear


def _talk(table: Path, talk: str) -> Path:
    """Audio of a talk: ``sph/`` beside ``stm/``, or beside the table itself."""
    places = (table.parent.parent / "sph" / f"{talk}.sph", table.parent / f"{talk}.sph")
    return next((path for path in places if is_file(path)), places[0])


def gigaspeech(root: Path, part: str = "") -> Rows:
    """A subset of GigaSpeech, ``GigaSpeech.json:XL``. Tags of punctuation vanish from the text.

    Segments without speech (``<MUSIC>`` and such) are rejected as ``no-speech``.
    """
    path = root / "GigaSpeech.json" if root.is_dir() else root
    if not part:
        hint = f"GigaSpeech.json:XS, or another of {', '.join(SUBSETS)}"
        raise ConfigError("no subset named", where=str(root), hint=hint)
    subset = f"{{{choose(part, SUBSETS, root)}}}"
    if not path.is_file():
        raise nothing("no GigaSpeech.json in this folder", root)
    for number, recording in enumerate(_recordings(path), start=1):
        where = f"{path}: recording {recording.get('aid', number)}"
        try:
            if subset not in recording["subsets"]:
                continue
            segments = [item for item in recording["segments"] if subset in item["subsets"]]
            audio = existing(path.parent / recording["path"], recording["path"])
        except (KeyError, TypeError) as error:
            yield Rejected(where, "bad-line", f"no {error} in it")
            continue
        except Misfit as error:
            yield Rejected(where, error.reason, error.detail)
            continue
        for item in segments:
            yield _segment(item, audio, recording, f"{path}: segment {item.get('sid')}")


def _segment(
    item: dict[str, Any], audio: Path, recording: dict[str, Any], where: str
) -> Candidate | Rejected:
    try:
        name, raw = item["sid"], item["text_tn"]
        offset, duration = span(str(item["begin_time"]), str(item["end_time"]))
        text = " ".join(_PUNCTUATION.sub(" ", raw).split())
        if not isinstance(name, str):
            raise Misfit("bad-line", f"its sid is {name!r}, not a string")
    except (KeyError, TypeError) as error:
        return Rejected(where, "bad-line", f"no {error} in it")
    except Misfit as error:
        return Rejected(where, error.reason, error.detail)
    if not text or _GARBAGE.search(text):
        return Rejected(where, "no-speech", f"its text is {raw[:60]!r}")
    speaker = item.get("speaker")
    speaker = speaker if isinstance(speaker, str) and speaker not in ("", "N/A") else None
    labels = extra(source=recording.get("source"))
    return Candidate(name, audio, text, speaker, where, offset, duration, extra=labels)


def _recordings(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of the list ``audios``, one at a time: the file is larger than most memories."""
    decoder = json.JSONDecoder()
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_CHUNK)
            while (found := re.search(r'"audios"\s*:\s*\[', text)) is None:
                more = file.read(_CHUNK)
                if not more:
                    raise DataError("no list 'audios' in it", where=str(path))
                text = text[-20:] + more
            text = text[found.end() :]
            while True:
                text = text.lstrip(" \t\r\n,")
                if text.startswith("]"):
                    return
                try:
                    item, end = decoder.raw_decode(text)
                except json.JSONDecodeError as error:
                    more = file.read(max(_CHUNK, len(text)))  # twice as much: linear in the end
                    if not more:
                        what = f"ends within a recording ({error.msg})"
                        raise DataError(what, where=str(path), hint="fetch it again") from error
                    text += more
                    continue
                if not isinstance(item, dict):
                    raise DataError("a recording is not an object", where=str(path))
                yield item
                text = text[end:]
    except RecursionError as error:
        raise DataError("a recording is nested too deeply", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start})", where=str(path)) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from error
