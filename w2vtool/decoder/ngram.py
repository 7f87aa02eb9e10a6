"""An n-gram language model as flat arrays, which both beam searches walk through.

Goes in: the n-grams of every order, sorted (``OrderTable``). Goes out: an ``NGram``: states and
arcs (a word, its log10 probability, the state after it), sorted by both. All scores are log10.

A state is a history that some n-gram extends; any other history is replaced by its longest suffix
that is one. That loses nothing, since such a history has no back-off weight, and it lets searches
merge hypotheses early (KenLM calls it state minimisation). State 0 is the empty history, and has an
arc for every word: arc ``w`` is word ``w``.

Why not KenLM itself: its states cannot be enumerated, so no search on a GPU and none without the
interpreter could use them; and it reads no order above 6.
"""

# S states   A arcs   W words   R rows of one order

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from w2vtool.decoder.arcs import Arcs, step
from w2vtool.errors import DataError

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
PART = 1 << 18  # states worked on at once
FORM = 1  # of the saved file; another number is not read


class LanguageModel(ABC):
    """Scores one word after another, in log10. Equal states have equal futures; they can be hashed.

    Words that the model does not know are scored as ``<unk>``.
    """

    path: Path
    order: int

    @abstractmethod
    def start(self) -> Any:
        """The state at the begin of a sentence."""

    @abstractmethod
    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """log10 P(word | state), and the state after the word."""

    @abstractmethod
    def final(self, state: Any) -> float:
        """log10 P(end of sentence | state)."""

    @abstractmethod
    def knows(self, word: str) -> bool:
        """Whether the word has a probability of its own."""

    @abstractmethod
    def vocabulary(self) -> Sequence[str]:
        """Words that the model knows, without ``<s>`` and the like."""

    def sentence(self, words: Iterable[str]) -> float:
        """log10 P of a whole sentence, its end included."""
        total, state = 0.0, self.start()
        for word in words:
            score, state = self.score(state, word)
            total += score
        return total + self.final(state)


class OrderTable(NamedTuple):
    """All n-grams of one order, sorted by ``context * words + word``, without repeats.

    ``context`` is the row of the first n - 1 words in the order below (0 for order 1, where the row
    is the word), ``suffix`` the row of the last n - 1 words there (0 for order 1). Both must exist.
    ``backoff`` is the log10 weight of the n-gram as a history.
    """

    context: np.ndarray  # int32 or int64 [R]
    word: np.ndarray  # int32 [R]
    suffix: np.ndarray  # int32 or int64 [R]
    log10: np.ndarray  # float32 [R]
    backoff: np.ndarray  # float32 [R]


@dataclass(frozen=True, eq=False, repr=False)
class NGram(LanguageModel):
    """An n-gram model; states are rows. Arcs of state s: ``first[s] <= arc < first[s + 1]``."""

    path: Path
    order: int
    words: tuple[str, ...]
    begin: int  # the state after <s>
    first: np.ndarray  # int64 [S + 1]
    word: np.ndarray  # int32 [A]
    log10: np.ndarray  # float32 [A]
    target: np.ndarray  # int32 [A], the state after the arc
    backoff: np.ndarray  # float32 [S], added where the state lacks a word
    back: np.ndarray  # int32 [S], and the state to ask then
    last: np.ndarray  # float32 [S], log10 P(</s> | state)

    def __repr__(self) -> str:
        return f"NGram({str(self.path)!r}, order={self.order}, words={len(self.words)})"

    @cached_property
    def ids(self) -> dict[str, int]:
        """Words to rows."""
        return {word: row for row, word in enumerate(self.words)}

    @property
    def unknown(self) -> int:
        """The row of ``<unk>``."""
        return self.ids[UNKNOWN]

    @cached_property
    def arcs(self) -> Arcs:
        """What searches walk through."""
        return Arcs(*(getattr(self, name) for name in _ARRAYS))

    def start(self) -> int:
        """See LanguageModel."""
        return self.begin

    def score(self, state: int, word: str) -> tuple[float, int]:
        """See LanguageModel."""
        row = self.ids.get(word, -1)
        return self.step(state, self.unknown if row < 0 else row)

    def step(self, state: int, row: int) -> tuple[float, int]:
        """``score`` by the row of the word."""
        return step(self.arcs, state, row)

    def final(self, state: int) -> float:
        """See LanguageModel."""
        return float(self.last[state])

    def knows(self, word: str) -> bool:
        """See LanguageModel."""
        return word in self.ids and word != UNKNOWN

    def vocabulary(self) -> Sequence[str]:
        """See LanguageModel."""
        return [word for word in self.words if word not in (UNKNOWN, BEGIN, END)]

    def distribution(self, state: int) -> np.ndarray:
        """log10 P(word | state) of every word, float64 [W]."""
        chain = [state]
        while chain[-1]:
            chain.append(int(self.back[chain[-1]]))
        held = np.cumsum([0.0, *(float(self.backoff[s]) for s in chain[:-1])])
        log10_W = np.empty(len(self.words))
        for here, weight in zip(reversed(chain), reversed(held.tolist()), strict=True):
            arcs = slice(self.first[here], self.first[here + 1])
            log10_W[self.word[arcs]] = self.log10[arcs] + weight
        return log10_W

    def save(self, path: Path, **extra: Any) -> None:
        """Write all of it as ``.npz``, not compressed. The file is whole or not there."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        temporary = path.with_name(f".{path.name}.{id(self)}.part")
        try:
            with temporary.open("wb") as file:
                np.savez(
                    file,
                    form=np.array([FORM, self.order, self.begin]),
                    text=np.frombuffer("\n".join(self.words).encode(), np.uint8),
                    **arrays,
                    **extra,
                )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


_ARRAYS = ("first", "word", "log10", "target", "backoff", "back", "last")


def load(path: Path, shown: Path | None = None) -> NGram:
    """Read what ``save`` wrote. Raises DataError, also for a file of another form."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            form, order, begin = found["form"].tolist()
            if form != FORM:
                raise DataError(f"a saved model of form {form}, not {FORM}", where=str(path))
            words = tuple(found["text"].tobytes().decode().split("\n"))
            arrays = [found[name] for name in _ARRAYS]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        what = f"not a saved language model: {error}"
        raise DataError(what, where=str(path), hint="make it again from the ARPA file") from None
    return NGram(shown or path, order, words, begin, *arrays)


