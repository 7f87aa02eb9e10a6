"""Both engines against all paths written out, in every mode."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ngrams import in_letters, model, sentences
from oracle import Task, expected
from searches import log_softmax

from w2vtool.decoder.beam import BeamOptions, Search
from w2vtool.decoder.lexicon import Lexicon
from w2vtool.decoder.lm import LanguageModel
from w2vtool.tokens import Tokens
from w2vtool.vocabulary import train_pieces

LETTERS = Tokens(("-", "|", "A", "B"))
PIECES = Tokens(("<s>", "▁A", "B", "C"), kind="sentencepiece")
WORDS = ("A", "B", "AB", "AA", "BA", "BAA")
# words of one spelling, and words with several
LETTER_LEXICON = Lexicon(
    ("A", "B", "AB", "AA", "BA", "read", "BAA", "Bee"),
    ((2, 1), (3, 1), (2, 3, 1), (2, 2, 1), (3, 2, 1), (2, 3, 1), (3, 2, 2, 1), (3, 1)),
)
# ends and begins with the same piece, doubled letters at the end, a spelling inside of another
PIECE_LEXICON = Lexicon(
    ("A", "ab", "abb", "c", "cc", "cb"), ((1,), (1, 2), (1, 2, 2), (3,), (3, 3), (3, 2))
)
# many ways to spell a word, a beginning without letters, what is no text
WORD_PIECES = Tokens(("<s>", "▁", "▁A", "A", "B", "AB"), kind="sentencepiece")
FEW_PIECES = Tokens(("<s>", "▁A", "▁B", "A", "<unk>"), kind="sentencepiece")
# of a SentencePiece model, for how texts are written
MODEL = train_pieces(["A B AB", "BA AB B", "A AB ABB"] * 9, 8, model="bpe")
REAL_PIECES = Tokens(("<s>", "<unk>", "▁", "A", "B", "▁A"), kind="sentencepiece", model=MODEL)
# the first spelling is not the only one, two words of the same letters, a word of two spellings
WORD_PIECE_LEXICON = Lexicon(
    ("A", "AB", "ab", "BA", "BB", "BB"), ((2,), (1, 5), (2, 4), (1, 4, 3), (1, 4, 4), (2, 4, 4))
)
WIDE = {"beam": 20_000, "threshold": math.inf, "token_threshold": math.inf}


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    """Of words (it lacks BA and BAA, and knows ABA), of letters, and of words in pieces."""
    corpora = {
        "words": (sentences(("A", "B", "AB", "AA", "read", "ABA"), 300), 3),
        "letters": (in_letters(sentences(WORDS, 200)), 4),
        "pieces": (sentences(PIECE_LEXICON.words, 200), 2),
        "piece tokens": ([" ".join(REAL_PIECES.pieces(line)) for line in sentences(WORDS, 200)], 3),
    }
    return {name: model(lines, order) for name, (lines, order) in corpora.items()}


# name: tokens, lexicon, language model, mode
CASES = {
    "lexicon+lm": (LETTERS, LETTER_LEXICON, "words", "lexicon"),
    "lexicon": (LETTERS, LETTER_LEXICON, None, "lexicon"),
    "open+lm": (LETTERS, None, "words", "open"),
    "open+lexicon+lm": (LETTERS, LETTER_LEXICON, "words", "open"),
    "open": (LETTERS, None, None, "open"),
    "letters+lm": (LETTERS, None, "letters", "tokens"),
    "ctc": (LETTERS, None, None, "tokens"),
    "pieces+lm": (PIECES, PIECE_LEXICON, "pieces", "lexicon"),
    "pieces": (PIECES, PIECE_LEXICON, None, "lexicon"),
    "spellings+lm": (WORD_PIECES, WORD_PIECE_LEXICON, "words", "lexicon"),
    "open pieces+lm": (WORD_PIECES, None, "words", "open"),
    "open pieces+lexicon+lm": (WORD_PIECES, WORD_PIECE_LEXICON, "words", "open"),
    "open pieces+lexicon": (WORD_PIECES, WORD_PIECE_LEXICON, None, "open"),
    "open few pieces+lm": (FEW_PIECES, None, "words", "open"),
    "piece tokens+lm": (REAL_PIECES, None, "piece tokens", "tokens"),
    "piece tokens": (REAL_PIECES, None, None, "tokens"),
    "open few pieces": (FEW_PIECES, None, None, "open"),
}
MOST_FRAMES = {4: 6, 5: 6, 6: 5}  # by tokens: what can be written out
HOTWORDS = {
    LETTERS: [{}, {"BA": 2.0}, {"A B": 1.5, "B": -1.0, "A B A": 3.0}, {"BB A": 4.0, "AA": 1.0}],
    WORD_PIECES: [{}, {"BA": 2.0}, {"A B": 1.5, "B": -1.0, "A B A": 3.0}, {"ABB A": 4.0}],
    REAL_PIECES: [{}, {"A": 1.5, "A B": -1.0, "BA": 3.0}],
    FEW_PIECES: [{}, {"BA": 2.0}, {"A B": 1.5, "B": -1.0, "A B A": 3.0}],
    PIECES: [{}, {"c A": 1.5, "A": -0.5, "A c A": 2.0}],
}


def drawn(seed: int, case: str, models: dict[str, LanguageModel], **given: object) -> Task:
    """A task with random weights."""
    rng = np.random.default_rng(seed)
    tokens, lexicon, model, mode = CASES[case]
    options = BeamOptions(
        **WIDE,
        lm_weight=float(rng.uniform(0, 3)),
        word_score=float(rng.normal()),
        sil_score=float(rng.choice([0.0, -0.5, 0.3])),
        unk_score=float(rng.normal(0, 2)),
        unk_letter_score=float(-rng.uniform(0, 2)),
        mode=mode,
        **given,
    )
    choices = HOTWORDS[tokens]
    hotwords = choices[int(rng.integers(len(choices)))]
    return Task(tokens, lexicon, models[model] if model else None, options, hotwords)


def emissions(seed: int, frames: int, tokens: int = 4) -> np.ndarray:
    """Random log-probabilities; sometimes some are -inf, or a frame is all blank."""
    rng = np.random.default_rng(seed)
    x_TV = rng.normal(0, rng.uniform(0.5, 4), (frames, tokens))
    logp_TV = log_softmax(x_TV)
    kind = rng.integers(4)
    if kind == 0:
        logp_TV[rng.random(logp_TV.shape) < 0.2] = -np.inf
        logp_TV[:, 0] = np.maximum(logp_TV[:, 0], -5)
    if kind == 1 and frames:
        logp_TV[rng.integers(frames)] = [-0.001, *[-9] * (tokens - 1)]
    return logp_TV


def search(task: Task, engine: str) -> Search:
    return Search(
        task.tokens,
        task.lexicon,
        task.lm,
        task.options,
        hotwords=task.hotwords,
        engine=engine,  # type: ignore[arg-type]
    )


def check(task: Task, logp_TV: np.ndarray, engine: str) -> None:
    """The best, or the whole list, is what the definition says."""
    found = [h for h in search(task, engine)(logp_TV) if h.score > -1e8]
    truth = [row for row in expected(task, logp_TV) if row[0] > -1e8]
    scores = {row[1]: row[0] for row in truth}
    exact = task.options.merge == "max" or task.options.by_history
    for hypothesis in found:
        if exact:
            assert hypothesis.score == pytest.approx(scores[hypothesis.text], abs=1e-4)
        else:  # a sum over some of the paths
            assert hypothesis.score <= scores[hypothesis.text] + 1e-4
    if exact:
        number = min(task.options.nbest, len(truth)) if task.options.by_history else 1
        assert [h.score for h in found[:number]] == pytest.approx(
            [score for score, _ in truth[:number]], abs=1e-4
        )


seeds = st.integers(0, 2**32 - 1)
RULES = st.sampled_from(
    [
        {},
        {"merge": "logadd", "recombine": "history"},
        {"merge": "logadd"},
        {"nbest": 8},
        {"nbest": 8, "merge": "logadd", "recombine": "history"},
    ]
)
ENGINES = st.sampled_from(["numba", "torch"])
quiet = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("case", CASES)
@settings(quiet, max_examples=30)
@given(seed=seeds, frames=st.integers(0, 5), rules=RULES, engine=ENGINES)
def test_a_wide_search_finds_what_all_paths_say(
    models: dict[str, LanguageModel], case: str, seed: int, frames: int, rules: dict, engine: str
) -> None:
    task = drawn(seed, case, models, **rules)
    frames = min(frames, MOST_FRAMES[len(task.tokens)])
    check(task, emissions(seed, frames, len(task.tokens)), engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("case", CASES)
@settings(quiet, max_examples=500)
@given(seed=seeds, frames=st.integers(0, 6), rules=RULES)
def test_a_wide_search_finds_what_all_paths_say_in_many_cases(
    models: dict[str, LanguageModel], case: str, engine: str, seed: int, frames: int, rules: dict
) -> None:
    task = drawn(seed, case, models, **rules)
    frames = min(frames, MOST_FRAMES[len(task.tokens)])
    check(task, emissions(seed, frames, len(task.tokens)), engine)
