"""The trainer against KenLM's program itself, where that is installed.

Two things differ. A discount of exactly 0 passes lmplz. And among the n-grams whose counts make the
discounts it takes the last one of every lower order by its raw count, not the adjusted one (the end
of ``AdjustCounts::Run``). No model of any size shows that; so that small ones show all else, the
trainer is made to do the same here.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ngrams import zipf_text

from w2vtool.decoder import lm_train, lmplz
from w2vtool.decoder.lm_train import NGrams, train
from w2vtool.errors import ConfigError, DataError

pytestmark = pytest.mark.skipif(not shutil.which("lmplz"), reason="lmplz is not in PATH")

Table = dict[tuple[str, ...], tuple[float, float]]  # log10 of probability and back-off
TEXTS = {
    "usual": zipf_text(600, 60),
    "one word a sentence": [line.split()[0] for line in zipf_text(800, 60, seed=1)],
    "repeated lines": zipf_text(40, 30, seed=2) * 3 + zipf_text(40, 30, seed=3),
    "all lines twice": zipf_text(60, 30, seed=4) * 2,
    "very small": ["ONE TWO THREE", "", "ONE TWO", "STOP", "GO ON", "GO"],
    "one sentence": ["A B A B A B"],
    "one word": ["A"],
    "odd spaces": ["A\u00a0B  C\u2003D\tA", " \u3000 ", "A B\x0bC\r", "B \u2028 A", "E F G"],
    "odd words": ["<UNK> <S> # \\data\\ a", "-1 \\end\\ <unk>x <UNK> é", "ß Ж <s/> a"],
}


def of_file(path: Path) -> Table:
    found: Table = {}
    n = 0
    for line in path.read_text("utf-8").split("\n"):
        if line.startswith("\\") and line.endswith("-grams:"):
            n = int(line[1])
        elif n and "\t" in line:
            fields = line.split("\t")
            words = tuple(fields[1].split(" "))
            assert len(words) == n and words not in found
            found[words] = float(fields[0]), float(fields[2]) if len(fields) > 2 else 0.0
    return found


def of_model(ngrams: NGrams) -> Table:
    """In double precision, which no file has."""
    found: Table = {}
    below: list[tuple[str, ...]] = [()]
    for order in ngrams.orders:
        pairs = zip(order.context, order.word, strict=True)
        names = [(*below[context], ngrams.words[word]) for context, word in pairs]
        with np.errstate(divide="ignore"):
            values = zip(np.log10(order.probability), np.log10(order.backoff), strict=True)
        found |= {name: (float(p), float(b)) for name, (p, b) in zip(names, values, strict=True)}
        below = names
    return found


def last_by_raw_count(patch: pytest.MonkeyPatch, lines: list[str], order: int) -> None:
    """Let the trainer count as lmplz does."""
    ids = {word: row for row, word in enumerate(lm_train.SPECIAL)}
    raw: Counter[tuple[int, ...]] = Counter()
    for line in lines:
        if words := line.split():
            row = [1] * (order - 1) + [ids.setdefault(word, len(ids)) for word in words] + [2]
            raw.update(tuple(row[i : i + order]) for i in range(len(row) - order + 1))
    last = max(raw, key=lambda gram: gram[::-1])
    counted: list[lm_train._Counts] = []
    count, discounts = lm_train._count, lm_train._discounts

    def keep(*given: Any) -> Iterator[lm_train._Counts]:
        for counts in count(*given):
            counted.append(counts)
            yield counts

    def changed(adjusted: np.ndarray, n: int, notes: list[str]) -> tuple[float, float, float]:
        gram = last[-n:]
        if 1 < order > n and gram[:2] != (1, 1):
            at = gram[0]
            for table, word in zip(counted[1:], gram[1:], strict=False):
                at = int(np.flatnonzero((table.context == at) & (table.word == word))[0])
            adjusted = adjusted.copy()
            adjusted[at] = sum(times for other, times in raw.items() if other[-n:] == gram)
        return discounts(adjusted, n, notes)

    patch.setattr(lm_train, "_count", keep)
    patch.setattr(lm_train, "_discounts", changed)


def compare(lines: list[str], order: int, prune: tuple[int, ...], folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        last_by_raw_count(patch, lines, order)
        ngrams = train(lines, order, prune)
    path, notes = lmplz.estimate(lines, order, prune, folder)
    ours, theirs = of_model(ngrams), of_file(path)
    assert ours.keys() == theirs.keys()
    told = {note.partition(":")[0] for note in ngrams.notes if note.startswith("discounts")}
    assert told <= {note.partition(":")[0] for note in notes}
    for gram, (log10, backoff) in ours.items():
        assert theirs[gram] == pytest.approx((log10, backoff), abs=1e-6), gram


@pytest.mark.parametrize("prune", [(), (0, 0, 1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("order", range(1, 7))
@pytest.mark.parametrize("text", TEXTS)
def test_ngrams_probabilities_and_backoffs_are_those_of_lmplz(
    tmp_path: Path, text: str, order: int, prune: tuple[int, ...]
) -> None:
    compare(TEXTS[text], order, prune[:order], tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_random_texts_give_the_model_of_lmplz(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    lines = zipf_text(draw.choice([1, 5, 50, 300]), draw.choice([3, 20, 200]), seed)
    order = draw.randint(1, 6)
    steps = [draw.choice([0, 0, 1, 2]) for _ in range(order - 1)]
    compare(lines, order, (0, *sorted(steps)), tmp_path)


def test_wrong_orders_thresholds_and_texts_are_refused_as_the_trainer_does(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="n-gram order of 10"):
        lmplz.estimate(["A"], 10, (), tmp_path)
    with pytest.raises(ConfigError, match="pruning thresholds 0 2 1"):
        lmplz.estimate(["A"], 3, (0, 2, 1), tmp_path)
    with pytest.raises(DataError, match="line 2: the word '<s>' in the text"):
        lmplz.estimate(["A", "A <s>"], 3, (), tmp_path)
    with pytest.raises(DataError, match="no words in the text"):
        lmplz.estimate(["", " "], 3, (), tmp_path)
