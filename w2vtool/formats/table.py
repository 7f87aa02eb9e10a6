"""Tables: ``.csv`` as RFC 4180 quotes it, and ``.tsv`` in which nothing is quoted (Common Voice).

Goes in and out: a table with a heading line. ``columns`` says which column is which key of ours
(``audio=path, text=sentence``); other columns keep their names, as keys of ours or as extra ones.
Without a duration, it is read from the audio's header. All values are text, and an empty cell is no
value; so numbers among the extra keys come back as text.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from w2vtool.errors import ConfigError, DataError
from w2vtool.formats.rows import (
    OURS,
    Carrier,
    Checks,
    Options,
    Rows,
    fields_of,
    raw_lines,
    relative,
    replacing,
    write_text,
)
from w2vtool.manifest import Utterance

HOLDS = frozenset((*OURS, "extra"))
_NUMBERS = {"offset": float, "duration": float, "sample_rate": int, "start": int, "length": int}


def read(path: Path, options: Options) -> Iterator[Utterance]:
    """Rows of a table. DataError names every line that is none."""
    checks = Checks(path, options.root or path.parent)
    for where, cells in cells_of(path, checks, options.columns):
        audio = cells.get("audio") or ""
        if row := row_of(checks, where, cells, audio):
            yield row
    checks.finish("--columns audio=NAME,text=NAME says which column is which")


def row_of(checks: Checks, where: str, record: dict[str, Any], audio: str) -> Utterance | None:
    """The row of a record that may lack a duration and hold numbers as text."""
    record = {key: value for key, value in record.items() if key != "audio"}
    for key, kind in _NUMBERS.items():
        if isinstance(record.get(key), str):
            try:
                record[key] = kind(record[key])
            except ValueError:
                checks.problem(where, f"{key} is {record[key][:60]!r}, not a number")
                return None
    if record.get("duration") is None and audio and record.get("start") is None:
        if (info := checks.measured(where, audio)) is None:
            return None
        record |= {"duration": info.seconds, "sample_rate": info.sample_rate}
        record["duration"] -= record.get("offset") or 0.0
    return checks.row(where, audio, **fields_of(record, audio))


def cells_of(
    path: Path, checks: Checks, columns: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """``file:line`` and the filled cells of each line, under our names where there is one."""
    reader = csv.reader(
        (line for _, line in raw_lines(path, checks.problem)),
        delimiter=_delimiter(path),
        quoting=csv.QUOTE_NONE if path.suffix.lower() == ".tsv" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    heading: list[str] = []
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            checks.problem(where, f"not a line of this table ({error})")
            continue
        if not heading:
            heading = _heading(path, cells, columns)
        elif len(cells) == len(heading):
            yield where, {key: cell for key, cell in zip(heading, cells, strict=True) if cell}
        elif cells:
            what = f"{len(cells)} cells, where the heading has {len(heading)}"
            checks.problem(where, what)


def _heading(path: Path, cells: list[str], columns: Mapping[str, str]) -> list[str]:
    absent = sorted(set(columns.values()) - set(cells))
    if absent:
        what = f"no column {', '.join(map(repr, absent))}"
        raise DataError(what, where=f"{path}:1", hint=f"there are {', '.join(cells)}")
    names = {theirs: ours for ours, theirs in columns.items()}
    heading = [names.get(cell, "" if cell in columns else cell) for cell in cells]
    heading = [key or f"column.{cell}" for key, cell in zip(heading, cells, strict=True)]
    if len(set(heading)) < len(heading) or "" in cells:
        raise DataError("a column without a name, or two of one name", where=f"{path}:1")
    return heading


def _delimiter(path: Path) -> str:
    if path.suffix.lower() not in (".csv", ".tsv"):
        what = f"a table ends in .csv or .tsv, not in {path.suffix!r}"
        raise ConfigError(what, where=str(path))
    return "\t" if path.suffix.lower() == ".tsv" else ","


def write(path: Path, rows: Rows, options: Options, *, force: bool = False) -> Carrier:
    """Write a table with the keys that any row has; a first pass finds them."""
    delimiter = _delimiter(path)
    carrier = Carrier("csv", path, HOLDS)
    keys = _keys(rows)
    names = [options.columns.get(key, key) for key in keys]
    if len(set(names)) < len(names):
        raise ConfigError("two columns would have the same name", where="--columns")
    folder = path.absolute().parent

    def written() -> Iterator[str]:
        yield _line(names, delimiter)
        for row in rows:
            cells = [_cell(row, key, folder) for key in keys]
            if delimiter == "\t" and any("\t" in c or "\n" in c or "\r" in c for c in cells):
                carrier.refuse(row, "a tab or a line break in a cell")
            elif any(len(cell) > csv.field_size_limit() for cell in cells):
                limit = csv.field_size_limit()
                carrier.refuse(row, f"a cell of more than the {limit:,} characters that are read")
            elif carrier.check(row):
                if any(value is None or type(value) is not str for value in row.extra.values()):
                    carrier.lost["the type of extra values (they become text)"] += 1
                yield _line(cells, delimiter)

    with replacing(folder, path.name, force=force) as stage:
        write_text(stage / path.name, written())
        carrier.finish("a .csv quotes them")
    return carrier


def _keys(rows: Iterable[Utterance]) -> list[str]:
    found: dict[str, None] = {}
    for row in rows:
        found.update((key, None) for key in OURS if getattr(row, key) is not None)
        found.update(dict.fromkeys(row.extra))
    return [key for key in OURS if key in found] + sorted(found.keys() - set(OURS))


def _cell(row: Utterance, key: str, folder: Path) -> str:
    if key == "audio":
        return relative(row.audio, folder)
    value = getattr(row, key) if key in OURS else row.extra.get(key)
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _line(cells: Iterable[str], delimiter: str) -> str:
    if delimiter == "\t":
        return "\t".join(cells)
    special = (",", '"', "\n", "\r")
    return ",".join(
        '"' + cell.replace('"', '""') + '"' if any(c in cell for c in special) else cell
        for cell in cells
    )