def assemble(words: Sequence[str], orders: Sequence[OrderTable], path: Path) -> NGram:
    """Make states and arcs from tables. ``words`` hold ``<s>``, ``</s>`` and ``<unk>``."""
    words = tuple(words)
    size, low = 1, 0  # states by now, and the first one of the order below
    states = reached = np.zeros(1, np.int32)  # own (or -1) and reached, by n-grams of that order
    arcs, targets = [], []
    backoff, back = [np.zeros(1, np.float32)], [np.zeros(1, np.int32)]
    for table, above in zip(orders, [*orders[1:], None], strict=True):
        arcs.append(np.bincount(states[table.context] - low, minlength=size - low))
        useful_R = np.zeros(len(table.word), bool)
        if above is not None:
            useful_R = table.backoff != 0
            useful_R[above.context] = True
        number_R = np.cumsum(useful_R, dtype=np.int32) + np.int32(size - 1)
        states, low = np.where(useful_R, number_R, np.int32(-1)), size
        size += int(useful_R.sum())
        shorter_R = reached[table.suffix]
        reached = np.where(useful_R, states, shorter_R)
        targets.append(reached)
        backoff.append(table.backoff[useful_R].astype(np.float32))
        back.append(shorter_R[useful_R])
    begin = int(targets[0][words.index(BEGIN)])
    del states, reached, number_R, shorter_R  # large ones
    target_A, first = np.concatenate(targets), np.zeros(size + 1, np.int64)
    del targets
    np.cumsum(np.concatenate(arcs), out=first[1:])
    del arcs
    held, shorter = np.concatenate(backoff), np.concatenate(back)
    del backoff, back
    word_A = np.concatenate([table.word for table in orders], dtype=np.int32)
    log10_A = np.concatenate([table.log10 for table in orders], dtype=np.float32)
    ends = np.flatnonzero(word_A == words.index(END))
    last = np.full(size, np.nan, np.float32)
    last[np.searchsorted(first, ends, side="right") - 1] = log10_A[ends]
    _back_off(last, held, shorter)
    return NGram(
        path, len(orders), words, begin, first, word_A, log10_A, target_A, held, shorter, last
    )


def tables(model: NGram) -> list[OrderTable]:
    """The n-grams of a model, order by order: what ``assemble`` made it of.

    Back-off weights of histories that nothing extends are 0.
    """
    words = len(model.words)
    source_A = np.repeat(np.arange(len(model.backoff)), np.diff(model.first))
    # the arcs of the empty history come first; a state is numbered when its own n-gram comes up
    depth_S = np.zeros(len(model.backoff), np.int64)
    row_S = np.zeros(len(model.backoff), np.int64)  # of the state's own n-gram in its order
    found: list[OrderTable] = []
    keys: list[np.ndarray] = []
    for n in range(1, model.order + 1):
        ours = depth_S[source_A] == n - 1 if n > 1 else np.ones(len(source_A), bool)
        arcs = np.flatnonzero(ours & ((source_A == 0) == (n == 1)))
        context_R, word_R = row_S[source_A[arcs]], model.word[arcs]
        target_R = model.target[arcs]
        own = np.flatnonzero((target_R > 0) & (depth_S[target_R] == 0))
        depth_S[target_R[own]] = n
        row_S[target_R[own]] = own
        backoff_R = np.zeros(len(arcs), np.float32)
        backoff_R[own] = model.backoff[target_R[own]]
        key_R = context_R * words + word_R
        if n < 3:
            suffix_R = word_R.astype(np.int64) if n == 2 else np.zeros(len(arcs), np.int64)
        else:
            suffix_R = np.searchsorted(keys[-1], found[-1].suffix[context_R] * words + word_R)
        found.append(OrderTable(context_R, word_R, suffix_R, model.log10[arcs], backoff_R))
        keys.append(key_R)
    return found


def _back_off(last_S: np.ndarray, backoff_S: np.ndarray, back_S: np.ndarray) -> None:
    """Fill in log10 P(</s>) where it is not a number. States back off to those before them."""
    for start in range(0, len(last_S), PART):
        part = last_S[start : start + PART]
        while (open_ := start + np.flatnonzero(np.isnan(part))).size:
            last_S[open_] = backoff_S[open_] + last_S[back_S[open_]]
