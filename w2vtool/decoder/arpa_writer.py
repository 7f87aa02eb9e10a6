"""Write n-gram models as ARPA files, the text form that every toolkit reads.

Goes in: words and the tables of every order. Goes out: an ARPA file, packed if its name ends in
``.gz``, whole or not there at all; the same model gives the same bytes.

Source: SRILM's description of the format, ngram-format(5).
"""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from w2vtool.decoder.ngram import OrderTable

CHUNK = 50_000  # n-grams formatted at once, so that the text never lies in memory as a whole
LEVEL = 4  # of gzip: half the time of 6, and files 5 % larger


def write(
    words: Sequence[str],
    tables: Sequence[OrderTable],
    path: Path,
    on_progress: Callable[[int], None] = lambda ngrams: None,
) -> None:
    """Write the file. A model of order 1 gets an empty list of 2-grams: KenLM reads no order 1.

    ``on_progress`` is told how many n-grams are written, and may raise to stop.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile("", "wb", compresslevel=LEVEL, fileobj=raw, mtime=0) as packed:
                    _text(words, tables, packed.write, on_progress)
            else:
                _text(words, tables, raw.write, on_progress)
            raw.flush()
            os.fsync(raw.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _text(
    words: Sequence[str],
    tables: Sequence[OrderTable],
    write: Callable[[bytes], object],
    on_progress: Callable[[int], None],
) -> None:
    sizes = [len(table.word) for table in tables] + [0] * (len(tables) == 1)
    head = "".join(f"ngram {n}={size}\n" for n, size in enumerate(sizes, start=1))
    write(f"\\data\\\n{head}".encode())
    names, done = np.array(words, dtype=object), 0
    for n, table in enumerate(tables, start=1):
        write(f"\n\\{n}-grams:\n".encode())
        for start in range(0, len(table.word), CHUNK):
            part = slice(start, start + CHUNK)
            texts = _spelled(names, tables[:n], part)
            columns: list[Iterable[object]] = [table.log10[part].tolist(), texts]
            form = "%.7g\t%s\n"
            if n < len(sizes):
                columns.append(table.backoff[part].tolist())
                form = "%.7g\t%s\t%.7g\n"
            count = len(table.word[part])
            values = tuple(chain.from_iterable(zip(*columns, strict=True)))
            write((form * count % values).encode())
            done += count
            on_progress(done)
    if len(sizes) > len(tables):
        write(b"\n\\2-grams:\n")
    write(b"\n\\end\\\n")


def _spelled(names: np.ndarray, tables: Sequence[OrderTable], part: slice) -> Iterator[str]:
    """The words of n-grams of the last table; looked up, since all of them are too many to hold."""
    rows = np.arange(*part.indices(len(tables[-1].word)))
    columns: list[list[str]] = []
    for table in reversed(tables):
        columns.append(names[table.word[rows]].tolist())
        rows = table.context[rows]
    return map(" ".join, zip(*reversed(columns), strict=True))
