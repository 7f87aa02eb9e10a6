"""Read ARPA files, the text form in which every toolkit writes n-gram models.

Goes in: lines of bytes. Goes out: an ``NGram``. Any order is read. Models that were pruned by other
toolkits may lack the beginnings or ends of n-grams that they have; those are added with the
probability that backing off gives, which changes no score.

Source: SRILM's description of the format, ngram-format(5).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from w2vtool.decoder.ngram import BEGIN, END, UNKNOWN, NGram, OrderTable, assemble
from w2vtool.errors import DataError

log = logging.getLogger(__name__)

LINES = 200_000  # parsed at once
NO_UNKNOWN = -100.0  # KenLM's, where the file has no <unk>
HINT = "is the file complete? w2vtool lm train makes one"


class _Grams(NamedTuple):
    """N-grams of one order as in the file; order 1 has no ids but the words' own rows."""

    ids: np.ndarray  # int32 [R, n]
    log10: np.ndarray  # float32 [R]
    backoff: np.ndarray  # float32 [R]
    line: int  # where the first one stands


class Lines:
    """Lines of a file that know their number."""

    def __init__(self, lines: Iterator[bytes], path: Path, skipped: int = 0) -> None:
        self._lines, self.path, self.number = lines, path, skipped

    def block(self, count: int) -> list[bytes]:
        """The next lines, fewer at the end of the file."""
        found = list(islice(self._lines, count))
        self.number += len(found)
        return found

    def text(self) -> bytes | None:
        """The next line that is not blank, stripped; None at the end of the file."""
        for line in self._lines:
            self.number += 1
            if line := line.strip():
                return line
        return None

    def error(self, what: str, ahead: int = 0) -> DataError:
        """An error at the last line read, or ``ahead`` of it."""
        return DataError(what, where=f"{self.path}:{self.number + ahead}", hint=HINT)


def read(lines: Iterator[bytes], path: Path, skipped: int = 0) -> NGram:
    """Read a model, from its counts on, after so many lines that were skipped.

    Raises DataError with the line for anything that is not as it should be.
    """
    source = Lines(lines, path, skipped)
    counts = _counts(source)
    ids: dict[bytes, int] = {}
    grams: list[_Grams] = []
    for n, count in enumerate(counts, start=1):
        grams.append(_section(source, n, count, ids, last=n == len(counts)))
    if source.text() != b"\\end\\":
        raise source.error("no \\end\\ after the last n-gram")
    while source.block(LINES):  # to the end of the file: a packed one may be cut there
        pass
    words = _words(ids, source)
    grams[0] = _with_unknown(words, grams[0], path)
    tables = _tables(grams, len(words), path)
    if tables is None:
        tables = _tables(_completed(grams), len(words), path)
        assert tables is not None
    return assemble(words, tables, path)


def _counts(source: Lines) -> list[int]:
    if source.text() != b"\\data\\":
        raise source.error("no \\data\\ at the top")
    counts: list[int] = []
    while (line := source.text()) is not None and line.startswith(b"ngram "):
        order, _, count = line[6:].replace(b" ", b"").partition(b"=")
        if order != str(len(counts) + 1).encode() or not count.isdigit():
            raise source.error(f"not the count of {len(counts) + 1}-grams: {_shown(line)}")
        counts.append(int(count))
    if not counts or line != b"\\1-grams:":
        raise source.error(f"no \\1-grams: after the counts, but {_shown(line)}")
    if not counts[0]:
        raise source.error("a model without words")
    return counts


