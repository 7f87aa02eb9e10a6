"""The beam search against all paths written out, and at its edges."""

from __future__ import annotations

import itertools
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from ngrams import model, sentences
from searches import log_softmax

from w2vtool.decoder import lexicon as lexicons
from w2vtool.decoder.beam import BeamOptions, Search
from w2vtool.decoder.lm import LanguageModel
from w2vtool.errors import ConfigError, DataError
from w2vtool.tokens import Tokens

TOKENS = Tokens(("-", "|", "A", "B"))
BLANK, SEPARATOR = 0, 1
WORDS = ("A", "B", "AB", "AA", "BA")
LEXICON = lexicons.from_words(WORDS, TOKENS)
WIDE = {"beam": 10_000, "threshold": math.inf, "token_threshold": math.inf}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return model(sentences(WORDS, 300), 3)


@pytest.fixture(scope="module")
def other_lm() -> LanguageModel:
    """Knows B and AA, which the small lexicon lacks, but not BA, which it has."""
    return model(sentences(("A", "B", "AB", "AA"), 300), 2)


def emissions(rng: np.random.Generator, frames: int, tokens: int = 4, spread: float = 2.0):
    x_TV = rng.normal(0, spread, (frames, tokens))
    return log_softmax(x_TV)


def weights(rng: np.random.Generator) -> dict[str, float]:
    return {
        "lm_weight": float(rng.uniform(0, 3)),
        "word_score": float(rng.normal()),
        "sil_score": float(rng.choice([0.0, -0.5, 0.3])),
        "unk_score": float(rng.normal(0, 2)),
        "unk_letter_score": float(-rng.uniform(0, 2)),
    }


