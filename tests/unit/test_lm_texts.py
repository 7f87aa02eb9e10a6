"""Texts in the tokens of a model, for language models of letters and pieces."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import soundfile
import toys

from w2vtool import lm_texts
from w2vtool.errors import ConfigError, DataError


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    (tmp_path / "letters.txt").write_text("\n".join(["-", "|", *"THIS"]) + "\n")
    return tmp_path / "letters.txt"


def test_letters_stand_apart_and_words_are_closed(letters: Path) -> None:
    assert list(lm_texts.spelled(["THIS IS", ""], letters)) == ["T H I S | I S |", ""]


def test_usable_are_the_letters_and_what_ends_words(letters: Path) -> None:
    assert sorted(lm_texts.usable(letters)) == sorted(["|", *"THIS"])


def test_a_checkpoint_spells_by_its_own_rules(tmp_path: Path) -> None:
    run = toys.save(tmp_path / "run", "ctc")
    assert list(lm_texts.spelled(["this is"], run)) == ["T H I S | I S |"]


def test_lines_that_cannot_be_spelled_are_left_out_and_said(
    letters: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert list(lm_texts.spelled(["THIS", "THAT", "HIS"], letters)) == ["T H I S |", "H I S |"]
    assert "left out: 1 of 3 lines" in caplog.text and "'A'" in caplog.text


def test_where_none_can_be_spelled_that_is_an_error(letters: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 2 lines") as caught:
        list(lm_texts.spelled(["this", "is"], letters))
    assert "--case upper" in caught.value.hint
    with pytest.raises(ConfigError, match="has no tokens"):
        lm_texts.open_tokens(toys.save(tmp_path / "run", "pretrain"))


def test_the_transcripts_of_a_table_and_of_its_folder_are_texts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, toys.wave(0), 16_000)
    table = tmp_path / "transcripts.tsv"
    table.write_text("a.wav\tone two\tann\nb.wav\tTHREE\tben\nlost.wav\tFOUR\tben\n")
    for path in (table, tmp_path):
        with caplog.at_level(logging.WARNING):
            assert list(lm_texts.sentences([path], "upper")) == ["ONE TWO", "THREE"]
        assert "1 rows are left out" in caplog.text and "lost.wav" in caplog.text
        caplog.clear()


def test_a_table_without_a_transcript_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_text("ONE TWO\nTHREE\n")
    with pytest.raises(DataError, match="no transcripts") as caught:
        list(lm_texts.sentences([tmp_path / "words.tsv"], "keep"))
    assert "words.tsv:1" in str(caught.value)
    assert "another ending" in str(caught.value.hint)
    (tmp_path / "a.wav").touch()
    with pytest.raises(DataError, match="no transcripts") as caught:
        lm_texts.transcripts(tmp_path)  # whose name has no ending
    assert "name these" in str(caught.value.hint)