def _section(source: Lines, n: int, count: int, ids: dict[bytes, int], last: bool) -> _Grams:
    """The n-grams of one order; fills ``ids`` from the first."""
    if n > 1 and (line := source.text()) != f"\\{n}-grams:".encode():
        raise source.error(f"no \\{n}-grams: after {len(ids)} words, but {_shown(line)}")
    first_line = source.number + 1
    try:
        ids_Rn = np.empty((count, n), np.int32)
        log10_R, backoff_R = np.empty(count, np.float32), np.zeros(count, np.float32)
    except (MemoryError, ValueError):
        raise source.error(f"{count} {n}-grams promised, more than fit in memory") from None
    for start in range(0, count, LINES):
        block = source.block(min(LINES, count - start))
        rows = slice(start, start + len(block))
        columns = _columns(block, n, source)
        if n == 1:
            for row, word in enumerate(columns[1], start):
                if ids.setdefault(word, row) != row:
                    what = f"the word {_shown(word)} twice"
                    raise source.error(what, row - start + 1 - len(block))
        for place in range(n):
            ids_Rn[rows, place] = _rows(columns[1 + place], ids, block, source)
        log10_R[rows] = _floats(columns[0], block, source)
        if len(columns) > n + 1 and not last:
            backoff_R[rows] = _floats(columns[n + 1], block, source)
        if len(block) < min(LINES, count - start):
            raise source.error(f"{count} {n}-grams promised, {start + len(block)} found")
    grams = _Grams(ids_Rn, np.maximum(log10_R, -1e4), np.maximum(backoff_R, -1e4), first_line)
    _check("log10 probability", grams.log10, 0, grams, source.path)
    _check("back-off weight", grams.backoff, 1e4, grams, source.path)
    return grams


def _check(name: str, values_R: np.ndarray, most: float, grams: _Grams, path: Path) -> None:
    """Refuse what is above a value, and NaN."""
    wrong = np.flatnonzero(~(values_R <= most + 1e-4))
    if len(wrong):
        what = f"{name} {values_R[wrong[0]]:g} of a {grams.ids.shape[1]}-gram, above {most:g}"
        raise DataError(what, where=f"{path}:{grams.line + wrong[0]}", hint=HINT)


def _columns(block: list[bytes], n: int, source: Lines) -> list[list[bytes]]:
    """Fields of lines: probability, words, and back-off weight if any line has one."""
    fields = b" ".join(block).split()
    for width in (n + 2, n + 1):
        if len(fields) == width * len(block):
            if all(block) and (len(block) < 2 or len(block[0].split()) == width):
                return [fields[place::width] for place in range(width)]
            break
    rows = [line.split() for line in block]
    for number, row in enumerate(rows):
        if not n + 1 <= len(row) <= n + 2:
            what = f"not a {n}-gram: {_shown(block[number].strip())}"
            raise source.error(what, number - len(block) + 1)
    padded = [row if len(row) == n + 2 else [*row, b"0"] for row in rows]
    return [[row[place] for row in padded] for place in range(n + 2)]


def _rows(
    words: list[bytes], ids: dict[bytes, int], block: list[bytes], source: Lines
) -> list[int]:
    try:
        return [ids[word] for word in words]
    except KeyError as error:
        number = words.index(error.args[0])
        what = f"{_shown(error.args[0])} is in an n-gram but no word of the model"
        raise source.error(what, number - len(block) + 1) from None


def _floats(fields: list[bytes], block: list[bytes], source: Lines) -> np.ndarray:
    try:
        return np.fromiter(map(float, fields), np.float32, len(fields))
    except ValueError:
        for number, field in enumerate(fields):
            try:
                float(field)
            except ValueError:
                what = f"not a number: {_shown(field)}"
                raise source.error(what, number - len(block) + 1) from None
        raise


def _shown(line: bytes | None) -> str:
    return "the end of the file" if line is None else repr(line[:60].decode("utf-8", "replace"))


def _words(ids: dict[bytes, int], source: Lines) -> list[str]:
    """The words by row. Raises DataError for what is not UTF-8 and for missing sentence marks."""
    try:
        words = [word.decode() for word in ids]
    except UnicodeDecodeError as error:
        what = f"a word that is not UTF-8: {_shown(error.object)}"
        raise DataError(what, where=str(source.path), hint="convert it with iconv") from None
    if UNKNOWN not in words and "<UNK>" in words:  # SRILM's option
        words[words.index("<UNK>")] = UNKNOWN
    missing = [mark for mark in (BEGIN, END) if mark not in words]
    if missing:
        raise DataError(
            f"a model without {' and '.join(missing)}",
            where=str(source.path),
            hint="train it on sentences, one a line, with a tool that marks their ends",
        )
    return words


