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
    NEW,
    NODE,
    TOKEN,
    TOKEN_TRACE,
    UNKNOWN_WORD,
    Beam,
)
from w2vtool.decoder.candidates import (
    LOG10,
    NEVER,
    OWNER,
    Slots,
    Traces,
    joined,
    ragged,
    survivors,
    together,
)
from w2vtool.decoder.ngram import NGram
from w2vtool.decoder.options import BeamOptions
from w2vtool.decoder.search_space import ROOT, Space
from w2vtool.decoder.tensors import Asked, Memory, Query, arcs_query, at, child, mix, to_map, true

BLOCK = 16  # frames whose table is made at once


class _Frame(NamedTuple):
    """What the slots meet in one frame.

    Why one table for all that frames say: then one number for each slot, where its row begins,
    finds e (``at(e, begin + token)``), the same without tokens that are not worth a try (``tried``)
    and the greatest of these (``at(most, begin)``). Token -1 has -inf.
    """

    e: Tensor  # float64, the table
    tried: Tensor  # the table from there on
    most: Tensor
    begin: Tensor  # int64 [n]
    limit: Tensor  # float64 [B], what scores must be above
    node: Tensor  # int64 [n], the root for what is off the trie
    look: Tensor  # float64 [n], of the node
    hope: Tensor  # float64 [n], of the node
    top: Tensor  # float64 [n], both scores joined
    scores: Tensor  # float64 [n, 2], the blank's, and both joined
    before: Tensor  # int64 [n, 3], the last token, the blank's trace, that of the better score


