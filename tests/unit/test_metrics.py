"""Lines of metrics, alarms, and what the progress display is given."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_trainer import Memory, Wrapped, build
from torch import nn

from w2vtool import metrics, trainer
from w2vtool.batches import Batch
from w2vtool.guards import GuardConfig
from w2vtool.losses import Loss
from w2vtool.metrics import Alarms
from w2vtool.model.heads import CtcModel, PretrainModel
from w2vtool.optim import learning_rate
from w2vtool.schema import OptimConfig
from w2vtool.trainer import Training, train

pytestmark = pytest.mark.usefixtures("one_thread")
STILL = OptimConfig(lr=1e-12)


@pytest.fixture
def pretraining(toy_corpus: Path, tmp_path: Path) -> Any:
    return partial(build, "pretrain", toy_corpus, tmp_path, log_every=1)


@pytest.fixture
def ctc(toy_corpus: Path, tmp_path: Path) -> Any:
    return partial(build, "ctc", toy_corpus, tmp_path, log_every=1)


def reported(**values: float) -> Any:
    """An objective wrapped so that it reports these."""

    def change(loss: Loss, model: nn.Module, batch: Batch, step: int) -> Loss:
        given = {name: torch.tensor(value) for name, value in values.items()}
        parts = (
            {"contrastive": given.pop("contrastive") * loss.count} if "contrastive" in given else {}
        )
        return replace(loss, parts={**loss.parts, **parts}, means={**loss.means, **given})

    return partial(Wrapped, change=change)


def alarms(told: Memory, name: str) -> list[int]:
    """The steps of lines that have this alarm."""
    return [step for step, values in told.lines if f"alarm/{name}" in values]


def run(job: Training) -> Memory:
    told = Memory()
    train(job, told)
    return told


# -- alarms ---------------------------------------------------------------------------------------


def test_an_alarm_is_told_each_time_that_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    told, bells = Memory(), Alarms()
    for step, text in enumerate(["it burns", "it burns more", None, "it burns again"]):
        found = bells.ring(told, step, {"fire": text, "flood": None})
        assert found == ({"alarm/fire": 1.0} if text else {})
    assert [record.getMessage() for record in caplog.records] == [
        "update 0: it burns",
        "update 3: it burns again",
    ]
    assert told.facts == {"alarm_fire": 3}


def test_alarms_of_validation_leave_those_of_training_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told, bells = Memory(), Alarms()
    for step in range(3):
        bells.ring(told, step, {"fire": "it burns"})
        bells.ring(told, step, {"flood": None})
    assert len(caplog.records) == 1


def test_a_codebook_that_collapses_is_named(
    pretraining: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A drill: logits that are the same for all frames choose one codeword a group."""
    job = pretraining(optim=STILL)
    assert isinstance(job.model, PretrainModel)
    with torch.no_grad():
        job.model.quantizer.weights.weight.zero_()
        job.model.quantizer.weights.bias.zero_()
        job.model.quantizer.weights.bias[::8] = 100.0
    told = run(job)
    assert alarms(told, "collapse") == [1, 2, 3, 4, 5, 6]
    assert told.facts["alarm_collapse"] == 1
    warned = [text for text in caplog.messages if "collapses" in text]
    assert len(warned) == 1
    assert "code perplexity 2.0 (soft: 2.0) of 16: the codebook collapses" in warned[0]
    assert "diversity_weight" in warned[0]


@pytest.mark.parametrize(
    ("values", "rings"),
    [
        ({"code_perplexity": 2.9, "prob_perplexity": 9.0}, True),
        ({"code_perplexity": 9.0, "prob_perplexity": 2.9}, True),
        ({"code_perplexity": 3.1, "prob_perplexity": 3.1}, False),
        ({"code_perplexity": math.nan, "prob_perplexity": math.nan}, False),
    ],
)
def test_either_perplexity_shows_a_collapse(
    pretraining: Any, values: dict[str, float], rings: bool
) -> None:
    assert bool(alarms(run(pretraining(wrap=reported(**values))), "collapse")) == rings


def test_the_limit_of_a_collapse_can_be_set_and_the_first_tenth_is_spared(pretraining: Any) -> None:
    job = pretraining(updates=20, wrap=reported(code_perplexity=3.9, prob_perplexity=3.9))
    job.guard = GuardConfig(collapse=2.0)
    assert alarms(run(job), "collapse") == list(range(3, 21))


