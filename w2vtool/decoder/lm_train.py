"""Estimate an n-gram language model from text: interpolated modified Kneser-Ney smoothing.

Goes in: lines of text, words separated by white space, one sentence a line. Goes out: ``NGrams``.

The definitions are those of KenLM's ``lmplz``: adjusted counts (raw ones for the highest order and
for n-grams that begin with ``<s>``), closed-form discounts from the counts before pruning,
interpolation at every order, unigrams interpolated with the uniform distribution over all words,
``</s>`` and ``<unk>``. Two things differ: where a discount cannot be estimated, fallback values are
used and ``NGrams.notes`` says so (lmplz stops), and a single order can be trained.

Source: Chen & Goodman 1998, eq. 26; Heafield et al., ACL 2013.

Why numpy: no compiler is needed, and an id for every n-gram of a text needs one sort an order.
Why one order at a time, and parts of it: what is pruned and what is counted need not lie in memory
together.
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from w2vtool.decoder.ngram import OrderTable
from w2vtool.errors import ConfigError, DataError
from w2vtool.text import stream_lines

OPENERS: dict[str, Callable[..., Any]] = {  # of packed text, by the end of the name
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
LONGEST_LINE = 1 << 30  # bytes; there are corpora of one line
SPECIAL = ("<unk>", "<s>", "</s>")
UNK, BEGIN, END = range(3)
PART = 1 << 18  # n-grams worked on at once
MAX_ORDER = 9  # KenLM as it is on PyPI reads orders up to 6, w2vtool any
# discounts for counts 1, 2, 3+: the default of lmplz --discount_fallback
FALLBACK = (0.5, 1.0, 1.5)


class Order(NamedTuple):
    """The n-grams of one order that are kept, sorted by ``context`` and ``word``.

    ``context`` and ``suffix`` are the rows of the first and last n - 1 words in the order below.
    ``backoff`` is the factor (not its log) of the n-gram as a context.
    """

    context: np.ndarray  # int32
    word: np.ndarray  # int32
    suffix: np.ndarray  # int32
    probability: np.ndarray  # float64
    backoff: np.ndarray  # float64


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
        return tuple(len(order.word) for order in self.orders)

    def tables(self) -> list[OrderTable]:
        """The same in log10: what ``ngram.assemble`` and ``arpa_writer.write`` take."""
        with np.errstate(divide="ignore"):
            return [
                OrderTable(
                    *order[:3],
                    np.log10(order.probability).astype(np.float32),
                    np.log10(order.backoff).astype(np.float32),
                )
                for order in self.orders
            ]


class _Counts(NamedTuple):
    """All n-grams of one order in the text; ``context`` and ``suffix`` are rows of all below."""

    context: np.ndarray  # int32
    word: np.ndarray  # int32
    suffix: np.ndarray  # int32
    raw: np.ndarray  # int32, occurrences
    at_start: slice  # those that begin with <s>


def read_lines(paths: Iterable[str | Path]) -> Iterator[str]:
    """Lines of UTF-8 text files (``.gz``, ``.bz2``, ``.xz`` too), in order, without their ends.

    Raises DataError for what ``text.scan_lines`` refuses, and for words that the model itself uses,
    like ``<s>``.
    """
    for path in map(Path, paths):
        try:
            for number, line in stream_lines(path, OPENERS.get(path.suffix, open), LONGEST_LINE):
                _check(line, f"{path}:{number}")
                yield line
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"cannot be read ({error})", where=str(path)) from None


def train(
    lines: Iterable[str],
    order: int,
    prune: Sequence[int] = (),
    on_stage: Callable[[str], None] = lambda stage: None,
    known: Iterable[str] = (),
) -> NGrams:
    """Estimate an n-gram model of the given order; ``known`` words are in it, seen or not.

    ``prune`` holds a threshold for each order from 1 up: n-grams seen that often or less are left
    out. The last one holds for all higher orders; unigrams always stay, so the first must be 0.
    ``on_stage`` is told what has been done, 1 + 2 x order times, and may raise to stop.
    Raises ConfigError for a wrong order or threshold, DataError for a text without words or with
    ``<s>``, ``</s>`` or ``<unk>`` in it.
    """
    given = thresholds(prune, order)
    stream, words = _to_ids(lines, known)
    sentences = int((stream == BEGIN).sum())
    tokens = len(stream) - 2 * sentences
    on_stage("read")
    counting = _count(stream, len(words), order, on_stage)
    del stream
    above: _Counts | None = next(counting)
    notes: list[str] = []
    orders: list[Order] = []
    discounts = []
    kept = np.ones(1, bool)  # of the order below
    for n, threshold in enumerate(given, start=1):
        assert above is not None
        here, above = above, next(counting, None)
        adjusted = _adjusted(here, above, n)
        discount = _discounts(adjusted, n, notes)
        below, kept = kept, here.raw > threshold if n > 1 else np.ones(len(words), bool)
        if not kept.any():
            notes.append(f"no {n}-grams, in a text of short sentences or after pruning")
        orders = _add_order(orders, below, here, adjusted, np.array((0.0, *discount)), kept)
        discounts.append(discount)
        on_stage(f"{n}-grams smoothed")
    return NGrams(words, tuple(orders), tuple(discounts), tuple(notes), sentences, tokens)


def thresholds(prune: Sequence[int], order: int) -> list[int]:
    """One threshold for each order, as ``train`` takes them. Raises ConfigError."""
    if not 1 <= order <= MAX_ORDER:
        raise ConfigError(f"an n-gram order of {order}", hint=f"1 to {MAX_ORDER}; 4 is usual")
    given = list(prune) or [0]
    if len(given) > order:
        raise ConfigError(f"{len(given)} pruning thresholds for a model of order {order}")
    if given[0] != 0 or any(b < a for a, b in itertools.pairwise(given)):
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


def _to_ids(lines: Iterable[str], known: Iterable[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The text as one stream of ids with sentence marks, and the words by id."""
    vocabulary: defaultdict[str, int] = defaultdict(itertools.count().__next__)
    id_of = vocabulary.__getitem__
    stream = array("i", map(id_of, (*SPECIAL, *known)))[:0]
    for words in sentences(lines):
        stream.extend(map(id_of, (SPECIAL[BEGIN], *words, SPECIAL[END])))
    return np.frombuffer(stream, np.int32), tuple(vocabulary)


