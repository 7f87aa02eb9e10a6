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
    NODE,
    TOKEN,
    TOKEN_TRACE,
    Beam,
    Trace,
)
from w2vtool.decoder.options import BeamOptions
from w2vtool.decoder.tensors import at, mix, true

NEVER = -float("inf")


class Slots(NamedTuple):
    """Live slots of all utterances; ``utterance`` is long [n], the others as in Beam."""

    utterance: Tensor
    places: Tensor
    scores: Tensor

    def pick(self, rows: Tensor) -> Slots:
        """Some of them."""
        return Slots(*(at(column, rows) for column in self))


class Candidates(NamedTuple):
    """Slots to be, with what is new in each: a token or -1, a word, its log10."""

    utterance: Tensor  # int64 [c]
    places: Tensor  # int64 [c, 7], of which TOKEN_TRACE is that before the new token
    scores: Tensor  # float64 [c, 2]
    token: Tensor  # int64 [c]
    word: Tensor  # int64 [c]
    log10: Tensor  # float64 [c]

    def pick(self, rows: Tensor) -> Candidates:
        """Some of them."""
        return Candidates(*(at(column, rows) for column in self))


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
    """The greatest score of each group, and the first row that has it."""
    most = torch.full((groups,), NEVER, dtype=score.dtype, device=score.device)
    most.scatter_reduce_(0, group, score, "amax")
    rows = torch.arange(len(score), device=score.device)
    rows = torch.where(score == at(most, group), rows, len(score))
    row = torch.full((groups,), len(score), device=score.device)
    return most, row.scatter_reduce_(0, group, rows, "amin")


def _sums(score: Tensor, group: Tensor, most: Tensor) -> Tensor:
    """Log of the sum of exponentials in each group, whose greatest is known."""
    base = torch.where(most > NEVER, most, 0.0)
    total = torch.zeros_like(most).scatter_add_(0, group, torch.exp(score - base[group]))
    return torch.where(most > NEVER, base + torch.log(total), NEVER)


def survivors(pool: Candidates, utterances: int, options: BeamOptions) -> Candidates:
    """Make one of the candidates for one place, and keep the best places of each utterance.

    A place's trace is that of its best candidate. Slots come out in the order of their utterances.
    """
    scores = pool.scores
    if not options.summing:
        total = joined(scores)
        limit = _limits(total, pool.utterance, utterances, options)
        rows = true(total > limit)
        pool = pool.pick(rows)
        scores = torch.where(pool.scores > at(limit, rows)[:, None], pool.scores, NEVER)
    owner, places = pool.utterance, pool.places
    if options.by_history or options.summing:
        key = mix(places[:, NODE], places[:, HISTORY])
    else:
        key = mix(mix(places[:, NODE], places[:, LM]), places[:, HOT])
    key = _apart(key, owner, utterances)
    unique, group = torch.unique(key, return_inverse=True)
    # both columns as one, because so few numbers take no longer than half of them
    groups = torch.cat([group, group + len(unique)])
    score = scores.t().reshape(-1)
    most, row = greatest(score, groups, 2 * len(unique))
    if options.summing:
        most = _sums(score, groups, most)
    both = torch.stack([most[: len(unique)], most[len(unique) :]], 1)
    blank_row, token_row = row[: len(unique)], row[len(unique) :] - len(owner)
    kept = _kept(pool, token_row, both, utterances, options)
    found = pool.pick(at(token_row, kept))
    found.places[:, BLANK_TRACE] = at(places[:, BLANK_TRACE], at(blank_row, kept))
    return found._replace(scores=at(both, kept))


def _limits(total: Tensor, owner: Tensor, utterances: int, options: BeamOptions) -> Tensor:
    """What each score must be above."""
    best_B = torch.full((utterances,), NEVER, dtype=total.dtype, device=total.device)
    best_B.scatter_reduce_(0, owner, total, "amax")
    return at(best_B - options.threshold, owner)


def _apart(key: Tensor, utterance: Tensor, utterances: int) -> Tensor:
    """Keys of several utterances, which sort as each utterance's own do.

    So equals are told apart in the same way in every batch.
    """
    bits = 63 - utterances.bit_length()
    return (utterance << bits) | ((key >> (64 - bits)) & ((1 << bits) - 1))


