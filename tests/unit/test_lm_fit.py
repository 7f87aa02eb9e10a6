"""Language model, lexicon and vocabulary: what fits passes, what does not is told apart."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from ngrams import write_arpa

from w2vtool import lm_fit
from w2vtool.decoder import lexicon as lexicons
from w2vtool.decoder.lm import LanguageModel, open_lm
from w2vtool.decoder.lm_train import train
from w2vtool.errors import DataError
from w2vtool.tokens import Tokens

UPPER = Tokens()
LOWER = Tokens((*UPPER.symbols[:5], *(symbol.lower() for symbol in UPPER.symbols[5:])))
WORDS = [f"{a}{b}" for a in "BCDFG" for b in ("AT", "OLD", "IN", "EEL")]


def model(folder: Path, words: list[str]) -> LanguageModel:
    write_arpa(train([" ".join(words), *words], 2), folder / "lm.arpa")
    return open_lm(folder / "lm.arpa")


def refused(lm: LanguageModel, tokens: Tokens, words: list[str] | None, search: str) -> str:
    lexicon = lexicons.from_words(words, tokens) if words else None
    with pytest.raises(DataError) as raised:
        lm_fit.check(tokens, lexicon, lm, search)
    assert raised.value.where == str(lm.path) and raised.value.hint
    return f"{raised.value.what} ({raised.value.hint})"


@pytest.mark.parametrize("known", [18, 20])
def test_nine_in_ten_are_enough(tmp_path: Path, known: int) -> None:
    lm = model(tmp_path, WORDS[:known])
    lm_fit.check(UPPER, lexicons.from_words(WORDS, UPPER), lm, "lexicon")
    strange = [word + "É" for word in WORDS[known:]]
    lm_fit.check(UPPER, None, model(tmp_path, WORDS[:known] + strange), "open")


def test_less_is_refused_with_examples(tmp_path: Path) -> None:
    lm = model(tmp_path, WORDS[:17])
    what = refused(lm, UPPER, WORDS, "lexicon")
    assert f"knows 17 of the lexicon's 20 words, not '{WORDS[17]}'" in what
    assert "else lm_check=warn" in what
    others = refused(model(tmp_path, ["EINS", "ZWEI"]), UPPER, WORDS, "lexicon")
    assert "knows none of the lexicon's 20 words" in others and "lm_check" not in others
    strange = [word + "É" for word in WORDS[17:]]
    what = refused(model(tmp_path, WORDS[:17] + strange), UPPER, None, "open")
    assert "spell 17 of the language model's 20 words" in what
    assert "LATIN CAPITAL LETTER E WITH ACUTE" in what


@pytest.mark.parametrize("with_lexicon", [True, False])
def test_another_case_is_told_both_ways(tmp_path: Path, with_lexicon: bool) -> None:
    search, lower = "lexicon" if with_lexicon else "open", [word.lower() for word in WORDS]
    what = refused(model(tmp_path, lower), UPPER, WORDS if with_lexicon else None, search)
    assert "is in lower case, the transcripts are in upper case" in what and "--case upper" in what
    what = refused(model(tmp_path, WORDS), LOWER, lower if with_lexicon else None, search)
    assert "is in upper case, the transcripts are in lower case" in what and "--case lower" in what


@pytest.mark.parametrize("with_lexicon", [True, False])
def test_a_model_of_letters_is_no_model_of_words(tmp_path: Path, with_lexicon: bool) -> None:
    lm = model(tmp_path, [*"ABCDEFGH", "|"])
    search = "lexicon" if with_lexicon else "open"
    what = refused(lm, UPPER, WORDS if with_lexicon else None, search)
    assert "a language model of letters or pieces, given as one of words" in what
    pieces = model(tmp_path, ["▁B", "▁C", "AT", "OLD", *(f"▁{word}" for word in WORDS)])
    assert "letters or pieces" in refused(pieces, UPPER, WORDS if with_lexicon else None, search)


def test_letters_that_are_the_words_fit_a_lexicon_of_letters(tmp_path: Path) -> None:
    lm = model(tmp_path, [*"ABCDEFGH"])
    lm_fit.check(UPPER, lexicons.from_words("ABCDEFGH", UPPER), lm, "lexicon")


def test_a_search_over_tokens_wants_a_model_of_them(tmp_path: Path) -> None:
    letters = list(UPPER.symbols[4:])
    lm_fit.check(UPPER, None, model(tmp_path, letters), "tokens")
    what = refused(model(tmp_path, WORDS), UPPER, None, "tokens")
    assert "a language model of words, and the search is over tokens" in what
    what = refused(model(tmp_path, [letter.lower() for letter in letters]), UPPER, None, "tokens")
    assert "is in lower case" in what


def test_it_can_be_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = model(tmp_path, WORDS[:10])
    with caplog.at_level(logging.WARNING):
        lm_fit.check(UPPER, lexicons.from_words(WORDS, UPPER), lm, "lexicon", refuse=False)
    assert "knows 10 of the lexicon's 20 words" in caplog.text


def test_a_model_whose_words_cannot_be_listed_is_asked_for_those_of_the_lexicon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = model(tmp_path, WORDS[:10])

    def unlisted(self: object) -> None:
        raise DataError("the words of this KenLM binary cannot be listed")

    monkeypatch.setattr(type(lm), "vocabulary", unlisted)
    lm_fit.check(UPPER, None, lm, "open")
    assert "knows 10 of the lexicon's 20 words" in refused(lm, UPPER, WORDS, "lexicon")


PIECES = Tokens(
    ("<s>", "<unk>", "▁", "▁B", "▁C", "AT", "OLD", "IN", "EEL", *"ABCDEFGILNOT"),
    kind="sentencepiece",
)


def test_a_model_of_words_fits_the_letters_of_pieces(tmp_path: Path) -> None:
    fitting = [word for word in WORDS if word[0] in "BC"]
    lm_fit.check(PIECES, None, model(tmp_path, fitting), "open")
    lm_fit.check(PIECES, lexicons.from_words(fitting, PIECES), model(tmp_path, fitting), "lexicon")
    short = model(tmp_path, ["A", "AT", "IN", "OLD", "DOLL"])  # as many as pieces within words
    lm_fit.check(PIECES, None, short, "open")
    what = refused(model(tmp_path, [*fitting, "QUIZ", "ZOOM"]), PIECES, None, "open")
    assert "spell 8 of the language model's 10 words" in what and "no token for 'Z'" in what
    what = refused(model(tmp_path, [word.lower() for word in fitting]), PIECES, None, "open")
    assert "is in lower case, the transcripts are in upper case" in what


def test_a_model_of_pieces_needs_not_know_them_all(tmp_path: Path) -> None:
    lm_fit.check(PIECES, None, model(tmp_path, ["▁B", "▁C", "AT", "OLD"]), "tokens")
    what = refused(model(tmp_path, ["▁B", "▁C", "▁WHAT", "▁FOR"]), PIECES, None, "tokens")
    assert "other word pieces: 2 of its 4 words are tokens, not '▁WHAT', '▁FOR'" in what
    assert "lm train --tokens" in what
    what = refused(model(tmp_path, ["▁b", "▁c", "at", "old"]), PIECES, None, "tokens")
    assert "is in lower case" in what


@pytest.mark.parametrize(
    ("tokens", "words", "search", "reason"),
    [
        (PIECES, ["▁B", "AT", "OLD", "▁C"], "open", "letters or pieces, given as one of words"),
        (PIECES, [*"ABCDE", "|"], "open", "letters or pieces, given as one of words"),
        (PIECES, [*"ABCDE", "|"], "tokens", "of letters, and the tokens are word pieces"),
        (PIECES, ["A", "AT", "IN", "OLD"], "tokens", "of words, and the search is over tokens"),
        (UPPER, ["▁B", "▁C", "AT", *"ABCD"], "tokens", "of word pieces, and the tokens are lett"),
    ],
)
def test_a_model_of_another_unit_is_told(
    tmp_path: Path, tokens: Tokens, words: list[str], search: str, reason: str
) -> None:
    assert reason in refused(model(tmp_path, words), tokens, None, search)
