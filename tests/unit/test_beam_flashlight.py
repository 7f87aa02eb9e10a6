"""Our search and flashlight's, on flashlight's objective and with beams that drop nothing.

Left out is what flashlight gets wrong, and shown: words that end with a doubled letter, and words
without ``|`` whose last token lasts for more than a frame.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ngrams import in_letters, sentences, write_arpa
from searches import log_softmax

from w2vtool.decoder import lexicon as lexicons
from w2vtool.decoder.beam import BeamOptions, Search
from w2vtool.decoder.lexicon import Lexicon
from w2vtool.decoder.lm import LanguageModel, open_lm
from w2vtool.decoder.lm_train import train
from w2vtool.tokens import Tokens

fl = pytest.importorskip("flashlight.lib.text.decoder", reason="ufal-flashlight-text is not there")
kenlm = pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="it is without KenLM")

TOKENS = Tokens(("-", "|", "A", "B", "C"))
BLANK, SEPARATOR = 0, 1
# words of one spelling, a word with two, letters doubled before the last "|"
LEXICON = Lexicon(
    ("A", "B", "AB", "AA", "BA", "read", "BAA", "CAB", "A"),
    (
        (2, 1), (3, 1), (2, 3, 1), (2, 2, 1), (3, 2, 1), (2, 3, 1), (3, 2, 2, 1), (4, 2, 3, 1),
        (4, 2, 1),
    ),
)  # fmt: skip
WORDS = tuple(dict.fromkeys(LEXICON.words))
WIDE: dict[str, Any] = {"beam": 50_000, "threshold": math.inf, "token_threshold": math.inf}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``words.arpa`` and ``letters.arpa``."""
    folder = tmp_path_factory.mktemp("lm")
    lines = sentences(WORDS, 300)
    write_arpa(train(lines, 3), folder / "words.arpa")
    letters = in_letters(line.replace("read", "AB") for line in lines)
    write_arpa(train(letters, 4), folder / "letters.arpa")
    return folder


