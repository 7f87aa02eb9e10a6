"""Greedy decoding with the shape of a search: batches, streams, times.

Goes in: log-probabilities, whole or bit by bit. Goes out: what ``greedy`` finds, with the frames of
its words and tokens if times are asked for.
"""

# T frames   V tokens

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from w2vtool.decoder.greedy import Hypothesis, Span, best_tokens, words_of
from w2vtool.tokens import Tokens


class BestPath:
    """The best token of each frame; see ``greedy``."""

    def __init__(self, tokens: Tokens, *, times: bool = False) -> None:
        self.tokens, self.times = tokens, times

    def batch(self, emissions: Sequence[np.ndarray]) -> list[list[Hypothesis]]:
        """One hypothesis for each utterance. Raises DataError for a wrong width or NaN."""
        found = []
        for logp_TV in emissions:
            stream = self.stream()
            stream.step(logp_TV)
            found.append(stream.finish())
        return found

    def stream(self) -> BestPathStream:
        """A new utterance whose frames come bit by bit."""
        return BestPathStream(self.tokens, times=self.times)


class BestPathStream:
    """An utterance that goes on; it keeps the runs of equal best tokens."""

    def __init__(self, tokens: Tokens, *, times: bool = False) -> None:
        self._tokens, self._times = tokens, times
        self._runs: list[tuple[int, int, int]] = []  # token, first frame, the frame after
        self._last, self._frames, self._total = -1, 0, 0.0

    def step(self, logp_TV: np.ndarray) -> str:
        """Take the next frames; gives the transcript so far. Raises DataError."""
        best_T, top_T = best_tokens(logp_TV, self._tokens)
        self._total += float(top_T.sum())
        first_R = np.flatnonzero(np.diff(best_T, prepend=-1) != 0)
        ends = np.append(first_R[1:], len(best_T))
        for token, begin, end in zip(best_T[first_R], first_R, ends, strict=False):
            run = (int(token), self._frames + int(begin), self._frames + int(end))
            if token == self._last and token != self._tokens.blank:  # goes on from the last step
                run = (run[0], self._runs.pop()[1], run[2])
            if token != self._tokens.blank:
                self._runs.append(run)
            self._last = int(token)
        self._frames += len(best_T)
        return self._text()

    def finish(self) -> list[Hypothesis]:
        """The only hypothesis."""
        found = Hypothesis(self._text(), self._total, self._total, 0.0)
        if self._times:
            symbols = self._tokens.symbols
            spans = tuple(Span(symbols[token], begin, end) for token, begin, end in self._runs)
            found = found._replace(words=tuple(words_of(spans)), tokens=spans)
        return [found]

    def _text(self) -> str:
        return self._tokens.decode([token for token, _, _ in self._runs])
