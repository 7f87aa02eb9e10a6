"""The beam search by the letter of its description: on dictionaries, slow, without a shortcut.

Goes in: a ``Task`` and log-probabilities. Goes out: an ``Outcome``, the hypotheses that the
engines must find under the same beam, thresholds and collapsing, whatever these are.

What is promised, frame by frame. A *place* is a state of the language model, a state of the hot
phrases and the letters of the word so far; between words, the last token. Where histories stay
apart (``recombine="history"``, or sums), the words so far belong to the place. Each place has two
scores, for a last frame that is blank and for one that is a token.

1. Every place offers itself a blank (from both scores) and its token again (from its token score;
   after ``|`` from both, because any number of ``|`` may stand between words).
2. Every token within ``token_threshold`` of the frame's best, blank excepted, is offered: further
   into a spelling, to the end of a word, in open mode off the lexicon. The token that a place ended
   with needs the blank score. Where paths are summed, such an offer must be within ``threshold`` of
   the best offer of (1), each for itself; sums are only made of what remains.
3. Offers for the same score of the same place become one: their maximum, or their sum.
4. What is ``threshold`` or more below the best goes: of maxima each score for itself, of sums
   places by the sum of both. Where sums are recombined by state, of the places that differ only in
   their words the best stays. Then the ``beam`` best places stay.

Inside of a word a place has paid for the likeliest word that it can become, as at the start of a
sentence; at the word's end that is replaced by the true score. A frame that is blank beyond
``collapse``, after such a frame, only adds a blank to every place.
"""

# T frames   V tokens

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from oracle import Task

from w2vtool.text import WORD_END

NEVER = -math.inf
TIE = 1e-5  # scores nearer than this may be ordered otherwise by rounding
Words = tuple[tuple[str, bool], ...]  # each with whether it is known
Units = tuple[str, ...]  # letters with ``▁`` and ``|``; where every token is a word, its symbol


class Way(NamedTuple):
    """How a score came about: words, the token of each frame, and frames to the last word's end."""

    words: Words = ()
    path: tuple[int, ...] = ()
    whole: int = 0


class Place(NamedTuple):
    """See above; ``words`` are empty where histories of one state are one."""

    lm: Any
    hot: tuple[str, ...]
    letters: Units
    last: int
    words: Words = ()


class Offer(NamedTuple):
    """A score and the best way to it."""

    score: float = NEVER
    way: Way = Way()

    def more(self, gain: float, token: int) -> Offer:
        """After another frame."""
        return Offer(self.score + gain, self.way._replace(path=(*self.way.path, token)))


Slots = dict[Place, tuple[Offer, Offer]]  # with a last frame that is blank, that is a token


class Found(NamedTuple):
    """A hypothesis; ``tokens`` are (token, first frame, frame after the last)."""

    text: str
    score: float
    acoustic: float
    lm: float
    tokens: tuple[tuple[int, int, int], ...]


@dataclass
class Outcome:
    """``cut``: what stayed hung on a tie. ``tied``: which of two equals was named did."""

    found: list[Found] = field(default_factory=list)
    cut: bool = False
    tied: bool = False