class Engine:
    """See the module. KenLM binaries are asked on the CPU, one utterance after another."""

    def __init__(self, space: Space, options: BeamOptions, device: str = "cpu") -> None:
        self.space, self.options = space, options
        self.device = torch.device(device)
        self._map = to_map(space, options, self.device)
        self._asked = space.lm is not None and not isinstance(space.lm, NGram)
        self._hot = arcs_query(space.hot, self.device) if len(space.hot.word) > 1 else None
        self._lm = arcs_query(space.arcs, self.device)
        self._homophones = bool((np.diff(space.word_begin) > 1).any())
        self._by_history = options.by_history or options.summing
        self._unknown_look = options.lm_weight * space.unknown_log10
        self._most_free = space.most_letter(options) + space.most_unknown(options)
        self._width = 2 * len(space.tokens) + 2  # of a row of the table

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
        if not len(frames):
            return []
        lengths = torch.tensor([len(logp_TV) for logp_TV in frames], device=self.device)
        begins = torch.cumsum(lengths, 0) - lengths
        flat = torch.from_numpy(np.concatenate(frames)).to(self.device)
        slots, traces = Traces.of(started, self.device)
        blank_B = torch.tensor([beam.blank for beam in started], device=self.device)
        ended: list[Slots] = []
        stops = set(map(len, frames))
        for t in range(max(stops) + 1):
            if t in stops:
                stay = at(lengths, slots.places[:, OWNER]) > t
                ended.append(slots.pick(true(~stay)))
                slots = slots.pick(true(stay))
            if not len(slots.places):
                break
            if t % BLOCK == 0:
                table = self._table(flat, begins + t)
            if self.options.collapse < 1:
                sure_B = self._blank(table, t) > np.log(self.options.collapse)
                skipped = at(sure_B & blank_B, slots.places[:, OWNER])
                blank_B = torch.where(lengths > t, sure_B, blank_B)
                rows = true(skipped)
                if len(rows):
                    passed = self._pass(slots.pick(rows), table, t)
                    slots = slots.pick(true(~skipped))
                    if len(slots.places):
                        slots = traces.extend(self._step(slots, table, t, lm), t)
                    slots = together([slots, passed])
                    continue
            slots = traces.extend(self._step(slots, table, t, lm), t)
        return traces.split(ended, started, frames, blank_B.tolist())

    def _table(self, flat: Tensor, row_B: Tensor) -> Tensor:
        """What ``_Frame`` reads, for the next frames of all utterances, row after row."""
        row_BK = row_B[:, None] + torch.arange(BLOCK, device=self.device)
        e = at(flat, row_BK.view(-1).clamp_(max=len(flat) - 1))  # of the ended ones anything
        floor = e.amax(1, keepdim=True) - self.options.token_threshold
        tried = torch.where(e >= floor, e, NEVER)
        tried[:, self.space.tokens.blank] = NEVER
        most = tried.amax(1, keepdim=True)
        return torch.cat([torch.full_like(most, NEVER), e, tried, most], 1).view(-1)

    def _begin(self, slots: Slots, t: int) -> Tensor:
        """Where the table has token 0 in frame t of each slot's utterance."""
        return slots.places[:, OWNER] * (BLOCK * self._width) + (t % BLOCK * self._width + 1)

    def _blank(self, table: Tensor, t: int) -> Tensor:
        """Of all utterances."""
        return table.view(-1, BLOCK, self._width)[:, t % BLOCK, self.space.tokens.blank + 1]

    def _pass(self, slots: Slots, table: Tensor, t: int) -> Slots:
        """One more frame of a run of blanks."""
        places, scores = slots.places.clone(), slots.scores.clone()
        better = slots.scores[:, TOKEN] > slots.scores[:, BLANK]
        traces = places[:, BLANK_TRACE], places[:, TOKEN_TRACE]
        places[:, BLANK_TRACE] = torch.where(better, traces[1], traces[0])
        e = at(self._blank(table, t), places[:, OWNER])
        scores[:, BLANK] = joined(slots.scores, self.options.summing) + e
        scores[:, TOKEN] = NEVER
        return Slots(places, scores)

    def _step(self, slots: Slots, table: Tensor, t: int, lm: Query) -> Slots:
        """The slots after a frame, with what is new in them."""
        places, begin, utterances = slots.places, self._begin(slots, t), len(table) // self._width
        utterances //= BLOCK
        traces = places[:, BLANK_TRACE], places[:, TOKEN_TRACE]
        trace = torch.where(slots.scores[:, BLANK] >= slots.scores[:, TOKEN], *traces)
        top = joined(slots.scores, self.options.summing)
        stays = self._stay(slots, table, begin, top, trace)
        best = torch.full((utterances,), NEVER, dtype=torch.float64, device=self.device)
        best.scatter_reduce_(0, places[:, OWNER], joined(stays.scores), "amax")
        node = places[:, NODE].clamp(min=0) if self.space.open else places[:, NODE]
        look, hope = at(self._map.ahead, node).unbind(1)
        frame = _Frame(
            e=table,
            tried=table[len(self.space.tokens) :],
            most=table[2 * len(self.space.tokens) :],
            begin=begin,
            limit=best - self.options.threshold,
            node=node,
            look=look,
            hope=hope,
            top=top,
            scores=torch.stack([slots.scores[:, BLANK], top], 1),
            before=torch.stack([places[:, LAST], traces[0], trace], 1),
        )
        found = [stays, *self._spell(slots, frame, lm)]
        if self.space.open:
            found += self._spell_freely(slots, frame, lm)
        if self.space.open and self.space.separator >= 0:
            found.append(self._separate(slots, frame, lm))
        return survivors(together(found), utterances, self.options, self._hot is not None)

    def _stay(
        self, slots: Slots, table: Tensor, begin: Tensor, top: Tensor, trace: Tensor
    ) -> Slots:
        """Every slot with a blank, and with its token once more."""
        places = slots.places.clone()
        again = slots.scores[:, TOKEN]
        if self.space.separator >= 0:  # any number of "|" between words
            root = places[:, NODE] == ROOT
            again = torch.where(root, top, again)
            places[:, TOKEN_TRACE] = torch.where(root, trace, places[:, TOKEN_TRACE])
        again = again + at(table, begin + places[:, LAST])
        if self.options.sil_score:
            silent = places[:, LAST] == self.space.silence
            again = torch.where(silent, again + self.options.sil_score, again)
        blank = top + at(table[self.space.tokens.blank :], begin)
        places[:, BLANK_TRACE] = trace
        places[:, NEW] = -1
        return Slots(places, torch.stack([blank, again, slots.scores[:, LOG10]], 1))

    def _spell(self, slots: Slots, frame: _Frame, lm: Query) -> list[Slots]:
        """Children of the trie: further into a word, and to the ends of words."""
        m, owner = self._map, slots.places[:, OWNER]
        need = at(frame.limit, owner) - frame.top + frame.look
        some = at(frame.most, frame.begin) + frame.hope > need
        if self.space.open:  # nodes off the trie
            some &= slots.places[:, NODE] >= 0
        rows = true(some)
        entry, below = ragged(*at(m.children, at(frame.node, rows)).unbind(1))
        slot, token = at(rows, entry), at(m.token, below)
        e = at(frame.tried, at(frame.begin, slot) + token)
        good = true(e + at(m.worth, below) > at(need, slot))
        e, slot, token, below = (at(column, good) for column in (e, slot, token, below))
        total, before = self._after(frame, slot, token, e)
        total = total - at(frame.look, slot)
        inner = total + at(m.inner, below)
        owner, limit = at(owner, slot), frame.limit
        if not self.options.summing:  # what follows can be judged by the best of these
            limit = limit.scatter_reduce(0, owner, inner - self.options.threshold, "amax")
        limit = at(limit, owner)
        which = torch.stack([slot, before, token, below], 1)
        rows = true(total + at(m.final, below) > limit)
        ends = self._end(slots, lm, at(total, rows), at(limit, rows), at(which, rows))
        rows = true(inner > limit)
        slot, before, token, below = at(which, rows).unbind(1)
        places = at(slots.places, slot)
        return [self._new(places, at(inner, rows), before, token, below), ends]

    def _pairs(self, frame: _Frame, need: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slots and tokens above what each slot needs, and the log-probabilities."""
        tokens = len(self.space.tokens)
        rows = true(at(frame.most, frame.begin) > need)
        tried = frame.e.view(-1, self._width)[:, tokens + 1 : 2 * tokens + 1]
        e = at(tried, at(frame.begin, rows) // self._width)
        row, token = torch.nonzero(e > at(need, rows)[:, None], as_tuple=True)
        return at(rows, row), token, at(e.view(-1), row * tokens + token)

    def _child(self, node: Tensor, token: Tensor) -> Tensor:
        return child(self._map, node, token, len(self.space.tokens))

    def _end(self, slots: Slots, lm: Query, total: Tensor, limit: Tensor, which: Tensor) -> Slots:
        """Ends of known words; ``which`` are slots, traces, tokens, nodes."""
        slot, before, token, node = which.unbind(1)
        row = at(self._map.word_begin, node)
        if self._homophones:
            entry, row = ragged(at(self._map.word_begin, node + 1) - row, row)
            slot, total, before = at(slot, entry), at(total, entry), at(before, entry)
            token, limit = at(token, entry), at(limit, entry)
        word = at(self._map.node_words, row)
        places = at(slots.places, slot)
        log10, places[:, LM] = lm(places[:, LM], at(self._map.lm_row, word))
        total = total + self.options.lm_weight * log10 + self.options.word_score
        if self._hot:
            gain, places[:, HOT] = self._hot(places[:, HOT], at(self._map.hot_row, word))
            total = total + gain
        if self._by_history:
            places[:, HISTORY] = mix(places[:, HISTORY], word)
        landing = at(self._map.landing, token)
        found = self._new(places, total, before, token, landing, word, log10)
        return found.pick(true(total > limit))

    def _after(
        self, frame: _Frame, slot: Tensor, token: Tensor, e: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score and trace after a token; the same one again needs a blank between."""
        blank, top = at(frame.scores, slot).unbind(1)
        last, blank_trace, trace = at(frame.before, slot).unbind(1)
        same = token == last
        total = torch.where(same, blank, top) + e
        if self.options.sil_score:
            silent = token == self.space.silence
            total = torch.where(silent, total + self.options.sil_score, total)
        return total, torch.where(same, blank_trace, trace)

    def _new(
        self,
        places: Tensor,
        total: Tensor,
        before: Tensor,
        token: Tensor,
        node: Tensor,
        word: Tensor | None = None,
        log10: Tensor | None = None,
    ) -> Slots:
        """Candidates whose last frame is a new token, in ``places`` that are theirs to change.

        Without words they are inside of one.
        """
        none = torch.full_like(token, IN_WORD)
        columns = [node, token, none, before, token, none if word is None else word]
        places[:, NODE:OWNER] = torch.stack(columns, 1)
        never = torch.full_like(total, NEVER)
        log10 = torch.zeros_like(total) if log10 is None else log10
        return Slots(places, torch.stack([never, total, log10], 1))

    def _letters(self, slots: Slots) -> Tensor:
        """Hashes of the letters of words so far; see ``planting``."""
        node, last = slots.places[:, NODE], slots.places[:, LAST].clamp(min=0)
        m = self._map
        return torch.where(node >= 0, at(m.spelled, node.clamp(min=0)), node - at(m.salt, last))

    def _spell_freely(self, slots: Slots, frame: _Frame, lm: Query) -> list[Slots]:
        """Tokens that lead off the trie, or further off it; of pieces, also the word's end."""
        m, options, node = self._map, self.options, slots.places[:, NODE]
        gain = options.unk_score + self._unknown_look - frame.look
        gain = gain + options.unk_letter_score * at(m.depth, frame.node)
        gain = torch.where(node >= 0, gain, 0.0)
        limit = at(frame.limit, slots.places[:, OWNER])
        slot, token, e = self._pairs(frame, limit - frame.top - gain - self._most_free)
        root = (node == ROOT) | (node >= self.space.first_root)
        rows = true(torch.where(at(root, slot), at(m.may_begin, token), at(m.may_follow, token)))
        slot, token, e = at(slot, rows), at(token, rows), at(e, rows)
        total, before = self._after(frame, slot, token, e)
        total = total + at(gain, slot) + options.unk_letter_score * at(m.size, token)
        below = self._child(at(node, slot), token)
        spelled = at(self._letters(slots), slot) * at(m.power, token) + at(m.code, token)
        which = torch.stack([slot, before, token, spelled], 1)
        rows = true((total > at(limit, slot)) & (below < 0))
        slot, before, letter, target = at(which, rows).unbind(1)
        target = (target + at(m.salt, letter)) | FREE
        places = at(slots.places, slot)
        found = [self._new(places, at(total, rows), before, letter, target)]
        if self.space.separator < 0:
            whole = (below < 0) | (at(m.final, below.clamp(min=0)) == NEVER)
            rows = true(whole & (at(m.size, token) > 0) & (total > NEVER))
            slot, before, token, spelled = at(which, rows).unbind(1)
            total = at(total, rows) - self._unknown_look
            places = at(slots.places, slot)
            found.append(self._end_unknown(frame, lm, places, total, before, token, spelled))
        return found

    def _separate(self, slots: Slots, frame: _Frame, lm: Query) -> Slots:
        """Ends of words that are not on the trie, by a separator."""
        m, options, separator = self._map, self.options, self.space.separator
        node = slots.places[:, NODE]
        may = (node < 0) | ~at(m.has_end, frame.node)
        may &= (node != ROOT) & (at(frame.tried[separator:], frame.begin) > NEVER)
        slot = true(may)
        on_trie, places = at(frame.node, slot), at(slots.places, slot)
        inside = options.unk_score + options.unk_letter_score * at(m.depth, on_trie)
        inside = inside - at(frame.look, slot)
        total = at(frame.top, slot) + at(frame.e[separator:], at(frame.begin, slot))
        total = total + options.sil_score
        total = total + torch.where(places[:, NODE] >= 0, inside, -self._unknown_look)
        letters, before = at(self._letters(slots), slot), at(frame.before, slot)[:, 2]
        token = torch.full_like(slot, separator)
        return self._end_unknown(frame, lm, places, total, before, token, letters)

    def _end_unknown(
        self,
        frame: _Frame,
        lm: Query,
        places: Tensor,
        total: Tensor,
        before: Tensor,
        token: Tensor,
        letters: Tensor,
    ) -> Slots:
        """Ends of unknown words, of ``letters`` as hashes; ``places`` are theirs to change."""
        row = torch.full_like(token, self.space.unknown_row)
        log10, places[:, LM] = lm(places[:, LM], row)
        total = total + self.options.lm_weight * log10
        if self._hot:
            gain, places[:, HOT] = self._hot(places[:, HOT], torch.zeros_like(token))
            total = total + gain
        word = torch.full_like(token, UNKNOWN_WORD)
        places[:, HISTORY] = mix(places[:, HISTORY], mix(letters | FREE, word))
        limit, landing = at(frame.limit, places[:, OWNER]), at(self._map.landing, token)
        found = self._new(places, total, before, token, landing, word, log10)
        return found.pick(true(total > limit))
