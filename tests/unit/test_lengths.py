"""A million lengths as in three corpora: little padding, no padding in crops, nobody waits long."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from w2vtool.plan import Plan

ROWS = 1_000_000
CORPORA = ("librispeech", "common-voice", "ted")


@pytest.fixture(scope="module")
def padding() -> Any:
    """benchmarks/padding.py, which has the distributions and the sums."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        import padding

        yield padding
        sys.modules.pop("padding")


@pytest.fixture(scope="module", params=CORPORA)
def seconds(request: pytest.FixtureRequest, padding: ModuleType) -> np.ndarray:
    lengths: np.ndarray = padding.CORPORA[request.param](ROWS)
    return lengths


@pytest.mark.parametrize("bin_seconds", [87.5, 700.0])
def test_fine_tuning_pads_at_most_2_percent(
    padding: ModuleType, seconds: np.ndarray, bin_seconds: float
) -> None:
    made = padding.plan(seconds, crop=False, bin_seconds=bin_seconds)
    assert 0 < padding.waste(made) <= 0.02


def test_the_padding_that_is_counted_is_that_of_the_bins(
    padding: ModuleType, seconds: np.ndarray
) -> None:
    made: Plan = padding.plan(seconds, crop=False)
    some = [made.bin(number) for number in range(0, made.bins_per_epoch, 40)]
    held = sum(len(part.rows) * part.longest for part in some)
    assert held == pytest.approx(made.costs(np.array([part.number for part in some])).sum())
    heard = sum(seconds[part.rows].sum() for part in some)
    assert 1 - heard / held == pytest.approx(padding.waste(made), abs=0.002)
    assert heard / (len(some) * 87.5) >= 0.9  # and bins are full


def test_crops_to_the_shortest_of_a_bucket_lose_at_most_2_percent(
    padding: ModuleType, seconds: np.ndarray
) -> None:
    made: Plan = padding.plan(seconds, crop=True)
    kept = made.costs(np.arange(made.bins_per_epoch)).sum() / made.seconds
    assert 0.98 <= kept < 1
    assert made.costs(np.arange(made.bins_per_epoch)).mean() >= 0.9 * 87.5


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("options", [{}, {"bin_seconds": 700.0}, {"quadratic_seconds": 150.0}])
def test_the_busiest_of_2_4_or_8_processes_has_at_most_5_percent_more_than_the_mean(
    padding: ModuleType, seconds: np.ndarray, crop: bool, options: dict[str, float]
) -> None:
    made = padding.plan(seconds, crop=crop, **options)
    for world in (2, 4, 8):
        for bins in (64, 32):
            assert padding.imbalance(made, bins, world, updates=100)[1] <= 0.05, (world, bins)


def test_a_million_rows_are_planned_with_few_passes_over_them(
    padding: ModuleType, seconds: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted_: list[int] = []
    argsort = np.argsort

    def counting(found: np.ndarray, **options: Any) -> np.ndarray:
        sorted_.append(len(found))
        return argsort(found, **options)

    monkeypatch.setattr(np, "argsort", counting)
    made: Plan = padding.plan(seconds, crop=False)
    made.bin(0)
    assert sorted_[0] == made.utterances
    assert sum(sorted_[1:]) < 0.2 * ROWS  # the bins of an epoch, and one bucket
