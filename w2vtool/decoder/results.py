"""From where a search stands to what it found: ends of hypotheses, texts, scores, times.

Goes in: a ``Beam``. Goes out: hypotheses, best first. The same for both engines.

Hypotheses between two words go before all others, whatever their score, as in flashlight. If none
is, those that only lack the last ``|`` count as if it were there; if there is none either, an
unfinished last word is dropped.
"""

# n slots   R rows of the trace   T frames   V tokens

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from w2vtool.decoder import arcs
from w2vtool.decoder.beams import (
    BLANK,
    BLANK_TRACE,
    HISTORY,
    HOT,
    IN_WORD,
    LAST,
    LM,
    NODE,
    TOKEN,
    TOKEN_TRACE,
    UNKNOWN_WORD,
    Beam,
    Trace,
)
from w2vtool.decoder.greedy import Hypothesis, Span, words_of
from w2vtool.decoder.options import BeamOptions
from w2vtool.decoder.search_space import Space
from w2vtool.text import WORD_END
from w2vtool.tokens import WORD_BEGIN

_MARKS = (WORD_END, WORD_BEGIN)
Finals = Callable[[np.ndarray], np.ndarray]  # states to log10 P(</s> | state)
Score = Callable[[int, int], tuple[float, int]]  # (state, row of a word) to log10 and next state


class End(NamedTuple):
    """A way to end: score without the end of the sentence, and the last word if not traced."""

    score: float
    lm: int
    hot: int
    trace: int
    history: int
    word: int = IN_WORD
    log10: float = 0.0


class Text(NamedTuple):
    """What a trace says."""

    words: tuple[str, ...]
    rows: tuple[int, ...]  # of the words in the space, or UNKNOWN_WORD
    tokens: tuple[int, ...]
    frames: tuple[int, ...]  # where each token begins
    firsts: tuple[int, ...]  # the first token of each word
    log10: float


class Prefix(NamedTuple):
    """What is settled of an utterance that goes on: no longer in its trace."""

    text: Text = Text((), (), (), (), (), 0.0)
    spans: tuple[Span, ...] = ()  # of its tokens
    frame: int = 0  # the first frame that may still be needed

    def then(self, text: Text) -> Text:
        """The whole text, with what a trace says after the prefix."""
        mine = self.text
        return Text(
            mine.words + text.words,
            mine.rows + text.rows,
            mine.tokens + text.tokens,
            mine.frames + text.frames,
            mine.firsts + tuple(first + len(mine.tokens) for first in text.firsts),
            mine.log10 + text.log10,
        )


_NOTHING = Prefix()


def hypotheses(
    space: Space,
    options: BeamOptions,
    beam: Beam,
    score: Score,
    finals: Finals,
    logp_TV: np.ndarray | None = None,
    prefix: Prefix = _NOTHING,
) -> list[Hypothesis]:
    """Hypotheses with different texts: at least 1, at most ``options.nbest``.

    ``logp_TV`` are the frames from ``prefix.frame`` on; only times need them.
    """
    ends = list(_ends(space, options, beam, score))
    lm_n = np.array([end.lm for end in ends])
    last_n = finals(lm_n).astype(float)
    hot_n = space.hot.last[[end.hot for end in ends]].astype(float)
    total_n = np.array([end.score for end in ends]) + options.lm_weight * last_n + hot_n
    best: dict[str, Hypothesis] = {}
    for row in _ranked(total_n, ends, options):
        text = prefix.then(read(space, beam.trace, ends[row]))
        written = transcript(space, text)
        if written not in best:
            found = _hypothesis(space, options, text, float(total_n[row]), float(last_n[row]))
            if options.times and logp_TV is not None:
                rest = token_spans(space, text, logp_TV, len(prefix.spans), prefix.frame)
                spans = prefix.spans + rest
                found = found._replace(words=_word_spans(space, text, spans), tokens=spans)
            best[written] = found
            if len(best) == options.nbest:
                break
    return list(best.values())


def _ranked(total_n: np.ndarray, ends: list[End], options: BeamOptions) -> list[int]:
    """Rows of ends, best first; ends of equal words become one where paths are summed."""
    if options.summing:
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, end in enumerate(ends):
            letters = end.trace if end.word == UNKNOWN_WORD else -1
            groups.setdefault((end.history, end.word, letters), []).append(row)
        for rows in groups.values():
            rows.sort(key=lambda row: -total_n[row])
            total_n[rows[0]] = np.logaddexp.reduce(total_n[rows])
        chosen = [rows[0] for rows in groups.values()]
    else:
        chosen = list(range(len(ends)))
    return sorted(chosen, key=lambda row: -total_n[row])


def _ends(space: Space, options: BeamOptions, beam: Beam, score: Score) -> Iterator[End]:
    blank_n, token_n = beam.scores[:, BLANK], beam.scores[:, TOKEN]
    top_n = np.logaddexp(blank_n, token_n) if options.summing else np.maximum(blank_n, token_n)
    places = beam.places
    trace_n = np.where(blank_n >= token_n, places[:, BLANK_TRACE], places[:, TOKEN_TRACE])
    root_n = space.is_root(places[:, NODE])
    paid_n = np.array([_paid(space, options, node) for node in places[:, NODE].tolist()])
    if not root_n.any():
        completed = [
            end
            for n in range(len(places))
            for end in _completed(
                space, options, places[n], float(top_n[n] - paid_n[n]), int(trace_n[n]), score
            )
        ]
        if completed:
            yield from completed
            return
        root_n[:] = True
    for n in np.flatnonzero(root_n).tolist():
        lm, hot_state, history = places[n, [LM, HOT, HISTORY]].tolist()
        yield End(float(top_n[n] - paid_n[n]), lm, hot_state, int(trace_n[n]), history)


