"""Estimate an n-gram language model from text: interpolated modified Kneser-Ney smoothing.

Goes in: lines of text, words separated by white space, one sentence a line. Goes out: ``NGrams``,
and an ARPA file that KenLM and every other toolkit reads.

The definitions are those of KenLM's ``lmplz``: adjusted counts (raw ones for the highest order and
for n-grams that begin with ``<s>``), closed-form discounts from the counts before pruning,
interpolation at every order, unigrams interpolated with the uniform distribution over all words,
``</s>`` and ``<unk>``. Two things differ: where a discount cannot be estimated, fallback values are
used and ``NGrams.notes`` says so (lmplz stops), and a single order can be trained.

Source: Chen & Goodman 1998, eq. 26; Heafield et al., ACL 2013.

Why numpy: no compiler is needed, and an id for every n-gram of a text needs one sort an order.
"""

from __future__ import annotations

import gzip
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from w2vtool.decoder import arpa_writer
from w2vtool.decoder.ngram import OrderTable
from w2vtool.errors import ConfigError, DataError

SPECIAL = ("<unk>", "<s>", "</s>")
UNK, BEGIN, END = range(3)
MAX_ORDER = 9  # KenLM as it is on PyPI reads orders up to 6, w2vtool any
FALLBACK = (
    0.5,
    1.0,
    1.5,
)  # discounts for counts 1, 2, 3+: the default of lmplz --discount_fallback


class Order(NamedTuple):
    """All n-grams of one order in the text, pruned ones too, sorted by ``key``.

    ``key`` = row of the first n - 1 words in the order below x vocabulary + last word, ``suffix`` =
    row of the last n - 1 words in the order below. ``backoff`` is the factor (not its log) of the
    n-gram as a context. What is not ``kept`` has the probability that backing off gives it.
    """

    key: np.ndarray  # int64
    suffix: np.ndarray  # int32
    probability: np.ndarray  # float64
    backoff: np.ndarray  # float64
    kept: np.ndarray  # bool


@dataclass(frozen=True)
class NGrams:
    """A trained model. ``notes`` are things a person should know; ``discounts`` are per order."""

    words: tuple[str, ...]  # by id; the first three are SPECIAL
    orders: tuple[Order, ...]
    discounts: tuple[tuple[float, float, float], ...]
    notes: tuple[str, ...]
    sentences: int
    tokens: int  # words of the text, without sentence marks

    @property
    def counts(self) -> tuple[int, ...]:
        """Kept n-grams of each order."""
        return tuple(int(order.kept.sum()) for order in self.orders)

    def tables(self) -> list[OrderTable]:
        """What is kept, in log10: what ``ngram.assemble`` and ``arpa_writer.write`` take.

        An n-gram that is kept has a kept begin and end, since they were seen as often.
        """
        tables: list[OrderTable] = []
        below = np.zeros(1, np.int64)  # rows of the order below among the kept ones
        for order in self.orders:
            context, word = np.divmod(order.key[order.kept], len(self.words))
            with np.errstate(divide="ignore"):
                tables.append(
                    OrderTable(
                        below[context],
                        word.astype(np.int32),
                        below[order.suffix[order.kept]] if tables else np.zeros_like(word),
                        np.log10(order.probability[order.kept]).astype(np.float32),
                        np.log10(order.backoff[order.kept]).astype(np.float32),
                    )
                )
            below = np.cumsum(order.kept) - 1
        return tables

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    def log10(self, history: Sequence[str], word: str) -> float:
        """log10 P(word | history), backing off as any reader of the ARPA file does."""
        ids = [self._ids.get(w, UNK) for w in (*history, word)][-len(self.orders) :]
        total = 0.0
        while True:
            row = self._row(ids)
            if row >= 0:
                return total + float(np.log10(self.orders[len(ids) - 1].probability[row]))
            context = self._row(ids[:-1])
            if context >= 0:
                total += float(np.log10(self.orders[len(ids) - 2].backoff[context]))
            ids = ids[1:]

    def _row(self, ids: Sequence[int]) -> int:
        """Row of a kept n-gram in its order, or -1."""
        row = ids[0]  # unigrams are all kept, and lie in the order of their ids
        for order, word in zip(self.orders[1:], ids[1:], strict=False):
            key = row * len(self.words) + word
            row = int(np.searchsorted(order.key, key))
            if row == len(order.key) or order.key[row] != key or not order.kept[row]:
                return -1
        return row


class _Counts(NamedTuple):
    """What the text says about one order; ``key`` and ``suffix`` as in Order."""

    key: np.ndarray
    suffix: np.ndarray
    raw: np.ndarray  # occurrences
    at_start: np.ndarray  # bool: begins with <s>


