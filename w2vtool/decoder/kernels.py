"""What a frame of the compiled search consists of: candidates, and how they meet.

Goes in: a slot and the frame's log-probabilities. Goes out: candidates in a ``Pool``. Only
``beam_numba`` calls this; everything here runs without the interpreter.
"""

# V tokens

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from w2vtool.decoder.beams import (
    BLANK,
    BLANK_TRACE,
    HISTORY,
    HOT,
    IN_WORD,
    LAST,
    LM,
    MULTIPLIER,
    NEW,
    NODE,
    PLACES,
    SHIFT,
    TOKEN,
    TOKEN_TRACE,
    WORD,
)
from w2vtool.decoder.planting import ROOT

MEMO = 4096  # a power of 2
WIDE = 8  # a node with so many children for each token is asked token by token
BEST_PATH = 2  # one more column of its scores: the best one of those that its token score sums


def compiled(function: Any, **given: Any) -> Any:
    """Compile a function that allocates nothing.

    Why an option of numba's own: counting references of arrays, which the caller holds anyway,
    takes three quarters of the time (measured). Where numba no longer has it, all works without.
    """
    jit: Any = njit
    try:
        return jit(nogil=True, _nrt=False, **given)(function)
    except KeyError:
        return jit(nogil=True, **given)(function)


def inlined(function: Any) -> Any:
    """Compile as a part of what calls it: handing over this many arrays costs more than the rest.

    (Measured: a third of the time.)
    """
    return compiled(function, inline="always")


class Map(NamedTuple):
    """What the compiled code reads of a Space; see there."""

    child_begin: Any
    child_end: Any
    token: Any
    inner: Any
    look: Any
    depth: Any
    word_begin: Any
    node_words: Any
    fan: Any
    landing: Any
    root_child: Any
    spelled: Any
    may_begin: Any
    may_follow: Any
    size: Any
    power: Any
    code: Any
    salt: Any
    lm_row: Any
    hot_row: Any


class Rules(NamedTuple):
    """Numbers of the options and of the Space."""

    beam: int
    threshold: float
    token_threshold: float
    lm_weight: float
    word_score: float
    sil_score: float
    unk_score: float
    unk_letter_score: float
    unknown_look: float  # lm_weight * log10 P(<unk>), paid in advance
    collapse: float  # log of it
    bonus: float  # the most that a word can bring beyond its look
    most_letter: float  # the most that letters of a token can bring to an unknown word
    most_unknown: float  # and its end, beyond what was paid in advance
    lift: float  # the most that its first token can bring in advance
    open: bool
    summing: bool
    by_history: bool  # candidates merge only if their words are the same
    best_history: bool  # and then the best history of a state stays
    blank: int
    separator: int
    silence: int
    first_root: int
    unknown_row: int


class Pool(NamedTuple):
    """Candidates of a frame, and a hash table of their places."""

    places: Any  # int64 [capacity, 9]
    scores: Any  # float64 [capacity, 3]
    log10: Any  # float32 [capacity]
    table: Any  # int32, rows of candidates or -1
    spots: Any  # int64 [capacity], where in the table
    count: Any  # int64 [1]
    best: Any  # float64 [1]
    asked: Any  # int64 [memo, 2], what the language model was asked lately, and the next state
    answers: Any  # float64 [memo], and the score


@inlined
def mix(a, b):  # type: ignore[no-untyped-def]
    """A hash of two int64."""
    h = ((a ^ (b * MULTIPLIER)) + 1) * MULTIPLIER
    return h ^ (h >> SHIFT)


@inlined
def query(arcs, state, word):  # type: ignore[no-untyped-def]
    """The score of a word in a state, and the state after it; see ``arcs.step``."""
    first, words, score, target, backoff, back, _ = arcs
    total = 0.0
    while state != 0:
        low, end = first[state], first[state + 1]
        high = end
        while low < high:
            middle = (low + high) >> 1
            if words[middle] < word:
                low = middle + 1
            else:
                high = middle
        if low < end and words[low] == word:
            return total + score[low], np.int64(target[low])
        total += backoff[state]
        state = np.int64(back[state])
    return total + score[word], np.int64(target[word])


