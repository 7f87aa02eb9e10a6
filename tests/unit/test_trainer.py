"""The loop: resuming is exact, sums are sums, bad updates are skipped, nothing is written twice."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from torch import nn

from w2vtool import checkpoint, manifest, trainer, training
from w2vtool.architecture import Dropouts
from w2vtool.batches import Batch, ctc_batch, pretrain_batch
from w2vtool.errors import CheckpointError, DataError, Stopped
from w2vtool.losses import Loss
from w2vtool.objectives import Contrastive, Ctc
from w2vtool.optim import learning_rate
from w2vtool.run import Stop
from w2vtool.schema import LoopConfig, MaskConfig, ObjectiveConfig, OptimConfig
from w2vtool.trainer import Training, train
from w2vtool.validation import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
DROP = Dropouts(hidden=0.1, attention=0.1, input=0.1, features=0.1, layer_drop=0.3)
LOOP = LoopConfig(
    updates=6, bin_seconds=3, bins=2, log_every=4, valid_every=3, save_every=100, device="cpu"
)
PEAK = OptimConfig(lr=3e-3, clip=1.0)
MASK = MaskConfig(channel_length=4)


class Memory:
    """A recorder that remembers, and may do something after each update."""

    def __init__(self, after: Callable[[Memory, int], None] = lambda memory, done: None) -> None:
        self.stop, self.after = Stop(), after
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.shown: dict[str, object] = {}
        self.facts: dict[str, object] = {}

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.lines.append((step, {k: v for k, v in values.items() if not k.startswith("speed/")}))

    def note(self, **facts: object) -> None:
        self.facts |= facts

    @contextmanager
    def progress(self, total: float, what: str, unit: str = "") -> Iterator[Memory]:
        yield self

    def update(self, done: int, **fields: object) -> None:
        self.shown = fields
        self.after(self, done)

    def steps(self, group: str) -> list[int]:
        return [step for step, values in self.lines if any(k.startswith(group) for k in values)]


def stop_at(step: int) -> Memory:
    def after(memory: Memory, done: int) -> None:
        if done == step:
            memory.stop.signal = signal.SIGTERM

    return Memory(after)


Make = Callable[..., Training]


@pytest.fixture(params=["pretrain", "ctc"])
def make(request: pytest.FixtureRequest, toy_corpus: Path, tmp_path: Path) -> Make:
    return partial(build, request.param, toy_corpus, tmp_path)


@pytest.fixture
def make_ctc(toy_corpus: Path, tmp_path: Path) -> Make:
    return partial(build, "ctc", toy_corpus, tmp_path)


def build(
    kind: str,
    corpus: Path,
    folder: Path,
    name: str = "run",
    *,
    optim: OptimConfig = PEAK,
    wrap: Callable[[Any], Any] = lambda objective: objective,
    dropouts: Dropouts = DROP,
    freeze_updates: int = 0,
    feature_gradient: float = 1.0,
    **loop: Any,
) -> Training:
    settings = LOOP.model_copy(update=loop)
    opened = {part: manifest.read(corpus / f"{part}.jsonl") for part in ("train", "valid")}
    if kind == "ctc":
        spec = checkpoint.Spec("ctc", toys.TINY, toys.TOKENS)
        batch = partial(ctc_batch, architecture=toys.TINY, tokens=toys.TOKENS)
        collates = [partial(batch, mask=MASK), partial(batch, mask=None)]
        objective: Any = Ctc(
            toys.TOKENS, opened["valid"], "upper", freeze_updates, feature_gradient, 0.3
        )
    else:
        spec = checkpoint.Spec("pretrain", toys.TINY)
        batch = partial(pretrain_batch, architecture=toys.TINY, mask=MASK, max_seconds=2.0)
        collates = [batch, batch]
        objective = Contrastive(ObjectiveConfig(negatives=5), 0.3)
    splits = [
        training.split(opened[part], settings, collate, crop=kind != "ctc")
        for part, collate in zip(opened, collates, strict=True)
    ]
    return Training(
        model=training.build(training.Start(spec, {}, []), dropouts, seed=3),
        spec=spec,
        objective=wrap(objective),
        train=splits[0],
        valid=splits[1],
        loop=settings,
        optim=optim,
        folder=folder / name,
        device=CPU,
        best_metric="wer" if kind == "ctc" else "loss",
    )


class Wrapped:
    """An objective with something before or after it."""

    def __init__(self, objective: Any, change: Callable[[Loss, nn.Module, Batch, int], Loss]):
        self.objective, self.change = objective, change
        if hasattr(objective, "prepare"):
            self.prepare = objective.prepare

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Loss:
        return self.change(self.objective(model, batch, step), model, batch, step)


def same(one: Path, other: Path) -> None:
    """Two checkpoints must hold the same bytes."""
    assert one.name == other.name
    for name in ("model.safetensors", "optimizer.safetensors", "model.json", "state.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def newest(job: Training) -> Path:
    return checkpoint.find(job.folder, best=False)


# -- resuming -------------------------------------------------------------------------------------


def test_a_second_stop_at_the_same_update_changes_nothing(make_ctc: Make) -> None:
    straight = make_ctc("straight")
    train(straight, Memory())
    with pytest.raises(Stopped):
        train(make_ctc(), stop_at(2))
    for _ in range(2):
        again = make_ctc()
        again.resume()
        asked = Memory()
        asked.stop.signal = signal.SIGINT
        with pytest.raises(Stopped) as stopped:
            train(again, asked)
        assert stopped.value.exit_code == 130
        assert again.done == 2
    last = make_ctc()
    last.resume()
    train(last, Memory())
    same(newest(straight), newest(last))


def test_a_run_that_crashed_goes_on_from_the_last_checkpoint(make_ctc: Make) -> None:
    straight = make_ctc("straight", save_every=2)
    train(straight, Memory())

    def crash(loss: Loss, model: nn.Module, batch: Batch, step: int) -> Loss:
        if step == 4:
            raise ZeroDivisionError
        return loss

    with pytest.raises(ZeroDivisionError):
        train(make_ctc(save_every=2, wrap=partial(Wrapped, change=crash)), Memory())
    second = make_ctc(save_every=2)
    second.resume()
    assert second.done == 4
    train(second, Memory())
    same(newest(straight), newest(second))


def test_a_signal_in_the_middle_of_an_update_undoes_it(make_ctc: Make) -> None:
    straight = make_ctc("straight", bins=3)
    told = Memory()
    train(straight, told)
    before, seen = Memory(), []

    def ask(loss: Loss, model: nn.Module, batch: Batch, step: int) -> Loss:
        seen.append(step)
        if step == 2 and seen.count(2) == 2:
            before.stop.signal = signal.SIGTERM
        return loss

    first = make_ctc(bins=3, wrap=partial(Wrapped, change=ask))
    with pytest.raises(Stopped):
        train(first, before)
    assert seen == [0, 0, 0, 1, 1, 1, 2, 2], "the third micro-batch must not be waited for"
    assert newest(first).name == "step-00000002"
    second, after = make_ctc(bins=3), Memory()
    second.resume()
    train(second, after)
    assert before.lines + after.lines == told.lines
    same(newest(straight), newest(second))


@pytest.mark.parametrize("at", [3, 6])
def test_a_signal_during_validation_leaves_it_for_later(make_ctc: Make, at: int) -> None:
    straight, told = make_ctc("straight", bin_seconds=1.5), Memory()
    result = train(straight, told)
    before = Memory()

    def ask(loss: Loss, model: nn.Module, batch: Batch, step: int) -> Loss:
        if not model.training and step == at:
            before.stop.signal = signal.SIGTERM
        return loss

    first = make_ctc(bin_seconds=1.5, wrap=partial(Wrapped, change=ask))
    with pytest.raises(Stopped):
        train(first, before)
    assert newest(first).name == f"step-{at:08d}"
    assert at not in before.steps("valid/")
    second, after = make_ctc(bin_seconds=1.5), Memory()
    second.resume()
    assert second.due
    assert train(second, after) == result
    assert before.lines + after.lines == told.lines
    same(newest(straight), newest(second))


def test_validation_audio_that_has_gone_costs_no_update(
    make_ctc: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: Any) -> bool:
        raise DataError("no such file", where="valid.jsonl (v-1)")

    first = make_ctc(save_every=1000, valid_every=3)
    with monkeypatch.context() as patch, pytest.raises(DataError, match="no such file"):
        patch.setattr(trainer, "validate", gone)
        train(first, Memory())
    assert newest(first).name == "step-00000003"
    second = make_ctc(save_every=1000, valid_every=3)
    second.resume()
    assert second.due and second.done == 3, "it is validated when it goes on"


def test_a_signal_before_anything_was_learned_saves_nothing(make_ctc: Make) -> None:
    job, asked = make_ctc(), Memory()
    asked.stop.signal = signal.SIGTERM
    with pytest.raises(Stopped):
        train(job, asked)
    assert not job.folder.exists()
    job.resume()
    assert job.done == 0


def test_a_finished_run_gives_its_result_again(make: Make) -> None:
    result = train(make(), Memory())
    again, told = make(), Memory()
    again.resume()
    assert train(again, told) == result
    assert not told.lines


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "MANIFEST.json"])
def test_a_damaged_checkpoint_costs_one_interval(make_ctc: Make, name: str, caplog) -> None:
    straight = make_ctc("straight", save_every=2)
    train(straight, Memory())
    stopped = make_ctc(save_every=2)
    with pytest.raises(Stopped):
        train(stopped, stop_at(5))
    (newest(stopped) / name).write_bytes(b"?")
    again = make_ctc(save_every=2)
    again.resume()
    assert again.done == 4
    assert "step-00000005" in caplog.text
    assert name in caplog.text
    train(again, Memory())
    same(newest(straight), newest(again))


def test_when_every_checkpoint_is_damaged_nothing_starts(make_ctc: Make) -> None:
    job = make_ctc(save_every=3)
    train(job, Memory())
    for path in job.folder.glob("step-*"):
        (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"damaged checkpoint: state\.json"):
        make_ctc().resume()


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("tokens", replace(toys.TOKENS, symbols=toys.TOKENS.symbols[:-1])),
        ("architecture", toys.TINY.model_copy(update={"ffn_width": 64})),
        ("case", "lower"),
    ],
)
def test_resuming_as_something_else_is_refused(make_ctc: Make, part: str, value: Any) -> None:
    train(make_ctc(updates=1), Memory())
    other = make_ctc(updates=1)
    other.spec = replace(other.spec, **{part: value})
    with pytest.raises(CheckpointError, match=f"another {part}"):
        other.resume()


def test_metrics_after_the_resumed_step_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 2, "train/loss": 1},
        {"step": 4, "train/loss": 1},
        {"step": 4, "valid/loss": 1},
    ]
    lines = [json.dumps(row) + "\n" for row in [*rows, {"step": 6, "train/loss": 1}]]
    path.write_text("".join(lines) + '{"step": 8, "tra')
    training.forget(path, 4, due=False)
    assert path.read_text() == "".join(lines[:3])
    training.forget(path, 4, due=True)
    assert path.read_text() == "".join(lines[:2])
    training.forget(path, 0, due=False)
    assert path.read_text() == ""
    training.forget(tmp_path / "none.jsonl", 0, due=False)


# -- the update -----------------------------------------------------------------------------------


def test_micro_batches_make_the_gradient_of_their_sum(make: Make) -> None:
    """Four bins an update: gradients add up, and are divided once by the sum of all counts."""
    optim = OptimConfig(clip=0, betas=(0.5, 0.9))
    job = make(updates=1, bins=4, optim=optim, dropouts=Dropouts())
    job.objective = replace(job.objective, layer_drop=0.0)
    model = make("reference", dropouts=Dropouts()).model.train()
    train(job, Memory())
    split, total, count = job.train, torch.zeros(()), 0
    for number in range(4):
        read = partial(_audio, split.manifest)
        batch = split.collate(split.manifest, read, split.plan.bin(number))
        loss = job.objective(model, batch, 0)
        total, count = total + loss.total, count + loss.count
    (total / count).backward()
    for (name, mine), other in zip(job.model.named_parameters(), model.parameters(), strict=True):
        gradient = job.optimizer.state[mine]["exp_avg"] / 0.5  # after one update
        expected = torch.zeros_like(other) if other.grad is None else other.grad
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5, msg=name)


def _audio(opened: manifest.Manifest, row: int) -> Any:
    return opened.audio(opened.rows[row])


def poison(bad: set[int], value: float) -> Callable[..., Loss]:
    def change(loss: Loss, model: nn.Module, batch: Batch, step: int) -> Loss:
        return replace(loss, total=loss.total * value) if model.training and step in bad else loss

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(
    make: Make, value: float, caplog
) -> None:
    weights: dict[int, dict[str, torch.Tensor]] = {}

    def remember(memory: Memory, done: int) -> None:
        moments = {
            f"{name}/{key}": tensor.clone()
            for name, parameter in job.model.named_parameters()
            for key, tensor in job.optimizer.state[parameter].items()
        }
        weights[done] = {k: v.clone() for k, v in job.model.state_dict().items()} | moments

    bad = {2, 3, 5}  # numbers of updates from 0, so the state of steps 3, 4 and 6 is that before
    told = Memory(remember)
    job = make(updates=7, log_every=3, wrap=partial(Wrapped, change=poison(bad, value)))
    train(job, told)
    for step in range(2, 8):
        equal = [torch.equal(weights[step][name], weights[step - 1][name]) for name in weights[1]]
        assert all(equal) == (step - 1 in bad), step
        assert all(torch.isfinite(tensor).all() for tensor in weights[step].values())
    counts = {step: v["train/skipped"] for step, v in told.lines if "train/skipped" in v}
    assert counts == {3: 1, 6: 3, 7: 3}
    assert checkpoint.load(newest(job)).state["skipped"] == 3
    warned = [record.getMessage() for record in caplog.records]
    assert [text.partition(": their")[0] for text in warned] == [
        "update 3: 1 updates skipped since the last line",
        "update 6: 2 updates skipped since the last line",
    ]


def test_skipped_updates_and_broken_sums_survive_a_resume(make_ctc: Make) -> None:
    wrap = partial(Wrapped, change=poison({0, 4}, float("nan")))
    straight, told = make_ctc("straight", wrap=wrap), Memory()
    train(straight, told)
    before = stop_at(1)
    with pytest.raises(Stopped):
        train(make_ctc(wrap=wrap), before)
    second, after = make_ctc(wrap=wrap), Memory()
    second.resume()
    train(second, after)
    assert str(before.lines + after.lines) == str(told.lines)  # NaN is not equal to itself
    assert checkpoint.load(newest(second)).state["skipped"] == 2
    same(newest(straight), newest(second))


def test_a_frozen_body_waits_for_its_turn(make_ctc: Make) -> None:
    start = {k: v.clone() for k, v in make_ctc().model.state_dict().items()}
    moved: dict[int, set[str]] = {}

    def remember(memory: Memory, done: int) -> None:
        now = job.model.state_dict()
        moved[done] = {
            name.split(".")[0] for name in start if not torch.equal(now[name], start[name])
        }

    job = make_ctc(freeze_updates=2, optim=OptimConfig(warmup=0))
    train(job, Memory(remember))
    assert moved[1] == moved[2] == {"head"}
    assert moved[3] == {"head", "wav2vec2"}


def test_without_a_gradient_the_feature_encoder_stays(make_ctc: Make) -> None:
    job = make_ctc(feature_gradient=0.0, optim=OptimConfig(weight_decay=0.5))
    start = {k: v.clone() for k, v in job.model.state_dict().items()}
    train(job, Memory())
    now = job.model.state_dict()
    still = {name for name in start if torch.equal(now[name], start[name])}
    assert {name for name in start if ".feature_encoder." in name} <= still
    assert "wav2vec2.context.blocks.0.up.weight" not in still


@pytest.mark.parametrize("schedule", ["polynomial", "tri-stage", "constant"])
def test_every_update_has_the_rate_of_its_schedule(make_ctc: Make, schedule: Any) -> None:
    optim = OptimConfig(schedule=schedule, warmup=0.5, hold=0.2)
    told = Memory()
    train(make_ctc(log_every=1, optim=optim), told)
    rates = [values["train/lr"] for _, values in told.lines if "train/lr" in values]
    assert rates == [learning_rate(update, 6, optim) for update in range(6)]


def test_metrics_are_averages_over_all_that_was_seen_since_the_last_line(make_ctc: Make) -> None:
    seen: list[tuple[float, int]] = []

    def watch(loss: Loss, model: nn.Module, batch: Batch, step: int) -> Loss:
        if model.training:
            seen.append((loss.total.item(), int(loss.count)))
        return loss

    told = Memory()
    train(make_ctc(wrap=partial(Wrapped, change=watch), log_every=3), told)
    lines = [values for step, values in told.lines if "train/loss" in values]
    for values, window in zip(lines, (seen[:6], seen[6:]), strict=True):
        average = sum(total for total, _ in window) / sum(count for _, count in window)
        assert values["train/loss"] == pytest.approx(average, rel=1e-9)


def test_progress_shows_what_people_look_for(make: Make) -> None:
    told = Memory()
    job = make()
    train(job, told)
    expected = {"loss", "gradient_norm", "speed", "data_wait", "valid_loss"}
    if job.spec.kind == "ctc":
        expected |= {"valid_uer", "valid_wer"}
    else:
        expected |= {"contrastive", "diversity", "penalty", "accuracy", "code_perplexity"}
        expected |= {"valid_accuracy", "valid_code_perplexity"}
    assert set(told.shown) == expected


# -- checkpoints ----------------------------------------------------------------------------------


def saves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    steps: list[int] = []
    real = checkpoint.write_step

    def write_step(folder: Path, step: int, *rest: Any) -> Path:
        steps.append(step)
        return real(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "write_step", write_step)
    return steps


def scores(values: dict[int, float]) -> Callable[..., Loss]:
    """Validation losses to order, by step."""

    def change(loss: Loss, model: nn.Module, batch: Batch, step: int) -> Loss:
        if model.training:
            return loss
        value = torch.tensor(values[step])
        return Loss(value, 1, rates={"wer": (value, 1)})  # type: ignore[dict-item]

    return change


def test_a_step_is_written_once_even_if_it_is_the_best_the_last_and_due(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = saves(monkeypatch)
    wrap = partial(Wrapped, change=scores({2: 5.0, 4: 4.0, 6: 3.0}))
    train(make(valid_every=2, save_every=2, wrap=wrap), Memory())
    assert steps == [2, 4, 6]


def test_the_best_is_kept_however_old(make: Make) -> None:
    values = {1: 5.0, 2: 3.0, 3: 9.0, 4: 4.0, 5: float("nan"), 6: 7.0}
    job = make(valid_every=1, save_every=1, wrap=partial(Wrapped, change=scores(values)))
    train(job, Memory())
    assert sorted(path.name[-1] for path in job.folder.glob("step-*")) == ["2", "5", "6"]
    assert checkpoint.find(job.folder).name == "step-00000002"
    assert job.best_steps == [(3.0, 2)]


def test_the_best_few_and_milestones_are_kept_across_a_resume(make_ctc: Make) -> None:
    wrap = partial(Wrapped, change=scores({1: 5.0, 2: 3.0, 3: 9.0, 4: 4.0, 5: 8.0, 6: 7.0}))
    settings = {"valid_every": 1, "keep_best": 2, "milestone_every": 3, "wrap": wrap}
    with pytest.raises(Stopped):
        train(make_ctc(**settings), stop_at(3))
    job = make_ctc(**settings)
    job.resume()
    train(job, Memory())
    assert job.best_steps == [(3.0, 2), (4.0, 4)]
    assert sorted(path.name[-1] for path in job.folder.glob("step-*")) == ["2", "3", "4", "6"]


def test_a_state_that_knows_one_best_step_is_understood(make_ctc: Make) -> None:
    job = make_ctc(wrap=partial(Wrapped, change=scores({3: 2.0, 6: 4.0})))
    with pytest.raises(Stopped):
        train(job, stop_at(4))
    loaded = checkpoint.load(newest(job))
    older = {key: value for key, value in loaded.state.items() if key != "best_steps"}
    job._take({**older, "best": 2.0, "best_step": 3})
    assert job.best_steps == [(2.0, 3)]
    job._take({**older, "best": None, "best_step": None})
    assert job.best_step is None


def test_a_disk_that_is_full_at_the_end_is_an_error_and_before_it_is_not(
    make_ctc: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = checkpoint.write_step, {2, 4}

    def write_step(folder: Path, step: int, *rest: Any) -> Path:
        if step in full:
            raise OSError(28, "No space left on device")
        return real(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "write_step", write_step)
    job = make_ctc(save_every=2, valid_every=9)
    train(job, Memory())
    assert [path.name[-1] for path in job.folder.glob("step-*")] == ["6"]
    assert len(job.writer.alarms) == 2
    full.add(6)
    with pytest.raises(CheckpointError, match="update 6 could not be saved: the disk is full"):
        train(make_ctc("again", save_every=2, valid_every=9), Memory())


def test_the_best_is_remembered_across_a_resume(make: Make) -> None:
    wrap = partial(Wrapped, change=scores({1: 5.0, 2: 3.0, 3: 9.0, 4: 4.0, 5: 8.0, 6: 7.0}))
    with pytest.raises(Stopped):
        train(make(valid_every=1, wrap=wrap), stop_at(4))
    job = make(valid_every=1, wrap=wrap)
    job.resume()
    train(job, Memory())
    assert checkpoint.find(job.folder).name == "step-00000002"


def test_of_two_that_are_as_good_the_later_is_the_best(make: Make) -> None:
    job = make(wrap=partial(Wrapped, change=scores({3: 1.0, 6: 1.0})))
    train(job, Memory())
    assert job.best_step == 6


def test_without_validation_the_newest_counts(make_ctc: Make) -> None:
    job = make_ctc(save_every=2)
    job.valid = None
    assert train(job, Memory()) == {}
    assert checkpoint.find(job.folder).name == "step-00000006"


def test_sigusr1_saves_and_goes_on(make_ctc: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = saves(monkeypatch)

    def after(memory: Memory, done: int) -> None:
        memory.stop.save = memory.stop.save or done == 3

    job, told = make_ctc(valid_every=9), Memory(after)
    train(job, told)
    assert steps == [4, 6], "asked after update 3, seen at the end of the next, and at the end"
    assert not told.stop.save
    assert job.done == 6


# -- loading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("megabytes", "again"), [(1, 0), (0, 4)])
def test_validation_audio_is_read_once_if_there_is_room(
    make_ctc: Make, monkeypatch: pytest.MonkeyPatch, megabytes: int, again: int
) -> None:
    job = make_ctc(cache_megabytes=megabytes)
    assert job.valid is not None
    reads: list[str] = []
    real = manifest.Manifest.audio

    def audio(self: manifest.Manifest, row: Any) -> Any:
        reads.append(row.id)
        return real(self, row)

    monkeypatch.setattr(manifest.Manifest, "audio", audio)
    first = evaluate(job, Stop())
    assert len(reads) == 4
    assert evaluate(job, Stop()) == first
    assert len(reads) == 4 + again


forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_audio_is_a_data_error_wherever_it_is_read(make_ctc: Make, workers: int) -> None:
    job = make_ctc(workers=workers)
    rows = [replace(row, audio="gone.wav") for row in job.train.manifest.rows]
    job.train = replace(job.train, manifest=replace(job.train.manifest, rows=rows))
    with pytest.raises(DataError) as caught:
        train(job, Memory())
    assert caught.value.what == "no such file"
    assert "gone.wav" in caught.value.where
    assert "Traceback" not in str(caught.value)


@forks
def test_a_loader_process_that_dies_is_a_data_error_with_advice(make_ctc: Make) -> None:
    job = make_ctc(workers=1)

    def die(*_: Any) -> Batch:
        os._exit(9)

    job.train = replace(job.train, collate=die)
    with pytest.raises(DataError, match="a loader process died") as caught:
        train(job, Memory())
    assert "loop.workers" in caught.value.hint


@forks
def test_loader_processes_change_nothing(make: Make) -> None:
    alone, helped = make("alone"), make("helped", workers=2)
    train(alone, Memory())
    train(helped, Memory())
    same(newest(alone), newest(helped))
