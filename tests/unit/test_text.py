"""Spelling, odd characters, and how files of text are read."""

from __future__ import annotations

import itertools
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2vtool import text as module
from w2vtool.errors import DataError
from w2vtool.text import (
    LONGEST_LINE,
    Fault,
    OddityReport,
    Rules,
    frames_needed,
    has_digits,
    letters,
    normalize,
    oddities,
    read_lines,
    scan_lines,
)

TEXTS = st.text() | st.text("aé'’|.-/ 1\u0301\u200c\u200d\u200b\u202e\ufe0f\u2764\x00\u0903")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  hello\t world \n", "HELLO WORLD"),
        ("cafe\u0301", "CAF\u00c9"),  # NFC
        ("don\u2019t", "DON'T"),
        ("\ufeffzero\u200bwidth soft\u00adhyphen", "ZEROWIDTH SOFTHYPHEN"),
        ("stra\u00dfe", "STRASSE"),
        ("a\x00b\x1bc", "A B C"),
        ("", ""),
        (" \u00a0\u3000 ", ""),
    ],
)
def test_one_spelling(text: str, expected: str) -> None:
    assert normalize(text) == expected


def test_case_is_a_choice() -> None:
    assert normalize("Ab \u0130", "lower") == "ab i\u0307"
    assert normalize("Ab  C", "keep") == "Ab C"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Well, I DON'T know!", "WELL I DON'T KNOW"),
        ("'quoted' dogs' 'tis", "QUOTED DOGS TIS"),
        ("twenty-one \u2014 and/or", "TWENTY ONE AND OR"),
        ("\u00bfqu\u00e9? $5 + 3\u20ac", "QU\u00c9 5 3"),
        ("...", ""),
    ],
)
def test_punctuation_can_be_dropped(text: str, expected: str) -> None:
    assert normalize(text, punctuation="drop") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u2764\ufe0f love \U0001f468\u200d\U0001f469\u200d\U0001f467", "LOVE"),
        ("1\ufe0f\u20e3 one", "1 ONE"),
        ("thumbs \U0001f44d\U0001f3fd up", "THUMBS UP"),
        (
            "\u0645\u06cc\u200c\u0631\u0648\u0645",
            "\u0645\u06cc\u200c\u0631\u0648\u0645",
        ),  # Persian: stays
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u200d\u0937"),  # Hindi: stays
        ("\u202eabc\u202c \u2066def\u2069", "ABC DEF"),
        ("year 1984, room 4b", "YEAR 1984 ROOM 4B"),  # numbers are left alone
    ],
)
def test_emoji_joiners_and_marks_of_direction(text: str, expected: str) -> None:
    assert normalize(text, punctuation="drop") == expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (Rules("lower"), "'l'homme' dogs' don't,"),
        (Rules("lower", apostrophes="drop"), "'lhomme' dogs' dont,"),
        (Rules("lower", apostrophes="space"), "'l homme' dogs' don t,"),
        (Rules("lower", "drop"), "l'homme dogs don't"),
        (Rules("keep", "drop", "drop"), "lHomme dogs dont"),
        (Rules("lower", "drop", "space"), "l homme dogs don t"),
    ],
)
def test_apostrophes_inside_of_words_have_a_rule_of_their_own(rules: Rules, expected: str) -> None:
    assert rules("'l\u2019Homme' dogs' don't,") == expected


def test_the_rules_say_what_they_do() -> None:
    assert str(Rules()) == (
        "NFC, upper case, punctuation kept, apostrophes kept, numbers left alone"
    )
    assert "apostrophes turned into spaces" in str(Rules("keep", "drop", "space"))
    with pytest.raises(DataError, match="unknown case of texts 'title'"):
        Rules.of(Rules("title"))  # type: ignore[arg-type]


@given(
    TEXTS,
    st.sampled_from(["upper", "lower", "keep"]),
    st.sampled_from(["keep", "drop"]),
    st.sampled_from(["keep", "drop", "space"]),
)
def test_normalising_twice_changes_nothing_more(
    text: str, case: Any, punctuation: Any, apostrophes: Any
) -> None:
    rules = Rules(case, punctuation, apostrophes)
    once = rules(text)
    assert once == " ".join(once.split())
    assert not any(odd.fate in ("removed", "a space") for odd in oddities(once))
    if case == "keep":  # changing the case of odd scripts has no fixed point in Unicode
        assert rules(once) == once


