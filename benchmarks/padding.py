"""What the batch plan wastes, on lengths as in three corpora: padding, crops, uneven processes.

    python benchmarks/padding.py [--rows 1000000]

Goes in: a number of rows. Goes out: a line of JSON a case on stdout. ``padding`` is the share of
what is in the batches of an epoch of fine-tuning that is zeros; ``cropped_away`` the share of an
epoch of pre-training that is lost by cropping to the shortest of a bucket (none of it is padded);
``imbalance`` how much more than the mean the busiest process of an update has, by processes, the
mean and the worst of 500 updates of ``--bins`` bins.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from w2vtool.feed import deal
from w2vtool.plan import Plan

WORLDS = (2, 4, 8)
UPDATES = 500
MAX_SECONDS = {True: 15.625, False: 30.0}  # the defaults of pretrain; most of all corpora


def librispeech_like(rows: int) -> np.ndarray:
    """Read books cut at pauses: two thirds 14.6 ± 1.1 s, the rest 1.4 to 13 s; mean 12.2 s."""
    rng = np.random.default_rng(0)
    cut, short = np.clip(rng.normal(14.6, 1.1, rows), 10, 17), rng.uniform(1.4, 13, rows)
    return np.where(rng.random(rows) < 0.68, cut, short)


def common_voice_like(rows: int) -> np.ndarray:
    """Single sentences, 1 to 15 s: log-normal, median 4.8 s, σ 0.38; mean 5.2 s."""
    return np.clip(np.random.default_rng(0).lognormal(np.log(4.8), 0.38, rows), 1, 15)


def ted_like(rows: int) -> np.ndarray:
    """Talks cut into segments of 0.5 to 25 s: a gamma distribution of shape 2.2; mean 8.1 s."""
    return np.clip(np.random.default_rng(0).gamma(2.2, 3.7, rows), 0.5, 25)


CORPORA: Mapping[str, Callable[[int], np.ndarray]] = {
    "librispeech": librispeech_like,
    "common-voice": common_voice_like,
    "ted": ted_like,
}


def plan(seconds: np.ndarray, *, crop: bool, **changes: Any) -> Plan:
    """The plan of a corpus with the default sizes."""
    given = {"bin_seconds": 87.5, "min_seconds": 0.5, "max_seconds": MAX_SECONDS[crop], "seed": 1}
    return Plan(seconds, crop=crop, source="5f2e" * 16, **(given | changes))


def waste(made: Plan) -> float:
    """Padding as a share of the batches of an epoch; negative for what crops leave out."""
    return 1 - made.seconds / float(made.costs(np.arange(made.bins_per_epoch)).sum())


def imbalance(made: Plan, bins: int, world: int, updates: int = UPDATES) -> tuple[float, float]:
    """How much more than the mean the busiest process has: the mean of some updates, the worst."""
    found = []
    for update in range(updates):
        costs = made.costs(np.arange(update * bins, (update + 1) * bins))
        load = np.bincount(deal(costs, world), costs)
        found.append(load.max() / load.mean() - 1)
    return float(np.mean(found)), max(found)


def measure(rows: int, bins: int) -> None:
    """All figures, a line each."""
    for name, lengths in CORPORA.items():
        seconds = lengths(rows)
        for crop in (False, True):
            for bin_seconds in (87.5, 200.0, 700.0):
                made = plan(seconds, crop=crop, bin_seconds=bin_seconds)
                lost = waste(made)
                figures = {
                    "lengths": name,
                    "rows": rows,
                    "bin_seconds": bin_seconds,
                    **({"cropped_away": -lost / (1 - lost)} if crop else {"padding": lost}),
                    "imbalance": {w: imbalance(made, bins, w) for w in WORLDS},
                }
                print(json.dumps(_rounded(figures)))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--bins", type=int, default=64)
    words = parser.parse_args()
    measure(words.rows, words.bins)
