"""Slots and candidates of many utterances in flat tensors: how candidates merge, and which stay.

Goes in: candidates of a frame. Goes out: the slots after it, and the trace's new rows. Only
``beam_torch`` uses this.
"""

# B utterances   n slots   c candidates   g groups

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from w2vtool.decoder.beams import (
    BLANK,
    BLANK_TRACE,
    HISTORY,
    HOT,
    LM,
    NEW,
    NODE,
    PLACES,
    TOKEN,
    TOKEN_TRACE,
    Beam,
    Trace,
)
from w2vtool.decoder.options import BeamOptions
from w2vtool.decoder.tensors import at, mix, true

NEVER = -float("inf")
OWNER = PLACES + 2  # one more column: the utterance
LOG10 = 2  # one more column of scores: log10 of a completed word


class Slots(NamedTuple):
    """Slots of all utterances, or candidates for slots to be.

    Columns are those of ``beams.Beam``, then NEW, WORD and OWNER, and LOG10. NEW is -1 in a slot
    that goes on, and WORD and LOG10 are of no meaning then; TOKEN_TRACE of a new token is that
    before it.
    """

    places: Tensor  # int64 [n, 10]
    scores: Tensor  # float64 [n, 3]

    def pick(self, rows: Tensor) -> Slots:
        """Some of them."""
        return Slots(at(self.places, rows), at(self.scores, rows))


