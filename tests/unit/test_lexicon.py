"""Lexicon files, and the trie that they become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2vtool.decoder import lexicon as lexicons
from w2vtool.decoder.lexicon import Lexicon, Trie
from w2vtool.errors import DataError
from w2vtool.tokens import Tokens

TOKENS = Tokens(("<s>", "<unk>", "|", "A", "B", "C", "'"))
PIPE, A, B, C = 2, 3, 4, 5


def saved(folder: Path, text: str | bytes) -> Path:
    path = folder / "words.lexicon"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_both_forms_of_a_line_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path, "\ufeffab\tA B |\r\n\nBA\nab A A |\nab\tA B |\n")
    found = lexicons.read(path, TOKENS)
    assert found.words == ("ab", "BA", "ab")
    assert found.spellings == ((A, B, PIPE), (B, A, PIPE), (A, A, PIPE))


def test_words_are_spelled_by_their_letters_once_each() -> None:
    found = lexicons.from_words(["BA", "A", "BA"], TOKENS)
    assert found == Lexicon(("BA", "A"), ((B, A, PIPE), (A, PIPE)))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("AXB", "no token for 'X' of 'AXB'"),
        ("AÉ", "no token for 'É' (U+00C9 LATIN CAPITAL LETTER E WITH ACUTE)"),
        ("A\tA D Q |", "no token for 'D', 'Q' of 'A'"),
        ("A\t", "no spelling after 'A'"),
        ("A\t|", "the spelling of 'A' has no letters"),
        ("A\tA B", "the spelling of 'A' does not end with '|'"),
        ("A\tA | B |", "'|' inside of 'A'"),
        ("A\tA <s> |", "no token for '<s>'"),
        ("A\t<unk> |", "no token for '<unk>'"),
    ],
)
def test_a_bad_line_is_named_with_its_problem(tmp_path: Path, line: str, problem: str) -> None:
    path = saved(tmp_path, f"A\n{line}\n")
    with pytest.raises(DataError) as caught:
        lexicons.read(path, TOKENS)
    assert f"{path}:2: {problem}" in str(caught.value)
    assert "the tokens' letters are A B C '" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "hint"),
    [("ab\nA\n", "write the words in upper case; "), ("ax\n", ""), ("a\nX\n", ""), ("A\t\n", "")],
)
def test_a_lexicon_in_another_case_is_told_so(tmp_path: Path, text: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        lexicons.read(saved(tmp_path, text), TOKENS)
    assert caught.value.hint == f"{hint}the tokens' letters are A B C '"


def test_all_bad_lines_are_listed_up_to_a_screenful(tmp_path: Path) -> None:
    path = saved(tmp_path, "X\nA\n" + "Y\n" * 30)
    with pytest.raises(DataError) as caught:
        lexicons.read(path, TOKENS)
    text = str(caught.value)
    assert f"{path}:1:" in text
    assert f"{path}:3:" in text
    assert f"{path}:2:" not in text
    assert "and 11 more" in text


def test_words_without_a_file_are_named_too() -> None:
    with pytest.raises(DataError, match="word 'A1': no token for '1'"):
        lexicons.from_words(["A", "A1"], TOKENS)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "has no words"), (b"\n \n", "has no words"), (b"A\nB\xff\n", ":2: not UTF-8")],
)
def test_files_without_words_or_of_bytes_are_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        lexicons.read(saved(tmp_path, content), TOKENS)


def test_missing_files_and_empty_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such lexicon"):
        lexicons.read(tmp_path / "none", TOKENS)
    with pytest.raises(DataError, match="cannot be read"):
        lexicons.read(tmp_path, TOKENS)
    with pytest.raises(DataError, match="has no words"):
        lexicons.from_words([], TOKENS)


def test_spellings_in_pieces_need_no_separator(tmp_path: Path) -> None:
    pieces = Tokens(("<s>", "▁A", "▁B", "A"), kind="sentencepiece")
    found = lexicons.read(saved(tmp_path, "AA\t▁A A\nBA\t▁B A\nB\t▁B\n"), pieces)
    assert found == Lexicon(("AA", "BA", "B"), ((1, 3), (2, 3), (2,)))
    with pytest.raises(DataError, match=r":1: no token for '\|' of 'AA'"):
        lexicons.read(saved(tmp_path, "AA\t▁A A |\n"), pieces)


def spelled(trie: Trie) -> dict[int, tuple[int, ...]]:
    """Path of tokens to every node, by following children."""
    paths: dict[int, tuple[int, ...]] = {0: ()}
    for node in range(len(trie.token)):
        for child in range(trie.first[node], trie.first[node + 1]):
            assert child not in paths, "a node with two parents"
            paths[child] = (*paths[node], int(trie.token[child]))
    return paths


spellings = st.lists(
    st.lists(st.sampled_from([A, B, 40_000]), min_size=1, max_size=5), min_size=1, max_size=30
)


@given(spellings)
def test_a_trie_holds_exactly_the_spellings(letters: list[list[int]]) -> None:
    lexicon = Lexicon(
        tuple(f"w{n}" for n in range(len(letters))), tuple((*row, PIPE) for row in letters)
    )
    trie = lexicons.build_trie(lexicon)
    paths = spelled(trie)
    prefixes = {row[:n] for row in lexicon.spellings for n in range(len(row) + 1)}
    assert sorted(paths.values()) == sorted(prefixes)
    assert len(set(paths.values())) == len(paths) == len(trie.token)
    for node, path in paths.items():
        rows = trie.words[trie.first_word[node] : trie.first_word[node + 1]].tolist()
        assert sorted(rows) == [n for n, row in enumerate(lexicon.spellings) if row == path]


@given(spellings, st.integers(0, 1000))
def test_a_node_scores_as_the_best_word_below(letters: list[list[int]], seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=len(letters)).tolist()
    words = tuple(f"w{n}" for n in range(len(letters)))
    lexicon = Lexicon(words, tuple((*row, PIPE) for row in letters))
    trie = lexicons.build_trie(lexicon, np.array(values))
    for node, path in spelled(trie).items():
        rows = zip(lexicon.spellings, values, strict=True)
        assert trie.score[node] == max(v for row, v in rows if row[: len(path)] == path)
