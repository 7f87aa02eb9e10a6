"""The two engines give the same, however the frames come: alone, in a batch, bit by bit."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
from ngrams import in_letters, sentences, write_arpa
from searches import log_softmax, same
from streams import bit_by_bit, stays_small

from w2vtool.decoder import kenlm_binary, results
from w2vtool.decoder import lexicon as lexicons
from w2vtool.decoder.beam import BeamOptions, Search
from w2vtool.decoder.greedy import Span
from w2vtool.decoder.lexicon import Lexicon
from w2vtool.decoder.lm import LanguageModel, open_lm
from w2vtool.decoder.lm_train import train
from w2vtool.decoder.settle import settle
from w2vtool.errors import ConfigError, DataError
from w2vtool.tokens import Tokens

LETTERS = Tokens()
COMMANDS = ("ZERO", "ONE", "TWO", "THREE", "UP", "DOWN", "LEFT", "RIGHT", "STOP", "GO", "ON", "OFF")
LEXICON = lexicons.from_words(COMMANDS, LETTERS)
MODES = {
    "lexicon": {},
    "open": {"mode": "open"},
    "logadd": {"merge": "logadd"},
    "histories": {"nbest": 5},
    "summed histories": {"merge": "logadd", "nbest": 5, "mode": "open"},
    "collapse": {"collapse": 0.9},
    "tokens": {"mode": "tokens", "word_score": 0.5},
}
HOTWORDS = {"GO UP": 2.0, "QUICKLY": 6.0, "STOP": -1.0}


def write_models(folder: Path) -> Path:
    lines = sentences(COMMANDS, 300, longest=6, even=True)
    write_arpa(train(lines, 3), folder / "words.arpa")
    write_arpa(train(in_letters(lines), 4), folder / "letters.arpa")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def lm(folder: Path) -> LanguageModel:
    return open_lm(folder / "words.arpa")


def spoken(text: str, seed: int, noise: float = 2.5, blanks: int = 3) -> np.ndarray:
    """Emissions of a noisy, peaked model that is right in most frames."""
    rng = np.random.default_rng(seed)
    ids = [LETTERS.blank]
    for label in LETTERS.encode(text):
        ids += [label] * int(rng.integers(1, 3)) + [LETTERS.blank] * int(rng.integers(1, blanks))
    logits_TV = rng.normal(0, noise, (len(ids), len(LETTERS)))
    logits_TV[np.arange(len(ids)), ids] += 7
    return log_softmax(logits_TV)


def made(
    engine: str, lm: LanguageModel, folder: Path, mode: str, hot: bool = False, **given: object
) -> Search:
    options = BeamOptions(**{"beam": 12, "threshold": 14.0, **MODES[mode], **given})
    by_tokens = options.mode == "tokens"
    return Search(
        LETTERS,
        None if by_tokens else LEXICON,
        open_lm(folder / "letters.arpa") if by_tokens else lm,
        options,
        hotwords=HOTWORDS if hot else {},
        engine=engine,  # type: ignore[arg-type]
    )


UTTERANCES = [
    spoken(text, seed)
    for seed, text in enumerate(
        ["GO UP", "STOP", "ONE TWO THREE GO UP ON", "GO QUICKLY LEFT", "OFF", "RIGHT DOWN STOP GO"]
    )
] + [np.zeros((0, len(LETTERS))), spoken("UP", 9)[:1]]


@pytest.mark.parametrize("hot", [False, True], ids=["plain", "hot"])
@pytest.mark.parametrize("mode", MODES)
def test_narrow_searches_of_both_engines_are_the_same(
    lm: LanguageModel, folder: Path, mode: str, hot: bool
) -> None:
    times = mode in ("lexicon", "open", "tokens")
    engines = [made(name, lm, folder, mode, hot, times=times) for name in ("numba", "torch")]
    for found, other in zip(*(engine.batch(UTTERANCES) for engine in engines), strict=True):
        same(found, other)


def test_scores_of_engines_differ_by_no_more_than_float64_rounds() -> None:
    """Scores of a letter and of a silent frame are no numbers of float32, and are paid often."""
    options = BeamOptions(mode="open", unk_letter_score=-2.1460135788, sil_score=0.3)
    found, other = (
        Search(LETTERS, None, None, options, engine=name)(spoken("ABRACADABRA SIMSALABIM", 0))
        for name in ("numba", "torch")
    )
    assert found[0].score == pytest.approx(other[0].score, abs=1e-10)


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("mode", ["lexicon", "open", "histories", "collapse"])
def test_neither_order_nor_company_of_utterances_matters(
    lm: LanguageModel, folder: Path, mode: str, engine: str
) -> None:
    search = made(engine, lm, folder, mode)
    alone = [search(logp_TV) for logp_TV in UTTERANCES]
    order = random.Random(1).sample(range(len(UTTERANCES)), len(UTTERANCES))
    together = search.batch([UTTERANCES[n] for n in order])
    assert together == [alone[n] for n in order]
    assert search.batch([]) == []


def test_company_does_not_matter_to_what_is_equal() -> None:
    """Of pieces, a word that is done and one that goes on are worth the same without a model."""
    tokens = Tokens(("<s>", *(f"▁{a}" for a in "abcdef"), *"abcdef"), kind="sentencepiece")
    options = BeamOptions(mode="open", beam=3, nbest=2)
    search = Search(tokens, None, None, options, engine="torch")
    rng = np.random.default_rng(0)
    utterances = [log_softmax(rng.normal(0, 1, (t, len(tokens)))) for t in range(40)]
    started = [search.start() for _ in utterances]
    together = search._engine.advance(started, utterances)
    for logp_TV, beam in zip(utterances, together, strict=True):
        alone = search.advance(search.start(), logp_TV)
        assert np.array_equal(beam.places, alone.places)
        assert np.array_equal(beam.scores, alone.scores)


def test_threads_decode_the_same(lm: LanguageModel) -> None:
    one, many = (Search(LETTERS, LEXICON, lm, engine="numba", threads=n) for n in (1, 3))
    assert many.batch(UTTERANCES) == one.batch(UTTERANCES)


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_frames_that_come_bit_by_bit_give_the_same(
    lm: LanguageModel, folder: Path, mode: str, engine: str, seed: int
) -> None:
    search = made(engine, lm, folder, mode, hot=True, times=True)
    text = "GO UP STOP ONE QUICKLY TWO ON OFF"
    logp_TV = spoken(text, seed, noise=2)
    rng = random.Random(seed)
    same(bit_by_bit(search, logp_TV, lambda: rng.choice([0, 1, 2, 7, 20])), search(logp_TV))


@pytest.mark.parametrize("merge", ["max", "logadd"])
def test_a_token_that_is_settled_ends_before_the_blank_that_the_same_one_needs(merge: str) -> None:
    tokens = Tokens(("<s>", "▁A"), kind="sentencepiece")
    options = BeamOptions(beam=1, word_score=3.0, times=True, merge=merge)  # type: ignore[arg-type]
    search = Search(tokens, Lexicon(("A",), ((1,),)), None, options, engine="torch")
    rng = np.random.default_rng(0)
    for _ in range(20):
        logp_TV = log_softmax(rng.normal(0, 1, (12, 2)))
        [found] = bit_by_bit(search, logp_TV, lambda: 1)
        assert found.tokens == search(logp_TV)[0].tokens


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_a_long_stream_settles_its_text_and_stays_small(lm: LanguageModel, engine: str) -> None:
    search = Search(LETTERS, LEXICON, lm, BeamOptions(times=True), engine=engine)  # type: ignore[arg-type]
    logp_TV = spoken("GO UP STOP ONE", 0, noise=1.5)
    stays_small(search, logp_TV, "GO UP STOP ONE", times=25, rows=20)


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_a_word_ends_where_many_letters_may_follow_it(tmp_path: Path, engine: str) -> None:
    letters = "BCDEFGHIJKLMNOPQRSTUVWYZ"  # "A" is a word, and the begin of 24 others
    words = ["X", "A", *("A" + letter for letter in letters)]
    unigrams = [
        ("<unk>", -5),
        ("<s>", -99),
        ("</s>", -5),
        ("X", -0.5),
        *((w, -9) for w in words[1:]),
    ]
    bigrams = ["-0.1\tX A", "-0.1\tA </s>", "-8\tX </s>"]
    head = f"\\data\\\nngram 1={len(unigrams)}\nngram 2={len(bigrams)}\n\n\\1-grams:\n"
    ones = "".join(f"{log10}\t{word}\t0\n" for word, log10 in unigrams)
    tmp_path.joinpath("lm.arpa").write_text(
        head + ones + "\n\\2-grams:\n" + "\n".join(bigrams) + "\n\n\\end\\\n"
    )
    frames = [
        {"X": -0.01},
        {"|": -0.01},
        {"A": -0.5, "<s>": -1.0},
        {"<s>": -0.2, "B": -3.0, "|": -3.2},  # what "A" paid in advance comes back with the "|"
    ]
    logp_TV = np.full((len(frames), len(LETTERS)), -30.0)
    for row, frame in enumerate(frames):
        for symbol, logp in frame.items():
            logp_TV[row, LETTERS.symbols.index(symbol)] = logp
    lexicon = lexicons.from_words(words, LETTERS)
    search = Search(LETTERS, lexicon, open_lm(tmp_path / "lm.arpa"), engine=engine)  # type: ignore[arg-type]
    assert search(logp_TV)[0].text == "X A"


def test_nothing_is_settled_while_hypotheses_disagree() -> None:
    search = Search(LETTERS, LEXICON, None, BeamOptions(threshold=1e6, token_threshold=1e6))
    beam = search.advance(search.start(), search.finite(spoken("GO UP", 0)))
    assert settle(search.space, beam) is None


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_words_and_letters_are_where_they_were_spoken(lm: LanguageModel, engine: str) -> None:
    frames = "--GGO-O-|--U-P|-STT-O-P--"
    logp_TV = np.full((len(frames), len(LETTERS)), -20.0)
    ids = [LETTERS.blank if s == "-" else LETTERS.symbols.index(s) for s in frames]
    logp_TV[np.arange(len(ids)), ids] = -1e-6
    lexicon = lexicons.from_words(["GOO", "UP", "STOP"], LETTERS)
    for mode in ("lexicon", "open"):
        options = BeamOptions(times=True, mode=mode, unk_score=0.0)
        search = Search(LETTERS, lexicon, None, options, engine=engine)  # type: ignore[arg-type]
        [found] = search(logp_TV)
        assert found.words == (Span("GOO", 2, 7), Span("UP", 11, 14), Span("STOP", 16, 23))
        assert found.tokens[:4] == (
            Span("G", 2, 4),
            Span("O", 4, 5),
            Span("O", 6, 7),
            Span("|", 8, 9),
        )
    options = BeamOptions(times=True, mode="tokens")
    [found] = Search(LETTERS, None, None, options, engine=engine)(logp_TV)  # type: ignore[arg-type]
    assert found.words == (Span("GOO", 2, 7), Span("UP", 11, 14), Span("STOP", 16, 23))


def test_a_kenlm_binary_is_asked_to_the_same_effect(lm: LanguageModel, folder: Path) -> None:
    binary = kenlm_binary.read(folder / "words.arpa")
    words = lexicons.from_words(COMMANDS, LETTERS)  # an ARPA file's words cannot be listed so
    options = BeamOptions(mode="lexicon", nbest=3)
    asked = Search(LETTERS, words, binary, options)
    assert asked.engine == "torch"
    known = Search(LETTERS, words, lm, options, engine="numba")
    for logp_TV in UTTERANCES:
        found, other = asked(logp_TV), known(logp_TV)
        assert [h.text for h in found] == [h.text for h in other]
        assert [h.score for h in found] == pytest.approx([h.score for h in other], abs=1e-4)
    with pytest.raises(ConfigError, match="cannot read KenLM binaries"):
        Search(LETTERS, words, binary, options, engine="numba")


def test_engines_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="numba engine on cuda"):
        Search(LETTERS, LEXICON, engine="numba", device="cuda")
    monkeypatch.setattr("w2vtool.decoder.beam.find_spec", lambda name: None)
    assert Search(LETTERS, LEXICON).engine == "torch"
    with pytest.raises(ConfigError, match="without numba") as caught:
        Search(LETTERS, LEXICON, engine="numba")
    assert "w2vtool[fast]" in str(caught.value.hint)


def test_a_hotword_outside_of_the_lexicon_comes_out(lm: LanguageModel) -> None:
    logp_TV = spoken("GO QUICKLY LEFT", 1, noise=0.5)
    plain = Search(LETTERS, LEXICON, lm, BeamOptions(threshold=200))(logp_TV)[0]
    hot = Search(LETTERS, LEXICON, lm, hotwords={"QUICKLY": 5.0})(logp_TV)[0]
    assert "QUICKLY" not in plain.text
    assert hot.text == "GO QUICKLY LEFT"


def test_bad_hotwords_are_all_named() -> None:
    hotwords = {"quick": 1.0, "GO É": 1.0, " ": 2.0, "GO": math.nan, "UP": 1.0}
    with pytest.raises(DataError) as caught:
        Search(LETTERS, LEXICON, hotwords=hotwords)
    text = str(caught.value)
    for problem in ("'quick': no token for c i k q u", "'GO É': no token for É", "' ': no letters"):
        assert problem in text
    assert "'GO': a weight of nan" in text
    assert "'UP'" not in text
    assert "same case" in text


def test_ten_thousand_hotwords_take_no_more_steps_than_ten(lm: LanguageModel) -> None:
    draw = random.Random(0)
    names = ["".join(draw.choices("AEIOUNRST", k=6)) for _ in range(10_000)]
    few = dict.fromkeys(names[:10], 1.0)
    many = {f"{name} {other}": 1.0 for name, other in itertools.pairwise(names)}
    spaces = [Search(LETTERS, LEXICON, lm, hotwords=hot).space for hot in (few, many)]
    assert len(spaces[1].hot.backoff) > 1000 * len(spaces[0].hot.first) / 2
    for space in spaces:  # one way back from everywhere
        assert (space.hot.back[space.hot.back] == 0).all()


def test_a_search_over_tokens_takes_no_lexicon() -> None:
    with pytest.raises(ConfigError, match="no use for a lexicon"):
        Search(LETTERS, LEXICON, options=BeamOptions(mode="tokens"))


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_without_anything_the_best_path_comes_out(engine: str) -> None:
    from w2vtool.decoder.greedy import greedy

    search = Search(LETTERS, options=BeamOptions(mode="tokens"), engine=engine)  # type: ignore[arg-type]
    for logp_TV in UTTERANCES:
        masked = logp_TV.copy()
        masked[:, 1:4] = -30  # <unk> and the like, which never come out
        found, best = search(masked)[0], greedy(masked, LETTERS)
        assert (found.text, found.score) == (best.text, pytest.approx(best.score))


def test_a_doubled_letter_at_the_end_of_a_word_needs_a_blank() -> None:
    tokens = Tokens(("<s>", "A", "B"), kind="sentencepiece")  # so that no "|" ends words
    search = Search(tokens, Lexicon(("BAA", "BA"), ((2, 1, 1), (2, 1))))
    logp_TV = np.full((4, 3), -20.0)
    logp_TV[np.arange(4), [2, 1, 1, 0]] = 0.0
    assert search(logp_TV)[0][:2] == ("BA", 0.0)
    logp_TV = np.full((4, 3), -20.0)
    logp_TV[np.arange(4), [2, 1, 0, 1]] = 0.0
    assert search(logp_TV)[0].text == "BAA"


def test_a_prefix_is_read_before_the_rest() -> None:
    text = results.Text(("A",), (0,), (5, 4), (0, 3), (0,), -1.0)
    both = results.Prefix(text).then(text)
    assert both == results.Text(("A", "A"), (0, 0), (5, 4, 5, 4), (0, 3, 0, 3), (0, 2), -2.0)


def test_a_model_asked_for_many_words_at_once_says_what_it_says_one_by_one(
    lm: LanguageModel,
) -> None:
    import torch

    from w2vtool.decoder.tensors import Memory, arcs_query

    arcs = Search(LETTERS, LEXICON, lm, engine="torch").space.arcs
    forgetful = Memory(arcs_query(arcs, torch.device("cpu")), rows=8)  # most fall on one another
    rng = np.random.default_rng(0)
    for size in (0, 1, 50, 50):
        states = rng.integers(0, len(arcs.backoff), size)
        words = rng.integers(0, int(arcs.first[1]), size)
        score, state = forgetful(torch.from_numpy(states), torch.from_numpy(words))
        one_by_one = [lm.step(*pair) for pair in zip(states.tolist(), words.tolist(), strict=True)]
        assert score.tolist() == pytest.approx([pair[0] for pair in one_by_one])
        assert state.tolist() == [pair[1] for pair in one_by_one]
