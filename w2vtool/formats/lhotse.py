"""Lhotse's cuts as JSON lines: a ``MonoCut`` with its recording and one supervision a row.

Goes in and out: ``.jsonl`` or ``.jsonl.gz``, read and written here, without Lhotse. Cuts that are
made of several (``MixedCut``), have several supervisions, or audio that is no file are problems:
what they mean is for Lhotse to resolve. Paths are as Lhotse has them: relative to the current
folder when read, and absolute when written. Source: lhotse's ``MonoCut``, ``Recording`` and
``SupervisionSegment``, as their ``to_dict`` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from w2vtool.audio import SAMPLE_RATE, Info
from w2vtool.formats import json_rows
from w2vtool.formats.rows import (
    OURS,
    Carrier,
    Checks,
    Options,
    Rows,
    extra_of,
    header_of,
    replacing,
)
from w2vtool.manifest import Utterance

HOLDS = frozenset((*OURS, "extra", "empty text")) - {"start", "length"}
_PLAIN = ("MonoCut", "Cut")


def read(path: Path, options: Options) -> Iterator[Utterance]:
    """Rows of a file of cuts; ``custom`` fields and gender become extra keys."""
    checks = Checks(path, options.root or Path())
    for where, cut in json_rows.records(path, checks.problem):
        try:
            known = _fields(cut)
        except ValueError as error:
            checks.problem(where, f"cut {str(cut.get('id'))[:60]!r}: {error}")
            continue
        if row := checks.row(where, **known):
            yield row
    checks.finish("write cuts with cuts.trim_to_supervisions().to_file('cuts.jsonl.gz')")


def _fields(cut: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row; ValueError for a cut that is not one utterance in one file."""
    if cut.get("type", "MonoCut") not in _PLAIN:
        raise ValueError(f"is a {cut['type']}; only cuts of one recording can be taken")
    recording, found = _mapping(cut, "recording"), cut.get("supervisions") or []
    sources = recording.get("sources")
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
        raise ValueError("its recording has not exactly one source")
    if sources[0].get("type") != "file":
        raise ValueError(f"its audio is of type {sources[0].get('type')!r}, not a file")
    if not isinstance(found, list) or len(found) > 1 or not all(isinstance(s, dict) for s in found):
        raise ValueError("it has several supervisions; cuts.trim_to_supervisions() parts them")
    said: Mapping[str, Any] = found[0] if found else {}
    custom = {**_custom(said), **_custom(cut)}
    if said.get("gender") is not None:
        custom["gender"] = said["gender"]
    seconds = {key: cut.get(key) for key in ("start", "duration")}
    seconds = {k: float(v) if type(v) is int else v for k, v in seconds.items()}
    return {
        "id": cut.get("id"),
        "audio": sources[0].get("source"),
        "offset": seconds["start"] or 0.0,
        "duration": seconds["duration"],
        "sample_rate": recording.get("sampling_rate"),
        "text": said.get("text"),
        "speaker": said.get("speaker"),
        "lang": said.get("language"),
        "extra": extra_of(custom),
    }


def _custom(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return {} if record.get("custom") is None else _mapping(record, "custom")


def _mapping(cut: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = cut.get(key)
    if not isinstance(found, dict):
        raise ValueError(f"it has no {key}")
    return found


def write(path: Path, rows: Rows, options: Options, *, force: bool = False) -> Carrier:
    """Write cuts. How long a recording is comes from the file's header where the file is here."""
    carrier = Carrier("lhotse", path, HOLDS)
    found: dict[str, Info | None] = {}
    unknown = several = 0

    def cuts() -> Iterator[str]:
        nonlocal unknown, several
        for row in rows:
            if carrier.check(row):
                info = header_of(row, found)
                unknown += info is None
                several += info is not None and info.channels > 1
                yield json_rows.dump(_cut(row, info))

    with replacing(path.absolute().parent, path.name, force=force) as stage:
        json_rows.write(stage / path.name, path.name, cuts())
        carrier.finish("unpack the archives, or use w2vtool's own manifest")
    if unknown:
        what = "rows whose audio is not here: their recording is taken to end where the row does"
        carrier.remarks.append(f"{unknown:,} {what}")
    if several:
        what = "rows of audio with several channels: these cuts take the first, w2vtool the mean"
        carrier.remarks.append(f"{several:,} {what}")
    return carrier


def _cut(row: Utterance, info: Info | None) -> dict[str, Any]:
    end = float(Decimal(repr(row.offset)) + Decimal(repr(row.duration)))
    rate, channels = row.sample_rate or SAMPLE_RATE, [0]
    frames = round(end * rate)
    if info is not None and info.seconds > end - 0.02:  # a lying row is for Lhotse to find
        rate, frames = info.sample_rate, info.frames
        channels = list(range(info.channels))
    recording = {
        "id": row.audio,
        "sources": [{"type": "file", "channels": channels, "source": row.audio}],
        "sampling_rate": rate,
        "num_samples": frames,
        "duration": frames / rate,
        "channel_ids": channels,
    }
    cut: dict[str, Any] = {"id": row.id, "start": row.offset, "duration": row.duration}
    cut |= {"channel": 0, "supervisions": _supervisions(row), "recording": recording}
    return cut | ({"custom": row.extra} if row.extra else {}) | {"type": "MonoCut"}


def _supervisions(row: Utterance) -> list[dict[str, Any]]:
    said = {"text": row.text, "language": row.lang, "speaker": row.speaker}
    said = {key: value for key, value in said.items() if value is not None}
    if not said:
        return []
    base = {"id": row.id, "recording_id": row.audio, "start": 0.0, "duration": row.duration}
    return [base | {"channel": 0} | said]
