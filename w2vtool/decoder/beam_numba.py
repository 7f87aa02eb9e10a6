"""The beam search, one utterance at a time, compiled by numba: the fast engine for CPUs.

Goes in: a ``Space``, options, beams and their next frames. Goes out: the beams after these frames.
``beam_torch`` means the same, frame by frame:

1. Every slot may go on with a blank, or with its token once more.
2. It may take a token: down the trie, to the end of a word, or (open mode) off the trie.
3. Candidates for one place merge. Each of a slot's two scores goes if it is ``threshold`` below the
   best of the frame, and of the slots the ``beam`` best stay.

No lock of the interpreter is held meanwhile, so threads decode side by side with one Space.
"""

# T frames   V tokens

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit

from w2vtool.decoder import beams, kernels, kernels_open
from w2vtool.decoder.beams import (
    BLANK,
    BLANK_TRACE,
    HOT,
    LM,
    NEW,
    NODE,
    PLACES,
    TOKEN,
    TOKEN_TRACE,
    WORD,
    Beam,
    Trace,
)
from w2vtool.decoder.kernels import (
    Map,
    Rules,
    compiled,
    join,
    mix,
    new_pool,
    spell,
    stay,
)
from w2vtool.decoder.kernels_open import end_unknown, spell_freely
from w2vtool.decoder.ngram import NGram
from w2vtool.decoder.options import BeamOptions
from w2vtool.decoder.planting import ROOT
from w2vtool.decoder.search_space import Space
from w2vtool.errors import ConfigError

_FEW = 64  # so many tokens are sorted by insertion


class Engine:
    """See the module; ``threads`` decode several utterances at once."""

    def __init__(self, space: Space, options: BeamOptions, threads: int = 1) -> None:
        if space.lm is not None and not isinstance(space.lm, NGram):
            raise ConfigError(
                "the numba engine cannot read KenLM binaries",
                where=str(space.lm.path),
                hint="give the ARPA file, or choose the torch engine",
            )
        self._trie = Map(**{name: getattr(space, name) for name in Map._fields})
        self._rules = _rules(space, options)
        self._arcs, self._hot, self._threads = tuple(space.arcs), tuple(space.hot), threads

    def advance(self, started: Sequence[Beam], frames: Sequence[np.ndarray]) -> list[Beam]:
        """Beams after more frames, float64 [T, V] each, of finite numbers."""
        if self._threads < 2 or len(started) < 2:
            return [self._one(beam, logp_TV) for beam, logp_TV in zip(started, frames, strict=True)]
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(self._one, started, frames))

    def _one(self, beam: Beam, logp_TV: np.ndarray) -> Beam:
        old = beam.trace
        rows = np.stack(old[:4], axis=1) if len(old.token) else np.zeros((0, 4), np.int32)
        places, scores, rows, log10, blank = _run(
            np.ascontiguousarray(logp_TV),
            beam.places,
            beam.scores,
            rows,
            old.log10,
            beam.frames,
            beam.blank,
            self._trie,
            self._arcs,
            self._hot,
            self._rules,
        )
        trace = Trace(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3], log10)
        return Beam(places, scores, trace, beam.frames + len(logp_TV), bool(blank))


def _rules(space: Space, options: BeamOptions) -> Rules:
    """Always of the same types, because other types would be compiled anew."""
    return Rules(
        beam=options.beam,
        threshold=float(options.threshold),
        token_threshold=float(options.token_threshold),
        lm_weight=float(options.lm_weight),
        word_score=float(options.word_score),
        sil_score=float(options.sil_score),
        unk_score=float(options.unk_score),
        unk_letter_score=float(options.unk_letter_score),
        unknown_look=float(options.lm_weight * space.unknown_log10),
        collapse=math.log(options.collapse) if options.collapse < 1 else math.inf,
        bonus=float(space.bonus(options)),
        most_letter=space.most_letter(options),
        most_unknown=space.most_unknown(options),
        lift=space.lift,
        open=space.open,
        summing=options.summing,
        by_history=options.by_history or options.summing,
        best_history=options.summing and not options.by_history,
        blank=space.tokens.blank,
        separator=space.separator,
        silence=space.silence,
        first_root=space.first_root,
        unknown_row=space.unknown_row,
    )


