"""The beam search on tensors, many utterances at once: the engine for GPUs, and without numba.

Goes in: a ``Space``, options, beams and their next frames. Goes out: the beams after these frames.
It means what ``beam_numba`` means (see there), frame by frame; slots and candidates of all
utterances lie in one flat list, so the work follows what is alive and padding does not exist.

Why float64: sums over an hour of frames, and results equal to the other engine's to many digits.
"""

# B utterances   n slots   c candidates   V tokens

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

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
    Beam,
)
from w2vtool.decoder.candidates import (
    NEVER,
    Candidates,
    Slots,
    Traces,
    joined,
    ragged,
    survivors,
)
from w2vtool.decoder.ngram import NGram
from w2vtool.decoder.options import BeamOptions
from w2vtool.decoder.search_space import ROOT, Space
from w2vtool.decoder.tensors import Asked, Memory, Query, arcs_query, at, child, mix, to_map, true


class _Frame(NamedTuple):
    """What the slots meet in one frame."""

    e: Tensor  # float64 [B, V]
    tried: Tensor  # float64 [B, V], the same without tokens that are not worth a try
    most: Tensor  # float64 [B], the greatest of these
    top: Tensor  # float64 [n], both scores joined
    trace: Tensor  # int64 [n], of the better one
    limit: Tensor  # float64 [B], what scores must be above


