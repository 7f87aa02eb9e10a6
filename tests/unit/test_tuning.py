"""The search for weights: it finds them, is the same again, and goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2vtool.score import Errors
from w2vtool.tuning import Journal, Point, Range, Trial, best, propose, search

RANGES = (Range("lm_weight", 0.0, 5.0), Range("word_score", -4.0, 4.0))
START = {"lm_weight": 2.0, "word_score": 0.0}


def bowl(values: Point) -> Trial:
    """Few errors near (3.3, -1.2)."""
    off = (values["lm_weight"] - 3.3) ** 2 + 0.3 * (values["word_score"] + 1.2) ** 2
    return Trial(values, Errors(int(200 * off), 0, 0, 1000), Errors(int(400 * off), 0, 0, 5000))


def run(path: Path, trials: int, seed: int = 1, key: str = "k", random: int = 12) -> list[Trial]:
    journal = Journal(path, key)
    options = {"trials": trials, "random": random, "seed": seed, "by": "wer"}
    return list(search(bowl, journal, RANGES, START, **options))[-1]


def test_it_comes_near_the_best_and_nearer_than_at_random(tmp_path: Path) -> None:
    near, far = [], []
    for seed in range(8):
        mixed = run(tmp_path / f"{seed}", 48, seed)
        alone = run(tmp_path / f"random-{seed}", 48, seed, random=48)
        near.append(best(mixed, "wer").words.errors)
        far.append(best(alone, "wer").words.errors)
    assert max(near) <= 3
    assert sum(near) < sum(far) / 2


def test_the_first_point_is_what_was_given_and_none_comes_twice(tmp_path: Path) -> None:
    trials = run(tmp_path / "t", 60)
    assert trials[0].values == START
    points = [tuple(trial.values.values()) for trial in trials]
    assert len(set(points)) == len(points)
    for r, values in zip(RANGES, zip(*points, strict=True), strict=True):
        assert r.low <= min(values) and max(values) <= r.high


@pytest.mark.parametrize("stopped", [1, 7, 12, 20])
def test_a_search_that_was_stopped_goes_on(tmp_path: Path, stopped: int) -> None:
    whole = run(tmp_path / "whole", 30)
    run(tmp_path / "half", stopped)
    before = (tmp_path / "half").read_bytes()
    assert run(tmp_path / "half", 30) == whole
    assert (tmp_path / "half").read_bytes().startswith(before)
    assert run(tmp_path / "half", 30) == whole
    assert len((tmp_path / "half").read_bytes().splitlines()) == 30


def test_trials_of_another_job_are_not_taken_over(tmp_path: Path) -> None:
    run(tmp_path / "t", 5, key="one")
    run(tmp_path / "t", 5, key="other")
    assert len((tmp_path / "t").read_bytes().splitlines()) == 10
    run(tmp_path / "u", 5, seed=1)
    run(tmp_path / "u", 5, seed=2)
    assert len((tmp_path / "u").read_bytes().splitlines()) == 9, "only the start is the same"


def test_letters_can_count_first() -> None:
    trials = [
        Trial({"a": 1.0}, Errors(1, 0, 0, 9), Errors(9, 0, 0, 9)),
        Trial({"a": 2.0}, Errors(2, 0, 0, 9), Errors(5, 0, 0, 9)),
    ]
    assert best(trials, "wer") is trials[0]
    assert best(trials, "cer") is trials[1]


@given(seed=st.integers(0, 1000), number=st.integers(0, 30))
def test_a_proposal_depends_on_seed_and_trials_alone(seed: int, number: int) -> None:
    trials: list[Trial] = []
    for _ in range(number):
        options = {"random": 5, "seed": seed, "by": "wer"}
        point = propose(trials, RANGES, START, **options)
        assert point == propose(list(trials), RANGES, START, **options)
        trials.append(bowl(point))