def together(parts: Sequence[Slots]) -> Slots:
    """One after another."""
    return Slots(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def joined(scores: Tensor, summing: bool = False) -> Tensor:
    """One score of two: the better one, or their sum."""
    both = scores[:, BLANK], scores[:, TOKEN]
    return torch.logaddexp(*both) if summing else torch.maximum(*both)


def ragged(count: Tensor, begin: Tensor) -> tuple[Tensor, Tensor]:
    """``[2, 0, 3]`` from ``[7, 7, 4]`` on: owners ``[0, 0, 2, 2, 2]``, ``[7, 8, 4, 5, 6]``."""
    owner = torch.repeat_interleave(count)
    shift = begin - (torch.cumsum(count, 0) - count)
    return owner, at(shift, owner) + torch.arange(len(owner), device=count.device)


def greatest(score: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The greatest score of each group, and the first row that has it; of columns, of each."""
    most = score.new_full((groups, *score.shape[1:]), NEVER)
    group = group.view(-1, *[1] * (score.dim() - 1)).expand_as(score)
    most.scatter_reduce_(0, group, score, "amax")
    rows = torch.arange(len(score), device=score.device).view(-1, *[1] * (score.dim() - 1))
    rows = torch.where(score == most.gather(0, group), rows, len(score))
    row = torch.full_like(most, len(score), dtype=torch.int64)
    return most, row.scatter_reduce_(0, group, rows, "amin")


def _sums(score: Tensor, group: Tensor, most: Tensor) -> Tensor:
    """Log of the sum of exponentials in each group, whose greatest is known."""
    base = torch.where(most > NEVER, most, 0.0)
    group = group[:, None].expand_as(score)
    shares = torch.exp(score - base.gather(0, group))
    total = torch.zeros_like(most).scatter_add_(0, group, shares)
    return torch.where(most > NEVER, base + torch.log(total), NEVER)


def survivors(pool: Slots, utterances: int, options: BeamOptions, hot: bool) -> Slots:
    """Make one of the candidates for one place, and keep the best places of each utterance.

    A place's trace is that of its best candidate. Slots come out in the order of their utterances.
    Without ``hot`` phrases all candidates are in one state of them.
    """
    if not options.summing:
        total = joined(pool.scores)
        limit = _limits(total, pool.places[:, OWNER], utterances, options)
        rows = true(total > limit)
        pool = pool.pick(rows)
    scores = pool.scores[:, :LOG10]
    if not options.summing:
        scores = torch.where(scores > at(limit, rows)[:, None], scores, NEVER)
    places = pool.places
    owner = places[:, OWNER]
    if options.by_history or options.summing:
        key = mix(places[:, NODE], places[:, HISTORY])
    else:
        key = mix(places[:, NODE], places[:, LM])
        if hot:
            key = mix(key, places[:, HOT])
    key = _apart(key, owner, utterances)
    unique, group = torch.unique(key, return_inverse=True)
    most, row = greatest(scores, group, len(unique))
    if options.summing:
        most = _sums(scores, group, most)
    token_row = row[:, TOKEN]
    kept = _kept(pool, token_row, most, utterances, options)
    found = pool.pick(at(token_row, kept))
    found.places[:, BLANK_TRACE] = at(places[:, BLANK_TRACE], at(row[:, BLANK], kept))
    found.scores[:, :LOG10] = at(most, kept)
    return found


def _limits(total: Tensor, owner: Tensor, utterances: int, options: BeamOptions) -> Tensor:
    """What each score must be above."""
    best_B = total.new_full((utterances,), NEVER)
    best_B.scatter_reduce_(0, owner, total, "amax")
    return at(best_B - options.threshold, owner)


def _apart(key: Tensor, utterance: Tensor, utterances: int) -> Tensor:
    """Keys of several utterances, which sort as each utterance's own do.

    So equals are told apart in the same way in every batch.
    """
    bits = 63 - utterances.bit_length()
    return (utterance << bits) | ((key >> (64 - bits)) & ((1 << bits) - 1))


def _kept(
    pool: Slots, row: Tensor, scores: Tensor, utterances: int, options: BeamOptions
) -> Tensor:
    """The best places of each utterance, as many as the beam is wide.

    ``row`` are candidates, in the order of their utterances.
    """
    owner, total = at(pool.places[:, OWNER], row), joined(scores, options.summing)
    kept = torch.arange(len(row), device=row.device)
    if options.summing:
        good = total > _limits(total, owner, utterances, options)
        if not options.by_history:
            good &= _best_histories(pool, row, torch.where(good, total, NEVER))
        kept = true(good)
        owner, total = at(owner, kept), at(total, kept)
    number = torch.arange(utterances + 1, device=row.device)
    bound = torch.searchsorted(owner, number)
    most = int(bound.diff().max())
    if most <= options.beam:
        return kept
    cell = at(number * most - bound, owner) + torch.arange(len(owner), device=row.device)
    table = total.new_full((utterances * most,), NEVER)
    table = table.index_copy_(0, cell, total).view(utterances, most)
    last = table.topk(options.beam, sorted=False).values.amin(1, keepdim=True)
    chosen, equal = table > last, table == last
    room = options.beam - chosen.sum(1, keepdim=True)  # for the first of these, in any company
    chosen |= equal & (equal.cumsum(1) <= room)
    return at(kept, true(at(chosen.view(-1), cell)))


def _best_histories(pool: Slots, row: Tensor, total: Tensor) -> Tensor:
    """Of candidates that differ only in their words, the best."""
    places = at(pool.places, row)
    key = mix(mix(places[:, OWNER], places[:, NODE]), places[:, LM])
    unique, group = torch.unique(mix(key, places[:, HOT]), return_inverse=True)
    _, best = greatest(total, group, len(unique))
    return torch.zeros_like(total, dtype=torch.bool).index_fill_(0, best, True)


@dataclass
class Traces:
    """Rows of all utterances' traces, as they come up; ``before`` counts over all of them."""

    rows: list[Tensor] = field(default_factory=list)  # int32 [r, 4], columns TOKEN_TRACE to OWNER
    log10: list[Tensor] = field(default_factory=list)
    frame: list[int] = field(default_factory=list)  # of the rows that came up here
    used: int = 0

    @classmethod
    def of(cls, beams: Sequence[Beam], device: torch.device) -> tuple[Slots, Traces]:
        """The slots of beams, and their traces one after another."""
        traces = cls()
        places, scores = [], []
        for number, beam in enumerate(beams):
            old = beam.trace
            more = np.full((len(beam.places), OWNER + 1 - PLACES), (-1, -1, number))
            here = np.concatenate([beam.places, more], 1)
            here[:, BLANK_TRACE:PLACES][here[:, BLANK_TRACE:PLACES] >= 0] += traces.used
            places.append(here)
            scores.append(np.pad(beam.scores, ((0, 0), (0, 1))))
            before = np.where(old.before >= 0, old.before + traces.used, -1)
            rows = np.stack([before, old.token, old.word, np.full(len(before), number)], 1)
            traces.rows.append(torch.from_numpy(rows.astype(np.int32)).to(device))
            traces.log10.append(torch.from_numpy(old.log10).to(device))
            traces.used += len(before)
        arrays = map(np.concatenate, (places, scores))
        return Slots(*(torch.from_numpy(array).to(device) for array in arrays)), traces

    def extend(self, kept: Slots, t: int) -> Slots:
        """Add a row for every new token of frame t; give the slots that point to them."""
        places = kept.places
        self.frame.append(t)
        new = true((places[:, NEW] >= 0) & (kept.scores[:, TOKEN] > NEVER))
        self.rows.append(at(places[:, TOKEN_TRACE:], new).int())
        self.log10.append(at(kept.scores[:, LOG10], new).float())
        used = self.used + len(new)
        numbers = torch.arange(self.used, used, device=new.device)
        places[:, TOKEN_TRACE].index_copy_(0, new, numbers)
        self.used = used
        return kept

    def split(
        self,
        ended: Sequence[Slots],
        started: Sequence[Beam],
        frames: Sequence[np.ndarray],
        blank: Sequence[bool],
    ) -> list[Beam]:
        """Beams of their own again."""
        slots = together(ended)
        places_n, scores_n = slots.places.cpu().numpy(), slots.scores[:, :LOG10].cpu().numpy()
        rows = torch.cat(self.rows).cpu().numpy()
        log10 = torch.cat(self.log10).cpu().numpy()
        owner_R = rows[:, 3]
        frame_R = self._frames(started, owner_R)
        order = np.argsort(owner_R, kind="stable")
        bounds = np.searchsorted(owner_R[order], np.arange(len(started) + 1))
        local = np.empty(len(order) + 1, np.int64)  # number of a row within its utterance
        local[order] = np.arange(len(order)) - bounds[owner_R[order]]
        local[-1] = -1  # what -1 points to
        beams = []
        for number, beam in enumerate(started):
            own = order[bounds[number] : bounds[number + 1]]
            before, token, word = rows[own, :3].T.copy()
            before = local[before].astype(np.int32)
            trace = Trace(before, token, word, frame_R[own], log10[own])
            slots_u = np.flatnonzero(places_n[:, OWNER] == number)
            slots_u = slots_u[np.argsort(-scores_n[slots_u].max(1), kind="stable")]
            here = places_n[slots_u, :PLACES]
            here[:, BLANK_TRACE:] = local[here[:, BLANK_TRACE:]]
            after = beam.frames + len(frames[number])
            beams.append(Beam(here, scores_n[slots_u], trace, after, blank[number]))
        return beams

    def _frames(self, started: Sequence[Beam], owner_R: np.ndarray) -> np.ndarray:
        """The frame of each row, counted from the begin of its utterance."""
        old = np.concatenate([beam.trace.frame for beam in started])
        here = np.repeat(self.frame, [len(rows) for rows in self.rows[len(started) :]])
        seen_B = np.array([beam.frames for beam in started])
        return np.concatenate([old, here + seen_B[owner_R[len(old) :]]]).astype(np.int32)