@inlined
def recall(pool, arcs, state, word):  # type: ignore[no-untyped-def]
    """``query`` with a memory: a slot asks the same for as many frames as it lives."""
    key = (state << 32) | word
    row = mix(key, 0) & (MEMO - 1)
    if pool.asked[row, 0] != key:
        pool.answers[row], pool.asked[row, 1] = query(arcs, state, word)
        pool.asked[row, 0] = key
    return pool.answers[row], pool.asked[row, 1]


@inlined
def join(rules, a, b):  # type: ignore[no-untyped-def]
    """One score of two: the better one, or their sum."""
    if a < b:
        a, b = b, a
    if rules.summing and b > -np.inf:
        return a + np.log1p(np.exp(b - a))
    return a


@njit(nogil=True)
def new_pool(capacity):  # type: ignore[no-untyped-def]
    """An empty pool."""
    size = 16
    while size < 4 * capacity:
        size *= 2
    return Pool(
        np.empty((capacity, PLACES + 2), np.int64),
        np.empty((capacity, 3), np.float64),
        np.empty(capacity, np.float32),
        np.full(size, -1, np.int32),
        np.empty(capacity, np.int64),
        np.zeros(1, np.int64),
        np.zeros(1, np.float64),
        np.full((MEMO, 2), -1, np.int64),
        np.empty(MEMO, np.float64),
    )


@inlined
def _find(pool, by_history, lm, hot, node, history):  # type: ignore[no-untyped-def]
    """Row of the candidate of a place, made where there is none: then it has no scores."""
    places, table = pool.places, pool.table
    mask = len(table) - 1
    spot = (mix(history, node) if by_history else mix(mix(lm, hot), node)) & mask
    while table[spot] >= 0:
        row = table[spot]
        if places[row, NODE] == node:
            if by_history:
                if places[row, HISTORY] == history:
                    return row
            elif places[row, LM] == lm and places[row, HOT] == hot:
                return row
        spot = (spot + 1) & mask
    row = pool.count[0]
    pool.count[0] += 1
    table[spot] = row
    pool.spots[row] = spot
    places[row, LM], places[row, HOT], places[row, NODE] = lm, hot, node
    places[row, HISTORY] = history
    places[row, BLANK_TRACE] = places[row, TOKEN_TRACE] = places[row, NEW] = -1
    pool.scores[row, BLANK] = pool.scores[row, TOKEN] = pool.scores[row, BEST_PATH] = -np.inf
    return row


@inlined
def reach(  # type: ignore[no-untyped-def]
    pool, rules, score, before, token, word, log10, lm, hot, node, history
):
    """Offer a hypothesis whose last frame is a new token."""
    row = _find(pool, rules.by_history, lm, hot, node, history)
    there = pool.scores[row, TOKEN]
    pool.places[row, LAST] = token
    if score > pool.scores[row, BEST_PATH]:
        pool.places[row, TOKEN_TRACE] = before
        pool.places[row, NEW] = token
        pool.places[row, WORD] = word
        pool.log10[row] = log10
        pool.scores[row, TOKEN] = pool.scores[row, BEST_PATH] = score
        if score > pool.best[0] and not rules.summing:
            pool.best[0] = score
    if rules.summing:
        pool.scores[row, TOKEN] = join(rules, there, score)


@inlined
def stay(pool, rules, e, places, scores):  # type: ignore[no-untyped-def]
    """Offer every slot a blank, and its token once more; note the best of these."""
    for k in range(len(places)):
        node, last = places[k, NODE], places[k, LAST]
        blank, token = scores[k, BLANK], scores[k, TOKEN]
        trace = places[k, BLANK_TRACE] if blank >= token else places[k, TOKEN_TRACE]
        top = join(rules, blank, token)
        if node == ROOT and rules.separator >= 0:
            again, again_trace = top, trace  # any number of "|" between words
        else:
            again, again_trace = token, places[k, TOKEN_TRACE]
        again += e[last] if last >= 0 else -np.inf
        if last == rules.silence:
            again += rules.sil_score
        row = _find(pool, rules.by_history, places[k, LM], places[k, HOT], node, places[k, HISTORY])
        pool.places[row, LAST] = last
        pool.scores[row, BLANK] = top + e[rules.blank]
        pool.scores[row, TOKEN] = pool.scores[row, BEST_PATH] = again
        pool.places[row, BLANK_TRACE] = trace
        pool.places[row, TOKEN_TRACE] = again_trace
        pool.best[0] = max(pool.best[0], top + e[rules.blank], again)


