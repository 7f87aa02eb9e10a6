"""Models taken apart and pruned: what is left out, and that the rest is a distribution."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ngrams import assembled, log10, model, zipf_text

from w2vtool.decoder import arpa_writer, lm, lm_prune
from w2vtool.decoder.lm_train import train
from w2vtool.decoder.ngram import assemble, tables
from w2vtool.errors import ConfigError

TEXT = zipf_text(300, 30)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text("AB ", min_size=1, max_size=8), min_size=1, max_size=12),
    st.integers(1, 5),
    st.sampled_from([(), (0, 1), (0, 0, 1)]),
)
def test_a_model_taken_apart_is_what_it_was_made_of(
    lines: list[str], order: int, prune: tuple[int, ...]
) -> None:
    if not "".join(lines).strip():
        return
    made = train(lines, order, prune[:order])
    ngram = assembled(made)
    for n, (wanted, found) in enumerate(zip(made.tables(), tables(ngram), strict=True), start=1):
        for column in ("context", "word", "suffix", "log10"):
            np.testing.assert_array_equal(getattr(found, column), getattr(wanted, column), column)
        if n < order:  # but for histories that nothing extends, whose weight is 0
            used = np.isin(np.arange(len(wanted.word)), made.tables()[n].context)
            np.testing.assert_array_equal(found.backoff[used], wanted.backoff[used])


def test_a_file_that_is_written_again_scores_the_same(tmp_path: Path) -> None:
    ngram = model(TEXT, 4, (0, 0, 1))
    arpa_writer.write(ngram.words, tables(ngram), tmp_path / "lm.arpa.gz")
    again = lm.open_lm(tmp_path / "lm.arpa.gz")
    for line in TEXT[:50]:
        assert again.sentence(line.split()) == pytest.approx(ngram.sentence(line.split()), abs=1e-4)


def test_the_change_of_each_ngram_is_that_of_the_whole_distribution() -> None:
    """Against sums over the vocabulary, of models without that one n-gram."""
    ngram = model(TEXT, 3)
    parts = tables(ngram)
    history = lm_prune._histories(parts, ngram.words.index("<s>"))
    words = [w for w in ngram.words if w != "<s>"]
    for n in (1, 2):
        found = lm_prune._relative_change(parts[n - 1], parts[n], history[n - 1])
        for row in range(0, len(parts[n].word), 37):
            gone = np.arange(len(parts[n].word)) == row
            rest = parts[: n - 1] + lm_prune._without(parts[: n + 1], n, gone)[n - 1 :]
            rest[n - 1] = rest[n - 1]._replace(backoff=lm_prune._weights(rest[n - 1], rest[n]))
            without = assemble(ngram.words, rest, Path("without"))
            whole = assemble(ngram.words, parts[: n + 1], Path("whole"))
            context = spell(parts, n - 1, int(parts[n].context[row]), ngram.words)
            apart = sum(
                10 ** log10(whole, context, w)
                * math.log(10)
                * (log10(whole, context, w) - log10(without, context, w))
                for w in words
            )
            likely = math.exp(history[n - 1][parts[n].context[row]])
            assert found[row] == pytest.approx(math.expm1(likely * apart), rel=2e-3, abs=1e-8)


def spell(tables: list, n: int, row: int, words: tuple[str, ...]) -> tuple[str, ...]:
    """The words of an n-gram of order n + 1."""
    if n < 0:
        return ()
    before = spell(tables, n - 1, int(tables[n].context[row]), words) if n else ()
    return (*before, words[tables[n].word[row]])


@pytest.mark.parametrize("threshold", [1e-7, 1e-4, 1e-2, 10.0])
def test_a_pruned_model_is_a_distribution(threshold: float) -> None:
    ngram = model(TEXT, 4)
    smaller, before = lm_prune.prune(ngram, threshold)
    pruned = assemble(ngram.words, smaller, Path("pruned"))
    words = [w for w in ngram.words if w != "<s>"]
    for history in itertools.product(("<s>", "w0", "w1", "<unk>"), repeat=3):
        total = math.fsum(10 ** log10(pruned, history, w) for w in words)
        assert total == pytest.approx(1, abs=1e-4), history
    assert before == [len(t.word) for t in tables(ngram)]


def test_more_goes_with_a_higher_threshold_and_words_stay() -> None:
    ngram = model(TEXT, 3)
    sizes = [
        [len(t.word) for t in lm_prune.prune(ngram, threshold).tables]
        for threshold in (1e-12, 1e-6, 1e-4, 1e-2, 1e9)
    ]
    assert sizes[0] == [len(t.word) for t in tables(ngram)]
    assert all(a[2] >= b[2] for a, b in itertools.pairwise(sizes))
    assert sizes[-1] == [len(ngram.words), 0, 0]
    assert 0 < sizes[2][2] < sizes[0][2]


def test_a_small_threshold_costs_little_perplexity() -> None:
    ngram = model(TEXT, 3)
    smaller = assemble(ngram.words, lm_prune.prune(ngram, 1e-5).tables, Path("pruned"))
    before = sum(ngram.sentence(line.split()) for line in TEXT)
    after = sum(smaller.sentence(line.split()) for line in TEXT)
    assert 0 <= (before - after) / -before < 0.05


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.nan])
def test_a_threshold_that_prunes_nothing_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="pruning threshold"):
        lm_prune.prune(model(TEXT, 2), threshold)
