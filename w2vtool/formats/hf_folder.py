"""Hugging Face ``audiofolder``: audio with a ``metadata.jsonl`` or ``metadata.csv`` beside it.

Goes in: a folder with metadata, or one whose sub-folders (``train``, ``test``, …) have it; then the
sub-folder is kept as the extra key ``split``. Goes out: ``metadata.jsonl`` in a folder, for one
split. ``file_name`` must lie below the folder: audio from elsewhere is linked into
``<folder>/audio``. Source: documentation of ``datasets``, "Create an audio dataset".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from w2vtool.audio import Info
from w2vtool.errors import DataError
from w2vtool.formats import json_rows
from w2vtool.formats.rows import (
    OURS,
    SPAN,
    Carrier,
    Checks,
    Options,
    Rows,
    extra_of,
    header_of,
    is_part,
    replacing,
)
from w2vtool.formats.table import cells_of, row_of
from w2vtool.manifest import Utterance

HOLDS = frozenset((*OURS, "extra", "empty text")) - {"start", "length"}
METADATA = ("metadata.jsonl", "metadata.csv")
LINKS = "audio"


def read(path: Path, options: Options) -> Iterator[Utterance]:
    """Rows of a folder. Without ``text``, ``transcription`` is taken for it."""
    checks = Checks(path, path)
    for file in _metadata(path):
        folder = file.parent.relative_to(path)
        for where, record in _records(file, checks, options):
            name = record.pop("file_name", None)
            if not isinstance(name, str) or not name or _leaves(name):
                what = f"file_name is {str(name)[:60]!r}, not a path below this folder"
                checks.problem(where, what)
                continue
            if record.get("text") is None and isinstance(record.get("transcription"), str):
                record["text"] = record.pop("transcription")
            # whatever these mean here, they are no bytes of an archive
            record |= extra_of({key: record.pop(key) for key in SPAN if key in record})
            if folder.parts:
                record.setdefault("split", folder.as_posix())
            if row := row_of(checks, where, record, (folder / name).as_posix()):
                yield row
    checks.finish("each line of metadata needs file_name, a path below its folder")


def _metadata(path: Path) -> list[Path]:
    if not path.is_dir():
        raise DataError("is no folder", where=str(path), hint="name the folder of the data set")
    for pattern in ("", "*/"):
        found = sorted(file for name in METADATA for file in path.glob(pattern + name))
        folders = [file.parent for file in found]
        if len(set(folders)) < len(folders):
            raise DataError("both metadata.csv and metadata.jsonl", where=str(folders[0]))
        if found:
            return found
    hint = "bare audio needs no conversion: w2vtool manifest FOLDER --out data.jsonl"
    raise DataError("no metadata.jsonl or metadata.csv here", where=str(path), hint=hint)


def _records(file: Path, checks: Checks, options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.suffix == ".csv":
        yield from cells_of(file, checks, options.columns)
        return
    for where, record in json_rows.records(file, checks.problem):
        for ours, theirs in options.columns.items():
            if theirs in record:
                record[ours] = record.pop(theirs)
        yield where, record


def _leaves(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts


def write(path: Path, rows: Rows, options: Options, *, force: bool = False) -> Carrier:
    """Write metadata, and links to audio that is not below the folder."""
    carrier = Carrier("hf", path, HOLDS)
    folder, parts = path.absolute(), 0
    found: dict[str, Info | None] = {}
    outside = [row.audio for row in rows if not Path(row.audio).is_relative_to(folder)]
    common = os.path.commonpath([str(Path(audio).parent) for audio in outside]) if outside else ""
    made: dict[str, str] = {}

    def lines() -> Iterator[str]:
        nonlocal parts
        for row in rows:
            if not carrier.check(row):
                continue
            parts += is_part(row, header_of(row, found))
            name = row.audio
            if Path(name).is_relative_to(folder):
                name = Path(name).relative_to(folder).as_posix()
            else:
                name = f"{LINKS}/{Path(name).relative_to(common).as_posix()}"
                made[name] = row.audio
            if _leaves(name):
                carrier.refuse(row, f"'..' in the path of its audio, {row.audio}")
            yield json_rows.dump(_record(row, name, options))

    with replacing(folder, METADATA[0], METADATA[1:], force=force) as stage:
        json_rows.write(stage / METADATA[0], METADATA[0], lines())
        carrier.finish("unpack the archives, or use w2vtool's own manifest")
        for name, audio in made.items():
            _link(folder / name, Path(audio))
    if made:
        carrier.remarks.append(f"{len(made):,} audio files are linked into {path / LINKS}")
    if parts:
        what = "rows are parts of files; `datasets` loads the whole file, offset is a column of it"
        carrier.remarks.append(f"{parts:,} {what}")
    return carrier


def _link(link: Path, audio: Path) -> None:
    if link.is_symlink() and link.readlink() == audio:
        return
    if link.exists() or link.is_symlink():
        hint = "choose an empty folder"
        raise DataError(f"in the way of a link to {audio}", where=str(link), hint=hint)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(audio)


def _record(row: Utterance, name: str, options: Options) -> dict[str, Any]:
    record: dict[str, Any] = {"file_name": name}
    for key in OURS:
        if key != "audio" and (value := getattr(row, key)) is not None:
            record[options.columns.get(key, key)] = value
    return record | row.extra
