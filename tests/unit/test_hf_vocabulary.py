"""Vocabularies of transformers: the same rows, our names, the same text out of them."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from w2vtool.decoder.greedy import greedy
from w2vtool.errors import CheckpointError, DataError
from w2vtool.interop.hf_vocabulary import (
    LanguageModelFiles,
    find_vocabulary,
    foreign_symbols,
    read_vocabulary,
    special_rows,
    write_language_model,
    write_vocabulary,
)
from w2vtool.interop.names import case_of
from w2vtool.tokens import LETTERS, SPECIALS, Tokens

os.environ["HF_HUB_OFFLINE"] = "1"
FACEBOOK = ("<pad>", "<s>", "</s>", "<unk>", *LETTERS[4:])
COMMUNITY = ("a", "b", "c", "|", "d", "é", "[UNK]", "[PAD]")  # as tutorials make them
COMMUNITY_NAMES = {"unk_token": "[UNK]", "pad_token": "[PAD]", "word_delimiter_token": "|"}
ARPA = """\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-1.0\t<unk>
0\t<s>\t-0.3
-1.0\t</s>
-0.5\tCAT\t-0.3
-0.7\tÄT\t-0.3

\\2-grams:
-0.2\t<s> CAT
-0.3\tCAT </s>

\\end\\
"""


def vocabulary(folder: Path, symbols: tuple[str, ...], **settings: Any) -> Path:
    path = folder / "vocab.json"
    path.write_text(json.dumps({symbol: row for row, symbol in enumerate(symbols)}))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def refusal(path: Path, rows: int | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        if rows is None:
            read_vocabulary(path)
        else:
            find_vocabulary(path.parent, rows, None)
    assert caught.value.where == str(path)
    return str(caught.value)


def test_facebooks_vocabulary_is_fairseqs(tmp_path: Path) -> None:
    assert read_vocabulary(vocabulary(tmp_path, FACEBOOK)) == Tokens()
    assert find_vocabulary(tmp_path, 32, 0) == (Tokens(), ())
    assert foreign_symbols(Tokens()) == FACEBOOK
    assert special_rows(Tokens()) == {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def test_the_pad_row_is_the_blank_wherever_it_is(tmp_path: Path) -> None:
    path = vocabulary(tmp_path, COMMUNITY, **COMMUNITY_NAMES)
    tokens = read_vocabulary(path)
    assert tokens == Tokens(("a", "b", "c", "|", "d", "é", "<unk>", "<s>"), blank=7)
    assert case_of(tokens) == "lower"
    assert special_rows(tokens) == {"pad_token_id": 7, "bos_token_id": None, "eos_token_id": None}


def test_special_tokens_may_be_objects_and_lie_in_either_file(tmp_path: Path) -> None:
    path = vocabulary(tmp_path, ("_", "#", "x"), pad_token={"content": "_", "special": True})
    (tmp_path / "special_tokens_map.json").write_text('{"word_delimiter_token": "#"}')
    assert read_vocabulary(path) == Tokens(("<s>", "|", "x"), blank=0)


def test_without_a_pad_token_the_config_names_the_blank(tmp_path: Path) -> None:
    path = vocabulary(tmp_path, ("x", "|", "blank"), pad_token=None)
    assert find_vocabulary(tmp_path, 3, 2)[0] == Tokens(("x", "|", "<s>"), blank=2)
    assert "no CTC blank: <pad> and [PAD] are not in the vocabulary" in refusal(path)
    assert read_vocabulary(path, 2).blank == 2
    with pytest.raises(CheckpointError, match=r"\[PAD\], row 3 \(pad_token_id\) are not"):
        find_vocabulary(tmp_path, 3, 3)


def test_the_names_of_tutorials_are_known_without_a_tokenizer_file(tmp_path: Path) -> None:
    path = vocabulary(tmp_path, COMMUNITY)
    tokens = read_vocabulary(path)
    assert tokens == Tokens(("a", "b", "c", "|", "d", "é", "<unk>", "<s>"), blank=7)
    assert find_vocabulary(tmp_path, 8, 7) == (tokens, ())
    vocabulary(tmp_path, ("[PAD]", "<pad>", "|"))  # the default of transformers goes first
    assert read_vocabulary(path).blank == 1


def test_special_symbols_do_not_tell_the_case() -> None:
    assert case_of(Tokens(("<s>", "|", "a", "b", "[PAD]", "[UNK]"))) == "lower"
    assert case_of(Tokens(("<s>", "|", "A", "<ctc>"))) == "upper"
    assert case_of(Tokens(("<s>", "|", "A", "b"))) == "keep"
    pieces = ("<s>", "▁the", "ing", "▁x")
    assert case_of(Tokens(pieces, kind="sentencepiece")) == "lower"


def test_a_blank_that_config_and_tokenizer_place_differently_is_warned_of(tmp_path: Path) -> None:
    vocabulary(tmp_path, COMMUNITY, **COMMUNITY_NAMES)
    tokens, warnings = find_vocabulary(tmp_path, 8, 0)
    assert tokens is not None
    assert tokens.blank == 7
    assert "pad_token_id of config.json is 0, the tokenizer's '[PAD]' is row 7" in warnings[0]


def test_lower_case_transcripts_of_an_upper_vocabulary_are_warned_of(tmp_path: Path) -> None:
    vocabulary(tmp_path, FACEBOOK, do_lower_case=True)
    assert "do_lower_case" in find_vocabulary(tmp_path, 32, 0)[1][0]


@pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer_config.json"])
def test_added_tokens_fill_the_rows_that_the_head_has(where: str, tmp_path: Path) -> None:
    later = {str(row): {"content": symbol} for symbol, row in {"<s>": 8, "</s>": 9}.items()}
    settings = COMMUNITY_NAMES | ({"added_tokens_decoder": later} if "config" in where else {})
    vocabulary(tmp_path, COMMUNITY, **settings)
    if where == "added_tokens.json":
        (tmp_path / where).write_text('{"<s>": 8, "</s>": 9}')
    symbols = ("a", "b", "c", "|", "d", "é", "<unk>", "<s>")
    assert find_vocabulary(tmp_path, 8, 7)[0] == Tokens(symbols, blank=7)
    assert find_vocabulary(tmp_path, 10, 7)[0] == Tokens((*symbols, "<pad>", "</s>"), blank=7)


def test_rows_without_a_symbol_are_named(tmp_path: Path) -> None:
    path = vocabulary(tmp_path, COMMUNITY, **COMMUNITY_NAMES)
    text = refusal(path, 10)
    assert "no symbol for 2 of 10 rows: 8, 9" in text
    assert "one symbol a line for all 10 rows: --vocab LIST.txt" in text
    assert "too few for '[UNK]' (row 6), '[PAD]' (row 7)" in refusal(path, 6)
    path.write_text('{"<pad>": 0, "|": 3, "a": 3}')
    text = refusal(path)
    assert "no symbol for 2 of 4 rows: 1, 2" in text
    assert "row 3 is that of '|' and 'a'" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"deu": {"a": 0}, "eng": {"a": 0}}', "vocabularies of 2 languages (MMS)"),
        ("{}", "it is empty"),
        ('{"a": "0"}', "no row number at 'a'"),
        ('{"a": -1}', "no row number at 'a'"),
        ('{"a": true}', "no row number at 'a'"),
        ('["a"]', "a JSON list, where an object belongs"),
        ('{"a": 0,', "not JSON"),
        ('{"<pad>": 0, "a": 1}', "models without a word separator"),
        ('{"<pad>": 0, "<unk>": 1, "|": 2, "[UNK]": 3}', "listed twice: '<unk>'"),
    ],
)
def test_what_is_no_vocabulary_is_refused(content: str, said: str, tmp_path: Path) -> None:
    path = vocabulary(tmp_path, COMMUNITY, unk_token="[UNK]")
    path.write_text(content)
    assert said in refusal(path)


def test_a_special_token_that_is_no_symbol_is_refused(tmp_path: Path) -> None:
    path = vocabulary(tmp_path, FACEBOOK, unk_token=["<unk>"])
    with pytest.raises(CheckpointError, match=r"unk_token is .* not a symbol"):
        read_vocabulary(path)


def test_phonemes_are_refused(tmp_path: Path) -> None:
    path = vocabulary(tmp_path, COMMUNITY, tokenizer_class="Wav2Vec2PhonemeCTCTokenizer")
    assert "a vocabulary of phonemes" in refusal(path)


def tokenizer_of(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder)


def texts(tokenizer: Any, tokens: Tokens) -> tuple[list[str], list[str]]:
    """Theirs and ours for the same frames, in which unknown symbols and sentence ends are rare."""
    spoken = [row for row, symbol in enumerate(tokens.symbols) if symbol not in SPECIALS]
    weights = [1 + 3 * (tokens.symbols[row] == "|") for row in spoken]
    draw = random.Random(0)
    theirs, ours = [], []
    for _ in range(50):
        labels = [row for row, _ in groupby(draw.choices(spoken, weights, k=12))]
        frames = [
            r for row in labels for r in draw.choice(((row,), (row, row), (row, tokens.blank)))
        ]
        logp_TV = np.full((len(frames), len(tokens)), -9.0, dtype=np.float32)
        logp_TV[range(len(frames)), frames] = -0.1
        ours.append(greedy(logp_TV, tokens).text)
        theirs.append(" ".join(tokenizer.batch_decode([logp_TV.argmax(1)])[0].split()))
    return theirs, ours


@pytest.mark.parametrize(
    ("symbols", "settings"),
    [(FACEBOOK, {}), (COMMUNITY, COMMUNITY_NAMES)],
    ids=["base", "pad last"],
)
def test_greedy_text_is_that_of_their_tokenizer(
    symbols: tuple[str, ...], settings: dict[str, str], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    path = vocabulary(tmp_path, symbols)
    transformers.Wav2Vec2CTCTokenizer(str(path), **settings).save_pretrained(tmp_path)
    tokens, warnings = find_vocabulary(tmp_path, len(symbols), None)
    assert tokens is not None
    assert warnings == ()
    theirs, ours = texts(tokenizer_of(tmp_path), tokens)
    assert theirs == ours
    assert any(" " in text for text in ours)


@pytest.mark.parametrize(
    "tokens",
    [
        Tokens(),
        Tokens.from_texts(["it's ÄÖ", "né"]),
        Tokens(("a", "|", "b", "<s>"), blank=3),
        Tokens(("-", "|", "A", "B"), blank=0),  # torchaudio's bundles
    ],
    ids=["letters", "texts", "blank last", "dash"],
)
def test_greedy_text_is_that_of_the_tokenizer_that_we_write(tokens: Tokens, tmp_path: Path) -> None:
    write_vocabulary(tmp_path, tokens, "Wav2Vec2Processor")
    tokenizer = tokenizer_of(tmp_path)
    assert len(tokenizer) == len(tokens)
    assert tokenizer.pad_token_id == tokens.blank
    theirs, ours = texts(tokenizer, tokens)
    assert theirs == ours
    letter = next(s for s in tokens.symbols if s.isalpha())
    text = f"{letter} {letter}"
    assert tokenizer(text).input_ids == tokens.encode(text)[:-1]  # no word end at the end there


@given(
    st.lists(st.sampled_from("abcÄé'☃"), unique=True, min_size=1),
    st.lists(st.sampled_from(("<pad>", "</s>", "<unk>")), unique=True),
    st.randoms(use_true_random=False),
)
def test_tokens_come_back_as_they_were(
    letters: list[str], specials: list[str], order: random.Random
) -> None:
    symbols = ["<s>", "|", *letters, *specials]
    order.shuffle(symbols)
    tokens = Tokens(tuple(symbols), blank=symbols.index("<s>"))
    with tempfile.TemporaryDirectory() as folder:
        write_vocabulary(Path(folder), tokens, "Wav2Vec2Processor")
        rows = special_rows(tokens)["pad_token_id"]
        assert find_vocabulary(Path(folder), len(tokens), rows) == (tokens, ())


def pieces_of(folder: Path) -> Tokens:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat", "a dog barked", "cats and dogs"] * 5),
        model_writer=model,
        vocab_size=22,
        minloglevel=2,
    )
    (folder / "in.model").write_bytes(model.getvalue())
    return Tokens.from_sentencepiece(folder / "in.model")


def test_sentencepiece_comes_back_with_its_model(tmp_path: Path) -> None:
    tokens = pieces_of(tmp_path)
    write_vocabulary(tmp_path, tokens, "Wav2Vec2Processor")
    assert find_vocabulary(tmp_path, len(tokens), 0) == (tokens, ())
    tokenizer = tokenizer_of(tmp_path)
    assert len(tokenizer) == len(tokens)
    ids = tokens.encode("the cat")
    assert tokenizer.decode(ids, group_tokens=False).replace("▁", " ").strip() == "the cat"
    vocabulary(tmp_path, (*foreign_symbols(tokens)[:-1], "other"))
    assert "other pieces" in refusal(tmp_path / "vocab.json")


def written(folder: Path, tokens: Tokens, **changes: Any) -> Path:
    """A folder with vocabulary, audio settings and language model."""
    source = folder / "source.arpa"
    source.write_text(ARPA, encoding="utf-8")
    files = LanguageModelFiles(source, None, 0.7, -1)._replace(**changes)
    out = folder / "hf"
    out.mkdir()
    write_vocabulary(out, tokens, "Wav2Vec2ProcessorWithLM")
    write_language_model(out, tokens, files)
    return out


def test_the_language_model_lies_where_pyctcdecode_looks(tmp_path: Path) -> None:
    folder = written(tmp_path, Tokens())
    alphabet = json.loads((folder / "alphabet.json").read_text())
    assert alphabet == {"labels": ["", "<s>", "</s>", "⁇", " ", *LETTERS[5:]], "is_bpe": False}
    inside = folder / "language_model"
    assert {path.name for path in inside.iterdir()} == {"attrs.json", "lm.arpa", "unigrams.txt"}
    assert (inside / "unigrams.txt").read_text(encoding="utf-8") == "CAT\nÄT\n"
    assert (inside / "lm.arpa").read_text(encoding="utf-8") == ARPA
    attributes = json.loads((inside / "attrs.json").read_text())
    scores = {"alpha": 0.7, "beta": -1.0, "unk_score_offset": -10.0, "score_boundary": True}
    assert attributes == scores
    assert all(type(attributes[key]) is float for key in ("alpha", "beta"))


def test_a_packed_model_is_unpacked_and_given_words_win(tmp_path: Path) -> None:
    packed = tmp_path / "lm.arpa.gz"
    packed.write_bytes(gzip.compress(ARPA.encode()))
    words = tmp_path / "lexicon.txt"
    words.write_text("DOG\tD O G |\n\nCAT\nDOG\n")
    inside = written(tmp_path, Tokens(), path=packed, words=words) / "language_model"
    assert (inside / "lm.arpa").read_text(encoding="utf-8") == ARPA
    assert (inside / "unigrams.txt").read_text() == "CAT\nDOG\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"mmap lm http://kheafield.com/code", "a KenLM binary does not list its words"),
        (b"words and words", "not a language model"),
        (gzip.compress(ARPA.encode())[:40], "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_language_model_is_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "lm"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        written(tmp_path, Tokens(), path=path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("kind", ["letters", "blank last", "sentencepiece"])
def test_transformers_decodes_with_the_language_model(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("pyctcdecode")
    transformers = pytest.importorskip("transformers")
    tokens = Tokens()
    if kind == "blank last":
        tokens = Tokens(("A", "C", "T", "|", "Ä", "<s>"), blank=5)
    if kind == "sentencepiece":
        tokens = pieces_of(tmp_path)
    folder = written(tmp_path, tokens)
    audio = transformers.Wav2Vec2FeatureExtractor()
    audio.save_pretrained(folder)
    processor = transformers.Wav2Vec2ProcessorWithLM.from_pretrained(folder)
    labels = tokens.encode({"letters": "CAT", "blank last": "CAT ÄT"}.get(kind, "the cat"))
    logp_TV = np.full((len(labels), len(tokens)), -20.0, dtype=np.float32)
    logp_TV[range(len(labels)), labels] = 0.0
    assert processor.decode(logp_TV).text == greedy(logp_TV, tokens).text
    assert processor.language_model.alpha == 0.7
