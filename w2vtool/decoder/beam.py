"""Beam search for CTC with a lexicon, a word n-gram model, or both.

Goes in: log-probabilities of one utterance, ``logp_TV``. Goes out: the best hypotheses, best
first. What is maximised, over CTC paths ``pi`` and the words ``W`` that they spell, is flashlight's
score::

    sum_t logp[t, pi_t] + sil_score * (frames that are "|")
      + lm_weight * (sum_i log10 P(w_i | history) + log10 P(</s> | history)) + word_score * |W|

Every word ends in ``|``, and more ``|`` may stand between words. With ``mode="open"`` any letters
make a word: one that is neither in the lexicon nor known to the model scores ``unk_score +
unk_letter_score * letters`` instead of ``word_score``, and the model's ``P(<unk> | history)``.

A hypothesis is where it is in the model (state) and in the lexicon (node); each such slot keeps two
Viterbi scores, for a last frame that is blank and for one that is the node's token. Hypotheses that
meet in a slot have the same future, so the better one is kept and nothing is lost. Inside of a word
a hypothesis already pays for the likeliest word below its node, which only steers the pruning.

Why not merge on the word history, as flashlight does: for the same result that takes a beam ten
times as wide. Lists of more than one hypothesis do need it, and get it.
"""

# T frames   V tokens

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

import numpy as np

from w2vtool.decoder.greedy import Hypothesis, check_emissions
from w2vtool.decoder.lexicon import Lexicon, build_trie, letter_ids, separator, unknown_words
from w2vtool.decoder.lm import LanguageModel
from w2vtool.errors import ConfigError
from w2vtool.tokens import Tokens

_LOWEST = -1e9  # stands for log 0: sums of it still order hypotheses by the rest of their score
_STATE_BITS = 32
_ROOT = 0

Slot = list[Any]  # [state, node, BLANK, TOKEN, BLANK_TRACE, TOKEN_TRACE], changed in place
_STATE, _NODE, _BLANK, _TOKEN, _BLANK_TRACE, _TOKEN_TRACE = range(6)
Trace = tuple[Any, str, float] | None  # (trace before, word, its word_score or unk_score)


@dataclass(frozen=True)
class BeamOptions:
    """How to search and how to weigh; scores and thresholds in nats.

    Source: flashlight-text's LexiconDecoderOptions; there ``beam`` is ``beam_size``, and its
    ``beam_size_token`` counts tokens where ``token_threshold`` compares them with the frame's best.
    """

    beam: int = 50  # slots kept after each frame
    threshold: float = 18.0  # slots this much worse than the best are dropped
    token_threshold: float = 15.0  # tokens this much worse than the frame's best are not tried
    lm_weight: float = 2.0  # nats for one log10 unit
    word_score: float = 0.0
    sil_score: float = 0.0
    unk_score: float = -5.0  # open mode only, as the next one
    unk_letter_score: float = -1.0
    nbest: int = 1
    mode: Literal["lexicon", "open"] = "lexicon"

    def __post_init__(self) -> None:
        good = {
            "beam": self.beam >= 1,
            "nbest": self.nbest >= 1,
            "threshold": self.threshold > 0,
            "token_threshold": self.token_threshold >= 0,
            "mode": self.mode in ("lexicon", "open"),
        }
        for name in ("lm_weight", "word_score", "sil_score", "unk_score", "unk_letter_score"):
            good[name] = math.isfinite(getattr(self, name))
        wrong = [f"{name}={getattr(self, name)}" for name, fits in good.items() if not fits]
        if wrong:
            raise ConfigError(
                f"beam search options out of range: {', '.join(wrong)}",
                hint="beam and nbest are 1 or more, thresholds positive, weights and scores finite",
            )


