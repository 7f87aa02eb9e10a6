"""What lists of hypotheses promise: order, parts that add up, times; and what wider beams bring."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from ngrams import in_letters, model
from searches import log_softmax

from w2vtool.decoder import lexicon as lexicons
from w2vtool.decoder.beam import BeamOptions, Search
from w2vtool.decoder.greedy import Hypothesis
from w2vtool.decoder.lm import LanguageModel
from w2vtool.tokens import Tokens

LETTERS = Tokens()
SEPARATOR = LETTERS.symbols.index("|")
ENGINES = ["numba", "torch"]
SYLLABLES = ("KA", "TO", "MI", "RE", "SUN", "LO", "NE", "SS", "AT", "E")


def vocabulary(size: int) -> tuple[str, ...]:
    """Words that begin and sound alike, from the commonest on."""
    draw, found = random.Random(0), dict[str, None]()
    while len(found) < size:
        found["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4)))] = None
    return tuple(found)


WORDS = vocabulary(400)
HOTWORDS = {WORDS[3]: 2.0, f"{WORDS[5]} {WORDS[1]}": 4.0, "KAXX": 6.0, WORDS[0]: -0.7}


def sentences(count: int, seed: int, known: int = len(WORDS)) -> list[str]:
    """Word after word, each of which likes some followers."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        words = [int(known * draw.random() ** 3)]
        for _ in range(draw.randint(1, 7)):
            liked = (7 * words[-1] + draw.randint(0, 4)) % known
            words.append(liked if draw.random() < 0.6 else int(known * draw.random() ** 3))
        found.append(" ".join(WORDS[word] for word in words))
    return found


def spoken(text: str, seed: int, blanks: int = 4) -> np.ndarray:
    """Log-probabilities as networks give them: peaks, sure blanks, hard words, mixed-up letters."""
    rng = np.random.default_rng(seed)
    ids, hard = [LETTERS.blank], [0.5]
    for word in text.split():
        noise = float(rng.gamma(1.5, 0.8))
        for label in LETTERS.encode(word):
            if rng.random() < 0.03 * noise and label != SEPARATOR:
                label = int(rng.integers(5, len(LETTERS)))
            run = [label] * int(rng.integers(1, 3)) + [LETTERS.blank] * int(rng.integers(1, blanks))
            ids, hard = ids + run, hard + [noise] * len(run)
    logits_TV = rng.normal(0, 1, (len(ids), len(LETTERS))) * (1 + np.array(hard)[:, None])
    logits_TV[np.arange(len(ids)), ids] += 9
    logits_TV[:, 1:4] = -20
    return log_softmax(logits_TV)


def test_set(count: int, seed: int = 1) -> list[np.ndarray]:
    return [spoken(text, n) for n, text in enumerate(sentences(count, seed))]


test_set.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def lms() -> dict[str, LanguageModel]:
    """Of the 300 commoner words, and of letters."""
    lines = sentences(1500, 0, known=300)
    return {"words": model(lines, 3), "letters": model(in_letters(lines), 5)}


def made(lms: dict[str, LanguageModel], engine: str, hot: bool = False, **given: Any) -> Search:
    options = BeamOptions(**{"sil_score": 0.1, "word_score": 0.4, **given})
    by_tokens = options.mode == "tokens"
    lexicon = lexicons.from_words(WORDS, LETTERS) if options.mode == "lexicon" else None
    return Search(
        LETTERS,
        lexicon,
        lms["letters" if by_tokens else "words"],
        options,
        hotwords=HOTWORDS if hot else {},
        engine=engine,  # type: ignore[arg-type]
    )