def _count(
    stream: np.ndarray, vocabulary: int, order: int, on_stage: Callable[[str], None]
) -> Iterator[_Counts]:
    """Count n-grams of every order up to ``order``.

    The id of an n-gram is its row among the sorted distinct ones. Places of the text that are
    sorted by their first n - 1 words need to be sorted by the n-th within each of these alone.
    """
    every, nothing = np.arange(vocabulary, dtype=np.int32), np.zeros(vocabulary, np.int32)
    raw = np.bincount(stream, minlength=vocabulary)
    at_start = slice(BEGIN, BEGIN + 1)
    ids = stream.copy()  # of the n-gram that ends at each place, where one does
    # places, sorted by their n-grams: numbers are sorted far faster than by argsort
    ends = np.sort(stream.astype(np.int64) << 32 | np.arange(len(stream))).astype(np.int32)
    on_stage("1-grams counted")
    yield _Counts(nothing, every, nothing, raw.astype(np.int32), at_start)
    for n in range(2, order + 1):
        ends = ends[stream[ends] != END]
        contexts = ids[ends]
        ends += 1
        rows = np.empty_like(ends)
        found = [(nothing[:0],) * 4]
        size = 0
        for part in _parts(contexts):
            context, end = contexts[part], ends[part]
            key = context.astype(np.int64) * vocabulary + stream[end]
            by_key = np.argsort(key)  # the order of equal ones does not matter
            end, key = end[by_key], key[by_key]
            fresh = np.diff(key, prepend=-1) != 0
            first = np.flatnonzero(fresh)
            some = end[first]
            times = np.diff(first, append=len(key)).astype(np.int32)
            found.append((context[first], stream[some], ids[some], times))
            ends[part] = end
            rows[part] = np.cumsum(fresh) + (size - 1)
            size += len(first)
        ids[ends] = rows
        del contexts, rows
        context, word, suffix, raw = map(np.concatenate, zip(*found, strict=True))
        del found
        edges = np.array([at_start.start, at_start.stop], np.int32)
        at_start = slice(*np.searchsorted(context, edges).tolist())
        on_stage(f"{n}-grams counted")
        yield _Counts(context, word, suffix, raw, at_start)


def _parts(ascending: np.ndarray) -> Iterator[slice]:
    """Parts of about ``PART`` elements, equal ones together, so that little is held beside them."""
    start = 0
    while start < len(ascending):
        last = ascending[min(start + PART, len(ascending)) - 1]
        stop = int(np.searchsorted(ascending, last, side="right"))
        yield slice(start, stop)
        start = stop


def _adjusted(here: _Counts, above: _Counts | None, n: int) -> np.ndarray:
    """Kneser-Ney counts: distinct words seen before the n-gram; raw at the top and after <s>."""
    adjusted = here.raw.copy()
    if above:
        adjusted = np.bincount(above.suffix, minlength=len(here.raw)).astype(np.int32)
        adjusted[here.at_start] = here.raw[here.at_start]
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
    orders: list[Order],
    below: np.ndarray,
    counts: _Counts,
    adjusted: np.ndarray,
    discount: np.ndarray,
    kept: np.ndarray,
) -> list[Order]:
    """Probabilities of the next order, and the back-off factors of its contexts.

    ``below`` says what is kept of the order below. An n-gram that is kept has a kept begin and end,
    since they were seen as often.
    """
    backoff = np.ones(len(below))
    probability = np.empty(int(kept.sum()))
    rows = np.cumsum(below, dtype=np.int32) - np.int32(1)  # among the kept ones
    done = 0
    for part in _parts(counts.context):
        first = counts.context[part.start]
        context, count, stays = counts.context[part] - first, adjusted[part], kept[part]
        taken = discount[np.minimum(count, 3)]
        total = np.bincount(context, count)
        # the lower order gets the discounts of what is kept and all of what is pruned
        freed = np.bincount(context, np.where(stays, taken, count))
        factor = np.divide(freed, total, out=np.ones(len(total)), where=total > 0)
        backoff[first : first + len(total)] = factor
        context = context[stays]
        own = (count - taken)[stays] / total[context]
        if orders:
            shorter = orders[-1].probability[rows[counts.suffix[part][stays]]]
            own += factor[context] * shorter
        else:
            own += factor[0] / (len(kept) - 1)  # <s> is not a word to predict
        probability[done : done + len(own)] = own
        done += len(own)
    if orders:
        orders = [*orders[:-1], orders[-1]._replace(backoff=backoff[below])]
    else:
        probability[BEGIN] = 1.0  # by convention of ARPA writers; never asked for
    columns = rows[counts.context[kept]], counts.word[kept], rows[counts.suffix[kept]]
    return [*orders, Order(*columns, probability, np.broadcast_to(1.0, done))]