def _kept(
    pool: Candidates, row: Tensor, scores: Tensor, utterances: int, options: BeamOptions
) -> Tensor:
    """The best places of each utterance, as many as the beam is wide.

    ``row`` are candidates, in the order of their utterances.
    """
    owner, total = at(pool.utterance, row), joined(scores, options.summing)
    kept = torch.arange(len(row), device=row.device)
    if options.summing:
        good = total > _limits(total, owner, utterances, options)
        if not options.by_history:
            good &= _best_histories(pool, row, torch.where(good, total, NEVER))
        kept = true(good)
        owner, total = at(owner, kept), at(total, kept)
    count = torch.bincount(owner, minlength=utterances)
    most = int(count.max())
    if most <= options.beam:
        return kept
    begin = torch.arange(utterances, device=row.device) * most - (torch.cumsum(count, 0) - count)
    cell = at(begin, owner) + torch.arange(len(owner), device=row.device)
    table = torch.full((utterances * most,), NEVER, dtype=total.dtype, device=row.device)
    table.index_copy_(0, cell, total)
    best = table.view(utterances, most).topk(options.beam, sorted=False).indices
    chosen = torch.zeros((utterances, most), dtype=torch.bool, device=row.device)
    chosen.scatter_(1, best, True)
    return at(kept, true(at(chosen.view(-1), cell)))


def _best_histories(pool: Candidates, row: Tensor, total: Tensor) -> Tensor:
    """Of candidates that differ only in their words, the best."""
    places = pool.places[row]
    key = mix(mix(pool.utterance[row], places[:, NODE]), places[:, LM])
    unique, group = torch.unique(mix(key, places[:, HOT]), return_inverse=True)
    _, best = greatest(total, group, len(unique))
    return torch.zeros_like(total, dtype=torch.bool).index_fill_(0, best, True)


@dataclass
class Traces:
    """Rows of all utterances' traces, as they come up; ``before`` counts over all of them."""

    rows: list[Tensor] = field(default_factory=list)  # int32 [5, r]: see ``extend``
    log10: list[Tensor] = field(default_factory=list)
    used: int = 0

    @classmethod
    def of(cls, beams: Sequence[Beam], device: torch.device) -> tuple[Slots, Traces]:
        """The slots of beams, and their traces one after another."""
        traces = cls()
        places, scores, owners = [], [], []
        for number, beam in enumerate(beams):
            old = beam.trace
            here = beam.places.copy()
            here[:, BLANK_TRACE:][here[:, BLANK_TRACE:] >= 0] += traces.used
            places.append(here)
            scores.append(beam.scores)
            owners.append(np.full(len(here), number))
            before = np.where(old.before >= 0, old.before + traces.used, -1)
            owner = np.full(len(before), number)
            rows = np.stack([owner, before, old.token, old.word, old.frame]).astype(np.int32)
            traces.rows.append(torch.from_numpy(rows).to(device))
            traces.log10.append(torch.from_numpy(old.log10).to(device))
            traces.used += len(before)
        arrays = map(np.concatenate, (owners, places, scores))
        return Slots(*(torch.from_numpy(array).to(device) for array in arrays)), traces

    def extend(self, kept: Candidates, frame_B: Tensor) -> Slots:
        """Add a row for every new token; give the slots that point to them."""
        new = true((kept.token >= 0) & (kept.scores[:, TOKEN] > NEVER))
        before = kept.places[:, TOKEN_TRACE]
        columns = kept.utterance, before, kept.token, kept.word, at(frame_B, kept.utterance)
        self.rows.append(torch.stack([at(column, new) for column in columns]).int())
        self.log10.append(at(kept.log10, new).float())
        before.index_copy_(0, new, torch.arange(len(new), device=new.device) + self.used)
        self.used += len(new)
        return Slots(kept.utterance, kept.places, kept.scores)

    def split(
        self,
        ended: Sequence[Slots],
        started: Sequence[Beam],
        frames: Sequence[np.ndarray],
        blank: Sequence[bool],
    ) -> list[Beam]:
        """Beams of their own again."""
        owner_n, places, scores = (
            torch.cat(columns).cpu().numpy() for columns in zip(*ended, strict=True)
        )
        rows = torch.cat(self.rows, 1).cpu().numpy()
        log10 = torch.cat(self.log10).cpu().numpy()
        owner_R = rows[0]
        order = np.argsort(owner_R, kind="stable")
        bounds = np.searchsorted(owner_R[order], np.arange(len(started) + 1))
        local = np.empty(len(order) + 1, np.int64)  # number of a row within its utterance
        local[order] = np.arange(len(order)) - bounds[owner_R[order]]
        local[-1] = -1  # what -1 points to
        beams = []
        for number, beam in enumerate(started):
            own = order[bounds[number] : bounds[number + 1]]
            before, token, word, frame = rows[1:, own].astype(np.int32)
            trace = Trace(local[before].astype(np.int32), token, word, frame, log10[own])
            slots = np.flatnonzero(owner_n == number)
            slots = slots[np.argsort(-scores[slots].max(1), kind="stable")]
            here = places[slots]
            here[:, BLANK_TRACE:] = local[here[:, BLANK_TRACE:]]
            after = beam.frames + len(frames[number])
            beams.append(Beam(here, scores[slots], trace, after, blank[number]))
        return beams