def read_lines(paths: Iterable[str | Path]) -> Iterator[str]:
    """Lines of UTF-8 text files (``.gz`` too), in order.

    Raises DataError with ``file:line`` for bytes that are not UTF-8, for NUL characters and for
    words that the model itself uses, like ``<s>``.
    """
    for path in map(Path, paths):
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    yield _decoded(raw, f"{path}:{number}")
        except FileNotFoundError:
            raise DataError("no such text file", where=str(path)) from None
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"cannot be read: {error}", where=str(path)) from None


def train(
    lines: Iterable[str],
    order: int,
    prune: Sequence[int] = (),
    on_stage: Callable[[str], None] = lambda stage: None,
) -> NGrams:
    """Estimate an n-gram model of the given order.

    ``prune`` holds a threshold for each order from 1 up: n-grams seen that often or less are left
    out. The last one holds for all higher orders; unigrams always stay, so the first must be 0.
    ``on_stage`` is told what has been done, 1 + 2 x order times, and may raise to stop.
    Raises ConfigError for a wrong order or threshold, DataError for a text without words or with
    ``<s>``, ``</s>`` or ``<unk>`` in it.
    """
    given = thresholds(prune, order)
    stream, words = _to_ids(lines)
    on_stage("read")
    counts = _count(stream, len(words), order, on_stage)
    notes: list[str] = []
    orders: list[Order] = []
    discounts = []
    for n, threshold in enumerate(given, start=1):
        adjusted = _adjusted(counts, n)
        discount = _discounts(adjusted, n, notes)
        kept = counts[n - 1].raw > threshold if n > 1 else np.ones(len(words), bool)
        if not kept.any():
            notes.append(f"no {n}-grams, in a text of short sentences or after pruning")
        orders = _add_order(orders, counts[n - 1], adjusted, np.array((0.0, *discount)), kept)
        discounts.append(discount)
        counts[n - 1] = counts[n - 1]._replace(raw=counts[n - 1].raw[:0])  # a fifth of the memory
        on_stage(f"{n}-grams smoothed")
    sentences = int((stream == BEGIN).sum())
    return NGrams(
        words, tuple(orders), tuple(discounts), tuple(notes), sentences, len(stream) - 2 * sentences
    )


def thresholds(prune: Sequence[int], order: int) -> list[int]:
    """One threshold for each order, as ``train`` takes them. Raises ConfigError."""
    if not 1 <= order <= MAX_ORDER:
        raise ConfigError(f"an n-gram order of {order}", hint=f"1 to {MAX_ORDER}; 4 is usual")
    given = list(prune) or [0]
    if len(given) > order:
        raise ConfigError(f"{len(given)} pruning thresholds for a model of order {order}")
    if given[0] != 0 or any(b < a for a, b in pairwise(given)):
        raise ConfigError(
            f"pruning thresholds {' '.join(map(str, given))}",
            hint="the first is 0, and none is below the one before it, e.g. 0 0 1 1",
        )
    return given + [given[-1]] * (order - len(given))


def sentences(lines: Iterable[str]) -> Iterator[list[str]]:
    """The words of every line that has some.

    Raises DataError for lines that ``read_lines`` refuses too, and where there is none with words.
    """
    found = False
    for number, line in enumerate(lines, start=1):
        _check(line, f"line {number}")
        if words := line.split():
            found = True
            yield words
    if not found:
        raise DataError("no words in the text", hint="one sentence a line, words between spaces")


def fallback_note(n: int, why: str) -> str:
    """What to tell a person who gets discounts that are no estimate."""
    used = ", ".join(f"{value:g}" for value in FALLBACK)
    return f"discounts of {n}-grams set to {used}: {why} (a small or repetitive text)"


def write_arpa(ngrams: NGrams, path: str | Path) -> None:
    """Write the model as an ARPA file: see ``arpa_writer.write``."""
    arpa_writer.write(ngrams.words, ngrams.tables(), Path(path))


def _decoded(raw: bytes, where: str) -> str:
    try:
        line = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte 0x{raw[error.start]:02x} at position {error.start + 1} is not UTF-8",
            where=where,
            hint="convert the text, e.g. iconv -f latin1 -t utf-8",
        ) from None
    _check(line, where)
    return line


def _check(line: str, where: str) -> None:
    if "<" in line:
        found = [word for word in line.split() if word in SPECIAL]
        if found:
            raise DataError(
                f"the word {found[0]!r} in the text",
                where=where,
                hint="sentence marks are added here; remove them from the text",
            )
    if "\0" in line:
        raise DataError("a NUL character in the text", where=where, hint="is it a text file?")


