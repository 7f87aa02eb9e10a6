"""Where a search stands: its live hypotheses, and the trace of how each came about.

Goes in: a ``Space``. Goes out: a ``Beam``, which an engine takes and gives back one chunk of frames
later; nothing else is remembered, so decoding in chunks is decoding.

A slot is a place in the search: language-model state, state of the hot phrases, node. It has two
scores, for a last frame that is blank and for one that is the node's token, each with its trace.
"""

# n slots   R rows of the trace

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from w2vtool.decoder.search_space import ROOT, Space

# columns of Beam.places
HISTORY, LM, HOT, NODE, LAST, BLANK_TRACE, TOKEN_TRACE = range(7)
PLACES = 7
NEW, WORD = PLACES, PLACES + 1  # more columns of a candidate: its new token, the word completed
BLANK, TOKEN = 0, 1  # columns of Beam.scores
IN_WORD, UNKNOWN_WORD = -1, -2  # instead of the row of a word in Trace.word
MULTIPLIER = -7046029254386353131  # 2^64 / golden ratio, odd: Knuth's multiplicative hashing
SHIFT = 29
FREE = -(2**63)  # the bit that marks nodes off the trie


class Trace(NamedTuple):
    """One row for every token that a live hypothesis began with; -1 is the begin."""

    before: np.ndarray  # int32 [R]
    token: np.ndarray  # int32 [R]
    word: np.ndarray  # int32 [R], what the token completes, or IN_WORD or UNKNOWN_WORD
    frame: np.ndarray  # int32 [R]
    log10: np.ndarray  # float32 [R], of the completed word


def empty_trace() -> Trace:
    """No rows."""
    none = np.zeros(0, np.int32)
    return Trace(none, none, none, none, np.zeros(0, np.float32))


@dataclass
class Beam:
    """Slots of one utterance after ``frames`` frames."""

    places: np.ndarray  # int64 [n, 7]
    scores: np.ndarray  # float64 [n, 2]
    trace: Trace = field(default_factory=empty_trace)
    frames: int = 0
    blank: bool = False  # whether the last frame was blank beyond doubt
    states: Any = None  # what stands for the states of a language model without arrays


def start(space: Space) -> Beam:
    """Before the first frame."""
    begin = 0 if space.lm is None else getattr(space.lm, "begin", 0)
    places = [[0, begin, space.hot_start, ROOT, space.token[ROOT], -1, -1]]
    in_advance = -float(space.hot.last[space.hot_start])
    return Beam(np.array(places, np.int64), np.array([[-np.inf, in_advance]]))
