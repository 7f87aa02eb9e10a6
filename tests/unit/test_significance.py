"""Intervals and p against what is known about them."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from w2vtool.significance import change, interval

REFERENCE = np.full(400, 10)


def binomial(share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).binomial(10, share, size=400)


def test_the_interval_of_independent_errors_is_the_normal_one() -> None:
    errors = binomial(0.1, 0)
    rate = errors.sum() / 4000
    half = 1.96 * errors.std() * np.sqrt(400) / 4000
    assert interval(errors, REFERENCE) == pytest.approx((rate - half, rate + half), abs=1e-3)


def test_errors_in_clusters_have_a_wider_interval() -> None:
    spread, clustered = np.ones(400, int), np.zeros(400, int)
    clustered[:40] = 10
    assert interval(spread, REFERENCE) == (0.1, 0.1)
    low, high = interval(clustered, REFERENCE)
    assert low < 0.08 and high > 0.12


def test_the_same_system_is_no_change() -> None:
    errors = binomial(0.1, 0)
    assert change(errors, errors, REFERENCE) == (0.0, 0.0, 0.0, 1.0)


def test_p_is_that_of_the_sign_test_where_each_difference_is_one() -> None:
    first = np.zeros(30, int)
    second = np.array([1] * 9 + [-1] * 2 + [0] * 19)
    exact = 2 * sum(comb(11, k) for k in range(3)) / 2**11
    found = change(first, second, np.full(30, 5))
    assert found.p == pytest.approx(exact, abs=0.01)
    assert found.difference == pytest.approx(7 / 150)
    assert found.low < found.difference < found.high


def test_the_same_errors_give_the_same_figures() -> None:
    first, second = binomial(0.1, 0), binomial(0.11, 1)
    assert change(first, second, REFERENCE) == change(first, second, REFERENCE)


def test_many_utterances_fit_into_memory_and_nothing_said_is_no_error() -> None:
    assert interval(np.ones(50_000, int), np.full(50_000, 4)) == (0.25, 0.25)
    assert interval(np.zeros(3, int), np.zeros(3, int)) == (0.0, 0.0)
