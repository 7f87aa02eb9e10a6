"""What all live hypotheses of a beam have in common, and the beam without it.

Goes in: a ``Beam``. Goes out: the words that every live trace begins with, and a beam whose trace
holds only what the live hypotheses still need.
"""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from w2vtool.decoder.beams import BLANK, BLANK_TRACE, IN_WORD, Beam, Trace
from w2vtool.decoder.results import End, Text, read
from w2vtool.decoder.search_space import Space


class Settled(NamedTuple):
    """The text that no further frame can change, the first frame after it, and what goes on."""

    text: Text
    frame: int
    beam: Beam


def settle(space: Space, beam: Beam) -> Settled | None:
    """Cut off the common begin; None where there is none yet.

    It ends with a word, and before the last token that all have in common: where the token before
    that one ends is then known as well.
    """
    before = beam.trace.before
    traces = beam.places[:, BLANK_TRACE:]  # of both scores
    live = set(traces[beam.scores[:, BLANK:] > -np.inf].tolist())
    waiting = [-row for row in live]
    heapq.heapify(waiting)
    needed = set(live)
    while len(waiting) > 1:  # a row comes after what it follows, so the latest goes first
        row = int(before[-heapq.heappop(waiting)])
        if row not in needed:
            needed.add(row)
            heapq.heappush(waiting, -row)
        if row < 0:
            return None
    common = -waiting[0]
    if common < 0:
        return None
    last = int(before[common])
    while last >= 0 and beam.trace.word[last] == IN_WORD:
        needed.add(last)
        last = int(before[last])
    if last < 0:
        return None
    end = End(0.0, 0, 0, last, 0)
    text = read(space, beam.trace, end)
    kept = np.array(sorted(needed - {last}))
    number = np.full(len(before) + 1, -1)
    number[kept] = np.arange(len(kept))
    trace = Trace(*(column[kept] for column in beam.trace))
    trace = trace._replace(before=number[trace.before].astype(np.int32))
    places = beam.places.copy()
    places[:, BLANK_TRACE:] = number[places[:, BLANK_TRACE:]]
    frame = int(trace.frame.min())
    return Settled(text, frame, replace(beam, places=places, trace=trace))