class Search:
    """A decoder: made once, called with the log-probabilities of one utterance at a time.

    ``unknown`` are the lexicon's words that the language model only knows as ``<unk>``. Raises
    DataError for tokens without ``|`` and for a language model that knows no word of the lexicon,
    ConfigError where a closed lexicon is asked for and none is given.
    """

    def __init__(
        self,
        tokens: Tokens,
        lexicon: Lexicon | None = None,
        lm: LanguageModel | None = None,
        options: BeamOptions = BeamOptions(),
    ) -> None:
        if lexicon is None and options.mode == "lexicon":
            raise ConfigError("a beam search without a lexicon", hint="give one, or mode=open")
        self.tokens, self.lm, self.options = tokens, lm, options
        self.separator = separator(tokens)
        self.letters = sorted(letter_ids(tokens).values())
        self.unknown = unknown_words(lexicon, lm) if lexicon and lm else ()
        self.unk_log10 = lm.score(lm.start(), "<unk>")[0] if lm else 0.0
        # plain lists: the search reads single items, for which arrays are slow
        self.first, self.token, self.parent, self.look = [1, 1], [-1], [-1], [0.0]
        self.words: dict[int, list[str]] = {}
        if lexicon is not None:
            self._plant(lexicon)

    def _plant(self, lexicon: Lexicon) -> None:
        lm = self.lm
        trie = build_trie(lexicon, (lambda word: lm.score(lm.start(), word)[0]) if lm else None)
        self.first, self.token = trie.first.tolist(), trie.token.tolist()
        self.look = (self.options.lm_weight * trie.score).tolist()
        self.look[_ROOT] = 0.0
        self.parent = [-1, *np.repeat(np.arange(len(trie.token)), np.diff(trie.first)).tolist()]
        for node in np.flatnonzero(np.diff(trie.first_word)).tolist():
            rows = trie.words[trie.first_word[node] : trie.first_word[node + 1]].tolist()
            self.words[node] = [lexicon.words[row] for row in rows]

    def __call__(self, logp_TV: np.ndarray) -> list[Hypothesis]:
        """Hypotheses with different texts, best first: at least 1, at most ``options.nbest``.

        ``logp_TV`` holds natural logs; T may be 0, and -inf is read as -1e9. Hypotheses that end in
        ``|`` go before all others, whatever their score, as in flashlight; if none is left, those
        that only lack the last ``|`` count as if it were there; if there is none either, an
        unfinished last word is dropped. Raises DataError for a wrong width or NaN.
        """
        check_emissions(logp_TV, self.tokens)
        logp_TV = np.maximum(logp_TV.astype(np.float64), _LOWEST)
        floors = (logp_TV.max(axis=1, initial=_LOWEST) - self.options.token_threshold).tolist()
        return _Utterance(self).decode(logp_TV.tolist(), floors)


class _Pool:
    """The candidates of one frame; merges those that meet in a slot."""

    __slots__ = ("best", "limit", "slots", "threshold")

    def __init__(self, threshold: float) -> None:
        self.slots: dict[int, Slot] = {}
        self.best = self.limit = -math.inf
        self.threshold = threshold

    def rise(self, score: float) -> None:
        """Note a candidate's score: the best one sets the limit for all."""
        if score > self.best:
            self.best, self.limit = score, score - self.threshold

    def stay(self, slot: Slot) -> None:
        """Offer both ways to stay in a slot."""
        key = slot[_NODE] << _STATE_BITS | slot[_STATE]
        there = self.slots.setdefault(key, slot)
        if there is not slot:
            for score, trace in ((_BLANK, _BLANK_TRACE), (_TOKEN, _TOKEN_TRACE)):
                if slot[score] > there[score]:
                    there[score], there[trace] = slot[score], slot[trace]

    def reach(self, state: int, node: int, score: float, trace: Trace) -> None:
        """Offer a hypothesis whose last frame is the token that leads to ``node``."""
        self.rise(score)
        key = node << _STATE_BITS | state
        there = self.slots.get(key)
        if there is None:
            self.slots[key] = [state, node, -math.inf, score, None, trace]
        elif score > there[_TOKEN]:
            there[_TOKEN], there[_TOKEN_TRACE] = score, trace

    def survivors(self, beam: int) -> list[Slot]:
        """The best slots, best first."""
        ranked = [(max(slot[_BLANK], slot[_TOKEN]), slot) for slot in self.slots.values()]
        ranked.sort(key=itemgetter(0), reverse=True)
        return [slot for score, slot in ranked[:beam] if score > self.limit]


