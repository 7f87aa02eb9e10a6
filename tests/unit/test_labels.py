"""Texts, vocabulary and audio: what does not fit is named, and left out only where that is said."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from w2vtool.errors import ConfigError, DataError
from w2vtool.labels import advice, fit, spell
from w2vtool.manifest import Manifest, Utterance, sha256
from w2vtool.schema import TextConfig
from w2vtool.text import Rules
from w2vtool.tokens import SPECIALS, Tokens


def rows(*texts: str | None, seconds: float = 1.0) -> Manifest:
    found = [Utterance(f"u{i}", f"{i}.wav", seconds, text=text) for i, text in enumerate(texts)]
    return Manifest(Path("train.jsonl"), found, sha256(found))


class Said(list[str]):
    """What was said to people."""

    def __call__(self, text: str) -> None:
        self.append(text)


def test_texts_are_spelled_and_the_hash_stays() -> None:
    manifest, said = rows("don\u2019t stop", "room 4, floor 5", "a\u202eb"), Said()
    spelled = spell(manifest, Rules("upper", "drop", "drop"), said)
    assert [row.text for row in spelled.rows] == ["DONT STOP", "ROOM 4 FLOOR 5", "AB"]
    assert spelled.sha256 == manifest.sha256
    assert said[0].startswith("warning: direction mark (U+202E RIGHT-TO-LEFT OVERRIDE): 1 times")
    assert said[0].endswith("first in train.jsonl (u2):2")
    assert "1 of 3 texts have digits, first 'u1'" in said[1]
    assert len(said) == 2


def test_rows_without_text_stop_also_where_the_rules_take_all_of_it() -> None:
    with pytest.raises(DataError, match="2 of 3 utterances have no text, first 'u0'"):
        spell(rows(None, "A", "..."), Rules("upper", "drop"))


def test_all_that_does_not_fit_is_one_error_with_counts_names_and_places() -> None:
    manifest = rows("FINE", "N\u00d6 N\u00d6", "\u00d6L 1", "\u00d6", "AB" * 30)
    with pytest.raises(DataError) as caught:
        fit(manifest, Tokens(), toys.TINY)
    assert caught.value.exit_code == 3
    what = caught.value.what
    assert "2 letters outside the vocabulary, in 3 texts" in what
    assert "O WITH DIAERESIS), 4 times, first in u1, u2, u3" in what
    assert "'1', 1 times, first in u2" in what
    assert "1 texts are too long for their audio" in what
    assert "u4: 61 frames to emit" in what
    assert "the audio has 49" in what
    assert "text.unknown=drop-rows" in caught.value.hint
    assert "text.too_long=drop" in caught.value.hint
    assert "write out numbers" in caught.value.hint


def test_what_fits_is_given_back_as_it_is() -> None:
    manifest, said = rows("FINE", "ALL KNOWN"), Said()
    assert fit(manifest, Tokens(), toys.TINY, TextConfig(), said) is manifest
    assert said == []


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"unknown": "drop-rows", "too_long": "drop"}, ["u0"]),
        ({"unknown": "keep-as-unk", "too_long": "drop"}, ["u0", "u1"]),
    ],
)
def test_rows_are_left_out_where_the_recipe_says_so_and_the_hash_follows(
    settings: dict[str, Any], left: list[str]
) -> None:
    manifest, said = rows("FINE", "N\u00d6", "AB" * 30, "\u00d6" * 30), Said()
    kept = fit(manifest, Tokens(), toys.TINY, TextConfig(**settings), said)
    assert [row.id for row in kept.rows] == left
    assert kept.sha256 == sha256(kept.rows) != manifest.sha256
    text = "\n".join(said)
    assert "2 rows with letters outside the vocabulary are" in text
    assert "31 times, first in u1, u3" in text
    assert "rows left out, their text is too long" in text
    assert f"{len(left)} of 4 rows are left" in text


def test_one_choice_does_not_excuse_the_other() -> None:
    manifest = rows("FINE", "N\u00d6", "AB" * 30)
    with pytest.raises(DataError, match="texts are too long"):
        fit(manifest, Tokens(), toys.TINY, TextConfig(unknown="drop-rows"))
    with pytest.raises(DataError, match="letters outside") as caught:
        fit(manifest, Tokens(), toys.TINY, TextConfig(too_long="drop"))
    assert "too long" not in caught.value.what
    assert "1 texts" in caught.value.what
    both = rows("FINE", "\u00d6" * 30)  # a row that is left out may be too long, too
    kept = fit(both, Tokens(), toys.TINY, TextConfig(unknown="drop-rows"))
    assert [row.id for row in kept.rows] == ["u0"]


def test_a_manifest_that_loses_all_rows_is_an_error() -> None:
    with pytest.raises(DataError, match="no row is left"):
        fit(rows("\u00d6"), Tokens(), toys.TINY, TextConfig(unknown="drop-rows"))


def test_unk_can_be_learned_only_where_there_is_one() -> None:
    tokens = Tokens(("<s>", "|", "A"))
    with pytest.raises(ConfigError, match="the vocabulary has no <unk>"):
        fit(rows("A"), tokens, toys.TINY, TextConfig(unknown="keep-as-unk"))
    with pytest.raises(DataError, match="1 letters outside"):
        fit(rows("AB"), tokens, toys.TINY)


@pytest.mark.parametrize(
    ("unknown", "tokens", "said"),
    [
        ("abc", Tokens(), "text.case=upper would write abc"),
        ("AB", Tokens((*SPECIALS, "|", "a", "b")), "text.case=lower would write AB"),
        ("3", Tokens(), "write out numbers"),
        (",!", Tokens(), "text.punctuation=drop"),
        ("\u00d6", Tokens(), "text.tokens=from-text"),
    ],
)
def test_the_hint_fits_the_letters(unknown: str, tokens: Tokens, said: str) -> None:
    assert next(iter(advice(unknown, tokens))).startswith(said)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.text("ABBA \u00d6|", max_size=12), st.integers(400, 8_000)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["drop-rows", "keep-as-unk"]),
)
def test_exactly_the_rows_that_can_be_emitted_are_left(
    drawn: list[tuple[str, int]], unknown: Any
) -> None:
    found = [
        Utterance(f"u{i}", f"{i}.wav", samples / 16_000, text=text)
        for i, (text, samples) in enumerate(drawn)
    ]

    def emitted(row: Utterance) -> bool:
        labels = [
            label
            for word in (row.text or "").split()
            for label in (*(letter if letter in "AB" else "?" for letter in word), "|")
        ]
        blanks = sum(one == other for one, other in pairwise(labels))
        return len(labels) + blanks <= (row.samples - 400) // 320 + 1

    strange = {row.id for row in found if set(row.text or "") & set("\u00d6|")}
    wanted = [
        row.id
        for row in found
        if emitted(row) and not (unknown == "drop-rows" and row.id in strange)
    ]
    manifest = Manifest(Path("m.jsonl"), found, sha256(found))
    text = TextConfig(unknown=unknown, too_long="drop")
    if not wanted:
        with pytest.raises(DataError, match="no row is left"):
            fit(manifest, Tokens(), toys.TINY, text)
        return
    assert [row.id for row in fit(manifest, Tokens(), toys.TINY, text).rows] == wanted
