"""``batch_hours``: the hours of an update become a number of bins, the same for any processes."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import toys
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from w2vtool import training
from w2vtool.architecture import Architecture
from w2vtool.checkpoint import Spec
from w2vtool.errors import ConfigError
from w2vtool.plan import Plan
from w2vtool.schema import LoopConfig
from w2vtool.tasks.finetune_ctc import FinetuneConfig
from w2vtool.tasks.pretrain import PretrainConfig

LARGE = Architecture(width=1024, heads=16)


def plan(rows: int = 5_000, bin_seconds: float = 87.5) -> Plan:
    """Like LibriSpeech: two thirds between 12 and 17 s, the rest below."""
    rng = np.random.default_rng(0)
    seconds = np.where(
        rng.random(rows) < 0.68, rng.normal(14.6, 1.1, rows).clip(10, 17), rng.uniform(2, 13, rows)
    )
    return Plan(
        seconds,
        bin_seconds=bin_seconds,
        min_seconds=2,
        max_seconds=15.625,
        crop=True,
        seed=1,
        source="0",
    )


def ones(bin_seconds: float) -> Plan:
    """Bins of exactly this length."""
    given = {"min_seconds": 0, "max_seconds": 99, "crop": True, "seed": 1, "source": "0"}
    return Plan(np.full(100, bin_seconds), bin_seconds=bin_seconds, **given)


# -- the recipe ----------------------------------------------------------------------------------


def test_hours_take_the_place_of_the_default_number_of_bins() -> None:
    assert LoopConfig().bins == 64
    assert LoopConfig(batch_hours=1.6).bins == 0
    for task in (PretrainConfig, FinetuneConfig):  # fine-tuning has a default of its own
        loop = task.model_validate({"loop": {"batch_hours": 0.4}}).loop
        assert (loop.bins, loop.batch_hours) == (0, 0.4)
        assert loop.bin_seconds == task().loop.bin_seconds
    assert FinetuneConfig.model_validate({"loop": {"batch_hours": None}}).loop.bins == 8


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        ({"bins": 64, "batch_hours": 1.6}, "the other is 0 or null; bins is 64, batch_hours 1.6"),
        ({"bins": "3", "batch_hours": "0.1"}, "bins is 3, batch_hours 0.1"),
        ({"bins": 0}, "bins is 0, batch_hours null"),
        ({"batch_hours": 0}, "greater than 0"),
    ],
)
def test_both_or_none_is_an_error(loop: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PretrainConfig.model_validate({"loop": loop})


@pytest.mark.parametrize("loop", [{"batch_hours": 1.6}, {"bins": 4}, {}])
@pytest.mark.parametrize("task", [PretrainConfig, FinetuneConfig])
def test_what_is_written_to_the_run_folder_loads_back(task: Any, loop: dict[str, Any]) -> None:
    config = task.model_validate({"loop": loop})
    written = yaml.safe_dump(config.model_dump(mode="json"))
    assert task.model_validate(yaml.safe_load(written)) == config


# -- hours to bins -------------------------------------------------------------------------------


@pytest.mark.parametrize("bin_seconds", [87.5, 43.75, 20.0])
def test_smaller_bins_for_less_memory_keep_the_size_of_an_update(bin_seconds: float) -> None:
    made = plan(50_000, bin_seconds)
    bins = training.portions(LoopConfig(batch_hours=1.6), made, 16).bins
    hours = bins * made.seconds / made.bins_per_epoch / 3600
    assert hours == pytest.approx(1.6, rel=1 / 8)


@given(st.floats(1, 5_000))
def test_an_update_is_near_what_was_asked_for_and_can_be_shared(wanted: float) -> None:
    bins = ones(10.0).portion(wanted * 10)
    assert bins % 8 == 0 or bins in (1, 2, 4)
    assert abs(bins / wanted - 1) <= (1 / 8 if wanted >= 32 else 1 / 3) + 1e-9


@pytest.mark.parametrize(
    ("wanted", "bins"),
    [(0.1, 1), (1.2, 1), (3, 4), (6, 8), (30, 32), (45, 48), (71, 64), (100, 96)],
)
def test_the_number_that_can_be_halved_most_often_is_taken(wanted: float, bins: int) -> None:
    assert ones(10.0).portion(wanted * 10) == bins


def test_bins_that_are_given_are_kept() -> None:
    loop = LoopConfig(bins=7)
    assert training.portions(loop, plan(), 1) is loop


def test_the_number_of_processes_changes_nothing_but_who_does_what() -> None:
    made, loop = plan(), LoopConfig(batch_hours=0.4)
    assert {training.portions(loop, made, world).bins for world in (1, 2, 4, 8, 16)} == {16}


def test_processes_that_cannot_share_an_update_are_told_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"is 16 micro-batches of \d+ s.*over 3 proc") as caught:
        training.portions(LoopConfig(batch_hours=0.4), plan(), 3)
    assert "lower loop.bin_seconds" in caught.value.hint
    assert "loop.batch_hours=null loop.bins=15" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        training.portions(LoopConfig(batch_hours=0.02), plan(), 8)
    assert "loop.bins=8" in caught.value.hint


# -- what is said --------------------------------------------------------------------------------


def said(made: Plan, spec: Spec, world: int = 1, done: int = 0, **loop: Any) -> list[str]:
    resolved = training.portions(LoopConfig(**loop), made, world)
    job: Any = SimpleNamespace(loop=resolved, spec=spec, world=world, done=done)
    return list(training.heard(job, made))


BASE = Spec("pretrain", Architecture())


def test_the_hours_of_an_update_and_of_the_run_are_said_beside_the_papers() -> None:
    made = ones(90.0)
    assert said(made, BASE, world=8, bins=64, updates=1000) == [
        "1000 updates of 1.60 h (64 bins, 8 a process): 1,600.0 h will be heard "
        "(the paper's BASE: 640,000 h)"
    ]
    large = dataclasses.replace(BASE, architecture=LARGE)
    assert "the paper's LARGE: 675,000 h" in said(made, large, bins=64)[0]
    assert said(made, BASE, bins=4, done=7)[0].endswith("; going on at update 7")


def test_fine_tuning_is_not_compared_to_pre_training() -> None:
    (line,) = said(ones(90.0), Spec("ctc", Architecture(), toys.TOKENS), bins=1, updates=100)
    assert line == "100 updates of 90 s (1 bins, 1 a process): 2.5 h will be heard"


@pytest.mark.parametrize(("bins", "warns"), [(1, True), (2, False)])
def test_an_update_below_the_limit_of_stability_is_warned_of(bins: int, warns: bool) -> None:
    lines = said(ones(80.0), BASE, bins=bins)
    assert len(lines) == 1 + warns
    if warns:
        assert lines[1].startswith("warning: an update hears 80 s; with less than 150 s")
        assert "loop.batch_hours" in lines[1]


def test_small_networks_of_which_nothing_is_known_are_not_warned_of() -> None:
    assert len(said(ones(80.0), dataclasses.replace(BASE, architecture=toys.TINY), bins=1)) == 1
