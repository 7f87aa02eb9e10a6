"""Error counts: by hand, against jiwer, and as sums."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2vtool.score import Errors, alignment, letter_errors, summary, word_errors

texts = st.lists(st.text("AB", min_size=1, max_size=3), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("A B C", "A B C", Errors(0, 0, 0, 3)),
        ("A B C", "A X C", Errors(1, 0, 0, 3)),
        ("A B C", "A C", Errors(0, 1, 0, 3)),
        ("A B C", "A B B C", Errors(0, 0, 1, 3)),
        ("A B", "", Errors(0, 2, 0, 2)),
        ("", "A B", Errors(0, 0, 2, 0)),
        ("", "", Errors(0, 0, 0, 0)),
        ("  A \t B ", "A B", Errors(0, 0, 0, 2)),
    ],
)
def test_words_are_counted_by_kind_of_edit(
    reference: str, hypothesis: str, expected: Errors
) -> None:
    assert word_errors(reference, hypothesis) == expected


def test_letters_count_one_space_between_words() -> None:
    assert letter_errors("AB  CD", "AB CD") == Errors(0, 0, 0, 5)
    assert letter_errors("AB CD", "ABCD") == Errors(0, 1, 0, 5)


def test_rate_is_errors_per_reference_unit() -> None:
    assert word_errors("A B C D", "A X").rate == 0.75
    assert word_errors("A", "A B C D").rate == 3.0


def test_an_empty_reference_has_a_finite_rate() -> None:
    assert word_errors("", "").rate == 0.0
    assert word_errors("", "A B").rate == 2.0


def test_errors_add_up_as_counts() -> None:
    rows = [Errors(1, 2, 3, 4), Errors(10, 20, 30, 40)]
    assert rows[0] + rows[1] == Errors(11, 22, 33, 44)
    assert sum(rows, Errors()) == Errors(11, 22, 33, 44)
    assert (rows[0] + rows[1]).errors == 66


def test_summary_is_the_rate_of_the_corpus_and_not_the_mean_of_rates() -> None:
    found = summary([("A B C D", "A B C D"), ("A", "B")])
    assert found.utterances == 2
    assert found.wer == 0.2
    assert found.letters == Errors(1, 0, 0, 8)
    assert found.cer == 1 / 8


def test_summary_of_nothing_is_no_error() -> None:
    assert (summary([]).utterances, summary([]).wer, summary([]).cer) == (0, 0.0, 0.0)


@given(texts, texts)
def test_edits_account_for_the_difference_in_length(reference: str, hypothesis: str) -> None:
    found = word_errors(reference, hypothesis)
    longer = len(hypothesis.split()) - len(reference.split())
    assert found.insertions - found.deletions == longer
    assert found.substitutions + found.deletions <= found.reference


def test_counts_are_those_of_jiwer() -> None:
    jiwer = pytest.importorskip("jiwer")
    draw = random.Random(0)
    pairs = []
    for _ in range(300):
        reference, hypothesis = (
            " ".join("".join(draw.choices("AB", k=draw.randint(1, 3))) for _ in range(length))
            for length in (draw.randint(1, 12), draw.randint(0, 12))
        )
        pairs.append((reference, hypothesis))
        for ours, theirs in (
            (word_errors(reference, hypothesis), jiwer.process_words(reference, hypothesis)),
            (letter_errors(reference, hypothesis), jiwer.process_characters(reference, hypothesis)),
        ):
            kinds = (theirs.substitutions, theirs.deletions, theirs.insertions)
            assert tuple(ours[:3]) == kinds
            assert ours.reference == sum(kinds[:2]) + theirs.hits
    references, hypotheses = map(list, zip(*pairs, strict=True))
    assert summary(pairs).wer == pytest.approx(jiwer.wer(references, hypotheses))
    assert summary(pairs).cer == pytest.approx(jiwer.cer(references, hypotheses))


@given(texts, texts)
def test_an_alignment_has_the_errors_that_are_counted(reference: str, hypothesis: str) -> None:
    pairs = alignment(reference.split(), hypothesis.split())
    assert [said for said, _ in pairs if said] == reference.split()
    assert [heard for _, heard in pairs if heard] == hypothesis.split()
    wrong = sum(said != heard for said, heard in pairs)
    assert wrong == word_errors(reference, hypothesis).errors