class Engine:
    """See the module. KenLM binaries are asked on the CPU, one utterance after another."""

    def __init__(self, space: Space, options: BeamOptions, device: str = "cpu") -> None:
        self.space, self.options = space, options
        self.device = torch.device(device)
        self._map = to_map(space, options, self.device)
        self._asked = space.lm is not None and not isinstance(space.lm, NGram)
        self._hot = arcs_query(space.hot, self.device)
        self._lm = arcs_query(space.arcs, self.device)
        self._homophones = bool((np.diff(space.word_begin) > 1).any())
        self._by_history = options.by_history or options.summing
        self._unknown_look = options.lm_weight * space.unknown_log10
        self._most_free = space.most_letter(options) + space.most_unknown(options)

    @torch.inference_mode()
    def advance(self, started: Sequence[Beam], frames: Sequence[np.ndarray]) -> list[Beam]:
        """Beams after more frames, float64 [T, V] each, of finite numbers."""
        if not self._asked:
            # on a GPU, where the number of steps counts and not their size, a memory would not pay
            lm = Memory(self._lm) if self.device.type == "cpu" else self._lm
            return self._many(list(started), frames, lm)
        done = []
        for beam, logp_TV in zip(started, frames, strict=True):
            assert self.space.lm is not None
            states = beam.states or Asked(self.space.lm, self.space.words)
            [after] = self._many([beam], [logp_TV], states.query)
            after.states = states
            done.append(after)
        return done

    def _many(self, started: list[Beam], frames: Sequence[np.ndarray], lm: Query) -> list[Beam]:
        lengths = torch.tensor([len(logp_TV) for logp_TV in frames], device=self.device)
        begins = torch.cumsum(lengths, 0) - lengths
        if not len(frames):
            return []
        flat = torch.from_numpy(np.concatenate(frames)).to(self.device)
        slots, traces = Traces.of(started, self.device)
        seen = torch.tensor([beam.frames for beam in started], device=self.device)
        blank_B = torch.tensor([beam.blank for beam in started], device=self.device)
        ended: list[Slots] = []
        stops = set(map(len, frames))
        for t in range(max(stops) + 1):
            if t in stops:
                stay = at(lengths, slots.utterance) > t
                ended.append(slots.pick(true(~stay)))
                slots = slots.pick(true(stay))
            if not len(slots.utterance):
                break
            row_B = (begins + t).clamp(max=len(flat) - 1)
            e_BV = at(flat, row_B)
            sure_B = e_BV[:, self.space.tokens.blank] > np.log(self.options.collapse)
            skipped = at(sure_B & blank_B, slots.utterance)
            blank_B = torch.where(lengths > t, sure_B, blank_B)
            if self.options.collapse < 1 and bool(skipped.any()):
                passed = self._pass(slots.pick(true(skipped)), e_BV)
                slots = slots.pick(true(~skipped))
                if len(slots.utterance):
                    slots = traces.extend(self._step(slots, e_BV, lm), seen + t)
                slots = Slots(*(torch.cat(pair) for pair in zip(slots, passed, strict=True)))
            else:
                slots = traces.extend(self._step(slots, e_BV, lm), seen + t)
        return traces.split(ended, started, frames, blank_B.tolist())

    def _pass(self, slots: Slots, e_BV: Tensor) -> Slots:
        """One more frame of a run of blanks."""
        places, scores = slots.places.clone(), slots.scores.clone()
        better = slots.scores[:, TOKEN] > slots.scores[:, BLANK]
        places[better, BLANK_TRACE] = places[better, TOKEN_TRACE]
        e = e_BV[slots.utterance, self.space.tokens.blank]
        scores[:, BLANK] = joined(slots.scores, self.options.summing) + e
        scores[:, TOKEN] = NEVER
        return Slots(slots.utterance, places, scores)

    def _step(self, slots: Slots, e_BV: Tensor, lm: Query) -> Candidates:
        """The slots after a frame, with what is new in them."""
        floor = e_BV.amax(1, keepdim=True) - self.options.token_threshold
        tried_BV = torch.where(e_BV >= floor, e_BV, NEVER)
        tried_BV[:, self.space.tokens.blank] = NEVER
        blank, token = slots.scores[:, BLANK], slots.scores[:, TOKEN]
        places = slots.places
        trace = torch.where(blank >= token, places[:, BLANK_TRACE], places[:, TOKEN_TRACE])
        top = joined(slots.scores, self.options.summing)
        stays = self._stay(slots, e_BV, top, trace)
        best = torch.full((len(e_BV),), NEVER, dtype=torch.float64, device=self.device)
        best.scatter_reduce_(0, slots.utterance, joined(stays.scores), "amax")
        limit = best - self.options.threshold
        frame = _Frame(e_BV, tried_BV, tried_BV.amax(1), top, trace, limit)
        found = [stays, *self._spell(slots, frame, lm)]
        if self.space.open:
            found += self._spell_freely(slots, frame, lm)
        if self.space.open and self.space.separator >= 0:
            found.append(self._end_unknown(slots, frame, lm))
        pool = Candidates(*(torch.cat(columns) for columns in zip(*found, strict=True)))
        return survivors(pool, len(e_BV), self.options)

    def _stay(self, slots: Slots, e_BV: Tensor, top: Tensor, trace: Tensor) -> Candidates:
        """Every slot with a blank, and with its token once more."""
        places = slots.places.clone()
        last = places[:, LAST]
        again = slots.scores[:, TOKEN]
        if self.space.separator >= 0:  # any number of "|" between words
            root = places[:, NODE] == ROOT
            again = torch.where(root, top, again)
            places[:, TOKEN_TRACE] = torch.where(root, trace, places[:, TOKEN_TRACE])
        e, begin = e_BV.view(-1), slots.utterance * e_BV.shape[1]
        gain = torch.where(last >= 0, at(e, begin + last.clamp(min=0)), NEVER)
        if self.options.sil_score:
            gain = gain + self.options.sil_score * (last == self.space.silence)
        places[:, BLANK_TRACE] = trace
        e_blank = at(e, begin + self.space.tokens.blank)
        scores = torch.stack([top + e_blank, again + gain], 1)
        none = torch.full_like(begin, -1)
        return Candidates(slots.utterance, places, scores, none, none, torch.zeros_like(top))

    def _spell(self, slots: Slots, frame: _Frame, lm: Query) -> list[Candidates]:
        """Children of the trie: further into a word, and to the ends of words."""
        m, owner = self._map, slots.utterance
        node = slots.places[:, NODE].clamp(min=0)
        look = at(m.look, node)
        need = at(frame.limit, owner) - frame.top + look
        some = at(frame.most, owner) + at(m.hope, node) > need
        if self.space.open:  # nodes off the trie
            some &= slots.places[:, NODE] >= 0
        rows = true(some)
        near = at(node, rows)
        entry, below = ragged(at(m.children, near), at(m.child_begin, near))
        token = at(m.token, below)
        begin = at(owner, rows) * frame.tried.shape[1]
        e = at(frame.tried.view(-1), at(begin, entry) + token)
        good = true(e + at(m.worth, below) > at(at(need, rows), entry))
        slot, token, below = at(rows, at(entry, good)), at(token, good), at(below, good)
        total, before = self._after(slots, frame, slot, token)
        total = total - at(look, slot)
        inner = total + at(m.inner, below)
        owner, limit = at(owner, slot), frame.limit
        if not self.options.summing:  # what follows can be judged by the best of these
            limit = limit.scatter_reduce(0, owner, inner - self.options.threshold, "amax")
        limit = at(limit, owner)
        rows = true(total + at(m.final, below) > limit)
        slot_of = (at(slot, rows), at(total, rows), at(before, rows), at(limit, rows))
        ends = self._end(slots, lm, slot_of, at(token, rows), at(below, rows))
        rows = true(inner > limit)
        deeper = (at(column, rows) for column in (slot, inner, before, token, below))
        return [self._new(slots, *deeper), ends]

    def _pairs(self, slots: Slots, frame: _Frame, need: Tensor) -> tuple[Tensor, Tensor]:
        """Slots and tokens above what each slot needs."""
        rows = true(at(frame.most, slots.utterance) > need)
        good = at(frame.tried, at(slots.utterance, rows)) > at(need, rows)[:, None]
        row, token = torch.nonzero(good, as_tuple=True)
        return at(rows, row), token

    def _child(self, node: Tensor, token: Tensor) -> Tensor:
        return child(self._map, node, token, len(self.space.tokens))

    def _end(
        self,
        slots: Slots,
        lm: Query,
        reached: tuple[Tensor, Tensor, Tensor, Tensor],
        token: Tensor,
        node: Tensor,
    ) -> Candidates:
        """Ends of known words; ``reached`` are slots, scores without the word, traces, limits."""
        slot, total, before, limit = reached
        row = at(self._map.word_begin, node)
        if self._homophones:
            entry, row = ragged(at(self._map.word_begin, node + 1) - row, row)
            slot, total, before = at(slot, entry), at(total, entry), at(before, entry)
            token, limit = at(token, entry), at(limit, entry)
        word = at(self._map.node_words, row)
        log10, next_lm = lm(at(slots.places[:, LM], slot), at(self._map.lm_row, word))
        gain, next_hot = self._hot(at(slots.places[:, HOT], slot), at(self._map.hot_row, word))
        total = total + self.options.lm_weight * log10 + gain + self.options.word_score
        rows = true(total > limit)
        token, word = at(token, rows), at(word, rows)
        landing = at(self._map.landing, token)
        found = self._new(slots, at(slot, rows), at(total, rows), at(before, rows), token, landing)
        found.places[:, LM], found.places[:, HOT] = at(next_lm, rows), at(next_hot, rows)
        if self._by_history:
            found.places[:, HISTORY] = mix(found.places[:, HISTORY], word)
        return found._replace(word=word, log10=at(log10, rows))

    def _after(
        self, slots: Slots, frame: _Frame, slot: Tensor, token: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score and trace after a token; the same one again needs a blank between."""
        places, begin = at(slots.places, slot), at(slots.utterance, slot) * frame.e.shape[1]
        same = token == places[:, LAST]
        total = torch.where(same, at(slots.scores[:, BLANK], slot), at(frame.top, slot))
        before = torch.where(same, places[:, BLANK_TRACE], at(frame.trace, slot))
        total = total + at(frame.e.view(-1), begin + token)
        if self.options.sil_score:
            total = total + self.options.sil_score * (token == self.space.silence)
        return total, before

    def _new(
        self, slots: Slots, slot: Tensor, total: Tensor, before: Tensor, token: Tensor, node: Tensor
    ) -> Candidates:
        """Candidates whose last frame is a new token inside of a word."""
        places = at(slots.places, slot)
        places[:, NODE], places[:, LAST] = node, token
        places[:, BLANK_TRACE], places[:, TOKEN_TRACE] = -1, before
        scores = torch.stack([torch.full_like(total, NEVER), total], 1)
        inside = torch.full_like(token, IN_WORD)
        owner = at(slots.utterance, slot)
        return Candidates(owner, places, scores, token, inside, torch.zeros_like(total))

    def _letters(self, slots: Slots) -> Tensor:
        """Hashes of the letters of words so far; see ``planting``."""
        node, last = slots.places[:, NODE], slots.places[:, LAST].clamp(min=0)
        m = self._map
        return torch.where(node >= 0, m.spelled[node.clamp(min=0)], node - m.salt[last])

    def _spell_freely(self, slots: Slots, frame: _Frame, lm: Query) -> list[Candidates]:
        """Tokens that lead off the trie, or further off it; of pieces, also the word's end."""
        m, options, node = self._map, self.options, slots.places[:, NODE]
        on_trie = node.clamp(min=0)
        word = options.unk_score + self._unknown_look - m.look[on_trie]
        gain = torch.where(node >= 0, word + options.unk_letter_score * m.depth[on_trie], 0.0)
        limit = frame.limit[slots.utterance]
        slot, token = self._pairs(slots, frame, limit - frame.top - gain - self._most_free)
        root = (node == ROOT) | (node >= self.space.first_root)
        may = torch.where(root[slot], m.may_begin[token], m.may_follow[token])
        rows = true(may)
        slot, token = slot[rows], token[rows]
        total, before = self._after(slots, frame, slot, token)
        total = total + gain[slot] + options.unk_letter_score * m.size[token]
        below = self._child(node[slot], token)
        spelled = self._letters(slots)[slot] * m.power[token] + m.code[token]
        rows = true((total > limit[slot]) & (below < 0))
        target = (spelled[rows] + m.salt[token[rows]]) | FREE
        found = self._new(slots, slot[rows], total[rows], before[rows], token[rows], target)
        if self.space.separator >= 0:
            return [found]
        whole = (m.size[token] > 0) & ((below < 0) | (m.final[below.clamp(min=0)] == NEVER))
        rows = true(whole & (total > NEVER))
        reached = slot[rows], total[rows], before[rows]
        return [found, self._end_freely(slots, frame, lm, reached, token[rows], spelled[rows])]

    def _end_freely(
        self,
        slots: Slots,
        frame: _Frame,
        lm: Query,
        reached: tuple[Tensor, Tensor, Tensor],
        token: Tensor,
        spelled: Tensor,
    ) -> Candidates:
        """Ends of unknown words with a piece; ``spelled`` are hashes of their letters."""
        slot, total, before = reached
        places = slots.places[slot]
        log10, next_lm = lm(places[:, LM], torch.full_like(slot, self.space.unknown_row))
        gain, next_hot = self._hot(places[:, HOT], torch.zeros_like(slot))
        total = total + self.options.lm_weight * log10 + gain - self._unknown_look
        rows = true(total > frame.limit[slots.utterance[slot]])
        landing = self._map.landing[token[rows]]
        found = self._new(slots, slot[rows], total[rows], before[rows], token[rows], landing)
        found.places[:, LM], found.places[:, HOT] = next_lm[rows], next_hot[rows]
        unknown = torch.full_like(rows, UNKNOWN_WORD)
        found.places[:, HISTORY] = mix(found.places[:, HISTORY], mix(spelled[rows] | FREE, unknown))
        return found._replace(word=unknown, log10=log10[rows])

    def _end_unknown(self, slots: Slots, frame: _Frame, lm: Query) -> Candidates:
        """Ends of words that are not on the trie, by a separator."""
        m, options, separator = self._map, self.options, self.space.separator
        node = slots.places[:, NODE]
        on_trie = node.clamp(min=0)
        worth = frame.tried[slots.utterance, separator] > NEVER
        may = (node != ROOT) & worth & ((node < 0) | ~m.has_end[on_trie])
        slot = true(may)
        node, on_trie = node[slot], on_trie[slot]
        inside = options.unk_score + options.unk_letter_score * m.depth[on_trie] - m.look[on_trie]
        total = frame.top[slot] + frame.e[slots.utterance[slot], separator] + options.sil_score
        total = total + torch.where(node >= 0, inside, -self._unknown_look)
        places = slots.places[slot]
        row = torch.full_like(slot, self.space.unknown_row)
        log10, next_lm = lm(places[:, LM], row)
        gain, next_hot = self._hot(places[:, HOT], torch.zeros_like(slot))
        total = total + options.lm_weight * log10 + gain
        rows = true(total > frame.limit[slots.utterance[slot]])
        slot = slot[rows]
        token = torch.full_like(slot, separator)
        root = torch.full_like(slot, ROOT)
        found = self._new(slots, slot, total[rows], frame.trace[slot], token, root)
        found.places[:, LM], found.places[:, HOT] = next_lm[rows], next_hot[rows]
        unknown = torch.full_like(slot, UNKNOWN_WORD)
        letters = self._letters(slots)[slot] | FREE
        found.places[:, HISTORY] = mix(found.places[:, HISTORY], mix(letters, unknown))
        return found._replace(word=unknown, log10=log10[rows])
