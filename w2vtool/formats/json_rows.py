"""Records of JSON, one a line, of other tools: strict JSON with every problem at its ``file:line``.

Goes in: a ``.jsonl`` file, or ``.jsonl.gz``. Goes out: dicts with their places; and lines to write.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from w2vtool.formats.rows import lines, write_text


def records(
    path: Path, problem: Callable[[str, str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """``file:line`` and record of each line; NaN, twice the same key or a list are problems."""
    for where, line in lines(path, problem):
        try:
            record = parsed(line)
        except ValueError as error:
            problem(where, str(error))
            continue
        yield where, record


def parsed(line: str) -> dict[str, Any]:
    """The record of a line; ValueError says what is wrong with it."""
    try:
        record = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant)
        if "\\ud" in line.lower():
            json.dumps(record, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read (nested too deeply)") from error
    except UnicodeEncodeError as error:
        raise ValueError("half a surrogate pair (\\ud…) in a string") from error
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object: {line.strip()[:60]}")
    return record


def dump(record: Mapping[str, Any]) -> str:
    """A record on one line."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def write(path: Path, name: str, written: Iterable[str]) -> None:
    """Write lines to ``path``, compressed when the file will be called ``….gz``."""
    if not name.endswith(".gz"):
        return write_text(path, written)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        for line in written:  # no name and no time inside: equal rows give equal bytes
            file.write(line.encode() + b"\n")
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return record


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