@inlined
def _take(pool, rules, trie, arcs, hot, place, score, before, child):  # type: ignore[no-untyped-def]
    """Offer a child of the trie; ``score`` is free of what was paid in advance."""
    token = trie.token[child]
    lm, hot_state, history = place[LM], place[HOT], place[HISTORY]
    limit = pool.best[0] - rules.threshold
    if trie.inner[child]:
        total = score + trie.look[child]
        if total > limit:
            reach(pool, rules, total, before, token, IN_WORD, 0.0, lm, hot_state, child, history)
    if score + rules.bonus <= limit:
        return
    for row in range(trie.word_begin[child], trie.word_begin[child + 1]):
        word = trie.node_words[row]
        log10, next_lm = recall(pool, arcs, lm, np.int64(trie.lm_row[word]))
        gain, next_hot = query(hot, hot_state, trie.hot_row[word])
        total = score + rules.lm_weight * log10 + gain + rules.word_score
        if total > limit:
            next_history = mix(history, np.int64(word)) if rules.by_history else history
            node = np.int64(trie.landing[token])
            reach(
                pool, rules, total, before, token, word, log10, next_lm, next_hot, node,
                next_history,
            )  # fmt: skip


@inlined
def child_of(trie, node, v):  # type: ignore[no-untyped-def]
    """The child of a node on the trie under a token, or -1."""
    low, end = np.int64(trie.child_begin[node]), np.int64(trie.child_end[node])
    high = end
    while low < high:
        middle = (low + high) >> 1
        if trie.token[middle] < v:
            low = middle + 1
        else:
            high = middle
    return low if low < end and trie.token[low] == v else np.int64(-1)


@inlined
def spell(pool, rules, trie, arcs, hot, e, active, place, score):  # type: ignore[no-untyped-def]
    """Offer the children of a slot on the trie; the same token again only after a blank."""
    node, last = place[NODE], place[LAST]
    blank, token = score[BLANK], score[TOKEN]
    top = join(rules, blank, token)
    limit = pool.best[0] - rules.threshold
    tokens, looks, word_begin, root_child = trie.token, trie.look, trie.word_begin, trie.root_child
    look = looks[node]
    at_root = node == ROOT or node >= rules.first_root
    first, end = trie.child_begin[node], trie.child_end[node]
    by_token = at_root or end - first > WIDE * len(active)
    if by_token:
        first, end = 0, len(active)
    # A token at or below this log-probability is of no use, whatever it leads to. On the way down
    # looks only fall, but a root's is 0, so what it leads to may bring ``lift`` in advance. Where a
    # token itself ends words (no "|"), their end may bring ``bonus`` beyond the look that was paid.
    # The "|" is exempt below: it ends a word at any log-probability.
    need = limit - top - (rules.lift if at_root else 0.0)
    if rules.separator < 0:
        need = min(need, need + look - rules.bonus) - max(rules.sil_score, 0.0)
    if e[active[0]] <= need and rules.separator < 0:
        return
    need = max(need, e[active[-1]] - 1e-9)
    for number in range(first, end):
        child = np.int64(number)
        if at_root:
            child = np.int64(root_child[active[number]])
        elif by_token:
            child = child_of(trie, node, active[number])
        if child < 0:
            continue
        v = tokens[child]
        if e[v] <= need and v != rules.separator:
            if by_token and (at_root or rules.separator < 0):
                break
            continue  # a separator, which ends the word, may still come
        if e[v] < e[active[-1]]:
            continue
        total = top + e[v] - look
        if v == rules.silence:
            total += rules.sil_score
        ends = word_begin[child] < word_begin[child + 1]
        if total + looks[child] <= limit and not (ends and total + rules.bonus > limit):
            continue
        before = place[BLANK_TRACE] if blank >= token else place[TOKEN_TRACE]
        if v == last:
            if blank == -np.inf:
                continue
            total += blank - top
            before = place[BLANK_TRACE]
        _take(pool, rules, trie, arcs, hot, place, total, before, child)
