"""Searches over a SentencePiece model's pieces: any spelling of a word is the word."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
from ngrams import model, sentences
from searches import log_softmax, same
from streams import stays_small

from w2vtool import vocabulary
from w2vtool.decoder import lexicon as lexicons
from w2vtool.decoder import planting
from w2vtool.decoder.beam import BeamOptions, Search
from w2vtool.decoder.best_path import BestPath
from w2vtool.decoder.greedy import Span
from w2vtool.decoder.lexicon import letter_ids
from w2vtool.decoder.lm import LanguageModel
from w2vtool.errors import DataError
from w2vtool.tokens import Tokens

COMMANDS = ("ZERO", "ONE", "TWO", "THREE", "UP", "DOWN", "LEFT", "RIGHT", "STOP", "GO", "ON", "OFF")
TEXT = "GO UP STOP ONE QUICKLY TWO ON OFF"
ENGINES = ("numba", "torch")
MODES = {
    "lexicon": {"mode": "lexicon"},
    "open": {"mode": "open"},
    "summed": {"mode": "open", "merge": "logadd"},
    "histories": {"mode": "open", "nbest": 5},
    "tokens": {"mode": "tokens"},
}


SENTENCES = sentences(COMMANDS, 300, longest=6, even=True)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    path = tmp_path_factory.mktemp("pieces") / "tokens.model"
    letters = ["ABCDEFGHIJKLMNOPQRSTUVWXYZ", *" ".join("QUICKLY").split()]
    path.write_bytes(vocabulary.train_pieces([*SENTENCES, *letters], 49))
    found = Tokens.from_sentencepiece(path)
    assert {"▁", "▁GO", "▁STOP", "O"} <= set(found.symbols)
    return found


@pytest.fixture(scope="module")
def models(tokens: Tokens) -> dict[str, LanguageModel]:
    texts = {"words": SENTENCES, "pieces": [" ".join(tokens.pieces(s)) for s in SENTENCES]}
    return {name: model(lines, 3) for name, lines in texts.items()}


def spelled(text: str, tokens: Tokens, seed: int) -> list[int]:
    """A text in pieces that were drawn, not in those that SentencePiece would choose."""
    draw, ids = random.Random(seed), letter_ids(tokens)
    found = []
    for word in text.split():
        rest = f"▁{word}"
        while rest:
            piece = draw.choice([piece for piece in ids if rest.startswith(piece)])
            found.append(ids[piece])
            rest = rest[len(piece) :]
    return found


def spoken(ids: list[int], tokens: Tokens, seed: int, noise: float = 2.0) -> np.ndarray:
    """Emissions of a noisy, peaked model that is right in most frames."""
    rng = np.random.default_rng(seed)
    frames = [tokens.blank]
    for token in ids:
        frames += [token] * int(rng.integers(1, 3)) + [tokens.blank] * int(rng.integers(1, 3))
    logits_TV = rng.normal(0, noise, (len(frames), len(tokens)))
    logits_TV[np.arange(len(frames)), frames] += 8
    return log_softmax(logits_TV)


def sure(ids: list[int], tokens: Tokens) -> np.ndarray:
    """Emissions without doubt."""
    logp_TV = np.full((2 * len(ids), len(tokens)), -50.0)
    logp_TV[::2, tokens.blank] = logp_TV[np.arange(1, 2 * len(ids), 2), ids] = 0.0
    return logp_TV


def made(
    tokens: Tokens, models: dict[str, LanguageModel], mode: str, engine: str, **given: object
) -> Search:
    options = BeamOptions(**{"beam": 15, "threshold": 14.0, **MODES[mode], **given})  # type: ignore[arg-type]
    by_tokens = options.mode == "tokens"
    return Search(
        tokens,
        None if options.mode != "lexicon" else lexicons.from_words(COMMANDS, tokens),
        models["pieces" if by_tokens else "words"],
        options,
        hotwords={"GO UP": 2.0, "QUICKLY": 6.0, "STOP": -1.0},
        engine=engine,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_known_word_is_known_in_all_its_spellings(
    tokens: Tokens, models: dict[str, LanguageModel], engine: str
) -> None:
    text, seen = "ZERO STOP STOP", set()
    options = BeamOptions(mode="open", lm_weight=1.5, word_score=0.5)
    search = Search(tokens, None, models["words"], options, engine=engine)  # type: ignore[arg-type]
    for seed in range(12):
        ids = spelled(text, tokens, seed)
        seen.add(tuple(ids))
        [found] = search(sure(ids, tokens))
        assert found.text == text
        log10 = models["words"].sentence(text.split())
        assert found.score == pytest.approx(1.5 * log10 + 3 * 0.5, abs=1e-4)
        assert found.lm == pytest.approx(log10, abs=1e-4)
    assert len(seen) > 6


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unknown_word_costs_its_letters_however_it_is_spelled(
    tokens: Tokens, models: dict[str, LanguageModel], engine: str
) -> None:
    options = BeamOptions(mode="open", lm_weight=1.5, unk_score=-3.0, unk_letter_score=-0.25)
    search = Search(tokens, None, models["words"], options, engine=engine)  # type: ignore[arg-type]
    for seed in range(6):
        [found] = search(sure(spelled("GO QUICKLY", tokens, seed), tokens))
        assert found.text == "GO QUICKLY"
        log10 = models["words"].sentence(["GO", "QUICKLY"])
        assert found.score == pytest.approx(1.5 * log10 - 3.0 - 7 * 0.25, abs=1e-4)


def test_what_is_no_text_is_never_written(tokens: Tokens, models: dict[str, LanguageModel]) -> None:
    ids = [tokens.symbols.index(s) for s in ("▁GO", "<unk>", "▁ON")]
    logp_TV = np.full((6, len(tokens)), -12.0)
    logp_TV[::2, tokens.blank] = logp_TV[np.arange(1, 6, 2), ids] = 0.0
    for mode, lm in (("open", models["words"]), ("tokens", models["pieces"])):
        options = BeamOptions(mode=mode, nbest=5, threshold=40.0)  # type: ignore[arg-type]
        lists = [Search(tokens, None, lm, options, engine=e)(logp_TV) for e in ENGINES]  # type: ignore[arg-type]
        same(*lists)
        assert lists[0][0].text == "GO ON"
        assert all("unk" not in h.text and "▁" not in h.text for h in lists[0])


@pytest.mark.parametrize("mode", MODES)
def test_narrow_searches_of_both_engines_are_the_same(
    tokens: Tokens, models: dict[str, LanguageModel], mode: str
) -> None:
    utterances = [spoken(spelled(TEXT, tokens, n), tokens, n) for n in range(4)]
    utterances += [np.zeros((0, len(tokens))), utterances[0][:1]]
    lists = [made(tokens, models, mode, engine, times=True).batch(utterances) for engine in ENGINES]
    for found, other in zip(*lists, strict=True):
        same(found, other)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_frames_that_come_bit_by_bit_give_the_same(
    tokens: Tokens, models: dict[str, LanguageModel], mode: str, engine: str
) -> None:
    search, rng = made(tokens, models, mode, engine, times=True), random.Random(3)
    for seed in range(3):
        logp_TV = spoken(spelled(TEXT, tokens, seed), tokens, seed)
        stream, committed, at = search.stream(), "", 0
        while at < len(logp_TV):
            size = rng.choice([0, 1, 2, 7, 20])
            now = stream.step(logp_TV[at : at + size])
            assert now.startswith(committed)
            committed, at = now, at + size
        final = stream.finish()
        same(final, search(logp_TV))
        assert committed or mode == "histories"
        assert all(h.text.startswith(committed) for h in final)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["lexicon", "open", "tokens"])
def test_words_are_where_their_letters_were_spoken(tokens: Tokens, engine: str, mode: str) -> None:
    frames = ["-", "▁", "-", "G", "O", "O", "-", "O", "-", "▁GO", "-", "▁", "U", "P", "P"]
    ids = [tokens.blank if s == "-" else tokens.symbols.index(s) for s in frames]
    logp_TV = np.full((len(ids), len(tokens)), -20.0)
    logp_TV[np.arange(len(ids)), ids] = -1e-6
    lexicon = lexicons.from_words(["GOO", "GO", "UP"], tokens) if mode != "tokens" else None
    options = BeamOptions(mode=mode, times=True)  # type: ignore[arg-type]
    [found] = Search(tokens, lexicon, None, options, engine=engine)(logp_TV)  # type: ignore[arg-type]
    assert found.text == "GOO GO UP"
    assert found.words == (Span("GOO", 3, 8), Span("GO", 9, 10), Span("UP", 12, 15))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_lexicon_of_plain_words_or_of_one_spelling_takes_them_all(
    tokens: Tokens, engine: str, tmp_path: Path
) -> None:
    path = tmp_path / "words.tsv"
    path.write_text("STOP\nHalt\t▁ S T O P\nGO\t▁ G O\n")
    lexicon = lexicons.read(path, tokens)
    search = Search(tokens, lexicon, None, BeamOptions(nbest=4), engine=engine)  # type: ignore[arg-type]
    for seed in range(6):
        found = search(sure(spelled("STOP GO", tokens, seed), tokens))
        assert {h.text for h in found if h.score > -1} == {"STOP GO", "Halt GO"}


def test_a_word_without_a_beginning_is_refused_in_an_open_search(
    tokens: Tokens, tmp_path: Path
) -> None:
    path = tmp_path / "words.tsv"
    path.write_text("STOP\tS T O P\nGO\t▁ G O\nGO-ON\t▁GO ▁ON\n")
    lexicon = lexicons.read(path, tokens)
    with pytest.raises(DataError) as caught:
        Search(tokens, lexicon, None, BeamOptions(mode="open"))
    assert "'STOP'" in str(caught.value) and "'GO-ON'" in str(caught.value)
    assert "'GO'" not in str(caught.value)


def test_hotwords_that_no_pieces_make_are_named(tokens: Tokens) -> None:
    with pytest.raises(DataError, match="'GÖ': no token for Ö"):
        Search(tokens, None, None, BeamOptions(mode="open"), hotwords={"GÖ": 1.0, "GO": 1.0})


def test_a_wider_beam_is_never_worse(tokens: Tokens, models: dict[str, LanguageModel]) -> None:
    widths = ((5, 10.0), (50, 20.0), (500, 40.0))
    searches = [made(tokens, models, "open", "numba", beam=n, threshold=t) for n, t in widths]
    for seed in range(4):
        logp_TV = spoken(spelled(TEXT, tokens, seed), tokens, seed, noise=3.0)
        scores = [search(logp_TV)[0].score for search in searches]
        assert all(a <= b + 1e-6 for a, b in itertools.pairwise(scores))


def test_every_node_of_a_trie_is_its_letters_and_a_piece(tokens: Tokens) -> None:
    ids = letter_ids(tokens)
    words = ("STOP", "STO", "GO", "ON")
    space = Search(tokens, lexicons.from_words(words, tokens), None).space
    text = {planting.ROOT: ""}
    seen = set()
    for node in range(space.first_root):
        below = range(space.child_begin[node], space.child_end[node])
        assert [space.token[c] for c in below] == sorted({int(space.token[c]) for c in below})
        for child in below:
            piece = tokens.symbols[space.token[child]]
            assert text.setdefault(child, text[node] + piece) == text[node] + piece
            seen.add((text[child], piece))
    ways = {
        (f"▁{word}"[:end], f"▁{word}"[begin:end])
        for word in words
        for end in range(1, len(word) + 2)
        for begin in range(end)
        if f"▁{word}"[begin:end] in ids
    }
    assert seen == ways  # each once, since every letter is a piece
    assert len(text) == space.first_root == len(ways) + 1
    hashes: dict[str, int] = {}
    for node, letters in text.items():
        assert space.depth[node] == len(letters.replace("▁", ""))
        hashes.setdefault(letters.replace("▁", ""), int(space.spelled[node]))
        assert hashes[letters.replace("▁", "")] == space.spelled[node]
    assert len(set(hashes.values())) == len(hashes)
    assert math.isfinite(space.look.sum())


def test_a_mark_that_stands_alone_writes_one_space(tokens: Tokens) -> None:
    ids = [tokens.symbols.index(symbol) for symbol in ("▁", "▁GO", "▁", "▁ON", "▁")]
    assert tokens.decode(ids) == "GO ON"
    options = BeamOptions(mode="tokens", times=True)
    [found] = Search(tokens, None, None, options)(sure(ids, tokens))
    assert found.text == "GO ON" and [word.text for word in found.words] == ["GO", "ON"]


def test_greedy_word_times_have_neither_specials_nor_marks(tokens: Tokens) -> None:
    said = ["▁GO", "<unk>", "▁", "O", "N"]
    ids = [tokens.symbols.index(symbol) for symbol in said]
    [[found]] = BestPath(tokens, times=True).batch([sure(ids, tokens)])
    assert found.text == "GO ON"
    assert found.words == (Span("GO", 1, 2), Span("ON", 7, 10))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_long_stream_settles_its_text_and_stays_small(
    tokens: Tokens, models: dict[str, LanguageModel], engine: str
) -> None:
    options = BeamOptions(mode="open", times=True)
    search = Search(tokens, None, models["words"], options, engine=engine)  # type: ignore[arg-type]
    logp_TV = spoken(spelled("GO UP STOP ONE", tokens, 1), tokens, 1, noise=1.0)
    stays_small(search, logp_TV, "GO UP STOP ONE", times=20, rows=30)
