"""Arcs that back off: how searches ask an n-gram model, and hot phrases, for the score of a word.

Goes in: a state and a word, both as rows. Goes out: the score, and the state after the word. State
0 has an arc for every word: arc ``w`` is word ``w``.
"""

# S states   A arcs

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Arcs(NamedTuple):
    """States are rows. Arcs of state s: ``first[s] <= arc < first[s + 1]``, by rising word."""

    first: np.ndarray  # int64 [S + 1]
    word: np.ndarray  # int32 [A]
    score: np.ndarray  # float32 [A], log10 of a language model, nats of hot phrases
    target: np.ndarray  # int32 [A], the state after the arc
    backoff: np.ndarray  # float32 [S], added where the state lacks a word
    back: np.ndarray  # int32 [S], and the state to ask then
    last: np.ndarray  # float32 [S], added at the end of a sentence


def nothing() -> Arcs:
    """Arcs that score every word (all are row 0) with 0."""
    one, rows = np.zeros(1, np.float32), np.zeros(1, np.int32)
    return Arcs(np.array([0, 1]), rows, one, rows, one, rows, one)


def step(arcs: Arcs, state: int, word: int) -> tuple[float, int]:
    """The score of a word in a state, and the state after it."""
    total = 0.0
    while state:
        low, high = arcs.first[state : state + 2].tolist()
        arc = low + int(np.searchsorted(arcs.word[low:high], word))
        if arc < high and arcs.word[arc] == word:
            return total + float(arcs.score[arc]), int(arcs.target[arc])
        total += float(arcs.backoff[state])
        state = int(arcs.back[state])
    return total + float(arcs.score[word]), int(arcs.target[word])
