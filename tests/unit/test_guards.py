"""Bad updates are skipped and undone, bad files set aside, and a resumed run does the same."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_trainer import Memory, Wrapped, build, newest, same, stop_at
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from w2vtool import checkpoint, manifest
from w2vtool.batches import Batch
from w2vtool.errors import DataError, Stopped
from w2vtool.guards import Diverged, GuardConfig, Guards, Later, Quarantine
from w2vtool.losses import Loss
from w2vtool.trainer import Training, train

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
NAN = math.nan


def guards(**config: Any) -> Guards:
    return Guards(GuardConfig(**config), CPU)


def judged(found: Guards, norms: list[float], parts: int = 5) -> list[float]:
    return [found.judge(torch.tensor(norm), parts).item() for norm in norms]


# -- judging --------------------------------------------------------------------------------------


def test_what_is_not_finite_is_skipped_from_the_first_update_on() -> None:
    assert judged(guards(), [NAN, 1.0, math.inf, -math.inf, 2.0]) == [1, 0, 1, 1, 0]


def test_a_spike_is_many_times_the_mean_of_what_was_accepted() -> None:
    found = guards(spike_factor=3, spike_warmup=4)
    assert judged(found, [1.0, 2.0, 3.0, 90.0]) == [0, 0, 0, 0], "not judged yet"
    assert found.line()["usual"] == pytest.approx(24.0)
    assert judged(found, [73.0, NAN, 71.0]) == [1, 1, 0]
    numbers = found.line()
    assert numbers["usual"] == pytest.approx((96 + 71) / 5), "what is skipped is not learned from"
    assert (numbers["accepted"], numbers["spikes"]) == (5, 1)


def test_the_usual_follows_what_changes_slowly() -> None:
    found = guards(spike_factor=2.5, spike_warmup=10)
    rising = [1.01**i for i in range(1000)]
    assert not any(judged(found, rising)), "a hundredth an update, to 20,000 times the first"
    assert judged(found, [2.6 * rising[-1]]) == [1]


@pytest.mark.parametrize("norms", [[0.0] * 9, [1e-9] * 9])
def test_spikes_can_be_left_alone_and_none_follows_zeros(norms: list[float]) -> None:
    assert not any(judged(guards(spike_factor=0, spike_warmup=1), [*norms, 1e30]))
    zeros = not any(norms)
    assert judged(guards(spike_warmup=1), [*norms, 1e3])[-1] == (not zeros)


def test_when_other_parameters_learn_the_usual_is_learned_anew() -> None:
    found = guards(spike_factor=2, spike_warmup=2)
    judged(found, [1.0, 1.0, 1.0])
    assert judged(found, [100.0, 100.0, 100.0, 201.0], parts=6) == [0, 0, 0, 1]


def test_patience_ends_one_update_after_it_should_and_starts_again_with_a_good_one() -> None:
    found = guards(patience=2)
    impatient = []
    for norm in [NAN, NAN, 1.0, NAN, 1.0, NAN, NAN, NAN]:
        judged(found, [norm])
        impatient.append(found.impatient)
    assert impatient == [False, False, True, False, False, False, False, True]


norms = st.lists(st.sampled_from([1.0, 1.5, 0.5, 30.0, NAN, math.inf]), min_size=1, max_size=30)


@given(norms, st.integers(0, 30))
def test_guards_that_come_from_a_checkpoint_judge_the_same(values: list[float], at: int) -> None:
    whole, first, second = (guards(spike_warmup=3, patience=2) for _ in range(3))
    expected = [(judged(whole, [value]), whole.impatient) for value in values]
    found = [(judged(first, [value]), first.impatient) for value in values[:at]]
    second.take(json.loads(json.dumps(first.state(at, scheduled=False))))
    found += [(judged(second, [value]), second.impatient) for value in values[at:]]
    assert found == expected
    assert second.line() == whole.line() if at < len(values) else True


def test_judging_never_asks_the_device() -> None:
    asked: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            name = str(func)
            if "_local_scalar_dense" in name or "nonzero" in name or "is_nonzero" in name:
                asked.append(name)
            return func(*args, **(kwargs or {}))

    found, norm = guards(spike_warmup=1), torch.tensor(3.0)
    with Watch():
        for parts in (1, 1, 2):
            found.judge(norm, parts)
        assert found.impatient in (True, False)
    assert not asked
    with Watch():
        norm.item()
    assert asked, "the watch must be able to see it"


def test_later_gives_what_was_sent_the_time_before() -> None:
    later, number = Later(7.0), torch.zeros(1)
    assert later.swap(number) == [7.0]
    number += 1  # what was sent is a copy
    assert later.swap(number) == [0.0]
    assert later.swap(number) == [1.0]


# -- where to go back to --------------------------------------------------------------------------


def test_of_the_last_two_scheduled_checkpoints_the_newer_is_tried_first() -> None:
    found = guards(rollbacks=9)
    for step in (10, 20, 25, 30):
        state = found.state(step, scheduled=step != 25)
    assert state["anchors"] == [20, 30]
    went = []
    for _ in range(3):
        went.append(found.anchor(99))
        found.went_back(state)
    assert went == [30, 20, 20], "the older one, as the newer did not help"
    found.state(40, scheduled=True)
    assert found.anchors == [30, 40]
    assert found.anchor(99) == 40


def test_a_checkpoint_between_skipped_updates_is_not_gone_back_to() -> None:
    found = guards()
    found.state(10, scheduled=True)
    judged(found, [NAN])
    assert found.state(20, scheduled=True)["anchors"] == [10]
    judged(found, [1.0])
    assert found.state(30, scheduled=True)["anchors"] == [10, 30]


def test_it_ends_when_there_is_nothing_to_go_back_to_or_it_was_done_too_often() -> None:
    found = guards(rollbacks=1)
    with pytest.raises(Diverged, match=r"update 7: 20 .* no checkpoint") as caught:
        found.anchor(7)
    assert caught.value.exit_code == 6
    assert "spike_factor" in caught.value.hint
    state = found.state(3, scheduled=True)
    assert found.anchor(7) == 3
    found.went_back(state)
    with pytest.raises(Diverged, match="went back to a checkpoint 1 times"):
        found.anchor(40)


# -- in a run -------------------------------------------------------------------------------------


Make = Callable[..., Training]


@pytest.fixture(params=["pretrain", "ctc"])
def make(request: pytest.FixtureRequest, toy_corpus: Path, tmp_path: Path) -> Make:
    return partial(guarded, request.param, toy_corpus, tmp_path)


@pytest.fixture
def make_ctc(toy_corpus: Path, tmp_path: Path) -> Make:
    return partial(guarded, "ctc", toy_corpus, tmp_path)


def guarded(
    kind: str, corpus: Path, folder: Path, name: str = "run", guard: Any = None, **more: Any
) -> Training:
    """Training in a run folder of its own."""
    job = build(kind, corpus, folder / name, "checkpoints", **more)
    if guard:
        job.guard = GuardConfig(**guard)
        job.__post_init__()
    return job


def spoil(factors: dict[int, float], seen: list[tuple[int, int]] | None = None) -> Any:
    """Multiply the loss of these updates; note which bins are heard in which update."""

    def change(loss: Loss, model: nn.Module, batch: Batch, step: int) -> Loss:
        if not model.training:
            return loss
        if seen is not None:
            seen.append((step, batch.key))
        return replace(loss, total=loss.total * factors.get(step, 1.0))

    return partial(Wrapped, change=change)


def weights(job: Training) -> dict[str, torch.Tensor]:
    moments = {
        f"{name}/{key}": value.clone()
        for name, parameter in job.model.named_parameters()
        for key, value in job.optimizer.state[parameter].items()
    }
    return {**{k: v.clone() for k, v in job.model.state_dict().items()}, **moments}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def watch(job: Training) -> tuple[Memory, dict[int, dict[str, torch.Tensor]]]:
    """A recorder, and the weights and moments after each update."""
    kept: dict[int, dict[str, torch.Tensor]] = {}
    return Memory(lambda _, done: kept.setdefault(done, weights(job)) and None), kept


def test_a_spike_changes_nothing_and_is_counted(make: Make, caplog: Any) -> None:
    job = make(
        guard={"spike_factor": 100, "spike_warmup": 2}, updates=6, wrap=spoil({3: 1e5, 4: 1e-5})
    )
    told, kept = watch(job)
    train(job, told)
    still = [step for step in range(2, 7) if equal(kept[step], kept[step - 1])]
    assert still == [4], "update 3 counts from 0; a small gradient is no spike"
    lines = {step: v for step, v in told.lines if "train/spikes" in v}
    assert [(v["train/spikes"], v["train/skipped"]) for v in lines.values()] == [(1, 1), (1, 1)]
    assert "update 4: 1 updates skipped" in caplog.text
    assert "spikes: 1 so far" in caplog.text


def test_after_some_skipped_updates_the_weights_go_back_and_the_data_goes_on(
    make: Make, caplog: Any
) -> None:
    heard: list[tuple[int, int]] = []
    plain: list[tuple[int, int]] = []
    factors = dict.fromkeys((6, 7, 8), NAN)
    options: Any = {
        "updates": 12,
        "save_every": 4,
        "valid_every": 99,
        "guard": {"patience": 2},
    }
    job = make("run", wrap=spoil(factors, heard), **options)
    told, kept = watch(job)
    train(job, told)
    train(make("plain", wrap=spoil({}, plain), **options), Memory())
    assert heard == plain, "every bin is heard once, in the update where it always is"
    assert not equal(kept[6], kept[4])
    assert equal(kept[7], kept[6])
    assert equal(kept[8], kept[7]), "two were skipped"
    assert equal(kept[9], kept[4]), "and one more, in which it is known"
    assert not equal(kept[10], kept[9])
    counts = [(step, v["train/rollbacks"]) for step, v in told.lines if "train/rollbacks" in v]
    assert counts == [(4, 0), (8, 0), (12, 1)]
    assert "update 9: 2 updates in a row were skipped; the weights are those of update 4" in (
        caplog.text
    )


@pytest.mark.parametrize(
    ("kind", "stops"), [("pretrain", (5, 10)), ("ctc", (3, 4, 5, 6, 8, 10, 11))]
)
def test_a_run_that_goes_back_is_the_same_wherever_it_was_stopped(
    kind: str, stops: Iterable[int], toy_corpus: Path, tmp_path: Path
) -> None:
    make = partial(guarded, kind, toy_corpus, tmp_path)
    factors = dict.fromkeys((3, 4, 5, 8, 9, 10), NAN) | {7: 1e6}
    options: Any = {
        "updates": 13,
        "save_every": 3,
        "valid_every": 4,
        "guard": {"patience": 2, "spike_factor": 50, "spike_warmup": 2},
        "wrap": spoil(factors),
    }
    straight, told = make("straight", **options), Memory()
    result = train(straight, told)
    assert straight.guards.rollbacks == 2
    for k in stops:
        first, before = make(f"stopped-{k}", **options), stop_at(k)
        with pytest.raises(Stopped):
            train(first, before)
        second, after = make(f"stopped-{k}", **options), Memory()
        second.resume()
        assert train(second, after) == result
        assert str(before.lines + after.lines) == str(told.lines), k  # NaN is not equal to itself
        same(newest(straight), newest(second))


def test_a_run_killed_between_checkpoints_goes_back_again(make_ctc: Make) -> None:
    options: Any = {
        "updates": 9,
        "save_every": 3,
        "guard": {"patience": 2},
        "wrap": spoil(dict.fromkeys((4, 5, 6), NAN)),
    }
    straight = make_ctc("straight", **options)
    train(straight, Memory())
    killed = make_ctc("killed", **options)

    class Kill(Exception):
        pass

    def after(memory: Memory, done: int) -> None:
        if done == 8:
            raise Kill

    with pytest.raises(Kill):
        train(killed, Memory(after))
    assert newest(killed).name == "step-00000006"
    again = make_ctc("killed", **options)
    again.resume()
    train(again, Memory())
    assert again.guards.rollbacks == 1
    same(newest(straight), newest(again))


def test_when_going_back_does_not_help_the_run_ends_with_what_to_do(make_ctc: Make) -> None:
    options: Any = {"updates": 20, "save_every": 2, "guard": {"patience": 2, "rollbacks": 2}}
    job = make_ctc(wrap=spoil(dict.fromkeys(range(5, 20), NAN)), **options)
    with pytest.raises(Diverged, match="went back to a checkpoint 2 times") as caught:
        train(job, Memory())
    assert caught.value.exit_code == 6
    assert job.done == 5 + 3 * 3
    calmer = make_ctc(**options)
    calmer.resume()
    train(calmer, Memory())
    assert calmer.done == 20, "a run that was put right goes on"


def test_before_the_first_checkpoint_there_is_nothing_to_go_back_to(make_ctc: Make) -> None:
    job = make_ctc(wrap=spoil(dict.fromkeys(range(9), NAN)), updates=9, guard={"patience": 3})
    with pytest.raises(Diverged, match="no checkpoint to go back to"):
        train(job, Memory())


def test_a_damaged_checkpoint_is_passed_over_on_the_way_back(make_ctc: Make, caplog: Any) -> None:
    job = make_ctc(
        updates=10,
        save_every=2,
        valid_every=99,
        guard={"patience": 2},
        wrap=spoil(dict.fromkeys((4, 5, 6), NAN)),
    )

    def damage(memory: Memory, done: int) -> None:
        if done == 6:
            job.writer.wait()
            (job.folder / "step-00000004" / "model.safetensors").write_bytes(b"?")

    train(job, Memory(damage))
    assert "step-00000004: damaged checkpoint" in caplog.text
    assert "the weights are those of update 2 again" in caplog.text


def test_files_set_aside_and_usual_norms_are_in_the_state_of_a_checkpoint(make_ctc: Make) -> None:
    job = make_ctc(updates=3)
    train(job, Memory())
    state = checkpoint.load(newest(job)).state
    assert state["guards"]["accepted"] == 3
    assert state["guards"]["usual"] > 0
    assert state["quarantine"] == {"ids": {}, "taken": state["quarantine"]["taken"], "replaced": 0}
    assert state["quarantine"]["taken"] >= 3


# -- files ----------------------------------------------------------------------------------------


forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def broken(toy_corpus: Path, tmp_path: Path) -> Path:
    """The corpus, without one file of the training split and with one that was cut."""
    shutil.copytree(toy_corpus, tmp_path / "corpus")
    (tmp_path / "corpus/audio/train-3.wav").unlink()
    cut = tmp_path / "corpus/audio/train-8.wav"
    cut.write_bytes(cut.read_bytes()[:9_000])
    return tmp_path / "corpus"


def entries(job: Training) -> list[dict[str, str]]:
    lines = (job.folder.parent / "quarantine.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@forks
@pytest.mark.parametrize("kind", ["pretrain", "ctc"])
def test_unreadable_files_are_replaced_counted_and_listed_once(
    kind: str, broken: Path, tmp_path: Path, caplog: Any
) -> None:
    make = partial(guarded, kind, broken, tmp_path, updates=10, valid_every=10)
    job, told = make(), Memory()
    train(job, told)
    assert len(job.train.plan.bin(0).rows) < 12, "ten updates of two bins are several epochs"
    found = entries(job)
    assert {line["id"]: line["reason"].split(":")[0] for line in found} == {
        "train-3": "no such file",
        "train-8": "truncated",
    }
    assert len(found) == 2
    assert found[0]["path"].endswith("train-3.wav")
    warned = [text for text in caplog.messages if "stands in" in text]
    assert len(warned) == 2
    counts = [v["data/quarantined"] for _, v in told.lines if "data/quarantined" in v]
    assert counts == sorted(counts)
    assert counts[-1] == 2
    loaded = make("loaded", workers=2)
    train(loaded, Memory())
    same(newest(job), newest(loaded))
    with pytest.raises(Stopped):
        train(make("stopped"), stop_at(5))
    second = make("stopped")
    second.resume()
    train(second, Memory())
    same(newest(job), newest(second))
    assert sorted(map(str, entries(second))) == sorted(map(str, found)), "once per row"


def test_a_run_may_be_told_to_stop_at_the_first_bad_file(broken: Path, tmp_path: Path) -> None:
    job = guarded("ctc", broken, tmp_path)
    job.bad_files = "stop"
    with pytest.raises(DataError, match=r"no such file|truncated"):
        train(job, Memory())


def test_too_many_bad_files_stop_the_run_and_are_listed(toy_corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_corpus, tmp_path / "corpus")
    for number in range(10):
        (tmp_path / f"corpus/audio/train-{number}.wav").unlink()
    job = guarded("ctc", tmp_path / "corpus", tmp_path, updates=30, log_every=10)
    with pytest.raises(DataError, match="10 of 12 utterances cannot be read") as caught:
        train(job, Memory())
    assert "train-0: no such file" in caught.value.what
    assert "bad_share" in caught.value.hint
    assert job.done == 10, "when a line of metrics is due"
    tolerant = guarded("ctc", tmp_path / "corpus", tmp_path, "other", {"bad_share": 0.9}, updates=9)
    train(tolerant, Memory())


@pytest.mark.parametrize(
    ("bad", "taken", "ends"), [(9, 9, False), (10, 999, True), (11, 1200, False)]
)
def test_the_share_counts_from_ten_files_on(
    toy_corpus: Path, tmp_path: Path, bad: int, taken: int, ends: bool
) -> None:
    found = Quarantine(manifest.read(toy_corpus / "train.jsonl"), tmp_path, CPU)
    found.take({"ids": {str(i): "gone" for i in range(bad)}, "taken": taken, "replaced": bad})
    if not ends:
        found.check(0.01, 5_000)
    else:
        with pytest.raises(DataError):
            found.check(0.01, 5_000)


def test_many_epochs_do_not_make_bad_files_fewer(toy_corpus: Path, tmp_path: Path) -> None:
    found = Quarantine(manifest.read(toy_corpus / "train.jsonl"), tmp_path, CPU)
    found.take({"ids": {str(i): "gone" for i in range(12)}, "taken": 1e6, "replaced": 12})
    with pytest.raises(DataError, match="12 of 1000 "):
        found.check(0.01, 1_000)


def test_a_list_that_cannot_be_written_costs_a_warning(
    toy_corpus: Path, tmp_path: Path, caplog: Any
) -> None:
    (tmp_path / "quarantine.jsonl").mkdir()
    found = Quarantine(manifest.read(toy_corpus / "train.jsonl"), tmp_path, CPU)
    found.met([(3, "no such file")])
    found.counts += torch.tensor([5.0, 1.0])
    found.meet()
    assert found.ids == {"train-3": "no such file"}
    assert "quarantine.jsonl cannot be written (Is a directory)" in caplog.text


def test_a_row_that_was_listed_before_a_crash_is_not_listed_again(
    toy_corpus: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        found = Quarantine(manifest.read(toy_corpus / "train.jsonl"), tmp_path, CPU)
        found.met([(3, "no such file"), (5, "empty")])
        found.counts += torch.tensor([5.0, 2.0])
        found.meet()
        assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2
        with (tmp_path / "quarantine.jsonl").open("rb+") as file:
            file.truncate(file.seek(0, 2))


@pytest.mark.parametrize("how", ["gone", "cut", "shorter"])
def test_an_unreadable_file_of_the_validation_split_is_named_before_anything_is_learned(
    toy_corpus: Path, tmp_path: Path, how: str
) -> None:
    shutil.copytree(toy_corpus, tmp_path / "corpus")
    path = tmp_path / "corpus/audio/valid-2.wav"
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:9_000])
    else:
        import soundfile

        soundfile.write(path, torch.zeros(4_000).numpy(), 16_000)
    job = guarded("ctc", tmp_path / "corpus", tmp_path)
    with pytest.raises(DataError, match="1 utterances cannot be read\n  valid-2: ") as caught:
        train(job, Memory())
    assert job.done == 0
    assert caught.value.exit_code == 3
