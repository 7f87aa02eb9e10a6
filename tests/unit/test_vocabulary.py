"""Vocabularies made from text: always the same, of the size asked for, and honest about limits."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import soundfile
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from w2vtool import checkpoint, manifest
from w2vtool.errors import ConfigError, DataError
from w2vtool.manifest import Utterance
from w2vtool.tokens import SPECIALS, Tokens
from w2vtool.vocabulary import Sentence, assess, most_frequent, sample, train_pieces

WORDS = ("RED", "BLUE", "GREEN", "CATS", "OXEN", "RAN", "SLEPT", "FASTER", "SLOWER")
TEXTS = [" ".join(random.Random(i).choices(WORDS, k=4)) for i in range(200)]


def pieces(folder: Path, size: int, **options: Any) -> Tokens:
    path = folder / "tokens.model"
    path.write_bytes(train_pieces(TEXTS, size, **options))
    return Tokens.from_sentencepiece(path)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 5))
def test_a_sample_keeps_the_order_and_depends_on_the_seed_alone(
    limit: int, count: int, seed: int
) -> None:
    texts = [Sentence(f"t{i}") for i in range(count)]
    found = sample(iter(texts), limit, seed)
    assert len(found.sentences) == min(limit, count)
    places = [texts.index(sentence) for sentence in found.sentences]
    assert places == sorted(set(places))
    assert found == sample(iter(texts), limit, seed)
    assert found.texts == count
    assert found.letters["t"] == count


def test_every_sentence_may_be_in_the_sample() -> None:
    texts = [Sentence(str(i)) for i in range(6)]
    seen = {s.text for seed in range(40) for s in sample(texts, 2, seed).sentences}
    assert seen == set("012345")
    assert sample([Sentence(""), Sentence("A B")], 5).texts == 1
    with pytest.raises(DataError, match="no letters"):
        sample([Sentence("")], 5)


def test_letters_go_by_count_up_to_a_size_or_a_coverage() -> None:
    counts = Counter({"A": 50, "C": 30, "B": 30, "'": 9, "Q": 1, "|": 2})
    whole = [("|", 2), ("A", 50), ("B", 30), ("C", 30), ("'", 9), ("Q", 1)]
    assert most_frequent(counts, size=None, coverage=1.0) == whole
    assert most_frequent(counts, size=8, coverage=1.0) == whole[:4]
    assert most_frequent(counts, size=None, coverage=0.99) == whole[:5]
    always = most_frequent(counts, size=8, coverage=1.0, symbols=["Q", "Z"])
    assert always == [("|", 2), ("A", 50), ("Q", 1), ("Z", 0)]
    for size, symbols in ((5, ""), (6, "QZ")):
        with pytest.raises(ConfigError, match="no room"):
            most_frequent(counts, size=size, coverage=1.0, symbols=list(symbols))


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_pieces_have_the_size_asked_for_and_are_the_same_every_time(
    tmp_path: Path, model: Any
) -> None:
    tokens = pieces(tmp_path, 24, model=model)
    assert len(tokens) == 24
    assert tokens.symbols[:4] == SPECIALS
    assert train_pieces(TEXTS, 24, model=model) == tokens.model
    for text in TEXTS[:20]:
        assert tokens.decode(tokens.encode(text)) == text


def test_symbols_are_tokens_of_their_own(tmp_path: Path) -> None:
    tokens = pieces(tmp_path, 24, symbols=["<NOISE>"])
    assert "<NOISE>" in tokens.symbols
    assert tokens.symbols.index("<NOISE>") in tokens.encode("RED <NOISE> CATS")


def test_a_size_that_cannot_be_had_names_one_that_can(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most") as caught:
        pieces(tmp_path, 5000)
    most = int(caught.value.what.split(" of ")[1].split()[0])
    assert len(pieces(tmp_path, most)) == most
    with pytest.raises(ConfigError, match="alone need") as caught:
        pieces(tmp_path, 6)
    least = int(caught.value.what.split()[-1])
    assert len(pieces(tmp_path, least)) == least


def test_an_assessment_counts_what_cannot_be_written_and_what_is_too_short(tmp_path: Path) -> None:
    found = sample([Sentence("AB \u00d6", 1.0), Sentence("ABBA", 0.1), Sentence("B")], 9)
    tokens = Tokens((*SPECIALS, "|", "A", "B"))
    result = assess(tokens, found)
    assert result.unknown == {"\u00d6": 1}
    assert result.coverage == pytest.approx(7 / 8)
    assert (result.words, result.tokens) == (4, 12)
    assert (result.timed, result.too_short) == (2, 1)  # 0.1 s gives 4 frames, ABBA| needs 6


@pytest.fixture
def train(tmp_path: Path) -> Path:
    toys.corpus(tmp_path, "train", 6, seed=3)
    return tmp_path / "train.jsonl"


@pytest.mark.parametrize(
    ("words", "key", "name"),
    [
        (("--kind", "letters"), "file", "letters.txt"),
        (("--size", "13"), "sentencepiece", "tokens.model"),
    ],
)
def test_what_is_made_can_be_trained_with_and_is_in_the_checkpoint(
    w2v: Any, train: Path, tmp_path: Path, words: tuple[str, ...], key: str, name: str
) -> None:
    done = w2v("tokens", "train", train, *words, "--out", tmp_path / "made")
    assert done.code == 0, done.err
    assert "0 of 6 utterances" in done.out
    path = tmp_path / "made" / name
    recipe = toys.recipe(tmp_path / "r.yaml", train, updates=1)
    done = w2v(
        *("finetune-ctc", recipe, "--run-dir", tmp_path / "run"),
        *(f"text.tokens={key}", f"text.{key}={path}"),
    )
    assert done.code == 0, done.err
    path.unlink()
    tokens = checkpoint.load(tmp_path / "run").spec.tokens
    assert tokens is not None
    assert tokens.kind == ("sentencepiece" if key == "sentencepiece" else "letters")
    for row in manifest.read(train).rows:
        assert tokens.decode(tokens.encode(row.text or "")) == row.text


def test_text_files_and_rules_of_a_recipe(w2v: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Don't stop!\nGo\u200b on, 4 times.\n", encoding="utf-8")
    words = ("tokens", "train", text, "--kind", "letters", "--out", tmp_path, "--case", "lower")
    done = w2v(*words, "--punctuation", "drop", "text.apostrophes=drop", "--json")
    assert done.code == 0, done.err
    assert '"utterances": 0' in done.out
    assert f"ZERO WIDTH SPACE): 1 times, removed, first in {text}:2:3" in done.err
    tokens = Tokens.from_dictionary(tmp_path / "letters.txt")
    assert set(tokens.symbols[5:]) == set("dontstopgoon4times")
    text.write_bytes(b"fine\nbad \xff\n")
    done = w2v(*words)
    assert done.code == 3
    assert f"{text}:2:5: byte 0xFF is not UTF-8" in done.err


def test_of_a_table_and_of_a_corpus_the_transcripts_are_the_text(w2v: Any, tmp_path: Path) -> None:
    for name in ("Q.wav", "Z.wav"):
        soundfile.write(tmp_path / name, toys.wave(0), 16_000)
    table = tmp_path / "transcripts.tsv"
    table.write_text("Q.wav\tone two\tXX\nZ.wav\tTHREE\tXX\n")
    for path in (table, tmp_path):
        out = tmp_path / "letters.txt"
        done = w2v("tokens", "train", path, "--kind", "letters", "--out", out)
        assert done.code == 0, done.err
        assert set(Tokens.from_dictionary(out).symbols[5:]) == set("ONETWOTHREE")
        out.unlink()


def test_the_training_split_of_a_recipe_is_used_when_no_input_is_named(
    w2v: Any, train: Path, tmp_path: Path
) -> None:
    recipe = toys.recipe(tmp_path / "r.yaml", train)
    done = w2v("tokens", "train", recipe, "--kind", "letters", "--out", tmp_path / "l.txt")
    assert done.code == 0, done.err
    assert (tmp_path / "l.txt").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "no text given"),
        (("none.txt",), 3, "cannot be read"),
        (("--kind", "letters", "--symbols", "<a>"), 2, "single letters"),
    ],
)
def test_what_cannot_be_done_is_said(
    w2v: Any, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    done = w2v("tokens", "train", "--size", "30", *words, "--out", tmp_path / "x")
    assert (done.code, said in done.err) == (code, True), done.err
    done = w2v("tokens", "train", "--out", tmp_path / "x")
    assert "--size is needed" in done.err


def test_a_row_that_is_too_short_is_reported(w2v: Any, tmp_path: Path) -> None:
    rows = [
        Utterance("a", "a.wav", 0.2, text="A LONG LONG TEXT"),
        Utterance("b", "b.wav", 2.0, text="B"),
    ]
    manifest.write(tmp_path / "m.jsonl", rows)
    done = w2v("tokens", "train", tmp_path / "m.jsonl", "--kind", "letters", "--out", tmp_path)
    assert "1 of 2 utterances" in done.out
