"""Alphabets and pieces, and the way from text to labels and back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2vtool.errors import DataError
from w2vtool.text import letters
from w2vtool.tokens import LETTERS, Tokens

SENTENCES = [
    f"{a} {b} {c}" for a in ("ONE", "TWO") for b in ("RED", "BLUE") for c in ("CATS", "OX")
]


def test_letters_are_those_of_the_published_models() -> None:
    assert len(LETTERS) == 32
    assert LETTERS[:8] == ("<s>", "<pad>", "</s>", "<unk>", "|", "E", "T", "A")
    assert LETTERS[-3:] == ("J", "Q", "Z")
    assert LETTERS[27] == "'"
    assert len(set(LETTERS)) == 32
    assert Tokens().blank == 0


def test_encoding_a_known_sentence() -> None:
    assert Tokens().encode("HE'S A") == [11, 5, 27, 12, 4, 7, 4]


@given(st.lists(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ'", min_size=1), max_size=6).map(" ".join))
def test_decode_undoes_encode(text: str) -> None:
    tokens = Tokens()
    ids = tokens.encode(text)
    assert tokens.decode(ids) == text
    assert all(4 <= index < len(tokens) for index in ids)


def test_decoding_skips_specials_and_stray_bars() -> None:
    tokens = Tokens()
    assert tokens.decode([0, 4, 4, 5, 1, 2, 3, 4, 4, 7]) == "E A"
    assert tokens.decode([]) == ""


def test_unknown_letters_are_all_named() -> None:
    with pytest.raises(DataError) as caught:
        Tokens().encode("AN \u00c9TUDE 4 \u200d x|Y")
    what = caught.value.what
    for part in ("'4'", "'x'", "'|'", "'\u00c9' (U+00C9 LATIN CAPITAL LETTER E WITH ACUTE)"):
        assert part in what
    assert "(U+200D ZERO WIDTH JOINER)" in what
    assert "'A'" not in what
    assert "\u200d" not in what


def test_an_alphabet_from_texts_goes_by_count_then_letter() -> None:
    tokens = Tokens.from_texts(["b\u00e9 b", "a\u00e9 |"])
    assert tokens.symbols == ("<s>", "<pad>", "</s>", "<unk>", "|", "b", "\u00e9", "a")
    assert tokens.decode(tokens.encode("b\u00e9 a")) == "b\u00e9 a"
    with pytest.raises(DataError, match="no letters"):
        Tokens.from_texts(["", "  "])


def test_a_fairseq_dictionary_follows_the_specials(tmp_path: Path) -> None:
    path = tmp_path / "dict.ltr.txt"
    lines = [f"{symbol} {1000 - n}" for n, symbol in enumerate(LETTERS[4:])]
    path.write_text("\n".join(lines) + "\n")
    assert Tokens.from_fairseq_dict(path) == Tokens()


def test_a_wrong_fairseq_dictionary_is_named_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "dict.ltr.txt"
    path.write_text("| 10\nE\nT x\n")
    with pytest.raises(DataError) as caught:
        Tokens.from_fairseq_dict(path)
    assert f"{path}:2" in caught.value.what
    assert f"{path}:3" in caught.value.what
    path.write_text("| 10\nE 3\nE 2\n")
    with pytest.raises(DataError, match="listed twice: 'E'"):
        Tokens.from_fairseq_dict(path)
    with pytest.raises(DataError, match="cannot be read"):
        Tokens.from_fairseq_dict(tmp_path / "none.txt")
    path.write_bytes(b"\xff 3\n")
    with pytest.raises(DataError, match="not UTF-8"):
        Tokens.from_fairseq_dict(path)


def test_tokens_survive_json() -> None:
    for tokens in (Tokens(), Tokens.from_texts(["\u00fcber"])):
        assert Tokens.from_dict(json.loads(json.dumps(tokens.to_dict()))) == tokens


@pytest.mark.parametrize(
    "change",
    [
        {"symbols": None},
        {"symbols": ["|", 3]},
        {"symbols": ["<s>", "A"]},
        {"symbols": ["|", "A", "A"]},
        {"blank": 99},
        {"blank": True},
        {"kind": "bytes"},
        {"model": "no base64!"},
    ],
)
def test_a_damaged_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError):
        Tokens.from_dict(Tokens().to_dict() | change)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 5),
        model_writer=model,
        vocab_size=30,
        model_type="bpe",
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("pieces") / "tiny.model"
    path.write_bytes(model.getvalue())
    return Tokens.from_sentencepiece(path)


def test_pieces_follow_the_specials_and_decode_back(pieces: Tokens) -> None:
    assert pieces.symbols[:4] == ("<s>", "<pad>", "</s>", "<unk>")
    assert pieces.kind == "sentencepiece"
    for text in SENTENCES:
        ids = pieces.encode(text)
        assert min(ids) >= 4
        assert len(ids) < len(letters(text))
        assert pieces.decode(ids) == text


def test_pieces_carry_their_model_through_json(pieces: Tokens) -> None:
    copy = Tokens.from_dict(json.loads(json.dumps(pieces.to_dict())))
    assert copy == pieces
    assert copy.encode("ONE OX") == pieces.encode("ONE OX")


def test_pieces_name_unknown_letters(pieces: Tokens) -> None:
    with pytest.raises(DataError, match="GREEK CAPITAL LETTER OMEGA"):
        pieces.encode("ONE \u03a9")


def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.model"
    path.write_text("not a model")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        Tokens.from_sentencepiece(path)
    with pytest.raises(DataError, match="cannot be read"):
        Tokens.from_sentencepiece(tmp_path / "none.model")


def test_a_dictionary_may_be_fairseqs_or_a_list_of_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("| 90\nE 50\nT 40\n")
    assert Tokens.from_dictionary(path).symbols == ("<s>", "<pad>", "</s>", "<unk>", "|", "E", "T")
    path.write_text("-\n|\nE\nT\n")
    assert Tokens.from_dictionary(path).symbols == ("<s>", "|", "E", "T")
    path.write_text("<pad>\na\n \n'\n")
    assert Tokens.from_dictionary(path).symbols == ("<pad>", "a", "|", "'")
    path.write_text("<s>\n|\n-\nA\n")  # a hyphen, which is no blank where another symbol is first
    assert Tokens.from_dictionary(path) == Tokens(("<s>", "|", "-", "A"), blank=0)
    path.write_text("<s>\na\n")
    with pytest.raises(DataError, match="without a word separator"):
        Tokens.from_dictionary(path)
    path.write_text("<pad>\na\na\n|\n")
    with pytest.raises(DataError, match="listed twice: 'a'") as caught:
        Tokens.from_dictionary(path)
    assert "labels.txt" in caught.value.where


def test_unknown_letters_become_unk_where_that_is_asked_for(pieces: Tokens) -> None:
    tokens = Tokens()
    assert tokens.encode("A\u00c9|B", unknown=True) == [
        *(tokens.symbols.index(symbol) for symbol in ("A", "<unk>", "<unk>", "B", "|"))
    ]
    assert tokens.decode(tokens.encode("A\u00c9B", unknown=True)) == "AB"
    assert tokens.encode("AB", unknown=True) == tokens.encode("AB")
    ids = pieces.encode("ONE \u03a9", unknown=True)
    assert pieces.symbols.index("<unk>") in ids
    with pytest.raises(DataError, match="outside the vocabulary"):
        Tokens(("<s>", "|", "A")).encode("B", unknown=True)  # no <unk> to be
