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
    MULTIPLIER,
    NODE,
    SHIFT,
    TOKEN,
    TOKEN_TRACE,
    Beam,
    Trace,
)
from w2vtool.decoder.options import BeamOptions

NEVER = -float("inf")


class Slots(NamedTuple):
    """Live slots of all utterances; ``utterance`` is long [n], the others as in Beam."""

    utterance: Tensor
    places: Tensor
    scores: Tensor

    def pick(self, rows: Tensor) -> Slots:
        """Some of them."""
        return Slots(self.utterance[rows], self.places[rows], self.scores[rows])


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
        return Candidates(*(column[rows] for column in self))


def mix(a: Tensor, b: Tensor | int) -> Tensor:
    """A hash of two int64; the same as the compiled one."""
    h = ((a ^ (b * MULTIPLIER)) + 1) * MULTIPLIER
    return h ^ (h >> SHIFT)


def ragged(count: Tensor) -> tuple[Tensor, Tensor]:
    """``[2, 0, 3]`` to owners ``[0, 0, 2, 2, 2]`` and places ``[0, 1, 0, 1, 2]``."""
    rows = torch.arange(len(count), device=count.device)
    owner = torch.repeat_interleave(rows, count)
    begin = torch.cumsum(count, 0) - count
    return owner, torch.arange(len(owner), device=count.device) - begin[owner]


def greatest(score: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The greatest score of each group, and the first row that has it."""
    most = torch.full((groups,), NEVER, dtype=score.dtype, device=score.device)
    most.scatter_reduce_(0, group, score, "amax")
    rows = torch.arange(len(score), device=score.device)
    row = torch.full((groups,), len(score), device=score.device)
    row.scatter_reduce_(0, group, torch.where(score == most[group], rows, len(score)), "amin")
    return most, row


def _sums(score: Tensor, group: Tensor, most: Tensor) -> Tensor:
    """Log of the sum of exponentials in each group, whose greatest is known."""
    base = torch.where(most > NEVER, most, 0.0)
    total = torch.zeros_like(most).scatter_add_(0, group, torch.exp(score - base[group]))
    return torch.where(most > NEVER, base + torch.log(total), NEVER)


def survivors(pool: Candidates, best_B: Tensor, options: BeamOptions) -> Candidates:
    """Make one of the candidates for one place, and keep the best places of each utterance.

    ``best_B`` is the best score so far. A place's trace is that of its best candidate.
    """
    rows, scores = torch.arange(len(pool.utterance), device=best_B.device), pool.scores
    if not options.summing:
        best_B = best_B.scatter_reduce(0, pool.utterance, scores.amax(1), "amax")
        limit_c = best_B[pool.utterance] - options.threshold
        scores = torch.where(scores > limit_c[:, None], scores, NEVER)
        rows = torch.nonzero(scores.amax(1) > NEVER).squeeze(1)
        scores = scores[rows]
    key = mix(pool.utterance[rows], pool.places[rows, NODE])
    if options.by_history or options.summing:
        key = mix(key, pool.places[rows, HISTORY])
    else:
        key = mix(mix(key, pool.places[rows, LM]), pool.places[rows, HOT])
    unique, group = torch.unique(key, return_inverse=True)
    blank, blank_row = greatest(scores[:, BLANK], group, len(unique))
    token, token_row = greatest(scores[:, TOKEN], group, len(unique))
    if options.summing:
        blank = _sums(scores[:, BLANK], group, blank)
        token = _sums(scores[:, TOKEN], group, token)
    blank_row, token_row = rows[blank_row], rows[token_row]
    both = torch.stack([blank, token], 1)
    kept = _kept(pool, token_row, both, len(best_B), options)
    found = pool.pick(token_row[kept])
    found.places[:, BLANK_TRACE] = pool.places[blank_row[kept], BLANK_TRACE]
    return found._replace(scores=both[kept])


def _kept(
    pool: Candidates, row: Tensor, scores: Tensor, utterances: int, options: BeamOptions
) -> Tensor:
    """The best places of each utterance, as many as the beam is wide; ``row`` are candidates."""
    owner, total = pool.utterance[row], scores.amax(1)
    kept = torch.arange(len(row), device=row.device)
    if options.summing:
        total = torch.logaddexp(scores[:, BLANK], scores[:, TOKEN])
        best = torch.full((utterances,), NEVER, dtype=total.dtype, device=total.device)
        best.scatter_reduce_(0, owner, total, "amax")
        good = total > best[owner] - options.threshold
        if not options.by_history:
            good &= _best_histories(pool, row, torch.where(good, total, NEVER))
        kept = torch.nonzero(good).squeeze(1)
        owner, total = owner[kept], total[kept]
    count = torch.bincount(owner, minlength=utterances)
    many = torch.nonzero(count[owner] > options.beam).squeeze(1)
    if not len(many):
        return kept
    order = many[torch.argsort(total[many], descending=True, stable=True)]
    order = order[torch.argsort(owner[order], stable=True)]
    count = torch.bincount(owner[order], minlength=utterances)
    begin = torch.cumsum(count, 0) - count
    rank = torch.arange(len(order), device=order.device) - begin[owner[order]]
    chosen = torch.ones_like(kept, dtype=torch.bool)
    chosen[order[rank >= options.beam]] = False
    return kept[chosen]


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

    rows: list[Tensor] = field(default_factory=list)  # int64 [5, r]: see ``extend``
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
            rows = np.stack([owner, before, old.token, old.word, old.frame]).astype(np.int64)
            traces.rows.append(torch.from_numpy(rows).to(device))
            traces.log10.append(torch.from_numpy(old.log10).to(device))
            traces.used += len(before)
        arrays = map(np.concatenate, (owners, places, scores))
        return Slots(*(torch.from_numpy(array).to(device) for array in arrays)), traces

    def extend(self, kept: Candidates, frame_B: Tensor) -> Slots:
        """Add a row for every new token; give the slots that point to them."""
        new = torch.nonzero((kept.token >= 0) & (kept.scores[:, TOKEN] > NEVER)).squeeze(1)
        owner, before = kept.utterance[new], kept.places[new, TOKEN_TRACE]
        rows = [owner, before, kept.token[new], kept.word[new], frame_B[owner]]
        self.rows.append(torch.stack(rows))
        self.log10.append(kept.log10[new].float())
        number = self.used + torch.arange(len(new), device=new.device)
        kept.places[new, TOKEN_TRACE] = number
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