@pytest.mark.parametrize(("contrastive", "rings"), [(0.995, True), (1.2, True), (0.98, False)])
def test_a_loss_at_chance_is_named(
    pretraining: Any, contrastive: float, rings: bool, caplog: pytest.LogCaptureFixture
) -> None:
    chance = math.log(6)
    job = pretraining(updates=8, wrap=reported(contrastive=contrastive * chance))
    job.objective.chance = chance
    told = run(job)
    assert alarms(told, "chance") == (list(range(3, 9)) if rings else []), "after a quarter"
    warned = [text for text in caplog.messages if "at chance" in text]
    assert len(warned) == rings
    if rings:
        assert f"contrastive loss {contrastive * chance:.3f} is at chance (1.792)" in warned[0]
        assert "optim.lr" in warned[0]


def test_a_model_that_says_blank_only_is_named(ctc: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A drill: the bias of the blank is higher than any logit."""

    def empty(loss: Loss, model: nn.Module, batch: Batch, step: int) -> Loss:
        if model.training:
            return loss
        errors, letters = loss.rates["uer"]
        silent = len(batch.rows) if errors == letters else 0
        return replace(loss, rates={**loss.rates, "empty": (silent, len(batch.rows))})

    job = ctc(optim=STILL, valid_every=1, wrap=partial(Wrapped, change=empty))
    assert isinstance(job.model, CtcModel)
    with torch.no_grad():
        job.model.head.bias[0] = 100.0
    told = run(job)
    assert alarms(told, "blank_only") == [2, 3, 4, 5, 6], "after a quarter"
    warned = [text for text in caplog.messages if "blank only" in text]
    assert len(warned) == 1
    assert "100% of the greedy transcripts are empty" in warned[0]


def test_some_empty_transcripts_are_no_alarm(ctc: Any) -> None:
    def empty(loss: Loss, model: nn.Module, batch: Batch, step: int) -> Loss:
        return loss if model.training else replace(loss, rates={**loss.rates, "empty": (9, 10)})

    told = run(ctc(valid_every=1, wrap=partial(Wrapped, change=empty)))
    assert [v["valid/empty"] for _, v in told.lines if "valid/empty" in v] == [0.9] * 6
    assert not alarms(told, "blank_only")


def test_a_rate_of_0_and_updates_that_are_all_skipped_are_named(
    ctc: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def poison(loss: Loss, model: nn.Module, batch: Batch, step: int) -> Loss:
        return replace(loss, total=loss.total * math.nan) if step in (1, 2, 3, 6) else loss

    def rate(update: int, updates: int, config: OptimConfig) -> float:
        return 0.0 if update > 4 else learning_rate(update, updates, config)

    monkeypatch.setattr(trainer, "learning_rate", rate)
    job = ctc(updates=8, log_every=2, wrap=partial(Wrapped, change=poison))
    told = run(job)
    assert alarms(told, "all_skipped") == [4], "of updates 1 to 4 the first was learned from"
    assert alarms(told, "no_rate") == [6], "after the last update there is nothing to learn"
    assert any("all updates since the last line were skipped" in text for text in caplog.messages)
    assert any("the learning rate is 0" in text for text in caplog.messages)


def test_a_run_in_which_nothing_is_wrong_rings_nothing(
    pretraining: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job = pretraining(wrap=reported(contrastive=1.0, code_perplexity=9.0, prob_perplexity=9.0))
    job.objective.chance = math.log(6)
    told = run(job)
    assert not [name for _, values in told.lines for name in values if name.startswith("alarm/")]
    assert not caplog.messages


# -- speed ----------------------------------------------------------------------------------------


def test_the_share_of_the_time_that_batches_were_waited_for_is_told(
    ctc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on by 1 s while a batch is made, by 3 s while it is learned from."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(trainer, "time", clock)
    monkeypatch.setattr(metrics, "time", clock)

    def learn(loss: Loss, model: nn.Module, batch: Batch, step: int) -> Loss:
        clock.now += 3.0 if model.training else 50.0
        return loss

    job = ctc(wrap=partial(Wrapped, change=learn), log_every=2, workers=0)
    real = job.train.collate

    def collate(*words: Any) -> Batch:
        clock.now += 1.0
        return real(*words)

    job.train = replace(job.train, collate=collate)

    class Timed(Memory):
        def metrics(self, step: int, values: dict[str, float]) -> None:
            super().metrics(step, values)
            self.lines[-1][1].update({k: v for k, v in values.items() if k.startswith("speed/")})

    told = Timed()
    train(job, told)
    shares = [values["speed/data_wait"] for _, values in told.lines if "speed/data_wait" in values]
    assert shares == pytest.approx([0.25, 0.25, 0.25])
    speeds = [v["speed/audio_s_per_s"] for _, v in told.lines if "speed/audio_s_per_s" in v]
    assert sum(speeds) * 16 == pytest.approx(job.tally[0].item()), "validation is left out"
    assert told.shown["data_wait"] == "25%"