def _paid(space: Space, options: BeamOptions, node: int) -> float:
    """What a slot has paid in advance and may have back; off the trie, without the letters."""
    return float(space.look[node]) if node >= 0 else options.lm_weight * space.unknown_log10


def _completed(
    space: Space, options: BeamOptions, place: np.ndarray, top: float, trace: int, score: Score
) -> Iterator[End]:
    """The words that a slot would complete if it ended here, for pieces; else, after a ``|``."""
    lm, hot_state, node, last, history = place[[LM, HOT, NODE, LAST, HISTORY]].tolist()
    if space.by_tokens or (space.separator < 0 and space.size[last] == 0):
        return
    ends = [node] if node >= 0 else []
    if ends and space.separator >= 0:
        below = range(space.child_begin[node], space.child_end[node])
        ends = [child for child in below if space.token[child] == space.separator]
    rows: list[int] = []
    for end in ends:
        rows = space.node_words[space.word_begin[end] : space.word_begin[end + 1]].tolist()
    for row in rows:
        log10, next_lm = score(lm, int(space.lm_row[row]))
        gain, next_hot = arcs.step(space.hot, hot_state, int(space.hot_row[row]))
        total = top + options.lm_weight * log10 + gain + options.word_score
        yield End(total, next_lm, next_hot, trace, history, row, log10)
    if space.open and not rows:
        log10, next_lm = score(lm, space.unknown_row)
        gain, next_hot = arcs.step(space.hot, hot_state, 0)
        total = top + options.lm_weight * log10 + gain
        if node >= 0:
            total += options.unk_score + options.unk_letter_score * int(space.depth[node])
        yield End(total, next_lm, next_hot, trace, history, UNKNOWN_WORD, log10)


def read(space: Space, trace: Trace, end: End) -> Text:
    """Follow a trace back to its begin."""
    path: list[int] = []
    row = end.trace
    while row >= 0:
        path.append(row)
        row = int(trace.before[row])
    path.reverse()
    tokens, frames = trace.token[path].tolist(), trace.frame[path].tolist()
    completes = trace.word[path].tolist()
    words: list[str] = []
    rows: list[int] = []
    firsts: list[int] = []
    first = 0
    for place, word in enumerate(completes):
        if word != IN_WORD:
            words.append(_word(space, word, tokens[first : place + 1]))
            rows.append(word)
            firsts.append(first)
            first = place + 1
    if end.word != IN_WORD:
        words.append(_word(space, end.word, tokens[first:]))
        rows.append(end.word)
        firsts.append(first)
    elif first < len(tokens):  # an unfinished word
        del tokens[first:], frames[first:]
    log10 = float(trace.log10[path].sum(dtype=float)) + end.log10
    return Text(tuple(words), tuple(rows), tuple(tokens), tuple(frames), tuple(firsts), log10)


def _word(space: Space, row: int, tokens: list[int]) -> str:
    if row >= 0:
        return space.words[row]
    text = "".join(space.tokens.symbols[token] for token in tokens if token != space.separator)
    return text.replace(WORD_BEGIN, "") if space.separator < 0 else text


def transcript(space: Space, text: Text) -> str:
    """The text of a hypothesis."""
    if space.by_tokens:
        return space.tokens.decode(text.tokens)
    return " ".join(text.words)


def _hypothesis(
    space: Space,
    options: BeamOptions,
    text: Text,
    total: float,
    last: float,
) -> Hypothesis:
    log10 = text.log10 + last if space.lm else 0.0
    bonus, state = 0.0, space.hot_start
    for word, row in zip(text.words, text.rows, strict=True):
        known = row != UNKNOWN_WORD
        free = options.unk_score + options.unk_letter_score * len(word)
        gain, state = arcs.step(space.hot, state, int(space.hot_row[row]) if known else 0)
        bonus += (options.word_score if known else free) + gain
    bonus += float(space.hot.last[state]) - float(space.hot.last[space.hot_start])
    acoustic = total - options.lm_weight * log10 - bonus
    return Hypothesis(transcript(space, text), total, acoustic, log10)


def token_spans(
    space: Space,
    text: Text,
    logp_TV: np.ndarray,
    skipped: int = 0,
    offset: int = 0,
    following: int = -1,
) -> tuple[Span, ...]:
    """Where each token ends: where the best path between two tokens' begins turns to blank.

    Without the first ``skipped`` tokens; ``logp_TV`` begins with the frame ``offset``, and after
    its last one comes the token ``following``.
    """
    spans = []
    tokens, begins = text.tokens[skipped:], text.frames[skipped:]
    ends = (*begins[1:], offset + len(logp_TV))
    afters = (*tokens[1:], following)
    for token, begin, until, after in zip(tokens, begins, ends, afters, strict=False):
        if begin + 1 < until:
            frames = logp_TV[begin + 1 - offset : until - offset]
            gain = np.cumsum(frames[:, token] - frames[:, space.tokens.blank])
            most = len(gain) - (token == after and token != space.separator)
            gain = np.append(0.0, gain[:most])
            end = begin + 1 + int(gain.argmax())
        else:
            end = begin + 1
        spans.append(Span(space.tokens.symbols[token], begin, end))
    return tuple(spans)


def _word_spans(space: Space, text: Text, spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Words, from the first letter to the last; without ``|`` and a ``▁`` that stands alone."""
    if space.by_tokens:
        return tuple(words_of(spans))
    found = []
    afters = (*text.firsts[1:], len(spans))
    for word, first, after in zip(text.words, text.firsts, afters, strict=False):
        own = [span for span in spans[first:after] if span.text not in _MARKS]
        found.append(Span(word, own[0].begin, own[-1].end))
    return tuple(found)