def worth(search: Search, text: str, hot: bool) -> tuple[float, float]:
    """log10 of a text, and what it brings beside the acoustic part and the model's."""
    options, lm = search.options, search.lm
    assert lm is not None
    if options.mode == "tokens":
        words = [*text.replace(" ", "|"), "|"] if text else []
        log10, bonus = lm.sentence(words), options.word_score * len(words)
        spelled = ["|", *words]
        phrases = {("|", *k.replace(" ", "|"), "|"): v for k, v in HOTWORDS.items()}
    else:
        spelled = text.split()
        known = set(search.space.words)
        log10 = lm.sentence(spelled)
        bonus = sum(
            options.word_score
            if word in known
            else options.unk_score + options.unk_letter_score * len(word)
            for word in spelled
        )
        phrases = {tuple(k.split()): v for k, v in HOTWORDS.items()}
    for phrase, value in phrases.items() if hot else ():
        size = len(phrase)
        bonus += value * sum(tuple(spelled[at : at + size]) == phrase for at in range(len(spelled)))
    return log10, bonus


def tokens_of(text: str) -> list[int]:
    return [LETTERS.symbols.index(s) for s in (*text.replace(" ", "|"), *(["|"] if text else []))]


def check_list(search: Search, found: list[Hypothesis], logp_TV: np.ndarray, hot: bool) -> int:
    options = search.options
    assert 1 <= len(found) <= options.nbest
    assert len({h.text for h in found}) == len(found)
    assert all(a.score >= b.score for a, b in itertools.pairwise(found))
    plain = 0
    for h in found:
        log10, bonus = worth(search, h.text, hot)
        read = [LETTERS.symbols[token] for token in tokens_of(h.text)]
        # over tokens, "|A" and an "A" that lacks the last "|" are other readings of a text
        if options.mode != "tokens" or [span.text for span in h.tokens] == read:
            assert h.lm == pytest.approx(log10, abs=1e-4)
            total = h.acoustic + options.lm_weight * log10 + bonus
            assert h.score == pytest.approx(total, abs=1e-3)
            plain += 1
        check_times(h, len(logp_TV))
    return plain


def check_times(h: Hypothesis, frames: int) -> None:
    for spans in (h.words, h.tokens):
        assert all(0 <= s.begin < s.end <= frames for s in spans)
        assert all(a.end <= b.begin for a, b in itertools.pairwise(spans))
    assert " ".join(span.text for span in h.words) == h.text
    letters = [span for span in h.tokens if span.text != "|"]
    assert "".join(span.text for span in letters) == h.text.replace(" ", "")
    for span in h.words:
        own = [s for s in letters if span.begin <= s.begin < span.end]
        assert (own[0].begin, own[-1].end) == (span.begin, span.end)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("hot", [False, True], ids=["plain", "hot"])
@pytest.mark.parametrize("merge", ["max", "logadd"])
@pytest.mark.parametrize("mode", ["lexicon", "open", "tokens"])
def test_lists_are_sorted_different_and_the_sum_of_their_parts(
    lms: dict[str, LanguageModel], mode: str, merge: str, hot: bool, engine: str
) -> None:
    search = made(lms, engine, hot, mode=mode, merge=merge, nbest=8, beam=60, times=True)
    many = test_set(4 if engine == "torch" else 12)
    lists = search.batch(many)
    assert sum(map(len, lists)) > 5 * len(lists)
    pairs = zip(lists, many, strict=True)
    plain = sum(check_list(search, found, logp_TV, hot) for found, logp_TV in pairs)
    assert plain > 0.5 * sum(map(len, lists))


def aligned(logp_TV: np.ndarray, tokens: list[int], extra: float) -> tuple[float, list[Any]]:
    """The best path that reads as the tokens, by torchaudio: its score, and runs of tokens."""
    functional = pytest.importorskip("torchaudio.functional")
    gained = torch.from_numpy(logp_TV).clone()
    gained[:, SEPARATOR] += extra
    path, scores = functional.forced_align(
        gained[None], torch.tensor([tokens], dtype=torch.int32), blank=LETTERS.blank
    )
    runs, at = [], 0
    for token, group in itertools.groupby(path[0].tolist()):
        size = len(list(group))
        if token != LETTERS.blank:
            runs.append((LETTERS.symbols[token], at, at + size))
        at += size
    return float(scores.sum()), runs


