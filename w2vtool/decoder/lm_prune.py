"""Leave out of an n-gram model what hardly changes its predictions.

Goes in: an ``NGram``. Goes out: the tables of a smaller model.

An n-gram goes if doing without it raises the perplexity of the model's own predictions by less than
a threshold, as a share. That is computed for each n-gram alone, from the highest order down; what a
longer kept n-gram begins or ends with stays, and ``<s>``, ``</s>`` and words do.

Source: Stolcke 1998, "Entropy-based pruning of backoff language models", eq. 6 to 8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from w2vtool.decoder.ngram import BEGIN, NGram, OrderTable, tables
from w2vtool.errors import ConfigError

_SMALLEST = 1e-12  # mass that counts as none: what is left of a distribution after rounding


class Pruned(NamedTuple):
    """Tables of the smaller model, and how many n-grams of each order were there before."""

    tables: list[OrderTable]
    before: list[int]


def prune(
    model: NGram, threshold: float, on_progress: Callable[[int], None] = lambda orders: None
) -> Pruned:
    """Leave out n-grams that change the perplexity by less than ``threshold``, such as 1e-8.

    ``on_progress`` is told how many orders are done, and may raise to stop.
    Raises ConfigError for a threshold that is not above 0.
    """
    if not threshold > 0:
        raise ConfigError(f"a pruning threshold of {threshold}", hint="1e-9 to 1e-6 are usual")
    found = tables(model)
    before = [len(table.word) for table in found]
    history = _histories(found, model.words.index(BEGIN))
    for n in range(len(found) - 1, 0, -1):
        here = found[n]
        gone = _relative_change(found[n - 1], here, history[n - 1]) < threshold
        if n + 1 < len(found):
            above = found[n + 1]
            gone[above.context] = False
            gone[above.suffix] = False
        found = _without(found, n, gone)
        history[n] = history[n][~gone]
        on_progress(len(found) - n)
    for n in range(1, len(found)):
        found[n - 1] = found[n - 1]._replace(backoff=_weights(found[n - 1], found[n]))
    return Pruned(found, before)


def _histories(found: list[OrderTable], begin: int) -> list[np.ndarray]:
    """Ln P of each n-gram as a history: of its words one after another; ``<s>`` is certain."""
    logs: list[np.ndarray] = []
    for table in found:
        own = table.log10.astype(np.float64) * np.log(10)
        if logs:
            logs.append(logs[-1][table.context] + own)
        else:
            own[begin] = 0.0
            logs.append(own)
    return logs


def _masses(below: OrderTable, here: OrderTable) -> tuple[np.ndarray, np.ndarray]:
    """Per history: what its n-grams leave over, and what their shorter histories leave over."""
    histories = len(below.word)
    own = 10.0 ** here.log10.astype(np.float64)
    shorter = 10.0 ** below.log10[here.suffix].astype(np.float64)
    left = 1 - np.bincount(here.context, own, histories)
    over = 1 - np.bincount(here.context, shorter, histories)
    return left.clip(min=_SMALLEST), over.clip(min=_SMALLEST)


def _relative_change(below: OrderTable, here: OrderTable, history: np.ndarray) -> np.ndarray:
    """How much the perplexity rises, as a share, without each n-gram."""
    left, over = (mass[here.context] for mass in _masses(below, here))
    own = 10.0 ** here.log10.astype(np.float64)
    shorter = 10.0 ** below.log10[here.suffix].astype(np.float64)
    weight, without = np.log(left / over), np.log((left + own) / (over + shorter))
    change = own * (np.log(shorter) + without - np.log(own)) + left * (without - weight)
    return np.expm1(-np.exp(history[here.context]) * change)


def _without(found: list[OrderTable], n: int, gone: np.ndarray) -> list[OrderTable]:
    """The tables without some n-grams of order ``n + 1``; rows above are renumbered."""
    row = np.cumsum(~gone) - 1
    out = list(found)
    out[n] = OrderTable(*(column[~gone] for column in found[n]))
    if n + 1 < len(found):
        above = found[n + 1]
        out[n + 1] = above._replace(context=row[above.context], suffix=row[above.suffix])
    return out


def _weights(below: OrderTable, here: OrderTable) -> np.ndarray:
    """log10 back-off weights that make every history's predictions sum to 1."""
    left, over = _masses(below, here)
    extended = np.zeros(len(below.word), bool)
    extended[here.context] = True
    return np.where(extended, np.log10(left / over), 0.0).astype(np.float32)
