"""The most likely token of every frame, read as CTC: no search, no lexicon, no language model.

Goes in: log-probabilities of one utterance, ``logp_TV``. Goes out: a ``Hypothesis``, the result
type that the beam search shares.
"""

# T frames   V tokens

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from w2vtool.errors import DataError
from w2vtool.text import WORD_END
from w2vtool.tokens import SPECIALS, WORD_BEGIN, Tokens


class Span(NamedTuple):
    """A word or token, and where it is: ``begin`` is its first frame, ``end`` the one after."""

    text: str
    begin: int
    end: int


class Hypothesis(NamedTuple):
    """A transcript and what it is worth.

    ``score`` is what the search maximises, in nats. ``acoustic`` is the paths' share of it: the
    log-probabilities of the best one (or of all) plus ``sil_score`` for each separator frame.
    ``lm`` is the unweighted language-model score in log10, the end of the sentence included.
    ``words`` and ``tokens`` are there if times were asked for.
    """

    text: str
    score: float
    acoustic: float
    lm: float
    words: tuple[Span, ...] = ()
    tokens: tuple[Span, ...] = ()


def greedy(logp_TV: np.ndarray, tokens: Tokens) -> Hypothesis:
    """Transcribe by the best token of each frame: repeats collapse, then blanks vanish.

    ``logp_TV`` holds natural logs; T may be 0. A frame without any finite value counts as blank.
    Raises DataError for a wrong width or NaN.
    """
    best_T, top_T = best_tokens(logp_TV, tokens)
    changed_T = np.diff(best_T, prepend=-1) != 0
    ids = best_T[changed_T & (best_T != tokens.blank)].tolist()
    total = float(top_T.sum())
    return Hypothesis(tokens.decode(ids), total, total, 0.0)


def best_tokens(logp_TV: np.ndarray, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """The best token of each frame, blank where no value is finite, and its log-probability.

    Raises DataError for a wrong width or NaN.
    """
    logp_TV = check_emissions(logp_TV, tokens)
    best_T = logp_TV.argmax(axis=1)
    top_T = logp_TV.max(axis=1, initial=-np.inf).astype(np.float64)
    best_T[np.isneginf(top_T)] = tokens.blank
    return best_T, top_T


def words_of(spans: tuple[Span, ...]) -> Iterator[Span]:
    """What lies between separators, or before a piece that begins a word; without ``<unk>``."""
    word: list[Span] = []
    for span in (*spans, Span(WORD_END, 0, 0)):
        if word and (span.text == WORD_END or span.text.startswith(WORD_BEGIN)):
            letters = "".join(part.text for part in word).removeprefix(WORD_BEGIN)
            heard = [part for part in word if part.text != WORD_BEGIN]
            if letters:
                yield Span(letters, heard[0].begin, heard[-1].end)
            word = []
        if span.text not in (WORD_END, *SPECIALS):
            word.append(span)


def check_emissions(logp_TV: Any, tokens: Tokens) -> np.ndarray:
    """Log-probabilities as an array; tensors of torch, of any type and device, are fine as well.

    Raises DataError unless this is one row of log-probabilities a frame, without NaN or +inf.
    """
    if hasattr(logp_TV, "detach"):
        logp_TV = logp_TV.detach().double().cpu()
    logp_TV = np.asarray(logp_TV)
    if logp_TV.ndim != 2 or logp_TV.shape[1] != len(tokens):
        raise DataError(
            f"emissions of shape {logp_TV.shape} for {len(tokens)} tokens",
            hint="one utterance at a time, frames by tokens; is the vocabulary the model's own?",
        )
    bad_T = (np.isnan(logp_TV) | np.isposinf(logp_TV)).any(axis=1)
    if bad_T.any():
        raise DataError(
            f"emissions with NaN or +inf in {int(bad_T.sum())} of {len(bad_T)} frames, "
            f"first in frame {int(bad_T.argmax())}",
            hint="is the audio finite? float16 or bfloat16 overflow shows like this too",
        )
    return logp_TV