class Reference:
    """A search for one utterance after another."""

    def __init__(self, task: Task) -> None:
        self.task, self.options, self.tokens = task, task.options, task.tokens
        symbols = task.tokens.symbols
        self.silence = symbols.index(WORD_END) if WORD_END in symbols else -1
        self.by_tokens = task.options.mode == "tokens"
        self.separator = -1 if self.by_tokens else self.silence
        self.letters = [
            token
            for token, symbol in enumerate(symbols)
            if token not in (task.tokens.blank, self.silence)
            and not (len(symbol) > 2 and symbol[0] == "<" and symbol[-1] == ">")
        ]
        self.phrases = {self._phrase(text): value for text, value in task.hotwords.items()}
        self.spelled = self._planted()
        self.looks = self._looks()
        self.apart = task.options.by_history or task.options.summing
        self.unknown_look = self._weighed("<unk>", task.lm.start())[0] if task.lm else 0.0
        self.outcome = Outcome()

    def _phrase(self, text: str) -> tuple[str, ...]:
        if not self.by_tokens:
            return tuple(text.split())
        return (WORD_END, *(s for word in text.split() for s in (*word, WORD_END)))

    def _units(self, *tokens: int) -> Units:
        """What tokens add to a place: pieces of the same letters are the same."""
        if self.by_tokens:
            return tuple(self.tokens.symbols[token] for token in tokens)
        return tuple(self.task.letters(tokens))

    def _planted(self) -> dict[Units, list[str]]:
        """Spellings, and their words."""
        symbols, found = self.tokens.symbols, dict[Units, list[str]]()
        if self.by_tokens:
            usable = [*self.letters, *([self.silence] if self.silence >= 0 else [])]
            return {(symbols[token],): [symbols[token]] for token in usable}
        words, spellings = self.task.lexicon or ((), ())
        entries = [(w, self._units(*ids)) for w, ids in zip(words, spellings, strict=True)]
        listed = set(words)
        more = [word for phrase in self.phrases for word in phrase]
        if self.options.mode == "open" and self.task.lm:
            spellable = {symbols[token] for token in self.letters}
            more += [word for word in self.task.lm.vocabulary() if set(word) <= spellable]
        for word in more:
            if word not in listed:
                entries.append((word, (*word, WORD_END)))
        for word, spelling in entries:
            if word not in found.setdefault(spelling, []):
                found[spelling].append(word)
        return found

    def _looks(self) -> dict[Units, float]:
        """What the likeliest word that begins so is worth at the start of a sentence."""
        looks: dict[Units, float] = {}
        start = self.task.lm.start() if self.task.lm else None
        for spelling, words in self.spelled.items():
            value = max(self._weighed(w, start)[0] + self._gain((), w, True)[0] for w in words)
            for size in range(1, len(spelling) + 1):
                begin = spelling[:size]
                looks[begin] = max(looks.get(begin, NEVER), value)
        looks[()] = 0.0
        return looks

    def _inside(self, letters: Units) -> bool:
        """Whether a longer spelling begins so."""
        size = len(letters)
        return any(s[:size] == letters and len(s) > size for s in self.spelled)

    def _weighed(self, word: str, state: Any) -> tuple[float, Any]:
        """The language model's part of the score, and the state after the word."""
        if self.task.lm is None:
            return 0.0, None
        log10, after = self.task.lm.score(state, word)
        return self.options.lm_weight * log10, after

    def _ahead(self, hot: tuple[str, ...]) -> float:
        """What a hypothesis in the middle of phrases has in advance."""
        begun = [p for p in self.phrases if len(p) > len(hot) > 0 and p[: len(hot)] == hot]
        return max([0.0, *(self.phrases[p] * len(hot) / len(p) for p in begun)])

    def _gain(self, hot: tuple[str, ...], word: str, known: bool) -> tuple[float, tuple[str, ...]]:
        """What a word brings by hot phrases, and the longest begin of one that is heard now."""
        heard = (*hot, word) if known else ()
        ends = [heard[place:] for place in range(len(heard))]
        now = next((e for e in ends if any(p[: len(e)] == e for p in self.phrases)), ())
        gain = sum(self.phrases.get(end, 0.0) for end in ends)
        return gain + self._ahead(now) - self._ahead(hot), now

    def __call__(self, logp_TV: np.ndarray) -> Outcome:
        self.outcome = Outcome()
        logp_TV = np.maximum(np.asarray(logp_TV, float), -1e9)
        start = (WORD_END,) if self.by_tokens and self.silence >= 0 else ()
        hot = self._gain((), WORD_END, True)[1] if start else ()
        state = self.task.lm.start() if self.task.lm else None
        begin = Place(state, hot, (), self.separator)
        slots: Slots = {begin: (Offer(), Offer(self._ahead(hot)))}
        sure, collapse = False, self.options.collapse
        for e in logp_TV.tolist():
            before, sure = sure, collapse < 1 and e[self.tokens.blank] > math.log(collapse)
            slots = self._passed(slots, e) if sure and before else self._frame(slots, e)
        self._finish(slots, logp_TV)
        return self.outcome

    def _join(self, *offers: Offer) -> Offer:
        """One of several: the best way, with its score or the sum of all."""
        best = max(offers, key=lambda offer: offer.score)
        for other in offers:
            if other is not best and other.score > best.score - TIE and other.way != best.way:
                self.outcome.tied = True
        if not self.options.summing or best.score == NEVER:
            return best
        return best._replace(score=float(np.logaddexp.reduce([o.score for o in offers])))

    def _passed(self, slots: Slots, e: Sequence[float]) -> Slots:
        blank = self.tokens.blank
        joined = {place: self._join(*pair) for place, pair in slots.items()}
        return {place: (top.more(e[blank], blank), Offer()) for place, top in joined.items()}

    def _frame(self, slots: Slots, e: Sequence[float]) -> Slots:
        stays = [offer for slot in slots.items() for offer in self._stays(*slot, e)]
        moves = [offer for slot in slots.items() for offer in self._moves(*slot, e)]
        if self.options.summing:
            best = max(offer.score for _, _, offer in stays)
            limit = self._limit(best, [offer.score for _, _, offer in moves])
            moves = [move for move in moves if move[2].score > limit]
        pool: dict[Place, tuple[list[Offer], list[Offer]]] = {}
        for place, column, offer in (*stays, *moves):
            pool.setdefault(place, ([], []))[column].append(offer)
        joined = {
            place: (self._join(Offer(), *blank), self._join(Offer(), *token))
            for place, (blank, token) in pool.items()
        }
        return self._best(self._near(joined))

    def _stays(
        self, place: Place, pair: tuple[Offer, Offer], e: Sequence[float]
    ) -> Iterator[tuple[Place, int, Offer]]:
        blank, last = self.tokens.blank, place.last
        both = self._join(*pair)
        yield place, 0, both.more(e[blank], blank)
        if last >= 0:
            again = both if not place.letters and last == self.separator else pair[1]
            yield place, 1, again.more(e[last] + self._silent(last), last)

    def _silent(self, token: int) -> float:
        return self.options.sil_score if token == self.silence else 0.0

    def _moves(
        self, place: Place, pair: tuple[Offer, Offer], e: Sequence[float]
    ) -> Iterator[tuple[Place, int, Offer]]:
        floor = max(e) - self.options.token_threshold
        both = self._join(*pair)
        for token in range(len(e)):
            if token == self.tokens.blank or e[token] < floor:
                continue
            source = pair[0] if token == place.last else both
            again = not place.letters and token == self.separator  # said by _stays
            if source.score > NEVER and not again:
                source = source.more(e[token] + self._silent(token), token)
                yield from ((p, 1, offer) for p, offer in self._spelled(place, source, token))

    def _spelled(self, place: Place, source: Offer, token: int) -> Iterator[tuple[Place, Offer]]:
        """The places that a new token leads to."""
        letters, options = (*place.letters, *self._units(token)), self.options
        on = place.letters in self.looks
        held = self.looks[place.letters] if on else self.unknown_look
        free = source._replace(score=source.score - held)
        if letters in self.looks:
            if self._inside(letters):
                score = free.score + self.looks[letters]
                yield place._replace(letters=letters, last=token), free._replace(score=score)
            for word in self.spelled.get(letters, ()):
                yield self._ended(place, free, word, True, token)
        elif options.mode == "open" and token == self.separator:
            unknown = self._unknown(len(place.letters)) if on else 0.0
            free = free._replace(score=free.score + unknown)
            yield self._ended(place, free, "".join(place.letters), False, token)
        elif options.mode == "open" and token in self.letters:
            gain = self._unknown(len(letters)) if on else options.unk_letter_score
            score = free.score + self.unknown_look + gain
            yield place._replace(letters=letters, last=token), free._replace(score=score)

    def _unknown(self, letters: int) -> float:
        return self.options.unk_score + self.options.unk_letter_score * letters

    def _ended(
        self, place: Place, offer: Offer, word: str, known: bool, token: int
    ) -> tuple[Place, Offer]:
        value, state = self._weighed(word if known else "<unk>", place.lm)
        gain, hot = self._gain(place.hot, word, known)
        score = offer.score + value + gain + (self.options.word_score if known else 0.0)
        words = (*offer.way.words, (word, known))
        after = Place(state, hot, (), token, words if self.apart else ())
        return after, Offer(score, Way(words, offer.way.path, len(offer.way.path)))

    def _limit(self, best: float, scores: Sequence[float]) -> float:
        """What scores must be above."""
        limit = best - self.options.threshold
        if math.isfinite(limit) and any(abs(score - limit) < TIE for score in scores):
            self.outcome.cut = True
        return limit

    def _near(self, slots: Slots) -> Slots:
        """Without what is too far below the best."""
        if self.options.summing:
            total = {place: self._join(*pair).score for place, pair in slots.items()}
            limit = self._limit(max(total.values()), list(total.values()))
            return {place: slots[place] for place, score in total.items() if score > limit}
        scores = [offer.score for pair in slots.values() for offer in pair]
        limit = self._limit(max(scores), scores)
        near = {
            place: tuple(offer if offer.score > limit else Offer() for offer in pair)
            for place, pair in slots.items()
        }
        return {p: (a, b) for p, (a, b) in near.items() if max(a.score, b.score) > NEVER}

    def _best(self, slots: Slots) -> Slots:
        """The best history of each state where that is asked for; then the best places."""
        total = {place: self._join(*pair).score for place, pair in slots.items()}
        ranked = sorted(slots, key=lambda place: -total[place])
        if self.options.summing and not self.options.by_history:
            first: dict[Place, Place] = {}
            for place in ranked:
                there = first.setdefault(place._replace(words=()), place)
                self.outcome.cut |= there is not place and total[there] - total[place] < TIE
            ranked = [p for p in ranked if first[p._replace(words=())] is p]
        width = self.options.beam
        if len(ranked) > width and total[ranked[width - 1]] - total[ranked[width]] < TIE:
            self.outcome.cut = True
        return {place: slots[place] for place in ranked[:width]}

    def _ends(self, slots: Slots) -> list[tuple[Place, Offer]]:
        """Between words; else words that only lack their end; else without the unfinished word."""
        tops = [(place, self._join(*pair)) for place, pair in slots.items()]
        whole = [(place, top) for place, top in tops if not place.letters]
        lacking = (end for pair in tops for end in self._completed(*pair))
        return whole or list(lacking) or [self._dropped(*pair) for pair in tops]

    def _completed(self, place: Place, top: Offer) -> Iterator[tuple[Place, Offer]]:
        if self.separator >= 0:
            ends = self._spelled(place, top, self.separator)
            yield from (end for end in ends if not end[0].letters)
        elif not self.by_tokens:  # pieces: the letters may be a word, and the begin of another
            _, free = self._dropped(place, top)
            for word in self.spelled.get(place.letters, ()):
                yield self._ended(place, free, word, True, place.last)

    def _dropped(self, place: Place, top: Offer) -> tuple[Place, Offer]:
        return place, top._replace(score=top.score - self.looks[place.letters])

    def _finish(self, slots: Slots, logp_TV: np.ndarray) -> None:
        groups: dict[Any, list[Offer]] = {}
        lm, weight = self.task.lm, self.options.lm_weight
        for number, (place, offer) in enumerate(self._ends(slots)):
            last = weight * lm.final(place.lm) if lm else 0.0
            offer = offer._replace(score=offer.score + last - self._ahead(place.hot))
            group = offer.way.words if self.options.summing else number
            groups.setdefault(group, []).append(offer)
        ends = sorted((self._join(*offers) for offers in groups.values()), key=lambda o: -o.score)
        for one, other in itertools.pairwise(ends):
            self.outcome.tied |= one.score - other.score < TIE
        for offer in ends:
            text = self._text(offer.way.words)
            if text not in [found.text for found in self.outcome.found]:
                self.outcome.found.append(self._hypothesis(text, offer, logp_TV))
            if len(self.outcome.found) == self.options.nbest:
                return

    def _text(self, words: Words) -> str:
        names = [word for word, _ in words]
        if self.by_tokens:
            return self.tokens.decode([self.tokens.symbols.index(name) for name in names])
        return " ".join(names)

    def _hypothesis(self, text: str, offer: Offer, logp_TV: np.ndarray) -> Found:
        path = np.array(offer.way.path, int)
        acoustic = float(logp_TV[np.arange(len(path)), path].sum())
        acoustic += self.options.sil_score * float((path == self.silence).sum())
        lm = self.task.lm
        names = [word if known else "<unk>" for word, known in offer.way.words]
        log10 = lm.sentence(names) if lm else 0.0
        return Found(text, offer.score, acoustic, log10, self._runs(offer.way))

    def _runs(self, way: Way) -> tuple[tuple[int, int, int], ...]:
        """The tokens of whole words, with their frames; of ``|`` the first after a word."""
        runs, place = [], 0
        for token, group in itertools.groupby(way.path):
            size = len(list(group))
            runs.append((token, place, place + size))
            place += size
        runs = [run for run in runs if run[0] != self.tokens.blank and run[1] < way.whole]
        if self.separator < 0:
            return tuple(runs)
        before = itertools.chain([self.separator], (run[0] for run in runs))
        return tuple(
            run
            for run, last in zip(runs, before, strict=False)
            if run[0] != self.separator or last != self.separator
        )