@pytest.mark.filterwarnings("ignore")  # torchaudio says that it will go
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["lexicon", "open", "tokens"])
def test_times_are_those_of_a_forced_alignment(
    lms: dict[str, LanguageModel], mode: str, engine: str
) -> None:
    search = made(lms, engine, mode=mode, nbest=5, beam=300, threshold=40, times=True)
    compared = 0
    many = test_set(3 if engine == "torch" else 10, seed=2)
    for found, logp_TV in zip(search.batch(many), many, strict=True):
        for h in found:
            tokens = tokens_of(h.text)
            if [span.text for span in h.tokens] != [LETTERS.symbols[t] for t in tokens]:
                continue
            score, runs = aligned(logp_TV, tokens, search.options.sil_score)
            assert h.acoustic >= score - 1e-4
            if h.acoustic > score + 1e-4:
                continue  # with a "|" more between words, which the alignment lacks
            assert [tuple(span) for span in h.tokens] == runs
            compared += 1
    assert compared >= 2 * len(many)


def objective(search: Search, many: list[np.ndarray]) -> float:
    return float(np.mean([found[0].score for found in search.batch(many)]))


@pytest.mark.parametrize("mode", ["lexicon", "open", "tokens"])
def test_wider_is_never_worse_on_a_set(lms: dict[str, LanguageModel], mode: str) -> None:
    many = test_set(25, seed=3)
    wider: list[list[dict[str, Any]]] = [
        [{"beam": beam, "threshold": 30.0} for beam in (2, 5, 10, 20, 50, 200)],
        [{"beam": 200, "threshold": t} for t in (4.0, 7.0, 11.0, 16.0, 22.0, 30.0)],
        [{"beam": 200, "token_threshold": t} for t in (2.0, 4.0, 7.0, 11.0, 16.0)],
        [{"beam": 200, "collapse": c} for c in (0.8, 0.95, 0.99, 0.999, 1.0)],
    ]
    for steps in wider:
        means = [objective(made(lms, "auto", mode=mode, **given), many) for given in steps]
        assert all(b >= a - 1e-3 for a, b in itertools.pairwise(means)), means
        assert means[-1] > means[0] or "collapse" in steps[0]


def test_the_widest_search_is_the_best_of_every_utterance(lms: dict[str, LanguageModel]) -> None:
    many = test_set(15, seed=4)
    wide = made(lms, "auto", beam=5000, threshold=math.inf, token_threshold=20.0)
    best = [found[0].score for found in wide.batch(many)]
    for beam, threshold in ((2, 5.0), (10, 8.0), (50, 15.0), (300, 25.0)):
        narrow = made(lms, "auto", beam=beam, threshold=threshold)
        for found, most in zip(narrow.batch(many), best, strict=True):
            assert found[0].score <= most + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("hot", [False, True], ids=["plain", "hot"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"mode": "open"},
        {"mode": "tokens"},
        {"merge": "logadd"},
        {"nbest": 10, "beam": 200},
        {"merge": "logadd", "nbest": 5, "mode": "open"},
        {"collapse": 0.99, "mode": "open"},
        {"beam": 150, "threshold": 20.0, "token_threshold": 20.0},
    ],
    ids=str,
)
def test_the_engines_agree_on_a_job_of_real_shape(
    lms: dict[str, LanguageModel], given: dict[str, Any], hot: bool
) -> None:
    pytest.importorskip("numba")
    many = [spoken(" ".join(sentences(3, n)), n, blanks=6) for n in range(12)]
    assert np.mean([len(logp_TV) for logp_TV in many]) > 200
    one, other = (made(lms, e, hot, times=True, **given).batch(many) for e in ENGINES)
    for numba, tensors in zip(one, other, strict=True):
        assert [h.text for h in numba] == [h.text for h in tensors]
        for ours, theirs in zip(numba, tensors, strict=True):
            assert ours[1:4] == pytest.approx(theirs[1:4], abs=1e-6)
            assert ours[4:] == theirs[4:]
