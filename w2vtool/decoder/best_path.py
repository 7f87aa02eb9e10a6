"""Greedy decoding with the shape of a search: batches, streams, times.

Goes in: log-probabilities, whole or bit by bit. Goes out: what ``greedy`` finds, with the frames of
its words and tokens if times are asked for.
"""

# T frames   V tokens

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from w2vtool.decoder.greedy import Hypothesis, Span, check_emissions
from w2vtool.text import WORD_END
from w2vtool.tokens import SPECIALS, WORD_BEGIN, Tokens


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
        logp_TV = check_emissions(logp_TV, self._tokens)
        best_T = logp_TV.argmax(axis=1)
        top_T = logp_TV.max(axis=1, initial=-np.inf).astype(np.float64)
        best_T[np.isneginf(top_T)] = self._tokens.blank
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
            found = found._replace(words=tuple(_words(spans)), tokens=spans)
        return [found]

    def _text(self) -> str:
        return self._tokens.decode([token for token, _, _ in self._runs])


def _words(spans: tuple[Span, ...]) -> Iterator[Span]:
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
