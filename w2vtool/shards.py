"""Shards, read: many utterances in a tar file that stays packed.

Goes in: a tar in WebDataset's layout, from here or elsewhere (members ``KEY.flac``, ``KEY.json``,
``KEY.txt`` side by side). Goes out: rows that point at the bytes of their audio in it.

Why tar: other programs read it, and as it is not compressed, a member is a range of bytes. Why no
index file: the members say all there is to say, so that a shard alone is enough.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from w2vtool.audio import EXTENSIONS, RANGE_SLACK_SECONDS, SAMPLE_RATE, Info, probe
from w2vtool.errors import DataError
from w2vtool.manifest import Utterance
from w2vtool.tars import Member, members

LARGEST_RECORD = 16 << 20  # bytes of a KEY.json or KEY.txt
KEYS = ("id", "offset", "duration", "sample_rate", "text", "speaker", "lang")  # of a KEY.json


def index(path: Path, *, check: bool = True) -> Iterator[Utterance]:
    """Rows of the audio in a tar, with ``audio`` as the file's name without its folder.

    Where ``KEY.json`` is silent, the id is KEY, the text is ``KEY.txt``, and the rest is that of
    the audio. With ``check``, the header of all audio is read. Raises DataError for a tar or a
    sample that is no good.
    """
    for key, parts in _samples(path):
        try:
            yield from _rows(path, key, parts, check=check)
        except ValueError as error:
            raise DataError(f"sample {key[:200]!r}: {error}", where=str(path)) from error


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Neighbours with one name up to the first dot of its last part, as in WebDataset."""
    last, parts = "", dict[str, Member]()
    for member in members(path):
        folder, slash, name = member.name.rpartition("/")
        stem, dot, ending = name.partition(".")
        if not stem or not dot:
            continue  # .DS_Store, a README
        key = folder + slash + stem
        if key != last or "." + ending.lower() in parts:
            if parts:
                yield last, parts
            last, parts = key, {}
        parts["." + ending.lower()] = member
    if parts:
        yield last, parts


def _rows(path: Path, key: str, parts: Mapping[str, Member], *, check: bool) -> Iterator[Utterance]:
    audio = [part for name, part in parts.items() if name[name.rfind(".") :] in EXTENSIONS]
    if len(audio) != 1:
        raise ValueError(f"{len(audio)} audio members, not one: {' '.join(sorted(parts))}")
    place = (audio[0].start, audio[0].length)
    found: Any = json.loads(_content(path, parts[".json"])) if ".json" in parts else {}
    text = _content(path, parts[".txt"]) if ".txt" in parts else None
    for record in found if isinstance(found, list) else [found]:
        if not isinstance(record, dict):
            raise ValueError("its .json is neither an object nor a list of objects")
        info = probe(path, span=place) if check or "duration" not in record else None
        yield _row(path, key, record, text, place, info)


def _content(path: Path, member: Member) -> str:
    if member.length > LARGEST_RECORD:
        raise ValueError(f"{member.name[-60:]!r} has {member.length:,} bytes; too many for text")
    with path.open("rb") as file:
        file.seek(member.start)
        return file.read(member.length).decode()


def _row(
    path: Path,
    key: str,
    record: Mapping[str, Any],
    text: str | None,
    place: tuple[int, int],
    info: Info | None,
) -> Utterance:
    """The row of a record; ValueError when the audio is not as the record says."""
    known = {name: record[name] for name in KEYS if record.get(name) is not None}
    hidden = {*KEYS, "audio", "audio_filepath", "start", "length"}
    extra = {name: value for name, value in record.items() if name not in hidden}
    known = {"id": key, "text": text, "sample_rate": None, **known}
    if info is not None:
        known["sample_rate"] = known["sample_rate"] or info.sample_rate
        known.setdefault("duration", info.samples / SAMPLE_RATE)
    for name in ("offset", "duration"):
        value = known.get(name, 0.0)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{name!r} is {str(value)[:60]!r}, not a number of seconds")
        known[name] = float(value)
    end = known["offset"] + known["duration"]
    if info is not None and not end <= info.seconds + RANGE_SLACK_SECONDS:
        raise ValueError(f"it has {info.seconds:.3f} s of audio, its .json wants {end:.3f} s")
    return Utterance(**known, audio=path.name, extra=extra, start=place[0], length=place[1])