@cache
def all_paths(frames: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Every path, the row of its text, and the texts."""
    paths = list(itertools.product(range(len(TOKENS)), repeat=frames))
    texts: dict[str, int] = {}
    rows = []
    for path in paths:
        collapsed = [token for token, _ in itertools.groupby(path)]
        text = "".join(TOKENS.symbols[t] for t in collapsed if t != BLANK)
        rows.append(texts.setdefault(text, len(texts)))
    return np.array(paths, int).reshape(len(paths), frames), np.array(rows), list(texts)


def oracle(
    logp_TV: np.ndarray, lm: LanguageModel | None, options: BeamOptions, known: tuple[str, ...]
) -> list[tuple[float, str]]:
    """Score of every word sequence, best first, by the definition: no search at all."""
    paths, rows, texts = all_paths(len(logp_TV))
    acoustic = logp_TV[np.arange(len(logp_TV)), paths].sum(axis=1)
    acoustic += options.sil_score * (paths == SEPARATOR).sum(axis=1)
    best_of_text = np.full(len(texts), -np.inf)
    np.maximum.at(best_of_text, rows, acoustic)
    best: dict[tuple[str, ...], float] = {}
    for score, text in zip(best_of_text, texts, strict=True):
        words = tuple(word for word in text.split("|") if word)
        closed = not text or text.endswith("|")
        if closed and (options.mode == "open" or all(word in known for word in words)):
            best[words] = max(best.get(words, -math.inf), float(score))
    ranked = []
    for words, score in best.items():
        for word in words:
            free = options.unk_score + options.unk_letter_score * len(word)
            ours = word in known or (lm is not None and lm.knows(word))
            score += options.word_score if ours else free
        total = score + options.lm_weight * (lm.sentence(words) if lm else 0.0)
        ranked.append((total, " ".join(words)))
    return sorted(ranked, reverse=True)


@pytest.mark.parametrize("seed", range(80))
@pytest.mark.parametrize("with_lm", [True, False], ids=["lm", "no-lm"])
def test_wide_lexicon_search_finds_the_best_of_all_paths(
    lm: LanguageModel, seed: int, with_lm: bool
) -> None:
    rng = np.random.default_rng(seed)
    logp_TV = emissions(rng, int(rng.integers(0, 7)))
    options = BeamOptions(**WIDE, **weights(rng))
    model = lm if with_lm else None
    [found] = Search(TOKENS, LEXICON, model, options)(logp_TV)
    score, text = oracle(logp_TV, model, options, WORDS)[0]
    assert found.text == text
    assert found.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("seed", range(80))
@pytest.mark.parametrize("case", ["lexicon+lm", "lm", "lexicon", "nothing"])
def test_wide_open_search_finds_the_best_of_all_paths(
    other_lm: LanguageModel, seed: int, case: str
) -> None:
    rng = np.random.default_rng(seed)
    logp_TV = emissions(rng, int(rng.integers(0, 7)))
    options = BeamOptions(**WIDE, **weights(rng), mode="open")
    words = ("A", "AB", "BA") if "lexicon" in case else ()
    lexicon = lexicons.from_words(words, TOKENS) if words else None
    model = other_lm if "lm" in case else None
    [found] = Search(TOKENS, lexicon, model, options)(logp_TV)
    score, text = oracle(logp_TV, model, options, words)[0]
    assert found.text == text
    assert found.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("mode", ["lexicon", "open"])
@pytest.mark.parametrize("seed", range(20))
def test_a_wide_n_best_list_is_the_list_of_all_sentences(
    lm: LanguageModel, seed: int, mode: str
) -> None:
    rng = np.random.default_rng(seed)
    logp_TV = emissions(rng, int(rng.integers(1, 6)))
    options = BeamOptions(**WIDE, **weights(rng), nbest=12, mode=mode)
    found = Search(TOKENS, LEXICON, lm, options)(logp_TV)
    expected = oracle(logp_TV, lm, options, WORDS)[:12]
    assert [h.text for h in found] == [text for _, text in expected]
    assert [h.score for h in found] == pytest.approx([s for s, _ in expected], abs=1e-4)


def test_the_parts_add_up_to_the_score(lm: LanguageModel) -> None:
    rng = np.random.default_rng(3)
    logp_TV = emissions(rng, 6)
    options = BeamOptions(**WIDE, lm_weight=1.7, word_score=-0.4, sil_score=0.2, nbest=5)
    for found in Search(TOKENS, LEXICON, lm, options)(logp_TV):
        words = found.text.split()
        assert found.lm == pytest.approx(lm.sentence(words), abs=1e-5)
        total = found.acoustic + 1.7 * found.lm - 0.4 * len(words)
        assert total == pytest.approx(found.score, abs=1e-9)
        plain = BeamOptions(**WIDE, lm_weight=0, sil_score=0.2)
        alone = {text: s for s, text in oracle(logp_TV, None, plain, WORDS)}
        assert found.acoustic == pytest.approx(alone[found.text], abs=1e-4)


LETTERS = Tokens()
DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
COMMANDS = (*DIGITS, "UP", "DOWN", "LEFT", "RIGHT", "STOP", "GO", "YES", "NO", "ON", "OFF")


@pytest.fixture(scope="module")
def commands_lm() -> LanguageModel:
    return model(sentences(COMMANDS, 300), 3)


def spoken(text: str, rng: np.random.Generator, noise: float = 2.0) -> np.ndarray:
    """Emissions of a noisy, peaked model that is right in most frames."""
    ids = [LETTERS.blank]
    for label in LETTERS.encode(text):
        ids += [label] * int(rng.integers(1, 3)) + [LETTERS.blank] * int(rng.integers(1, 3))
    logits_TV = rng.normal(0, noise, (len(ids), len(LETTERS)))
    logits_TV[np.arange(len(ids)), ids] += 7
    return log_softmax(logits_TV)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("mode", ["lexicon", "open"])
def test_a_wider_beam_never_worsens_the_score(
    commands_lm: LanguageModel, seed: int, mode: str
) -> None:
    rng = np.random.default_rng(seed)
    text = " ".join(rng.choice(COMMANDS, 4))
    logp_TV = spoken(text, rng, noise=2.5)
    lexicon = lexicons.from_words(COMMANDS, LETTERS)
    scores = []
    for beam in (4, 16, 64, 256):
        options = BeamOptions(beam=beam, threshold=40, token_threshold=12, mode=mode)
        scores.append(Search(LETTERS, lexicon, commands_lm, options)(logp_TV)[0].score)
    assert scores == sorted(scores)


@pytest.mark.parametrize("mode", ["lexicon", "open"])
def test_noisy_commands_come_out_right(commands_lm: LanguageModel, mode: str) -> None:
    rng = np.random.default_rng(0)
    search = Search(
        LETTERS, lexicons.from_words(COMMANDS, LETTERS), commands_lm, BeamOptions(mode=mode)
    )
    texts = [" ".join(rng.choice(COMMANDS, 5)) for _ in range(8)]
    assert [search(spoken(text, rng, noise=1.5))[0].text for text in texts] == texts


def test_open_mode_spells_a_word_that_nothing_knows(commands_lm: LanguageModel) -> None:
    logp_TV = spoken("GO QUICKLY LEFT", np.random.default_rng(1), noise=0.5)
    lexicon = lexicons.from_words(COMMANDS, LETTERS)
    opened = Search(LETTERS, lexicon, commands_lm, BeamOptions(mode="open"))(logp_TV)[0]
    closed = Search(LETTERS, lexicon, commands_lm, BeamOptions(threshold=200))(logp_TV)[0]
    assert opened.text == "GO QUICKLY LEFT"
    assert set(closed.text.split()) <= set(COMMANDS)


def spell(symbols: str) -> np.ndarray:
    """One frame a symbol, almost sure."""
    logp_TV = np.full((len(symbols), len(TOKENS)), -20.0)
    logp_TV[np.arange(len(symbols)), [TOKENS.symbols.index(s) for s in symbols]] = 0.0
    return logp_TV


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ("AA|", "A"),  # a repeat is one letter
        ("A-A|", "AA"),
        ("BA|-||A--A|", "BA AA"),
        ("|A|", "A"),  # separators before and between words are free
        ("A||-|B|", "A B"),
        ("--|-", ""),
        ("", ""),
        ("|", ""),
        ("-", ""),
    ],
)
def test_frames_read_as_ctc(frames: str, text: str) -> None:
    logp_TV = spell(frames).reshape(len(frames), 4)
    for options in (BeamOptions(), BeamOptions(mode="open", unk_score=0)):
        assert Search(TOKENS, LEXICON, None, options)(logp_TV)[0].text == text


@pytest.mark.parametrize("mode", ["lexicon", "open"])
def test_an_utterance_that_ends_without_separator_keeps_its_last_word(mode: str) -> None:
    options = BeamOptions(mode=mode, threshold=15)
    search = Search(TOKENS, LEXICON, None, options)
    found = search(spell("A|BA"))[0]
    assert (found.text, found.score) == ("A BA", 0.0)
    faint = spell("A|BA-")
    faint[-1, SEPARATOR] = -3.0  # any hypothesis that ends in a separator goes first
    assert search(faint)[0][:4] == ("A BA", -3.0, -3.0, 0.0)


def test_an_unfinished_last_word_is_dropped() -> None:
    lexicon = lexicons.from_words(["A", "BAB"], TOKENS)
    assert Search(TOKENS, lexicon)(spell("A|BA"))[0].text == "A"


def test_words_of_one_spelling_are_told_apart_by_the_language_model(tmp_path: Path) -> None:
    path = tmp_path / "homophones.txt"
    path.write_text("read\tA B |\nred\tA B |\nI\tA |\nthe\tB |\n")
    search = Search(TOKENS, lexicons.read(path, TOKENS), model(["I read", "the red"] * 2, 2))
    assert search(spell("A|AB|"))[0].text == "I read"
    assert search(spell("B|AB|"))[0].text == "the red"


@pytest.mark.parametrize("mode", ["lexicon", "open"])
def test_frames_of_minus_infinity_change_nothing_else(lm: LanguageModel, mode: str) -> None:
    search = Search(TOKENS, LEXICON, lm, BeamOptions(mode=mode))
    whole = spell("A|-|BA|")
    masked = whole.copy()
    masked[masked < -1] = -np.inf  # what a model with masked tokens gives
    assert search(masked)[0] == search(whole)[0]
    masked[2] = -np.inf  # a frame that nothing explains
    assert search(masked)[0].text == "A BA"
    assert search(np.full((3, 4), -np.inf))[0].score < -1e8


def test_emissions_are_checked() -> None:
    search = Search(TOKENS, LEXICON)
    bad = spell("A|")
    bad[1, 2] = np.nan
    with pytest.raises(DataError, match=r"NaN or \+inf in 1 of 2 frames, first in frame 1"):
        search(bad)
    with pytest.raises(DataError, match=r"shape \(2, 3\) for 4 tokens"):
        search(np.zeros((2, 3)))


def test_float32_and_views_decode_like_float64() -> None:
    search = Search(TOKENS, LEXICON)
    logp_TV = emissions(np.random.default_rng(5), 6)
    assert search(logp_TV[::-1])[0] == search(logp_TV[::-1].copy())[0]
    assert search(logp_TV.astype(np.float32))[0].text == search(logp_TV)[0].text


def test_pieces_of_which_none_begins_a_word_are_refused() -> None:
    pieces = Tokens(("<s>", "A", "B"), kind="sentencepiece")
    with pytest.raises(DataError, match="no piece begins with '▁'"):
        Search(pieces, None, None, BeamOptions(mode="open"))


def test_a_language_model_in_another_case_is_refused(commands_lm: LanguageModel) -> None:
    lower = Tokens(("-", "|", *"onezr"))
    lexicon = lexicons.from_words(["one", "zero"], lower)
    with pytest.raises(DataError, match=r"none of the lexicon's 2 words, like 'one'(.|\n)*case"):
        Search(lower, lexicon, commands_lm)


def test_words_unknown_to_the_language_model_are_told(other_lm: LanguageModel) -> None:
    assert Search(TOKENS, LEXICON, other_lm).unknown == ("BA",)


def test_a_closed_search_needs_a_lexicon() -> None:
    with pytest.raises(ConfigError, match="without a lexicon"):
        Search(TOKENS)


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match="beam=0, threshold=-1, mode=free, lm_weight=nan"):
        BeamOptions(beam=0, threshold=-1, mode="free", lm_weight=math.nan)  # type: ignore[arg-type]