class Counted:
    """``unicodedata`` that counts the characters that it looks at, and sees runs of marks."""

    def __init__(self) -> None:
        self.work = 0

    def __getattr__(self, name: str) -> Any:
        self.work += 1
        return getattr(unicodedata, name)

    def normalize(self, form: Any, text: str) -> str:
        """Linear only where marks are few: more than 30 in a row are refused."""
        runs = itertools.groupby(text, lambda letter: unicodedata.combining(letter) > 0)
        assert all(len(list(run)) <= 30 for marks, run in runs if marks)
        self.work += len(text)
        return unicodedata.normalize(form, text)


@pytest.mark.parametrize(
    "unit",
    [
        "a'",
        "'",
        "\u200d",
        "a\u200d",
        "\u0315\u0300",
        "\u0300\u200b\u0315",
        "\u202e",
        "-",
        "\x00",
        "é ",
    ],
    ids=ascii,
)
def test_a_hostile_megabyte_takes_work_in_proportion_to_its_length(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = []
    for size in (50_000, 100_000):
        counted = Counted()
        monkeypatch.setattr(module, "unicodedata", counted)
        normalize(unit * (size // len(unit)), punctuation="drop", apostrophes="space")
        work.append(counted.work)
    assert work[1] <= 2.01 * work[0] + 10
    assert work[1] <= 12 * 100_000
    monkeypatch.undo()
    normalize((unit * 1_000_000)[:1_000_000], punctuation="drop")  # and it ends


def test_no_letter_keeps_more_than_thirty_marks() -> None:
    assert normalize("a" + "\u0315\u0300" * 50 + "b", "keep").count("\u0315") == 15
    assert normalize("q" + "\u0323" * 30, "keep") == "q" + "\u0323" * 30


def test_every_word_is_closed_by_a_bar() -> None:
    assert letters("AB C") == ["A", "B", "|", "C", "|"]
    assert letters("") == []


def test_frames_needed_counts_repeats() -> None:
    assert frames_needed("ABC") == 3
    assert frames_needed("ABB") == 4
    assert frames_needed("AAAA") == 7
    assert frames_needed([]) == 0


def test_digits_of_any_script_are_seen() -> None:
    assert has_digits("room 4")
    assert has_digits("\u0664\u0665")
    assert not has_digits("four \u00e9")


def test_what_nobody_sees_is_named_with_its_place() -> None:
    odd = oddities("a\u202eb\x1b\ufffd\t\u200c\ue000\u00a0")
    assert [(item.column, item.fate) for item in odd] == [
        (2, "removed"),
        (4, "a space"),
        (5, "kept"),
        (8, "kept"),
    ]
    report = OddityReport()
    report.add("x.txt:7", "ab\u202e")
    report.add("x.txt:9", "\u202e\x9f")
    assert report.lines() == [
        "direction mark (U+202E RIGHT-TO-LEFT OVERRIDE): 2 times, removed, first in x.txt:7:3",
        "(U+009F no name): 1 times, a space, first in x.txt:9:2",
    ]
    assert oddities("plain text, caf\u00e9 \u4f60\u597d \U0001f600") == []


def written(folder: Path, data: bytes) -> Path:
    path = folder / "text.txt"
    path.write_bytes(data)
    return path


def test_lines_have_numbers_and_lose_their_ends(tmp_path: Path) -> None:
    data = "\ufeffone\r\n\ntwo\u2028still two\x0b\nlast\r".encode()
    assert read_lines(written(tmp_path, data)) == [
        (1, "one"),
        (2, ""),
        (3, "two\u2028still two\x0b"),
        (4, "last"),
    ]
    assert read_lines(written(tmp_path, b"")) == []
    assert read_lines(written(tmp_path, "\ufeff".encode())) == []


@pytest.mark.parametrize(
    ("data", "line", "column", "what", "hint"),
    [
        (
            b"ok\ncaf\xe9 x\n",
            2,
            4,
            "byte 0xE9 is not UTF-8; in Windows-1252 it would be 'é'",
            "iconv",
        ),
        ("ok\nñ\n".encode() + b"\xff", 3, 1, "byte 0xFF is not UTF-8", ""),
        ("né".encode()[:-1], 1, 2, "byte 0xC3 is not UTF-8", ""),
        (b"\xed\xa0\x80", 1, 1, "byte 0xED", ""),  # a surrogate in UTF-8
        (b"\xc0\xaf", 1, 1, "byte 0xC0", ""),  # an overlong slash
        (b"ab\x00c\n", 1, 3, "a NUL character", ""),
        ("hello\n".encode("utf-16-le"), 1, 2, "UTF-16 without a mark", "iconv -f UTF-16LE"),
        ("hello\n".encode("utf-16"), 1, 1, "is UTF-16, not UTF-8", "iconv -f UTF-16"),
        (b"\xfe\xff\0h", 1, 1, "is UTF-16, not UTF-8", "iconv -f UTF-16"),
        ("hello\n".encode("utf-32"), 1, 1, "is UTF-32, not UTF-8", "iconv -f UTF-32"),
        (b"\x1f\x8b\x08\0", 1, 1, "is compressed", "gunzip"),
        (b"a" * 2 * LONGEST_LINE + b"\nfine\n", 1, 1, "more than 1,048,576 bytes", "a line"),
        (b"fine\n" + b"a" * (LONGEST_LINE + 9), 2, 1, "more than 1,048,576 bytes", ""),
    ],
    ids=lambda value: "" if isinstance(value, bytes | int) else value[:25],
)
def test_what_is_wrong_with_a_file_of_text_is_said_to_the_column(
    tmp_path: Path, data: bytes, line: int, column: int, what: str, hint: str
) -> None:
    path = written(tmp_path, data)
    with pytest.raises(DataError) as caught:
        read_lines(path)
    places = [item for item in scan_lines(path) if isinstance(item, Fault)]
    assert (places[0].line, places[0].column) == (line, column)
    assert what in places[0].what
    assert f"{path}:{line}:{column}" in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_a_binary_file_is_not_to_be_converted(tmp_path: Path) -> None:
    np.savez(tmp_path / "lm.npz", np.arange(3))
    with pytest.raises(DataError, match=r"lm\.npz:1:1: is a binary file, not text") as caught:
        read_lines(tmp_path / "lm.npz")
    assert not caught.value.hint


def test_every_fault_is_named_and_the_good_lines_are_still_there(tmp_path: Path) -> None:
    path = written(tmp_path, b"a\n\xff\nb\nc\x00\n" + b"\xff\n" * 30)
    with pytest.raises(DataError) as caught:
        read_lines(path)
    assert "32 lines cannot be read" in caught.value.what
    assert f"{path}:4:2: a NUL" in caught.value.what
    assert "… and 12 more" in caught.value.what
    assert [item for item in scan_lines(path) if not isinstance(item, Fault)] == [
        (1, "a"),
        (3, "b"),
    ]


def test_a_line_of_a_megabyte_is_a_line(tmp_path: Path) -> None:
    long = "x" * LONGEST_LINE
    assert read_lines(written(tmp_path, f"a\n{long}\r\nb".encode())) == [
        (1, "a"),
        (2, long),
        (3, "b"),
    ]


def test_a_file_that_cannot_be_opened_is_a_fault_of_its_own(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_lines(path)


@given(data=st.binary() | st.text().map(str.encode) | st.text().map(lambda t: t.encode("utf-16")))
def test_any_bytes_are_lines_or_faults_at_a_place_that_is_there(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = written(tmp_path_factory.getbasetemp(), data)
    for item in scan_lines(path):
        if isinstance(item, Fault):
            assert 1 <= item.line <= data.count(b"\n") + 1
            assert 1 <= item.column <= len(data) + 1
        else:
            assert item[1].encode() in data
            assert "\x00" not in item[1]
            normalize(item[1], punctuation="drop")
