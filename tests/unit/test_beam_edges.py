"""What a search makes of odd input, in every mode and by both engines, and in what company."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ngrams import in_letters, model, sentences
from searches import log_softmax, same
from streams import bit_by_bit

from w2vtool.decoder import lexicon as lexicons
from w2vtool.decoder.beam import BeamOptions, Search
from w2vtool.decoder.best_path import BestPath
from w2vtool.decoder.greedy import greedy
from w2vtool.decoder.lexicon import Lexicon
from w2vtool.decoder.lm import LanguageModel, open_lm
from w2vtool.errors import DataError
from w2vtool.tokens import Tokens

TOKENS = Tokens(("-", "|", "A", "B", "C"))
# three words of one spelling, which nothing tells apart without a language model
LEXICON = Lexicon(
    ("A", "B", "AB", "read", "red", "AA", "CAB"),
    ((2, 1), (3, 1), (2, 3, 1), (2, 3, 1), (2, 3, 1), (2, 2, 1), (4, 2, 3, 1)),
)
ENGINES = ["numba", "torch"]
MODES: dict[str, dict[str, Any]] = {
    "lexicon": {},
    "lexicon+lm": {},
    "open": {"mode": "open", "unk_score": -1.0},
    "open+lm": {"mode": "open", "unk_score": -1.0},
    "tokens": {"mode": "tokens"},
    "tokens+lm": {"mode": "tokens"},
    "list": {"nbest": 6, "beam": 10},
    "list+lm": {"nbest": 6, "mode": "open"},
    "sums": {"merge": "logadd", "beam": 6},
    "sums+lm": {"merge": "logadd", "beam": 6, "mode": "open"},
    "list of sums": {"merge": "logadd", "nbest": 4, "beam": 8},
    "collapse": {"collapse": 0.5, "nbest": 3},
    "collapse+lm": {"collapse": 0.7},
}


@pytest.fixture(scope="module")
def lms() -> dict[str, LanguageModel]:
    """Of words and of letters."""
    lines = sentences(LEXICON.words[:4], 200, longest=4, even=True)
    letters = in_letters(line.replace("read", "AB") for line in lines)
    return {"words": model(lines, 2), "letters": model(letters, 3)}


def made(mode: str, engine: str, lms: dict[str, LanguageModel], **given: Any) -> Search:
    options = BeamOptions(**{"beam": 30, "times": True, **MODES[mode], **given})
    by_tokens = options.mode == "tokens"
    lm = lms["letters" if by_tokens else "words"] if mode.endswith("+lm") else None
    hot = {"B AB": 2.0, "CA": 1.0, "A": -0.5} if not by_tokens else {}
    return Search(
        TOKENS,
        None if by_tokens else LEXICON,
        lm,
        options,
        hotwords=hot,
        engine=engine,  # type: ignore[arg-type]
    )


def utterances(seed: int, number: int = 8) -> list[np.ndarray]:
    """Some with -inf, with runs of blanks, short, empty, and one with a frame of nothing."""
    rng = np.random.default_rng(seed)
    found = []
    for n in range(number):
        x_TV = rng.normal(0, 3, (int(rng.integers(0, 24)) if n > 1 else n, len(TOKENS)))
        x_TV[rng.random(len(x_TV)) < 0.3, 0] += 7
        logp_TV = log_softmax(x_TV)
        if n % 3 == 0:
            logp_TV[:, 1:][logp_TV[:, 1:] < -5] = -np.inf
        if n % 4 == 0 and len(logp_TV):
            logp_TV[len(logp_TV) // 2] = -np.inf
        found.append(logp_TV)
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_company_order_and_threads_change_nothing_though_words_are_equal(
    lms: dict[str, LanguageModel], mode: str, engine: str
) -> None:
    search, many = made(mode, engine, lms), utterances(0)
    alone = [search(logp_TV) for logp_TV in many]
    for size in (3, len(many)):
        order = random.Random(size).sample(range(len(many)), len(many))
        together = [
            hypotheses
            for place in range(0, len(many), size)
            for hypotheses in search.batch([many[n] for n in order[place : place + size]])
        ]
        assert together == [alone[n] for n in order]
    if engine == "numba":
        search._engine._threads = 4  # type: ignore[attr-defined]
        assert search.batch(many) == alone


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_frames_may_come_in_any_pieces(
    lms: dict[str, LanguageModel], mode: str, engine: str
) -> None:
    search, draw = made(mode, engine, lms), random.Random(mode)
    for logp_TV in utterances(1):
        found = bit_by_bit(search, logp_TV, lambda: draw.choice([0, 1, 1, 2, 5, 11]))
        same(found, search(logp_TV))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_frames_after_the_end_are_not_heard(
    lms: dict[str, LanguageModel], mode: str, engine: str
) -> None:
    padded_TV = np.full((40, len(TOKENS)), 99.0)
    search = made(mode, engine, lms)
    for logp_TV in utterances(2, 5):
        padded_TV[: len(logp_TV)] = logp_TV
        same(search(padded_TV[: len(logp_TV)]), search(logp_TV))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_utterances_of_no_frame_and_of_frames_of_nothing_have_an_answer(
    lms: dict[str, LanguageModel], mode: str, engine: str
) -> None:
    search = made(mode, engine, lms)
    empty = search(np.zeros((0, len(TOKENS))))[0]
    assert (empty.text, empty.acoustic, empty.tokens) == ("", pytest.approx(0, abs=1e-6), ())
    nothing = search(np.full((3, len(TOKENS)), -np.inf))
    assert all(h.score < -1e8 and math.isfinite(h.score) for h in nothing)
    one = np.full((1, len(TOKENS)), -np.inf)
    one[0, 0] = -0.5
    assert search(one)[0].text == ""
    assert search(one)[0].acoustic == pytest.approx(-0.5, abs=1e-6)
    never = utterances(3)[5]
    never[:, 3] = -np.inf  # no B
    assert "B" not in search(never)[0].text.replace("read", "B").replace("red", "B")


@pytest.mark.parametrize("engine", ENGINES)
def test_one_token_is_enough(engine: Any) -> None:
    """One beside the blank: there is no vocabulary without ``|``."""
    for mode in ("tokens", "open"):
        search = Search(Tokens(("-", "|")), options=BeamOptions(mode=mode), engine=engine)  # type: ignore[arg-type]
        assert search(np.full((5, 2), -0.1))[0][:3] == ("", *(pytest.approx(-0.5),) * 2)
        assert search(np.zeros((0, 2)))[0].text == ""


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_lexicon_writes_nothing(lms: dict[str, LanguageModel], engine: Any) -> None:
    for lm in (None, lms["words"]):
        search = Search(TOKENS, Lexicon((), ()), lm, engine=engine)
        assert {h.text for logp_TV in utterances(4) for h in search(logp_TV)} == {""}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_lexicon_of_one_word_writes_only_that(lms: dict[str, LanguageModel], engine: Any) -> None:
    search = Search(TOKENS, lexicons.from_words(["AB"], TOKENS), lms["words"], engine=engine)
    found = {h.text for logp_TV in utterances(5, 30) for h in search(logp_TV)}
    assert "AB" in found
    assert {word for text in found for word in text.split()} == {"AB"}


def blanks(frames: int) -> np.ndarray:
    logp_TV = np.full((frames, len(TOKENS)), -12.0)
    logp_TV[:, 0] = -1e-4
    return logp_TV


@pytest.mark.parametrize("mode", ["lexicon+lm", "open+lm", "tokens", "sums", "collapse"])
def test_minutes_of_silence_are_silent(lms: dict[str, LanguageModel], mode: str) -> None:
    pytest.importorskip("numba")
    search = made(mode, "numba", lms)
    found = search(blanks(10_000))[0]
    assert found.text == ""
    if mode == "sums":  # all paths of blanks and "|"
        assert -1 < found.acoustic < -0.9
    else:
        assert found.acoustic == pytest.approx(-1.0, abs=1e-6)
    stream = search.stream()
    for _ in range(100):
        stream.step(blanks(100))
    same(stream.finish()[:1], [found])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lexicon+lm", "open+lm", "collapse"])
def test_minutes_of_silence_are_silent_on_tensors(lms: dict[str, LanguageModel], mode: str) -> None:
    assert made(mode, "torch", lms)(blanks(10_000))[0].text == ""


FORMS = {
    "float32": lambda x: x.astype(np.float32),
    "float16": lambda x: x.astype(np.float16),
    "a column order": np.asfortranarray,
    "every other frame": lambda x: np.repeat(x, 2, axis=0)[::2],
    "part of a wider array": lambda x: np.pad(x, ((0, 0), (3, 2)))[:, 3:-2],
    "backwards twice": lambda x: x[::-1].copy()[::-1],
    "read only": lambda x: np.frombuffer(x.tobytes()).reshape(x.shape),
    "a tensor": torch.from_numpy,
    "a tensor of float32": lambda x: torch.from_numpy(x).float(),
    "a tensor of bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    "a tensor with a gradient": lambda x: torch.from_numpy(x).requires_grad_(),
    "a list of lists": lambda x: x.tolist(),
}


@pytest.mark.parametrize("engine", [*ENGINES, "greedy"])
@pytest.mark.parametrize("form", FORMS)
def test_any_array_will_do(lms: dict[str, LanguageModel], form: str, engine: str) -> None:
    search = BestPath(TOKENS) if engine == "greedy" else made("lexicon+lm", engine, lms)
    x_TV = np.random.default_rng(6).normal(0, 3, (20, len(TOKENS)))
    logp_TV = log_softmax(x_TV)
    logp_TV = logp_TV.astype(np.float16).astype(float)  # what float16 and float32 hold
    if "bfloat16" in form:
        logp_TV = torch.from_numpy(logp_TV).bfloat16().double().numpy()
    given = FORMS[form](logp_TV)
    [plain], [other] = search.batch([logp_TV]), search.batch([given])
    assert plain == other
    stream = search.stream()
    stream.step(given)
    assert stream.finish()[0].text == plain[0].text
    assert greedy(given, TOKENS) == greedy(logp_TV, TOKENS)


@pytest.mark.parametrize("engine", [*ENGINES, "greedy"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_probability_is_refused(
    lms: dict[str, LanguageModel], engine: str, bad: float
) -> None:
    search = BestPath(TOKENS) if engine == "greedy" else made("open", engine, lms)
    logp_TV = np.full((4, len(TOKENS)), -1.5)
    logp_TV[-1, 2] = bad
    for given in (logp_TV, torch.from_numpy(logp_TV), logp_TV.astype(np.float16)):
        with pytest.raises(DataError, match=r"NaN or \+inf in 1 of 4 frames, first in frame 3"):
            search.batch([given])
        with pytest.raises(DataError, match=r"NaN or \+inf in 1 of 4 frames, first in frame 3"):
            search.stream().step(given)
    with pytest.raises(DataError, match="for 5 tokens"):
        search.batch([np.zeros(5)])


@pytest.mark.parametrize("mode", MODES)
def test_scores_above_0_are_decoded_the_same_by_both_engines(
    lms: dict[str, LanguageModel], mode: str
) -> None:
    """Such as logits: a blank above 0 is not one beyond doubt."""
    pytest.importorskip("numba")
    for logp_TV in utterances(8):
        logits_TV = np.maximum(logp_TV, -30) + 12
        given = {} if "collapse" in MODES[mode] else {"collapse": 1.0}
        numba, tensors = (made(mode, engine, lms, **given)(logits_TV) for engine in ENGINES)
        assert [h.score for h in numba] == pytest.approx([h.score for h in tensors], abs=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_hotword_worth_more_than_the_threshold_comes_out(engine: Any) -> None:
    options = BeamOptions(threshold=4.0, token_threshold=30.0)
    hot = {"CAB": 25.0, "B": 8.0}
    search = Search(TOKENS, LEXICON, None, options, hotwords=hot, engine=engine)
    logp_TV = np.full((8, len(TOKENS)), -6.0)
    logp_TV[np.arange(8), [2, 0, 3, 0, 1, 3, 0, 1]] = 0.0  # A-B-|B-|
    assert search(logp_TV)[0].text.startswith("CAB")


def test_both_spellings_of_an_open_last_word_are_summed() -> None:
    lexicon = Lexicon(("A", "A"), ((2, 1), (2, 4, 1)))  # A and AC
    logp_TV = np.full((3, len(TOKENS)), -np.inf)
    logp_TV[0, 2], logp_TV[1, [0, 4]], logp_TV[2, [0, 4]] = 0.0, math.log(0.5), math.log(0.5)
    for engine in ENGINES:
        options = BeamOptions(merge="logadd", recombine="history", threshold=50)
        search = Search(TOKENS, lexicon, None, options, engine=engine)  # type: ignore[arg-type]
        assert search(logp_TV)[0][:2] == ("A", pytest.approx(0.0, abs=1e-9))


@pytest.mark.parametrize("engine", ENGINES)
def test_times_of_a_sum_are_those_of_its_best_path(engine: Any) -> None:
    """Of A||, A-| and AC|, all read as one word, the last one; it is less than half of the sum."""
    lexicon = Lexicon(("A", "A", "B"), ((2, 1), (2, 4, 1), (3, 1)))
    odds_TV = [[0.0, 0.0, 0.5, 0.5, 0.0], [0.3, 0.15, 0.0, 0.2, 0.35], [0.0, 1.0, 0.0, 0.0, 0.0]]
    with np.errstate(divide="ignore"):
        logp_TV = np.log(odds_TV)
    options = BeamOptions(merge="logadd", recombine="history", times=True)
    found = Search(TOKENS, lexicon, None, options, engine=engine)(logp_TV)[0]
    assert found.score == pytest.approx(math.log(0.4), abs=1e-9)
    assert [span.text for span in found.tokens] == ["A", "C", "|"]


def test_the_source_of_the_model_does_not_matter(tmp_path: Path, lms: Any) -> None:
    lms["words"].save(tmp_path / "lm.npz")
    again = {**lms, "words": open_lm(tmp_path / "lm.npz")}
    for engine in ENGINES:
        for logp_TV in utterances(9, 4):
            one = made("list+lm", engine, lms)(logp_TV)
            assert one == made("list+lm", engine, again)(logp_TV)
