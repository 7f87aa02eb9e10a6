"""One shard, written: the samples of some rows in one tar file.

Goes in: rows and where their audio lies. Goes out: a tar in WebDataset's layout that has its name
only when it is complete, and the rows, pointing into it. Equal rows and audio give equal bytes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from w2vtool.audio import (
    EXTENSIONS,
    RANGE_SLACK_SECONDS,
    SAMPLE_RATE,
    AudioError,
    Info,
    load,
    probe,
)
from w2vtool.errors import DataError
from w2vtool.manifest import Utterance
from w2vtool.shards import KEYS, index

FULL_SCALE = 1 << 15  # of 16-bit samples
_MAGIC = {b"fLaC": ".flac", b"RIFF": ".wav", b"OggS": ".ogg", b"FORM": ".aiff", b"caff": ".caf"}


@dataclass(frozen=True)
class Packing:
    """How audio is stored. ``flac``: as 16-bit FLAC at 16 kHz where that changes no sample.

    With ``rounded`` also where it does: samples are rounded to 16 bits.
    """

    flac: bool = False
    rounded: bool = False


@dataclass
class Order:
    """One shard: the rows that are to be in it, of a manifest in ``folder``."""

    path: Path
    folder: Path
    rows: Sequence[Utterance]
    packing: Packing


@dataclass
class Packed:
    """What became of an order: its rows, pointing into the shard, or what is wrong with them."""

    rows: list[Utterance] = field(default_factory=list)
    encoded: int = 0  # rows stored as FLAC that were something else, or a part of a file
    rounded: int = 0  # of these, rows with samples that are not what they were
    problems: list[str] = field(default_factory=list)


class Stored(NamedTuple):
    """A member to be: the bytes of a file, its ending, and the rows that are in it."""

    data: bytes
    ending: str
    rows: list[Utterance]
    rounded: bool = False


def pack(order: Order, each: Callable[[int], None] = lambda _: None) -> Packed:
    """Write a shard, unless it is there; ``each`` is called with the number of rows done.

    Equal rows and audio give equal bytes. Where rows cannot be read, nothing is written.
    """
    packed = Packed()
    if not order.path.exists():
        partial = order.path.with_name(f".{order.path.name}.{os.getpid()}.tmp")
        try:
            with partial.open("wb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                    done = 0
                    for stored in _stored(order, packed):
                        _add(tar, stored)
                        done += len(stored.rows)
                        each(done)
                file.flush()
                os.fsync(file.fileno())
            if not packed.problems:
                partial.replace(order.path)
        except OSError as error:
            what = f"cannot be written ({error.strerror})"
            raise DataError(what, where=str(order.path)) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    if not packed.problems:
        found = {row.id: row for row in index(order.path, check=False)}
        try:
            packed.rows = [found.pop(row.id) for row in order.rows]
        except KeyError as error:
            what = f"utterance {error.args[0]!r} is missing in a shard that is already there"
            raise DataError(what, where=str(order.path), hint="delete the shard") from error
    return packed


def _stored(order: Order, packed: Packed) -> Iterator[Stored]:
    """Members of a shard. A file is stored once for all rows that are parts of it."""
    sources: dict[tuple[str, int | None], list[Utterance]] = {}
    for row in order.rows:
        sources.setdefault((row.audio, row.start), []).append(row)
    for rows in sources.values():
        path, rest, row = order.folder / rows[0].audio, [], rows[0]
        try:
            info = probe(path, span=row.span)
            for row in rows:
                _check_range(path, row, info)
                made = _as_flac(path, row, info, order.packing) if order.packing.flac else None
                if made is None:
                    rest.append(row)
                    continue
                packed.encoded += 1
                packed.rounded += made.rounded
                yield made
            if rest:
                yield Stored(_bytes(path, rows[0]), _ending(path, rows[0]), rest)
        except AudioError as error:
            packed.problems.append(f"{row.id}: {error.fact}")


def _check_range(path: Path, row: Utterance, info: Info) -> None:
    """AudioError for a row that ends after its audio: it would be packed as it is, and not read."""
    end = row.offset + row.duration
    if end > info.seconds + RANGE_SLACK_SECONDS:
        what = f"it has {info.seconds:.3f} s, the manifest wants {end:.3f} s"
        raise AudioError(what, where=str(path), reason="range")


def _as_flac(path: Path, row: Utterance, info: Info, packing: Packing) -> Stored | None:
    """The row's samples as 16-bit FLAC; None where it is to stay as it is."""
    import soundfile

    count = round(row.duration * SAMPLE_RATE)
    if row.offset == 0 and count >= info.samples and _is_such_flac(path, row):
        return None
    wave = load(path, offset=row.offset, duration=row.duration, span=row.span).samples
    scaled = wave * np.float32(FULL_SCALE)
    whole = np.rint(scaled).clip(-FULL_SCALE, FULL_SCALE - 1)
    exact = np.array_equal(whole, scaled)
    if not (exact or packing.rounded):
        return None
    buffer = io.BytesIO()
    soundfile.write(buffer, whole.astype(np.int16), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    duration = row.duration if count == len(wave) else len(wave) / SAMPLE_RATE
    row = replace(row, offset=0.0, duration=duration, sample_rate=SAMPLE_RATE)
    return Stored(buffer.getvalue(), ".flac", [row], rounded=not exact)


def _is_such_flac(path: Path, row: Utterance) -> bool:
    """Whether the file is FLAC of 16 kHz, one channel and 16 bits already (RFC 9639, 8.2)."""
    head = _bytes(path, row, 26)
    fields = int.from_bytes(head[18:22], "big")  # 20 bits rate, 3 channels - 1, 5 bits - 1, …
    found = (fields >> 12, fields >> 9 & 7, fields >> 4 & 31)
    return head[:4] == b"fLaC" and found == (SAMPLE_RATE, 0, 15)


def _bytes(path: Path, row: Utterance, count: int = -1) -> bytes:
    """The file, or the member of a shard, that the row is in; the first ``count`` bytes of it."""
    with path.open("rb") as file:
        if row.start is None or row.length is None:
            return file.read(count)
        file.seek(row.start)
        return file.read(row.length if count < 0 else min(count, row.length))


def _ending(path: Path, row: Utterance) -> str:
    """What a member is called, so that others know its format; by its bytes if it has no name."""
    if row.start is None and path.suffix.lower() in EXTENSIONS:
        return path.suffix.lower()
    head = _bytes(path, row, 4)
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), ".mp3")


def _add(tar: tarfile.TarFile, stored: Stored) -> None:
    """Write the members of a sample, in the order that WebDataset wants: side by side."""
    key = quote(stored.rows[0].id, safe="").replace(".", "%2E")  # a key ends at the first dot
    records = [_record(row) for row in stored.rows]
    found = json.dumps(records[0] if len(records) == 1 else records, ensure_ascii=False)
    parts = {stored.ending: stored.data, ".json": found.encode()}
    if len(records) == 1 and stored.rows[0].text is not None:
        parts[".txt"] = stored.rows[0].text.encode()
    for ending, data in parts.items():
        info = tarfile.TarInfo(key + ending)
        info.size = len(data)  # time, owner and mode stay those of TarInfo: 0, 0 and 0o644
        tar.addfile(info, io.BytesIO(data))


def _record(row: Utterance) -> dict[str, Any]:
    known = {name: getattr(row, name) for name in KEYS}
    return {name: value for name, value in known.items() if value is not None} | row.extra
