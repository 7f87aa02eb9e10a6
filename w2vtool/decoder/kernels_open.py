"""Unknown words in the compiled search: letters off the trie, and where such words end.

Goes in: a slot and the frame's log-probabilities. Goes out: candidates in a ``Pool``. Only
``beam_numba`` calls this; everything here runs without the interpreter.
"""

# V tokens

from __future__ import annotations

import numpy as np

from w2vtool.decoder.beams import (
    BLANK,
    BLANK_TRACE,
    FREE,
    HISTORY,
    HOT,
    IN_WORD,
    LAST,
    LM,
    NODE,
    TOKEN,
    TOKEN_TRACE,
    UNKNOWN_WORD,
)
from w2vtool.decoder.kernels import child_of, inlined, join, mix, query, reach, recall
from w2vtool.decoder.planting import ROOT


@inlined
def _letters(trie, node, last):  # type: ignore[no-untyped-def]
    """The hash of the letters of the word so far."""
    return trie.spelled[node] if node >= 0 else node - trie.salt[last]


@inlined
def spell_freely(pool, rules, trie, arcs, hot, e, active, place, score):  # type: ignore[no-untyped-def]
    """Offer tokens that lead off the trie, or further off it; of pieces, also the word's end."""
    node, last, lm, hot_state = place[NODE], place[LAST], place[LM], place[HOT]
    at_root = node == ROOT or node >= rules.first_root
    blank, token = score[BLANK], score[TOKEN]
    top = join(rules, blank, token)
    trace = place[BLANK_TRACE] if blank >= token else place[TOKEN_TRACE]
    gain = 0.0
    if node >= 0:
        gain = rules.unk_score + rules.unknown_look - trie.look[node]
        gain += rules.unk_letter_score * trie.depth[node]
    most = gain + rules.most_letter + rules.most_unknown
    if top + e[active[0]] + most <= pool.best[0] - rules.threshold:
        return
    letters = _letters(trie, node, last)
    log10, after, next_lm, next_hot = 0.0, 0.0, lm, hot_state
    if rules.separator < 0:
        log10, next_lm = recall(pool, arcs, lm, rules.unknown_row)
        more, next_hot = query(hot, hot_state, 0)
        after = rules.lm_weight * log10 + more - rules.unknown_look
    for v in active:
        limit = pool.best[0] - rules.threshold
        if top + e[v] + most <= limit:
            break
        if not (trie.may_begin[v] if at_root else trie.may_follow[v]):
            continue
        total, before = top + e[v], trace
        if v == last:
            total, before = blank + e[v], place[BLANK_TRACE]
        total += gain + rules.unk_letter_score * trie.size[v]
        if max(total, total + after) <= limit:
            continue
        child = child_of(trie, node, v) if node >= 0 else np.int64(-1)
        spelled = letters * trie.power[v] + trie.code[v]
        if child < 0 and total > limit:
            target = (spelled + trie.salt[v]) | FREE
            reach(
                pool, rules, total, before, v, IN_WORD, 0.0, lm, hot_state, target, place[HISTORY]
            )
        if rules.separator >= 0 or trie.size[v] == 0 or total + after <= limit:
            continue
        if child < 0 or trie.word_begin[child] == trie.word_begin[child + 1]:
            history = mix(place[HISTORY], mix(spelled | FREE, np.int64(UNKNOWN_WORD)))
            root = np.int64(trie.landing[v])
            reach(
                pool, rules, total + after, before, v, UNKNOWN_WORD, log10, next_lm, next_hot,
                root, history,
            )  # fmt: skip


@inlined
def end_unknown(pool, rules, trie, arcs, hot, e, place, score):  # type: ignore[no-untyped-def]
    """Offer the end of a word that is not on the trie, by a separator."""
    node, separator = place[NODE], rules.separator
    if node >= 0 and child_of(trie, node, separator) >= 0:
        return
    blank, token = score[BLANK], score[TOKEN]
    before = place[BLANK_TRACE] if blank >= token else place[TOKEN_TRACE]
    total = join(rules, blank, token) + e[separator] + rules.sil_score
    if node >= 0:
        total += rules.unk_score + rules.unk_letter_score * trie.depth[node] - trie.look[node]
    else:
        total -= rules.unknown_look
    log10, lm = recall(pool, arcs, place[LM], rules.unknown_row)
    gain, hot_state = query(hot, place[HOT], 0)
    total += rules.lm_weight * log10 + gain
    if total > pool.best[0] - rules.threshold:
        letters = _letters(trie, node, place[LAST])
        history = mix(place[HISTORY], mix(letters | FREE, np.int64(UNKNOWN_WORD)))
        root = np.int64(ROOT)
        reach(
            pool, rules, total, before, separator, UNKNOWN_WORD, log10, lm, hot_state, root, history
        )
