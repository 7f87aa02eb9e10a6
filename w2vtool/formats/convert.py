"""Manifests of one toolkit to those of another.

Goes in: a file or folder in one of seven formats. Goes out: the same rows in another, and what the
new format cannot hold. Rows stream from reader to writer; a writer that must know something first
(all columns, the folder above all audio) goes through them twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from w2vtool.errors import ConfigError, DataError
from w2vtool.formats import fairseq, hf_folder, kaldi, lhotse, nemo, ours, table
from w2vtool.formats.rows import Carrier, Options, Rows
from w2vtool.manifest import Utterance


class Writer(Protocol):
    """Writes rows to a path; ConfigError when something is there and ``force`` is not set."""

    def __call__(self, path: Path, rows: Rows, options: Options, *, force: bool = False) -> Carrier:
        """Write all rows, or nothing."""


class Format(NamedTuple):
    """How a format is read and written, and which keys of a row it holds."""

    read: Callable[[Path, Options], Iterator[Utterance]]
    write: Writer
    holds: frozenset[str]


FORMATS: Mapping[str, Format] = {
    "manifest": Format(ours.read, ours.write, ours.HOLDS),
    "fairseq": Format(fairseq.read, fairseq.write, fairseq.HOLDS),
    "nemo": Format(nemo.read, nemo.write, nemo.HOLDS),
    "kaldi": Format(kaldi.read, kaldi.write, kaldi.HOLDS),
    "lhotse": Format(lhotse.read, lhotse.write, lhotse.HOLDS),
    "csv": Format(table.read, table.write, table.HOLDS),
    "hf": Format(hf_folder.read, hf_folder.write, hf_folder.HOLDS),
}
TABLES = ("csv", "hf")  # whose columns have names of somebody's choice


def read(path: Path, kind: str, options: Options = Options()) -> Rows:  # noqa: B008  immutable
    """Rows in a format, with absolute audio paths; read anew at each pass. DataError in a pass."""
    if not path.exists():
        raise DataError("no such file or folder", where=str(path))
    if path.is_dir() and kind not in ("kaldi", "hf"):
        what = f"is a folder; {kind} keeps its rows in a file"
        raise DataError(what, where=str(path), hint="name the file")
    return Rows(lambda: FORMATS[kind].read(path, options))


def convert(
    source: Path,
    out: Path,
    *,
    origin: str = "manifest",
    target: str = "manifest",
    options: Options = Options(),  # noqa: B008  immutable
    force: bool = False,
    on_row: Callable[[int], None] = lambda rows: None,
) -> Carrier:
    """Write ``source`` anew as ``out``; gives what was lost, and remarks.

    ``options.columns`` are those of the one side that is a table. ``on_row(rows)`` is called for
    each row of each pass, and may raise to stop. All or nothing: ConfigError, DataError.
    """
    for given, name in ((origin, "--from"), (target, "--to")):
        if given not in FORMATS:
            raise ConfigError(f"unknown format {given!r}", where=name)
    if options.columns and (origin in TABLES) == (target in TABLES):
        what = "a column map is for one table, which the other side is not"
        raise ConfigError(what, where="--columns", hint="convert in two steps")
    inward = options if origin in TABLES else options._replace(columns={})
    outward = options if target in TABLES else options._replace(columns={})
    rows, passed, misfits, unseen = read(source, origin, inward), 0, 0, 0

    def counted() -> Iterator[Utterance]:
        nonlocal passed, misfits, unseen
        misfits = unseen = 0
        for row in rows:
            passed += 1
            on_row(passed)
            misfits += origin == "fairseq" and fairseq.misfits(row)
            unseen += origin == "fairseq" and row.sample_rate is None
            yield row

    carrier = FORMATS[target].write(out, Rows(counted), outward, force=force)
    if misfits:
        what = "texts need more frames than their audio has: are labels and rows in one order?"
        carrier.remarks.append(f"{misfits:,} {what}")
    if unseen:
        what = "rows whose audio is not here: their lengths are taken to be samples at 16 kHz"
        carrier.remarks.append(f"{unseen:,} {what}")
    return carrier
