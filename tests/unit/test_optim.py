"""Learning rates at the updates that are published, and the optimizer's settings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from w2vtool.optim import adamw, learning_rate
from w2vtool.schema import OptimConfig

BASE, BASE_UPDATES = OptimConfig(), 400_000
TRI_STAGE = OptimConfig(lr=1.0, schedule="tri-stage", warmup=0.1, hold=0.4, floor=0.05)


@pytest.mark.parametrize(
    ("update", "rate"),
    [(16_000, 2.5e-4), (32_000, 5e-4), (216_000, 2.5e-4), (400_000, 0.0), (450_000, 0.0)],
)
def test_polynomial_rate_of_base(update: int, rate: float) -> None:
    assert learning_rate(update, BASE_UPDATES, BASE) == pytest.approx(rate, abs=1e-12)


def test_the_very_first_update_of_base_moves_as_in_fairseq() -> None:
    assert learning_rate(0, BASE_UPDATES, BASE) == pytest.approx(5e-4 / 32_000)
    assert learning_rate(1, BASE_UPDATES, BASE) == pytest.approx(5e-4 / 32_000)


@pytest.mark.parametrize(
    ("update", "share"),
    [
        (0, 0.01),
        (650, 0.01 + 0.99 / 2),
        (1_300, 1.0),
        (6_499, 1.0),
        (6_500, 1.0),
        (9_750, math.sqrt(0.05)),  # exponential: half of the way down is the root
        (13_000, 0.05),
        (20_000, 0.05),
    ],
)
def test_tri_stage_rises_holds_and_falls_exponentially(update: int, share: float) -> None:
    assert learning_rate(update, 13_000, TRI_STAGE) == pytest.approx(share, rel=1e-9)


@pytest.mark.parametrize(("peak", "rate"), [(5e-5, 9.96e-6), (1e-4, 1.99e-5), (3e-4, 5.98e-5)])
def test_an_encoder_frozen_for_10k_of_13k_updates_wakes_at_19_9_percent_of_the_peak(
    peak: float, rate: float
) -> None:
    config = TRI_STAGE.model_copy(update={"lr": peak})
    woken = learning_rate(10_000, 13_000, config)
    assert woken / peak == pytest.approx(0.199, abs=5e-4)
    assert woken == pytest.approx(rate, rel=2e-3)


def test_constant_rises_and_stays() -> None:
    config = OptimConfig(lr=2.0, schedule="constant", warmup=0.1)
    rates = [learning_rate(update, 100, config) for update in (1, 5, 10, 50, 100)]
    assert rates == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0])


@given(
    st.sampled_from(["polynomial", "tri-stage", "constant"]),
    st.integers(1, 500),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_rate_is_never_negative_nor_above_the_peak_nor_jumps_up(
    schedule: str, updates: int, warmup: float, hold: float
) -> None:
    config = OptimConfig.model_validate(
        {"lr": 3e-4, "schedule": schedule, "warmup": warmup, "hold": hold}
    )
    rates = [learning_rate(update, updates, config) for update in range(updates + 1)]
    assert all(0 <= rate <= 3e-4 * (1 + 1e-9) for rate in rates)
    top = max(range(len(rates)), key=lambda i: rates[i])
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_adamw_is_fused_and_decays_every_parameter_decoupled() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = adamw(model.parameters(), OptimConfig(lr=0.1, weight_decay=0.5))
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 4  # biases and norms are no exception
    assert (group["betas"], group["eps"], group["fused"]) == ((0.9, 0.98), 1e-6, True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old * (1 - 0.1 * 0.5))