def _to_ids(lines: Iterable[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The text as one stream of ids with sentence marks, and the words by id."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL)}
    stream = array("i")
    for words in sentences(lines):
        stream.append(BEGIN)
        stream.extend([vocabulary.setdefault(word, len(vocabulary)) for word in words])
        stream.append(END)
    return np.array(stream, np.int32), tuple(vocabulary)


def _count(
    stream: np.ndarray, vocabulary: int, order: int, on_stage: Callable[[str], None]
) -> list[_Counts]:
    """Count n-grams of every order up to ``order``.

    The id of an n-gram is its row among the sorted distinct ones, which follows from the id of
    its first n - 1 words and its last word: one sort an order.
    """
    begins = np.flatnonzero(stream == BEGIN)
    position = np.arange(len(stream), dtype=np.int32)
    position -= np.repeat(begins.astype(np.int32), np.diff([*begins, len(stream)]))
    ids = stream  # of the n-gram that ends at each position
    every = np.arange(vocabulary)
    nothing = np.zeros(vocabulary, np.int32)
    counts = [
        _Counts(every, nothing, np.bincount(stream, minlength=vocabulary), every == BEGIN),
    ]
    on_stage("1-grams counted")
    for n in range(2, order + 1):
        ends = np.flatnonzero(position >= n - 1).astype(np.int32)
        keys = ids[ends - 1].astype(np.int64)
        keys *= vocabulary
        keys += stream[ends]
        order_of = np.argsort(keys, kind="stable")
        keys = keys[order_of]
        ends = ends[order_of]
        del order_of  # np.unique would hold four such arrays at once
        fresh = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=fresh[1:])
        first = np.flatnonzero(fresh)
        key = keys[first]
        del keys
        suffix, at_start = ids[ends[first]], counts[-1].at_start[key // vocabulary]
        raw = np.diff(np.append(first, len(ends)))
        counts.append(_Counts(key, suffix, raw.astype(np.int32), at_start))
        row = np.cumsum(fresh, dtype=np.int32) - np.int32(1)
        ids = np.full(len(stream), -1, np.int32)
        ids[ends] = row
        del ends, row, fresh, first
        on_stage(f"{n}-grams counted")
    return counts


def _adjusted(counts: Sequence[_Counts], n: int) -> np.ndarray:
    """Kneser-Ney counts: distinct words seen before the n-gram; raw at the top and after <s>."""
    here = counts[n - 1]
    if n == len(counts):
        adjusted = here.raw.copy()
    else:
        before = np.bincount(counts[n].suffix, minlength=len(here.key))
        adjusted = np.where(here.at_start, here.raw, before)
    if n == 1:
        adjusted[BEGIN] = 0  # never predicted
    return adjusted


def _discounts(adjusted: np.ndarray, n: int, notes: list[str]) -> tuple[float, float, float]:
    """Chen & Goodman's D1, D2, D3+ in closed form, or FALLBACK with a note."""
    seen = np.bincount(np.minimum(adjusted, 5), minlength=6).astype(float)  # n-grams by count
    missing = [count for count in (1, 2, 3) if seen[count] == 0]
    if missing:
        why = f"no {n}-gram has count {missing[0]}"
    else:
        y = seen[1] / (seen[1] + 2 * seen[2])
        d1, d2, d3 = (float(c - (c + 1) * y * seen[c + 1] / seen[c]) for c in (1, 2, 3))
        # lmplz lets 0 pass; it would leave some contexts with no mass for unseen words
        if min(d1, d2, d3) > 0:
            return d1, d2, d3
        why = f"the formula gives {d1:.3g}, {d2:.3g}, {d3:.3g}"
    if len(adjusted):
        notes.append(fallback_note(n, why))
    return FALLBACK


def _add_order(
    below: list[Order],
    counts: _Counts,
    adjusted: np.ndarray,
    discount: np.ndarray,
    kept: np.ndarray,
) -> list[Order]:
    """Probabilities of the next order, and the back-off factors of its contexts."""
    vocabulary = len(below[0].key) if below else len(counts.key)
    contexts = len(below[-1].key) if below else 1
    context = counts.key // vocabulary  # all 0 for unigrams
    taken = discount[np.minimum(adjusted, 3)]
    total = np.bincount(context, adjusted, contexts)
    # the lower order gets the discounts of what is kept and all of what is pruned
    freed = np.bincount(context, np.where(kept, taken, adjusted), contexts)
    seen = total > 0
    backoff = np.divide(freed, total, out=np.ones(contexts), where=seen)
    own = np.divide(adjusted - taken, total[context], out=np.zeros(len(context)), where=kept)
    if below:
        probability = own + backoff[context] * below[-1].probability[counts.suffix]
        below = [*below[:-1], below[-1]._replace(backoff=backoff)]
    else:
        probability = own + backoff[0] / (vocabulary - 1)  # <s> is not a word to predict
        probability[BEGIN] = 1.0  # by convention of ARPA writers; never asked for
    none = np.ones(len(context))
    return [*below, Order(counts.key, counts.suffix, probability, none, kept)]
