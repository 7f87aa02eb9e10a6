"""How sure an error rate is, and the difference of two.

Goes in: errors and reference lengths of independent units (utterances, or speakers). Goes out:
intervals by the bootstrap, and the probability that a difference is chance.

Why the bootstrap: errors come in clusters, so the binomial interval of single words is too narrow
(Bisani & Ney 2004). Why random signs: on the same utterances, and if both systems were equally
good, either of the two could have made the errors of the other; no distribution is assumed, as
the matched-pairs test of NIST's sc_stats assumes the normal one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

DRAWS = 10_000
SEED = 1  # the same files give the same figures
_AT_ONCE = 4_000_000  # drawn units in memory
_OUTSIDE = (2.5, 97.5)  # per cent


class Change(NamedTuple):
    """Rate of the second minus rate of the first, its 95 % interval, and p (two-sided)."""

    difference: float
    low: float
    high: float
    p: float


def interval(errors_U: np.ndarray, reference_U: np.ndarray) -> tuple[float, float]:
    """95 % interval of the sum of errors over the sum of reference units."""
    rates = [_rates(errors_U[draw_DU], reference_U[draw_DU]) for draw_DU in _draws(len(errors_U))]
    low, high = np.percentile(np.concatenate(rates), _OUTSIDE)
    return float(low), float(high)


def change(first_U: np.ndarray, second_U: np.ndarray, reference_U: np.ndarray) -> Change:
    """From the first system's errors to the second's, on the same units."""
    more_U = second_U - first_U
    low, high = interval(more_U, reference_U)
    seen = abs(int(more_U.sum()))
    rng = np.random.default_rng(SEED)
    as_far = 0
    moved_U = more_U[more_U != 0]
    for _ in range(DRAWS):
        signs_U = 2 * rng.integers(2, size=len(moved_U)) - 1
        as_far += abs(int(signs_U @ moved_U)) >= seen
    total = max(1, int(reference_U.sum()))
    return Change(int(more_U.sum()) / total, low, high, (as_far + 1) / (DRAWS + 1))


def _rates(errors_DU: np.ndarray, reference_DU: np.ndarray) -> np.ndarray:
    found: np.ndarray = errors_DU.sum(1) / np.maximum(1, reference_DU.sum(1))
    return found


def _draws(units: int) -> Iterator[np.ndarray]:
    """``[D, U]`` units drawn with replacement, ``DRAWS`` times in all."""
    rng = np.random.default_rng(SEED)
    size = max(1, _AT_ONCE // units)
    for start in range(0, DRAWS, size):
        yield rng.integers(units, size=(min(size, DRAWS - start), units), dtype=np.int32)