@njit(nogil=True)
def _active(e, blank, threshold):  # type: ignore[no-untyped-def]
    """Tokens worth a try in a frame, likeliest first."""
    floor = e.max() - threshold
    found = np.empty(len(e), np.int64)
    count = 0
    for v in range(len(e)):
        if v == blank or e[v] < floor:
            continue
        place = count
        if count < _FEW:  # insertion
            while place > 0 and e[found[place - 1]] < e[v]:
                found[place] = found[place - 1]
                place -= 1
        found[place] = v
        count += 1
    found = found[:count]
    if count > _FEW:
        found = found[np.argsort(-e[found])]
    return found


@compiled
def _room(trie, places, tokens):  # type: ignore[no-untyped-def]
    """How many candidates a frame can have."""
    bound = 0
    for node in places[:, NODE]:
        bound += 2 + tokens
        if node >= 0:
            bound += trie.fan[node]
    return bound


@njit(nogil=True)
def _totals(pool, rules):  # type: ignore[no-untyped-def]
    """Score of every candidate that is good enough, -inf of the others; clears the table."""
    count = pool.count[0]
    total = np.empty(count, np.float64)
    best = -np.inf
    for row in range(count):
        pool.table[pool.spots[row]] = -1
        total[row] = join(rules, pool.scores[row, BLANK], pool.scores[row, TOKEN])
        best = max(best, total[row])
    limit = best - rules.threshold
    for row in range(count):
        if total[row] <= limit:
            total[row] = -np.inf
        elif not rules.summing:
            for column in range(2):
                if pool.scores[row, column] <= limit:
                    pool.scores[row, column] = -np.inf
    if rules.best_history:
        _keep_best_histories(pool, total)
    return total


@compiled
def _keep_best_histories(pool, total):  # type: ignore[no-untyped-def]
    """Of candidates that differ only in their words, drop all but the best."""
    mask = len(pool.table) - 1
    for row in range(len(total)):
        if total[row] == -np.inf:
            pool.spots[row] = -1
            continue
        lm, hot = pool.places[row, LM], pool.places[row, HOT]
        node = pool.places[row, NODE]
        spot = mix(mix(lm, hot), node) & mask
        pool.spots[row] = -1
        while pool.table[spot] >= 0:
            there = pool.table[spot]
            if (
                pool.places[there, LM] == lm
                and pool.places[there, HOT] == hot
                and pool.places[there, NODE] == node
            ):
                break
            spot = (spot + 1) & mask
        there = pool.table[spot]
        if there < 0:
            pool.table[spot] = row
            pool.spots[row] = spot
        elif total[row] > total[there]:
            total[there] = -np.inf
            pool.table[spot] = row
            pool.spots[row] = spot
            pool.spots[there] = -1
        else:
            total[row] = -np.inf
    for row in range(len(total)):
        if pool.spots[row] >= 0:
            pool.table[pool.spots[row]] = -1


@njit(nogil=True)
def _chosen(total, beam):  # type: ignore[no-untyped-def]
    """Rows of the best candidates, the very best first."""
    rows = np.flatnonzero(total > -np.inf)
    if len(rows) > beam:
        scores = total[rows]
        least = np.partition(scores, len(scores) - beam)[len(scores) - beam]
        better, equal = rows[scores > least], rows[scores == least]
        rows = np.concatenate((better, equal[: beam - len(better)]))
    first = np.argmax(total[rows])
    rows[0], rows[first] = rows[first], rows[0]
    return rows