class _Utterance:
    """One search: what it has met of the language model, and of words outside of the lexicon.

    Nodes from ``len(search.token)`` on are such words' beginnings, numbered as they come up.
    """

    def __init__(self, search: Search) -> None:
        self.search, self.options = search, search.options
        self.closed = len(search.token)
        self.open = search.options.mode == "open"
        self.states: list[Any] = [search.lm.start() if search.lm else None]
        self._state_ids: dict[Any, int] = {self.states[0]: 0}
        self._steps: dict[tuple[int, str], tuple[int, float]] = {}
        self._free: dict[tuple[int, int], int] = {}  # (node, token) -> node off the trie
        self._free_token: list[int] = []
        self._free_look: list[float] = []
        self._paths: dict[int, tuple[int, ...]] = {_ROOT: ()}
        self._endings: dict[int, list[tuple[str, float]]] = {}

    def decode(self, frames: list[list[float]], floors: list[float]) -> list[Hypothesis]:
        beam: list[Slot] = [[0, _ROOT, 0.0, -math.inf, None, None]]
        for frame, floor in zip(frames, floors, strict=True):
            beam = self._advance(beam, frame, floor)
        return self._finish(beam)

    def _advance(self, beam: list[Slot], frame: list[float], floor: float) -> list[Slot]:
        search = self.search
        e_blank = frame[search.tokens.blank]
        e_separator = frame[search.separator] + self.options.sil_score
        may_end = frame[search.separator] >= floor
        free = [t for t in search.letters if frame[t] >= floor] if self.open else []
        free.sort(key=frame.__getitem__, reverse=True)
        pool = _Pool(self.options.threshold)
        for slot in beam:
            state, node, blank, token, blank_trace, token_trace = slot
            top, trace = (blank, blank_trace) if blank >= token else (token, token_trace)
            if node == _ROOT:
                last, again, again_trace = search.separator, top + e_separator, trace
            else:
                last = self._last(node)
                again, again_trace = token + frame[last], token_trace
            pool.rise(top + e_blank)
            pool.rise(again)
            pool.stay([state, node, top + e_blank, again, trace, again_trace])
            if node < self.closed:
                self._spell(pool, frame, floor, slot, last)
            if free:
                self._spell_freely(pool, frame, free, slot, last)
            if may_end and node != _ROOT:
                self._end_word(pool, state, node, top + e_separator, trace)
        return pool.survivors(self.options.beam)

    def _spell(self, pool: _Pool, frame: list[float], floor: float, slot: Slot, last: int) -> None:
        """Offer each next letter that the lexicon has; the same again only after a blank."""
        search = self.search
        state, node, blank, token, blank_trace, token_trace = slot
        top, trace = (blank, blank_trace) if blank >= token else (token, token_trace)
        tokens, looks = search.token, search.look
        look = looks[node]
        for child in range(search.first[node], search.first[node + 1]):
            letter = tokens[child]
            if frame[letter] < floor or letter == search.separator:
                continue
            gain = frame[letter] + looks[child] - look
            if letter == last:
                if blank + gain > pool.limit:
                    pool.reach(state, child, blank + gain, blank_trace)
            elif top + gain > pool.limit:
                pool.reach(state, child, top + gain, trace)

    def _spell_freely(
        self, pool: _Pool, frame: list[float], free: list[int], slot: Slot, last: int
    ) -> None:
        """Offer each next letter that the lexicon does not have; ``free`` is likeliest first."""
        state, node, blank, token, blank_trace, token_trace = slot
        top, trace = (blank, blank_trace) if blank >= token else (token, token_trace)
        gain = self._look_off(len(self._path(node)) + 1) - self._look(node)
        taken: list[int] = []
        if node < self.closed:
            taken = self.search.token[self.search.first[node] : self.search.first[node + 1]]
        for letter in free:
            score = top + frame[letter] + gain
            if score <= pool.limit:
                break
            if letter in taken:
                continue
            if letter == last:
                score += blank - top
                if score <= pool.limit:
                    continue
            target = self._free.get((node, letter))
            if target is None:
                target = self._grow(node, letter)
            pool.reach(state, target, score, blank_trace if letter == last else trace)

    def _end_word(self, pool: _Pool, state: int, node: int, score: float, trace: Trace) -> None:
        """Offer every word that a separator completes at ``node``; scores are now exact."""
        weight = self.options.lm_weight
        score -= self._look(node)
        for word, bonus in self.endings(node):
            following, log10 = self.step(state, word)
            total = score + weight * log10 + bonus
            if total > pool.limit:
                pool.reach(following, _ROOT, total, (trace, word, bonus))

    def _last(self, node: int) -> int:
        """The token that leads to a node."""
        return (
            self.search.token[node] if node < self.closed else self._free_token[node - self.closed]
        )

    def _look(self, node: int) -> float:
        """What a hypothesis in a node has paid in advance for its unfinished word."""
        return self.search.look[node] if node < self.closed else self._free_look[node - self.closed]

    def _look_off(self, letters: int) -> float:
        """What the beginning of a word pays that is not in the lexicon."""
        options = self.options
        unknown = options.unk_score + options.lm_weight * self.search.unk_log10
        return unknown + options.unk_letter_score * letters

    def _grow(self, node: int, letter: int) -> int:
        """A new node off the trie, which pays like an unknown word so far."""
        target = self.closed + len(self._free_token)
        self._free[node, letter] = target
        path = self._paths[target] = (*self._path(node), letter)
        self._free_token.append(letter)
        self._free_look.append(self._look_off(len(path)))
        return target

    def _path(self, node: int) -> tuple[int, ...]:
        """The tokens on the way to a node."""
        if node not in self._paths:  # of the trie, and not asked for before
            before = self._path(self.search.parent[node])
            self._paths[node] = (*before, self.search.token[node])
        return self._paths[node]

    def endings(self, node: int) -> list[tuple[str, float]]:
        """Words that a separator completes at ``node``, each with its score beside the LM's."""
        if node not in self._endings:
            self._endings[node] = list(self._find_endings(node))
        return self._endings[node]

    def _find_endings(self, node: int) -> Iterator[tuple[str, float]]:
        search, options = self.search, self.options
        if node < self.closed:
            for child in range(search.first[node], search.first[node + 1]):
                if search.token[child] == search.separator:
                    for word in search.words[child]:
                        yield word, options.word_score
                    return
        if self.open:
            path = self._path(node)
            word = "".join(search.tokens.symbols[token] for token in path)
            if search.lm and search.lm.knows(word):
                yield word, options.word_score
            else:
                yield word, options.unk_score + options.unk_letter_score * len(path)

    def step(self, state: int, word: str) -> tuple[int, float]:
        """The state after a word, and the word's log10 probability.

        Without a model all states are one. For an n-best list every word history is a state.
        """
        found = self._steps.get((state, word))
        if found is not None:
            return found
        lm = self.search.lm
        log10, following = lm.score(self.states[state], word) if lm else (0.0, None)
        key = (state, word) if self.options.nbest > 1 else following
        target = self._state_ids.setdefault(key, len(self.states))
        if target == len(self.states):
            self.states.append(following)
        self._steps[state, word] = target, log10
        return target, log10

    def _finish(self, beam: list[Slot]) -> list[Hypothesis]:
        weight, lm = self.options.lm_weight, self.search.lm
        ranked = [
            (score + weight * (lm.final(self.states[state]) if lm else 0.0), trace)
            for state, score, trace in self._ends(beam)
        ]
        ranked.sort(key=itemgetter(0), reverse=True)
        best: dict[str, Hypothesis] = {}
        for score, trace in ranked:
            words, bonuses = _unroll(trace)
            text = " ".join(words)
            if text not in best:
                log10 = lm.sentence(words) if lm else 0.0
                acoustic = score - weight * log10 - sum(bonuses)
                best[text] = Hypothesis(text, score, acoustic, log10)
                if len(best) == self.options.nbest:
                    break
        return list(best.values())

    def _ends(self, beam: list[Slot]) -> list[tuple[int, float, Trace]]:
        """(state, score, trace) of the slots that may be the end of the utterance."""
        tops = []
        for state, node, blank, token, blank_trace, token_trace in beam:
            score, trace = (blank, blank_trace) if blank >= token else (token, token_trace)
            tops.append((node, state, score - self._look(node), trace))
        whole = [(state, score, trace) for node, state, score, trace in tops if node == _ROOT]
        if whole:
            return whole
        for node, state, score, trace in tops:
            for word, bonus in self.endings(node):
                following, log10 = self.step(state, word)
                total = score + self.options.lm_weight * log10 + bonus
                whole.append((following, total, (trace, word, bonus)))
        return whole or [(state, score, trace) for _, state, score, trace in tops]


def _unroll(trace: Trace) -> tuple[list[str], list[float]]:
    words, bonuses = [], []
    while trace is not None:
        trace, word, bonus = trace
        words.append(word)
        bonuses.append(bonus)
    return words[::-1], bonuses