def _with_unknown(words: list[str], grams: _Grams, path: Path) -> _Grams:
    """Add ``<unk>`` where the file has none."""
    if UNKNOWN in words:
        return grams
    log.warning("%s has no <unk>: a word it does not know costs 100 in log10", path)
    words.append(UNKNOWN)
    return _Grams(
        np.vstack([grams.ids, [[len(words) - 1]]]),
        np.append(grams.log10, np.float32(NO_UNKNOWN)),
        np.append(grams.backoff, np.float32(0)),
        grams.line,
    )


def _tables(grams: list[_Grams], words: int, path: Path) -> list[OrderTable] | None:
    """Sort every order and link it to the one below; None where that lacks something.

    Raises DataError for an n-gram that is there twice.
    """
    every = np.arange(words)
    none = np.zeros(words, np.int64)
    tables = [OrderTable(none, every, none, grams[0].log10, grams[0].backoff)]
    keys = [every]
    for ids_Rn, log10_R, backoff_R, line in grams[1:]:
        context_R = ids_Rn[:, 0].astype(np.int64)
        for place in range(1, ids_Rn.shape[1] - 1):
            context_R = _find(keys[place], context_R * words + ids_Rn[:, place])
            if context_R.size and context_R.min() < 0:
                return None
        key_R = context_R * words + ids_Rn[:, -1]
        if (np.diff(key_R) <= 0).any():
            order = np.argsort(key_R, kind="stable")
            key_R, log10_R, backoff_R = key_R[order], log10_R[order], backoff_R[order]
            twice = np.flatnonzero(np.diff(key_R) == 0)
            if len(twice):
                where = f"{path}:{line + order[twice[0] + 1]}"
                raise DataError(f"a {ids_Rn.shape[1]}-gram twice", where=where, hint=HINT)
        context_R, word_R = np.divmod(key_R, words)
        if len(tables) == 1:
            suffix_R = word_R
        else:
            suffix_R = _find(keys[-1], tables[-1].suffix[context_R] * words + word_R)
            if suffix_R.size and suffix_R.min() < 0:
                return None
        below = tables[-1]
        backed_off = below.backoff[context_R] + below.log10[suffix_R]
        log10_R = np.where(np.isnan(log10_R), backed_off, log10_R)  # what _completed added
        tables.append(OrderTable(context_R, word_R.astype(np.int32), suffix_R, log10_R, backoff_R))
        keys.append(key_R)
    return tables


def _find(keys: np.ndarray, wanted_R: np.ndarray) -> np.ndarray:
    """Where in the ascending keys each wanted one is, -1 if it is not there."""
    row_R = np.searchsorted(keys, wanted_R)
    there = keys[np.minimum(row_R, len(keys) - 1)] == wanted_R if len(keys) else False
    return np.where(there, row_R, -1)


def _completed(grams: list[_Grams]) -> list[_Grams]:
    """Add to every order what the one above it begins and ends with, of probability NaN."""
    done = list(grams)
    for n in range(len(done) - 1, 1, -1):
        ids_Rn, below = done[n].ids, done[n - 1]
        wanted = np.unique(np.concatenate([ids_Rn[:, :-1], ids_Rn[:, 1:]]), axis=0)
        both, count = np.unique(
            np.concatenate([below.ids, below.ids, wanted]), axis=0, return_counts=True
        )
        added = both[count == 1]
        done[n - 1] = _Grams(
            np.concatenate([below.ids, added]),
            np.append(below.log10, np.full(len(added), np.nan, np.float32)),
            np.append(below.backoff, np.zeros(len(added), np.float32)),
            below.line,
        )
    return done
