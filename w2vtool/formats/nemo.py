"""NeMo's manifests: JSON lines with ``audio_filepath``, ``duration``, ``offset``, ``text``.

Goes in and out: a ``.jsonl`` (or ``.json``) file. Relative audio lies in the manifest's folder.
NeMo skips keys that it does not know, so ``id``, ``sample_rate`` and others are written too, and
what comes back is what was written. Source: NeMo's documentation of ASR datasets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from w2vtool.formats import json_rows
from w2vtool.formats.rows import (
    OURS,
    SPAN,
    Carrier,
    Checks,
    Options,
    Rows,
    extra_of,
    fields_of,
    relative,
    replacing,
)
from w2vtool.manifest import Utterance

HOLDS = frozenset((*OURS, "extra", "empty text")) - {"start", "length"}


def read(path: Path, options: Options) -> Iterator[Utterance]:
    """Rows of a NeMo manifest; one without ``id`` is called as its audio, without the ending."""
    checks = Checks(path, options.root or path.parent)
    for where, record in json_rows.records(path, checks.problem):
        audio = record.pop("audio_filepath", None)
        if isinstance(audio, list):
            checks.problem(where, "audio_filepath is a list: several channels, of which to pick")
            continue
        if record.get("duration") is None:
            checks.problem(where, "missing key 'duration'")
            continue
        shard = {key: record.pop(key) for key in SPAN if key in record}
        known = fields_of(record, audio if isinstance(audio, str) else "")
        known["extra"] |= extra_of(shard)  # whatever they mean to who wrote them
        if row := checks.row(where, audio, **known):
            yield row
    checks.finish("a line of a NeMo manifest needs audio_filepath and duration")


def write(path: Path, rows: Rows, options: Options, *, force: bool = False) -> Carrier:
    """Write a NeMo manifest."""
    carrier = Carrier("nemo", path, HOLDS)
    folder = path.absolute().parent
    with replacing(folder, path.name, force=force) as stage:
        json_rows.write(
            stage / path.name,
            path.name,
            (json_rows.dump(_record(row, folder)) for row in rows if carrier.check(row)),
        )
        carrier.finish("unpack the archives, or use w2vtool's own manifest")
    return carrier


def _record(row: Utterance, folder: Path) -> dict[str, Any]:
    record = {"audio_filepath": relative(row.audio, folder), "duration": row.duration}
    record |= {"offset": row.offset or None, "text": row.text, "lang": row.lang}
    record |= {"speaker": row.speaker, "id": row.id, "sample_rate": row.sample_rate}
    return {key: value for key, value in record.items() if value is not None} | row.extra