def emissions(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Of float32, flashlight's type."""
    x_TV = rng.normal(0, rng.uniform(0.5, 3), (frames, len(TOKENS)))
    logp_TV = log_softmax(x_TV)
    return np.ascontiguousarray(logp_TV, np.float32)


def weights(rng: np.random.Generator) -> dict[str, float]:
    return {
        "lm_weight": float(rng.uniform(0, 3)),
        "word_score": float(rng.normal()),
        "sil_score": float(rng.choice([0.0, -0.5, 0.3])),
    }


def theirs(
    options: BeamOptions, entries: Lexicon, tokens: int, separator: int, lm: Path | None
) -> tuple[Any, Any]:
    """Flashlight's search with a lexicon, and its words."""
    from flashlight.lib.text.dictionary import create_word_dict

    names = list(dict.fromkeys(entries.words))
    words = create_word_dict({word: [[]] for word in (*names, "<unk>")})
    model = kenlm.KenLM(str(lm), words) if lm else fl.ZeroLM()
    trie = fl.Trie(tokens, separator)
    for word, spelling in zip(*entries, strict=True):
        index = words.get_index(word)
        trie.insert(list(spelling), index, model.score(model.start(False), index)[1])
    trie.smear(fl.SmearingMode.MAX)
    given = fl.LexiconDecoderOptions(
        beam_size=50_000,
        beam_size_token=tokens,
        beam_threshold=1e6,
        lm_weight=options.lm_weight,
        word_score=options.word_score,
        unk_score=-math.inf,
        sil_score=options.sil_score,
        log_add=options.summing,
        criterion_type=fl.CriterionType.CTC,
    )
    unknown = words.get_index("<unk>")
    search = fl.LexiconDecoder(given, trie, model, separator, BLANK, unknown, [], False)
    return search, words


def listed(search: Any, words: Any, logp_TV: np.ndarray) -> list[tuple[str, float]]:
    """Texts and scores; of equal texts, of several histories, the best."""
    best: dict[str, float] = {}
    for row in search.decode(logp_TV.ctypes.data, *logp_TV.shape):
        text = " ".join(words.get_entry(word) for word in row.words if word >= 0)
        best.setdefault(text, row.score)
    return list(best.items())


def equal(found: list[Any], other: list[tuple[str, float]]) -> None:
    """The same list in the same order; equals may change places."""
    scores, other = dict(other), other[: len(found)]
    assert [h.score for h in found] == pytest.approx([score for _, score in other], abs=2e-3)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(scores[hypothesis.text], abs=2e-3)
    gaps = [a.score - b.score for a, b in itertools.pairwise(found)]
    if all(gap > 4e-3 for gap in gaps):
        assert [h.text for h in found[:-1]] == [text for text, _ in other[:-1]]


def with_lexicon(seed: int, folder: Path, merge: Any, model: str | None, engine: Any) -> None:
    rng = np.random.default_rng(seed)
    logp_TV = emissions(rng, int(rng.integers(2, 9)))
    options = BeamOptions(**WIDE, **weights(rng), nbest=8, recombine="history", merge=merge)
    path = folder / f"{model}.arpa" if model else None
    lm = open_lm(path) if path else None
    found = Search(TOKENS, LEXICON, lm, options, engine=engine)(logp_TV)
    search, words = theirs(options, LEXICON, len(TOKENS), SEPARATOR, path)
    other = listed(search, words, logp_TV)
    if found[0].score > -1e8:
        equal(found, other)
    one = replace(options, nbest=1, recombine="state")
    best = Search(TOKENS, LEXICON, lm, one, engine=engine)(logp_TV)[0]
    if merge == "max":
        assert best.score == pytest.approx(other[0][1], abs=2e-3)
    else:  # sums of a history that another one of its state has beaten for a while lack paths
        assert best.score <= dict(other)[best.text] + 2e-3


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("model", ["words", None], ids=["kenlm", "zero"])
@pytest.mark.parametrize("merge", ["max", "logadd"])
def test_the_lists_are_flashlights(
    folder: Path, merge: str, model: str | None, engine: str
) -> None:
    for seed in range(30):
        with_lexicon(seed, folder, merge, model, engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("model", ["words", None], ids=["kenlm", "zero"])
@pytest.mark.parametrize("merge", ["max", "logadd"])
def test_the_lists_are_flashlights_in_many_cases(
    folder: Path, merge: str, model: str | None, engine: str
) -> None:
    for seed in range(30, 530):
        with_lexicon(seed, folder, merge, model, engine)


def without_lexicon(seed: int, folder: Path, merge: Any, model: str | None, engine: Any) -> None:
    from flashlight.lib.text.dictionary import Dictionary

    rng = np.random.default_rng(seed)
    logp_TV = emissions(rng, int(rng.integers(2, 7)))
    logp_TV[0, SEPARATOR] = -1e4  # theirs may go on from before, for nothing
    drawn = weights(rng) | {"word_score": 0.0}
    options = BeamOptions(**WIDE, **drawn, nbest=8, mode="tokens", merge=merge)
    path = folder / f"{model}.arpa" if model else None
    lm = open_lm(path) if path else None
    found = Search(TOKENS, None, lm, options, engine=engine)(logp_TV)
    given = fl.LexiconFreeDecoderOptions(
        beam_size=50_000,
        beam_size_token=len(TOKENS),
        beam_threshold=1e6,
        lm_weight=options.lm_weight,
        sil_score=options.sil_score,
        log_add=options.summing,
        criterion_type=fl.CriterionType.CTC,
    )
    names = Dictionary(list(TOKENS.symbols))
    their_lm = kenlm.KenLM(str(path), names) if path else fl.ZeroLM()
    search = fl.LexiconFreeDecoder(given, their_lm, SEPARATOR, BLANK, [])
    best: dict[str, float] = {}
    for row in search.decode(logp_TV.ctypes.data, *logp_TV.shape):
        path_T = row.tokens[1:-1]  # each list begins and ends with a "|" that is no frame
        ids = [token for token, _ in itertools.groupby(path_T) if token != BLANK]
        text = TOKENS.decode(ids)  # of which there may be several readings: "A", "A|"
        best.setdefault(text, row.score)
    equal(found, list(best.items()))


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("model", ["letters", None], ids=["kenlm", "zero"])
@pytest.mark.parametrize("merge", ["max", "logadd"])
def test_the_lists_without_a_lexicon_are_flashlights(
    folder: Path, merge: str, model: str | None, engine: str
) -> None:
    for seed in range(20):
        without_lexicon(seed, folder, merge, model, engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("model", ["letters", None], ids=["kenlm", "zero"])
@pytest.mark.parametrize("merge", ["max", "logadd"])
def test_the_lists_without_a_lexicon_are_flashlights_in_many_cases(
    folder: Path, merge: str, model: str | None, engine: str
) -> None:
    for seed in range(20, 520):
        without_lexicon(seed, folder, merge, model, engine)


PIECES = Tokens(("<s>", "<pad>", "A", "B"), kind="sentencepiece")  # <pad> is flashlight's "|"


def surely(path: str) -> np.ndarray:
    logp_TV = np.full((len(path), 4), -20.0, np.float32)
    logp_TV[np.arange(len(path)), ["-_AB".index(symbol) for symbol in path]] = 0.0
    return logp_TV


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_flashlight_takes_one_letter_for_two_at_the_end_of_a_word(engine: Any) -> None:
    entries = Lexicon(("BAA",), ((3, 2, 2),))
    options = BeamOptions(**WIDE, lm_weight=0)
    search, words = theirs(options, entries, 4, 1, None)
    assert listed(search, words, surely("BAA"))[0] == ("BAA", 0.0)  # CTC reads "BA"
    ours = Search(PIECES, entries, None, options, engine=engine)
    assert ours(surely("BAA"))[0].text != "BAA" or ours(surely("BAA"))[0].score < -19
    assert ours(surely("BA-A"))[0][:2] == ("BAA", 0.0)


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_flashlight_cuts_the_last_token_of_a_word_to_one_frame(engine: Any) -> None:
    entries = Lexicon(("BA",), ((3, 2),))
    options = BeamOptions(**WIDE, lm_weight=0)
    search, words = theirs(options, entries, 4, 1, None)
    assert listed(search, words, surely("BAA"))[0][1] < -19
    ours = Search(PIECES, entries, None, options, engine=engine)
    assert ours(surely("BAA"))[0][:2] == ("BA", 0.0)


LETTERS = Tokens()
COMMANDS = ("ZERO", "ONE", "TWO", "THREE", "UP", "DOWN", "LEFT", "RIGHT", "STOP", "GO", "ON", "OFF")


def spoken(text: str, seed: int) -> np.ndarray:
    """Emissions of a noisy, peaked model that is right in most frames."""
    rng = np.random.default_rng(seed)
    ids = [LETTERS.blank]
    for label in LETTERS.encode(text):
        ids += [label] * int(rng.integers(1, 3)) + [LETTERS.blank] * int(rng.integers(1, 3))
    logits_TV = rng.normal(0, 2.5, (len(ids), len(LETTERS)))
    logits_TV[np.arange(len(ids)), ids] += 7
    return (log_softmax(logits_TV)).astype(np.float32)


def forced(logp_TV: np.ndarray, words: list[str], options: BeamOptions) -> float:
    """The acoustic part of a text by its definition: all paths that read so, none searched.

    Between words is one state that takes blanks and ``|``, entered with a ``|``.
    """
    join = np.logaddexp if options.summing else np.maximum
    separator = LETTERS.symbols.index("|")
    gap_T = logp_TV[:, separator].astype(float) + options.sil_score
    any_T = join(gap_T, logp_TV[:, LETTERS.blank])
    # states: (emission, whether it may be jumped over): gap, then letters with blanks between
    emissions, loops, labels = [any_T], [any_T], [-1]
    for word in words:
        for place, letter in enumerate(word):
            if place:
                blank_T = logp_TV[:, LETTERS.blank]
                emissions, loops, labels = [*emissions, blank_T], [*loops, blank_T], [*labels, -2]
            e_T = logp_TV[:, LETTERS.symbols.index(letter)]
            token = LETTERS.symbols.index(letter)
            emissions, loops, labels = [*emissions, e_T], [*loops, e_T], [*labels, token]
        blank_T = logp_TV[:, LETTERS.blank]
        emissions, loops, labels = [*emissions, blank_T], [*loops, blank_T], [*labels, -2]
        emissions, loops, labels = [*emissions, gap_T], [*loops, any_T], [*labels, -1]
    score = np.full(len(labels), -np.inf)
    score[0] = 0.0
    for t in range(len(logp_TV)):
        after = np.array([score[s] + loops[s][t] for s in range(len(labels))])
        for s in range(1, len(labels)):
            enter = score[s - 1]
            if s > 1 and labels[s - 1] == -2 and labels[s] != labels[s - 2]:
                enter = join(enter, score[s - 2])
            after[s] = join(after[s], enter + emissions[s][t])
        score = after
    return float(score[-1])


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("merge", ["max", "logadd"])
def test_our_scores_are_flashlights_formula_for_our_texts(
    tmp_path: Path, merge: Any, engine: Any
) -> None:
    from flashlight.lib.text.dictionary import create_word_dict

    draw = random.Random(0)
    lines = [" ".join(draw.choices(COMMANDS, k=draw.randint(1, 6))) for _ in range(300)]
    write_arpa(train(lines, 3), tmp_path / "lm.arpa")
    names = create_word_dict({word: [[]] for word in (*COMMANDS, "<unk>")})
    model = kenlm.KenLM(str(tmp_path / "lm.arpa"), names)
    options = BeamOptions(
        beam=400, threshold=60, token_threshold=40, lm_weight=1.7, word_score=-0.6, sil_score=0.2,
        nbest=5, merge=merge, recombine="history",
    )  # fmt: skip
    lm: LanguageModel = open_lm(tmp_path / "lm.arpa")
    search = Search(LETTERS, lexicons.from_words(COMMANDS, LETTERS), lm, options, engine=engine)
    for seed in range(4):
        logp_TV = spoken(" ".join(draw.choices(COMMANDS, k=3)), seed)
        for hypothesis in search(logp_TV):
            words, state, total = hypothesis.text.split(), model.start(False), 0.0
            for word in words:
                state, score = model.score(state, names.get_index(word))
                total += score
            total += model.finish(state)[1]
            acoustic = forced(logp_TV, words, options)
            assert hypothesis.acoustic == pytest.approx(acoustic, abs=2e-3)
            value = acoustic + 1.7 * total - 0.6 * len(words)
            assert hypothesis.score == pytest.approx(value, abs=2e-3)