@njit(nogil=True)
def _grown(rows, log10, used, more):  # type: ignore[no-untyped-def]
    """The trace with room for more rows."""
    if used + more <= len(rows):
        return rows, log10
    size = 2 * (used + more) + 256
    larger, longer = np.empty((size, 4), np.int32), np.empty(size, np.float32)
    larger[:used], longer[:used] = rows[:used], log10[:used]
    return larger, longer


@compiled
def _frame(pool, rules, trie, arcs, hot, e, active, places, scores):  # type: ignore[no-untyped-def]
    """Fill the pool with the candidates of a frame."""
    pool.count[0] = 0
    pool.best[0] = -np.inf
    stay(pool, rules, e, places, scores)
    if not len(active):
        return
    floor = e[active[-1]]
    ends = rules.open and rules.separator >= 0 and e[rules.separator] >= floor
    for k in range(len(places)):
        node = places[k, NODE]
        if node >= 0:
            spell(pool, rules, trie, arcs, hot, e, active, places[k], scores[k])
        if rules.open:
            spell_freely(pool, rules, trie, arcs, hot, e, active, places[k], scores[k])
            if ends and node != ROOT:
                end_unknown(pool, rules, trie, arcs, hot, e, places[k], scores[k])


@compiled
def _keep(pool, kept, places, scores, rows, log10, used, frame):  # type: ignore[no-untyped-def]
    """Copy candidates to slots; gives the length of the trace with its new rows."""
    for k, row in enumerate(kept):
        for column in range(PLACES):
            places[k, column] = pool.places[row, column]
        scores[k, BLANK], scores[k, TOKEN] = pool.scores[row, BLANK], pool.scores[row, TOKEN]
        token = pool.places[row, NEW]
        if token >= 0 and scores[k, TOKEN] > -np.inf:
            rows[used, 0], rows[used, 1] = places[k, TOKEN_TRACE], token
            rows[used, 2], rows[used, 3] = pool.places[row, WORD], frame
            log10[used] = pool.log10[row]
            places[k, TOKEN_TRACE] = used
            used += 1
    return used


def _stamp() -> int:
    """A number for the code that numba inlines from other modules."""
    return zlib.crc32("".join(map(inspect.getsource, (kernels, kernels_open, beams))).encode())


def _compile(stamp: int) -> Any:
    """The search over many frames.

    Why a function around it: numba keeps compiled code on disk as long as this file and the
    variables around the code are the same. It does not look at modules whose code was inlined.
    """

    @njit(cache=True, nogil=True)
    def run(  # type: ignore[no-untyped-def]
        frames, places, scores, rows, log10, begin, blank, trie, arcs, hot, rules
    ):
        """All frames; gives slots, the trace, and whether the last frame was surely blank."""
        assert stamp >= 0
        pool = new_pool(1024)
        places, scores, used = places.copy(), scores.copy(), len(rows)
        for t in range(len(frames)):
            e = frames[t]
            sure = e[rules.blank] > rules.collapse
            if sure and blank:
                for k in range(len(places)):
                    if scores[k, TOKEN] > scores[k, BLANK]:
                        places[k, BLANK_TRACE] = places[k, TOKEN_TRACE]
                    scores[k, BLANK] = (
                        join(rules, scores[k, BLANK], scores[k, TOKEN]) + e[rules.blank]
                    )
                    scores[k, TOKEN] = -np.inf
                continue
            blank = sure
            active = _active(e, rules.blank, rules.token_threshold)
            room = _room(trie, places, 2 * len(active) if rules.open else 0)
            if room > len(pool.places):
                pool = new_pool(2 * room)
            _frame(pool, rules, trie, arcs, hot, e, active, places, scores)
            total = _totals(pool, rules)
            kept = _chosen(total, rules.beam)
            rows, log10 = _grown(rows, log10, used, len(kept))
            places = np.empty((len(kept), PLACES), np.int64)
            scores = np.empty((len(kept), 2), np.float64)
            used = _keep(pool, kept, places, scores, rows, log10, used, begin + t)
        return places, scores, rows[:used].copy(), log10[:used].copy(), blank

    return run


_run = _compile(_stamp())
