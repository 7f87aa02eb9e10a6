"""Both engines against a slow search that is written as the search is described.

Beams, thresholds and collapsing are as narrow as they may be: what is dropped, frame by frame, is
what the description says. Cases that hang on a tie are left out, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from ngrams import in_letters, model, sentences
from oracle import Task
from reference_search import Found, Outcome, Reference
from searches import log_softmax

from w2vtool.decoder.beam import BeamOptions, Search
from w2vtool.decoder.greedy import Hypothesis
from w2vtool.decoder.lexicon import Lexicon
from w2vtool.decoder.lm import LanguageModel
from w2vtool.tokens import Tokens

LETTERS = Tokens(("-", "|", "A", "B", "C"))
PIECES = Tokens(("<s>", "▁A", "B", "C", "▁D"), kind="sentencepiece")
WORDS = ("A", "B", "AB", "AA", "BA", "BAA", "CAB")
# words of one spelling, words with several, letters doubled at the end
LETTER_LEXICON = Lexicon(
    ("A", "B", "AB", "AA", "BA", "read", "BAA", "Bee", "CAB", "A"),
    (
        (2, 1), (3, 1), (2, 3, 1), (2, 2, 1), (3, 2, 1), (2, 3, 1), (3, 2, 2, 1), (3, 1),
        (4, 2, 3, 1), (2, 4, 1),
    ),
)  # fmt: skip
PIECE_LEXICON = Lexicon(
    ("A", "ab", "abb", "c", "cc", "cb", "d", "D", "abc"),
    ((1,), (1, 2), (1, 2, 2), (3,), (3, 3), (3, 2), (4,), (4, 3, 3), (1, 2, 3)),
)
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
    "tokens of pieces": (PIECES, None, None, "tokens"),
}
HOTWORDS = {
    LETTERS: [{}, {"BA": 2.0}, {"A B": 1.5, "B": -1.0, "A B A": 3.0}, {"BB A": 4.0, "AA": 1.0}],
    PIECES: [{}, {"c A": 1.5, "A": -0.5, "A c A": 2.0}],
}
RULES = [
    {},
    {"merge": "logadd", "recombine": "state"},
    {"merge": "logadd", "recombine": "state", "nbest": 4},
    {"merge": "logadd", "recombine": "history", "nbest": 8},
    {"nbest": 8},
    {"nbest": 8, "recombine": "state"},
]


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    """What SentencePiece would write; the few pieces here are of no model."""
    decode = Tokens.decode

    def spelled(self: Tokens, ids: Sequence[int]) -> str:
        if self.kind != "sentencepiece":
            return decode(self, ids)
        return "".join(self.symbols[i] for i in ids).replace("▁", " ").strip()

    monkeypatch.setattr(Tokens, "decode", spelled)


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    """Of words (it lacks BA and BAA, and knows ABA), of letters, and of words in pieces."""
    corpora = {
        "words": (sentences(("A", "B", "AB", "AA", "read", "CAB", "ABA"), 300), 3),
        "letters": (in_letters(sentences(WORDS, 200)), 4),
        "pieces": (sentences(PIECE_LEXICON.words, 200), 2),
    }
    return {name: model(lines, order) for name, (lines, order) in corpora.items()}


def drawn(rng: np.random.Generator, case: str, models: dict[str, LanguageModel]) -> Task:
    """A task with random weights, and limits that mostly cut."""
    tokens, lexicon, model, mode = CASES[case]
    options = BeamOptions(
        beam=int(rng.choice([1, 2, 3, 5, 10, 1000])),
        threshold=float(rng.choice([0.5, 2, 5, 10, math.inf])),
        token_threshold=float(rng.choice([0, 1, 3, 8, math.inf])),
        collapse=float(rng.choice([0.3, 0.6, 1.0, 1.0])),
        lm_weight=float(rng.choice([0, rng.uniform(0, 3), -0.5], p=[0.1, 0.85, 0.05])),
        word_score=float(rng.normal()),
        sil_score=float(rng.choice([0.0, -0.5, 0.3])),
        unk_score=float(rng.normal(0, 2)),
        unk_letter_score=float(rng.normal(-1, 1)),
        mode=mode,
        times=True,
        **RULES[int(rng.integers(len(RULES)))],  # type: ignore[arg-type]
    )
    choices = HOTWORDS[tokens] if (tokens, mode) != (PIECES, "tokens") else [{}]
    hotwords = choices[int(rng.integers(len(choices)))]
    return Task(tokens, lexicon, models[model] if model else None, options, hotwords)


def emissions(rng: np.random.Generator, frames: int, tokens: int) -> np.ndarray:
    """Random log-probabilities; at times with -inf, or with runs of sure blanks."""
    x_TV = rng.normal(0, rng.uniform(0.5, 4), (frames, tokens))
    kind = rng.integers(4)
    if kind == 1:
        x_TV[rng.random(frames) < 0.5, 0] += 6
    logp_TV = log_softmax(x_TV)
    if kind == 0:
        logp_TV[rng.random(logp_TV.shape) < 0.2] = -np.inf
        logp_TV[:, 0] = np.maximum(logp_TV[:, 0], -5)
    return logp_TV


def compare(truth: Outcome, found: list[Hypothesis], task: Task) -> None:
    """All that a hypothesis says; where two are equal, only the scores."""
    assert [h.score for h in found] == pytest.approx([t.score for t in truth.found], abs=1e-5)
    if truth.tied:
        return
    assert [h.text for h in found] == [t.text for t in truth.found]
    for ours, theirs in zip(found, truth.found, strict=True):
        assert ours.lm == pytest.approx(theirs.lm, abs=1e-5)
        if not task.options.summing:
            assert ours.acoustic == pytest.approx(theirs.acoustic, abs=1e-4)
        same_tokens(ours, theirs, task)


def same_tokens(ours: Hypothesis, theirs: Found, task: Task) -> None:
    symbols = task.tokens.symbols
    begins = [(symbols[token], begin) for token, begin, _ in theirs.tokens]
    assert [span[:2] for span in ours.tokens] == begins
    options = task.options  # where tokens end is looked up afterwards, on the best of all paths
    if options.summing or options.beam < 1000 or options.threshold < 99 or options.collapse < 1:
        return
    letters = [(symbols[token], begin, end) for token, begin, end in theirs.tokens]
    assert [span for span in ours.tokens if span.text != "|"] == [
        span for span in letters if span[0] != "|"
    ]


def agree(case: str, models: dict[str, LanguageModel], seeds: range, engine: str) -> None:
    """A case a seed; those that hang on a tie are few."""
    if engine == "numba":
        pytest.importorskip("numba")
    left_out = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        task = drawn(rng, case, models)
        frames = int(rng.integers(0, 14 if task.options.beam < 1000 else 7))
        logp_TV = emissions(rng, frames, len(task.tokens))
        truth = Reference(task)(logp_TV)
        if truth.cut or truth.found[0].score < -1e8:
            left_out += 1
            continue
        search = Search(
            task.tokens,
            task.lexicon,
            task.lm,
            task.options,
            hotwords=task.hotwords,
            engine=engine,  # type: ignore[arg-type]
        )
        try:
            compare(truth, search(logp_TV), task)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {task.options}, {task.hotwords}") from error
    assert left_out <= 0.25 * len(seeds)


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_what_stays_is_what_the_description_says(
    models: dict[str, LanguageModel], case: str, engine: str
) -> None:
    agree(case, models, range(30), engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_what_stays_is_what_the_description_says_in_many_cases(
    models: dict[str, LanguageModel], case: str, engine: str
) -> None:
    agree(case, models, range(30, 630), engine)
