"""What must hold of every utterance whose frames come bit by bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from w2vtool.decoder.beam import Search
from w2vtool.decoder.greedy import Hypothesis


def bit_by_bit(search: Search, logp_TV: np.ndarray, size: Callable[[], int]) -> list[Hypothesis]:
    """What is found in pieces of so many frames; what is committed stays."""
    stream, at, committed = search.stream(), 0, ""
    while at < len(logp_TV):
        frames = size()
        now = stream.step(logp_TV[at : at + frames])
        assert now.startswith(committed)
        committed, at = now, at + frames
    ended = stream.finish()
    assert all(h.text.startswith(committed) for h in ended)
    return ended


def stays_small(search: Search, logp_TV: np.ndarray, text: str, times: int, rows: int) -> None:
    """Many times the same frames: all but the last are settled, few ``rows`` a frame kept."""
    stream, words = search.stream(), text.split()
    kept, frames = [], []
    for _ in range(times):
        stream.step(logp_TV)
        kept.append(len(stream._beam.trace.token))
        frames.append(sum(map(len, stream._frames)))
    assert stream.committed.split()[: 10 * len(words)] == words * 10
    assert max(kept) < rows * len(logp_TV)
    assert max(frames) < 2 * len(logp_TV)
    spans = stream.finish()[0].words
    assert [span.text for span in spans] == words * times
    assert all(a.end <= b.begin for a, b in itertools.pairwise(spans))
