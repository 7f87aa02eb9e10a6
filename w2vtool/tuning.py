"""Search for the weights of a decoder: first at random, then around the best.

Goes in: ranges of weights, and what a point is worth. Goes out: trials, each a line of a journal,
so that a search that was stopped goes on with the trial it was at. What is tried depends on
the seed and on the trials before, on nothing else.

Why random first: two weights out of four usually matter, and random points try as many values of
each as there are points (Bergstra & Bengio 2012). Then steps around the best, longer after one
that was better and shorter after one that was not (Rechenberg 1973).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from w2vtool.score import Errors

DIGITS = 2  # of a weight: finer than any development set can tell
FIRST_STEP, LEAST_STEP = 0.15, 0.01  # of the width of a range
LONGER, SHORTER = 1.5, 0.85
MOVED = 0.6  # how often each weight takes part in a step
DRAWS = 50  # until a point is found that was not tried yet


class Range(NamedTuple):
    """A weight, and between what it is searched."""

    name: str
    low: float
    high: float


Point = dict[str, float]


@dataclass(frozen=True)
class Trial:
    """A point and its errors."""

    values: Point
    words: Errors
    letters: Errors

    def cost(self, by: str) -> tuple[int, int]:
        """What is made small: errors of words (or letters), then of the other."""
        pair = (self.words.errors, self.letters.errors)
        return pair if by == "wer" else (pair[1], pair[0])


def best(trials: Sequence[Trial], by: str) -> Trial:
    """The best trial; of equal ones the first."""
    return min(trials, key=lambda trial: trial.cost(by))


def propose(
    trials: Sequence[Trial],
    ranges: Sequence[Range],
    start: Mapping[str, float],
    *,
    random: int,
    seed: int,
    by: str,
) -> Point:
    """The next point to try: ``start``, then ``random`` - 1 points, then steps."""
    number = len(trials)
    tried = {tuple(trial.values.values()) for trial in trials}
    if not number:
        return {r.name: round(float(start[r.name]), DIGITS) for r in ranges}
    draw = np.random.default_rng([seed, number])
    step = _step(trials, random, by)
    point: Point = {}
    for _ in range(DRAWS):
        if number < random:
            point = {r.name: round(float(draw.uniform(r.low, r.high)), DIGITS) for r in ranges}
        else:
            point = _near(best(trials, by).values, ranges, step, draw)
        if tuple(point.values()) not in tried:
            break
        step *= LONGER
    return point


def _near(
    values: Mapping[str, float], ranges: Sequence[Range], step: float, draw: np.random.Generator
) -> Point:
    moves = draw.random(len(ranges)) < MOVED
    moves[draw.integers(len(ranges))] = True
    point = dict(values)
    for r, moved in zip(ranges, moves, strict=True):
        if moved:
            value = values[r.name] + draw.normal() * step * (r.high - r.low)
            point[r.name] = round(float(min(max(value, r.low), r.high)), DIGITS)
    return point


def _step(trials: Sequence[Trial], random: int, by: str) -> float:
    """How far to step, after what became of the steps before."""
    step = FIRST_STEP
    for number in range(max(1, random), len(trials)):
        better = trials[number].cost(by) < best(trials[:number], by).cost(by)
        step *= LONGER if better else SHORTER
    return max(step, LEAST_STEP)


class Journal:
    """Trials in a file, a line each; those of another job (``key``) are left out."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def read(self) -> list[Trial]:
        """Trials of this job, in order. A line that a crash cut off is left out."""
        if not self.path.exists():
            return []
        found = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                errors = Errors(*line["words"]), Errors(*line["letters"])
                if line["key"] == self.key:
                    found.append(Trial(dict(line["values"]), *errors))
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def add(self, trial: Trial) -> None:
        """Append a trial, on a line of its own."""
        whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
        line: dict[str, Any] = {
            "key": self.key,
            "values": trial.values,
            "words": list(trial.words),
            "letters": list(trial.letters),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("" if whole else "\n") + json.dumps(line) + "\n")


def search(
    evaluate: Callable[[Point], Trial],
    journal: Journal,
    ranges: Sequence[Range],
    start: Mapping[str, float],
    *,
    trials: int,
    random: int,
    seed: int,
    by: str,
) -> Iterator[list[Trial]]:
    """Try until there are ``trials``; gives all so far, at once and after each trial.

    Trials of the journal are taken over as far as they are what would be tried now.
    """
    known, done = journal.read(), list[Trial]()
    while len(done) < trials:
        point = propose(done, ranges, start, random=random, seed=seed, by=by)
        if len(done) < len(known) and known[len(done)].values == point:
            done.append(known[len(done)])
            continue
        if len(done) < len(known):  # other ranges or another start: what was tried then is past
            known = []
        yield done
        done.append(evaluate(point))
        journal.add(done[-1])
    yield done
