"""Greedy CTC: collapse, drop blanks, spell."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2vtool.decoder.greedy import greedy
from w2vtool.errors import DataError
from w2vtool.tokens import Tokens

TOKENS = Tokens(("|", "A", "-", "B"), blank=2)


def frames(symbols: str) -> np.ndarray:
    logp_TV = np.full((len(symbols), len(TOKENS)), -4.0, np.float32)
    logp_TV[np.arange(len(symbols)), [TOKENS.symbols.index(s) for s in symbols]] = -0.5
    return logp_TV


@pytest.mark.parametrize(
    ("symbols", "text"),
    [
        ("AAB|", "AB"),
        ("A-A|", "AA"),
        ("A|-|B|", "A B"),
        ("-A", "A"),
        ("---", ""),
        ("", ""),
        ("B", "B"),
        ("||A", "A"),
    ],
)
def test_repeats_collapse_before_blanks_vanish(symbols: str, text: str) -> None:
    found = greedy(frames(symbols), TOKENS)
    assert found.text == text
    assert found.score == found.acoustic == pytest.approx(-0.5 * len(symbols))
    assert found.lm == 0.0


@given(st.text("-|AB", max_size=30))
def test_any_frames_read_as_their_collapsed_symbols(symbols: str) -> None:
    collapsed = "".join(s for s, _ in itertools.groupby(symbols) if s != "-")
    assert greedy(frames(symbols), TOKENS).text == " ".join(collapsed.replace("|", " ").split())


def test_a_frame_of_minus_infinity_is_a_blank() -> None:
    logp_TV = frames("A-A|")
    logp_TV[1] = -np.inf
    assert greedy(logp_TV, TOKENS).text == "AA"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_no_model_may_give_are_refused(bad: float) -> None:
    logp_TV = frames("A|B")
    logp_TV[2, 0] = bad
    with pytest.raises(DataError, match="1 of 3 frames, first in frame 2"):
        greedy(logp_TV, TOKENS)


@pytest.mark.parametrize("shape", [(3, 5), (1, 3, 4), (4,)])
def test_another_vocabulary_or_a_batch_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="for 4 tokens"):
        greedy(np.zeros(shape), TOKENS)
