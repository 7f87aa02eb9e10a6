"""Small language models: texts to train them on, and what they say."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from w2vtool.decoder import arpa_writer
from w2vtool.decoder.lm_train import NGrams, train
from w2vtool.decoder.ngram import NGram, assemble
from w2vtool.text import letters


def zipf_text(sentences: int, words: int, seed: int = 0) -> list[str]:
    """Sentences over w0, w1, … with Zipf-like counts, as discounts can be estimated from."""
    draw = random.Random(seed)
    return [
        " ".join(
            f"w{min(int(draw.paretovariate(0.7)), words) - 1}" for _ in range(draw.randint(1, 8))
        )
        for _ in range(sentences)
    ]


def sentences(
    words: Sequence[str], count: int, longest: int = 5, *, even: bool = False
) -> list[str]:
    """Sentences of one word and more; ``even``: all words as often, else the first most often."""
    draw, odds = random.Random(0), None if even else range(len(words), 0, -1)
    return [" ".join(draw.choices(words, odds, k=draw.randint(1, longest))) for _ in range(count)]


def in_letters(lines: Iterable[str]) -> list[str]:
    """The same as text for a model of letters."""
    return [" ".join(letters(line)) for line in lines]


def write_arpa(made: NGrams, path: str | Path) -> None:
    """As ``lm train`` writes it."""
    arpa_writer.write(made.words, made.tables(), Path(path))


def assembled(made: NGrams) -> NGram:
    """As searches ask it."""
    return assemble(made.words, made.tables(), Path("made"))


def model(lines: Iterable[str], order: int, prune: tuple[int, ...] = ()) -> NGram:
    """A model of some lines."""
    return assembled(train(lines, order, prune))


def log10(ngram: NGram, history: tuple[str, ...], word: str) -> float:
    """log10 P(word | history), of which ``<s>`` may be a part."""
    state = 0
    for before in history:
        state = ngram.score(state, before)[1] if before != "<s>" else ngram.begin
    return ngram.score(state, word)[0]


def exact_log10(made: NGrams, history: Sequence[str], word: str) -> float:
    """The same as it was estimated, in float64, which searches and files do not keep."""
    ids = {name: number for number, name in enumerate(made.words)}
    gram = [ids.get(name, ids["<unk>"]) for name in (*history, word)][-len(made.orders) :]
    total = 0.0
    while (row := _row(made, gram)) < 0:
        context = _row(made, gram[:-1])
        if context >= 0:
            total += float(np.log10(made.orders[len(gram) - 2].backoff[context]))
        gram = gram[1:]
    return total + float(np.log10(made.orders[len(gram) - 1].probability[row]))


def _row(made: NGrams, gram: Sequence[int]) -> int:
    """Row of an n-gram in its order, or -1."""
    row = gram[0]  # unigrams lie in the order of their ids
    for order, word in zip(made.orders[1:], gram[1:], strict=False):
        low, high = np.searchsorted(order.context, (row, row + 1))
        row = int(low + np.searchsorted(order.word[low:high], word))
        if row == high or order.word[row] != word:
            return -1
    return row
