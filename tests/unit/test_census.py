"""What is in manifests: counts against counting by hand, and oddities that are found."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2vtool import census
from w2vtool.manifest import Utterance


def row(name: str, text: str | None = None, seconds: float = 10.0, **more: Any) -> Utterance:
    return Utterance(name, f"{name}.wav", seconds, text=text, **more)


def test_hours_speakers_and_languages_are_those_of_the_rows() -> None:
    found = census.take(
        [
            row("a", "AB", 2.0, speaker="x", lang="en"),
            row("b", "", 3.0, speaker="x", lang="de", sample_rate=8_000),
            row("c", None, 5.0, lang="en"),
        ]
    )
    assert (found.rows, found.seconds) == (3, 10.0)
    assert found.speaker_seconds == {"x": 5.0}
    assert (found.lang_seconds, found.lang_rows) == ({"en": 7.0, "de": 3.0}, {"en": 2, "de": 1})
    assert found.without == {"text": 2, "speaker": 1}
    assert found.sample_rates == {16_000: 2, 8_000: 1}
    assert (found.shortest, found.longest) == (("a", 2.0), ("c", 5.0))
    assert found.alphabet == {"A": 1, "B": 1}


@pytest.mark.parametrize(
    ("letter", "what"),
    [
        ("\u202e", "direction of writing"),
        ("\u200f", "direction of writing"),
        ("\x07", "control"),
        ("\t", "control"),
        ("\n", "control"),
        ("\u200b", "invisible"),
        ("\u00a0", "unusual space"),
        ("\u2028", "line separator"),
        ("\ue000", "private use"),
        ("\u0378", "unassigned"),
        ("\ufffd", "stands for what was lost in a conversion"),
    ],
)
def test_odd_characters_are_named_with_the_row_where_they_first_stand(
    letter: str, what: str
) -> None:
    found = census.take(
        [row("a", "GOOD"), row("b", f"BA{letter}D"), row("c", f"{letter}X{letter}")]
    )
    assert list(found.odd_letters()) == [(letter, what, 3)]
    assert found.first == {letter: "b"}


@pytest.mark.parametrize("letter", "aZ' é中я🎉-.|1")
def test_letters_of_any_language_are_not_odd(letter: str) -> None:
    assert not census.oddity(letter)


def test_letters_that_hardly_stand_anywhere_are_rare() -> None:
    rows = [row(f"r{i}", "ABBA" * 25, 60.0) for i in range(1_000)]
    assert list(census.take([*rows, row("x", "QQ")]).odd_letters()) == [("Q", "rare", 2)]
    assert not list(census.take([*rows[:10], row("x", "QQ")]).odd_letters()), "too few to say"


def test_texts_that_are_not_nfc_are_told() -> None:
    found = census.take([row("a", "e\u0301"), row("b", "\u00e9"), row("c", "E")])
    assert (found.not_nfc_rows, found.not_nfc) == (1, ["a"])


def test_texts_that_need_more_frames_than_there_are_are_told() -> None:
    fits = row("a", "A" * 24, 1.0)  # 24 letters, 23 blanks, the end of the word: 48 of 49 frames
    found = census.take([fits, row("b", "A" * 25, 1.0), row("c", "AB" * 24, 1.0)])
    assert (found.infeasible_rows, found.infeasible) == (1, ["b"])


def test_speech_far_from_the_rate_of_the_rest_is_an_outlier() -> None:
    rng = np.random.default_rng(0)
    rows = [row(f"r{i}", "A" * int(n), 10.0) for i, n in enumerate(rng.normal(150, 15, 200))]
    slow, fast = census.take([*rows, row("s", "A" * 12), row("f", "A" * 900)]).outliers()
    assert [one.id for one in slow] == ["s"] and slow[0].value == 1.2
    assert [one.id for one in fast] == ["f"]
    assert census.take([*rows[:18], row("f", "A" * 900)]).outliers() == ([], []), "too few to say"


@given(st.lists(st.floats(0.001, 1e5), min_size=1, max_size=200), st.integers(1, 20))
def test_every_value_is_in_one_bar_of_a_histogram(values: list[float], bars: int) -> None:
    found = census.histogram(values, bars)
    assert sum(bar.rows for bar in found) == len(values)
    assert len(found) <= bars + 3
    assert all(a.high == b.low for a, b in pairwise(found))
    assert found[0].low <= min(values) and max(values) <= found[-1].high * (1 + 1e-9)


def test_bars_have_round_edges_and_one_giant_does_not_flatten_them() -> None:
    found = census.histogram([*(i / 100 for i in range(100, 1_300)), 36_000.0])
    assert [bar.low for bar in found] == [float(i) for i in range(1, 13)]
    assert found[-1].high >= 36_000 and found[0].rows == 100
    assert census.histogram([]) == []
