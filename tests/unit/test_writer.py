"""Whatever comes between, there is a complete checkpoint; a full disk stops no training."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import disks
import pytest
import torch
import toys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2vtool import checkpoint, optim, sealed
from w2vtool.checkpoint import Spec
from w2vtool.errors import CheckpointError, Stopped
from w2vtool.schema import OptimConfig
from w2vtool.writer import Writer

SPEC = Spec("pretrain", toys.TINY)
FULL = (errno.ENOSPC, errno.EDQUOT)
BROKEN = (errno.EIO, errno.EROFS, errno.EACCES, errno.ETIMEDOUT)


def model_of(value: int) -> torch.nn.Module:
    """A model that can be told from others."""
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def value_of(path: Path) -> int:
    """The value that a whole checkpoint was made with; the files of another one would not agree."""
    loaded = checkpoint.load(path, best=False)
    values = {int(v) for weight in loaded.weights.values() for v in weight.flatten()}
    assert values == {loaded.state["value"]}
    return loaded.state["value"]


def put(writer: Writer, step: int, value: int, **state: object) -> None:
    writer.save(step, model_of(value), SPEC, state={"value": value, **state})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def inline(folder: Path, **more: int) -> Writer:
    return Writer(folder, threaded=False, **more)


# -- in a thread ----------------------------------------------------------------------------------


class Gate:
    """Stops a writer before it writes, until ``open``."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.open = self.opened.set
        self.calls: list[int] = []
        real = checkpoint.write_step

        def held(folder: Path, step: int, *rest: object) -> Path:
            self.calls.append(step)
            self.reached.set()
            assert self.opened.wait(60)
            return real(folder, step, *rest)  # type: ignore[arg-type]

        patch.setattr(checkpoint, "write_step", held)


def test_what_is_written_is_what_was_there_when_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, model = Gate(monkeypatch), SPEC.build()
    optimizer = optim.adamw(model.parameters(), OptimConfig())

    def learn() -> None:
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    learn()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    moments = checkpoint.tensors_of(model, optimizer)[1] or {}
    moments = {name: value.clone() for name, value in moments.items()}
    with Writer(tmp_path) as writer:
        writer.save(1, model, SPEC, optimizer=optimizer)
        assert gate.reached.wait(60)
        learn()
        assert not list(tmp_path.iterdir())
        gate.open()
    loaded = checkpoint.load(tmp_path)
    assert all(torch.equal(loaded.weights[name], value) for name, value in expected.items())
    checkpoint.load_optimizer(loaded.path, model, optimizer)
    again = checkpoint.tensors_of(model, optimizer)[1] or {}
    assert again.keys() == moments.keys()
    assert all(torch.equal(again[name], value) for name, value in moments.items())


@pytest.mark.gpu
def test_what_the_device_does_later_is_not_in_the_copy(tmp_path: Path) -> None:
    model = torch.nn.Linear(4096, 4096, device="cuda")
    with torch.no_grad(), Writer(tmp_path) as writer:
        for step in range(1, 6):
            model.weight.fill_(step)
            writer.save(step, model, SPEC)
            model.weight.fill_(-1.0)
            writer.wait()
            assert (checkpoint.load(tmp_path, best=False).weights["weight"] == step).all()


def test_one_is_under_way_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, writer = Gate(monkeypatch), Writer(tmp_path)
    put(writer, 1, 1)
    second = threading.Thread(target=put, args=(writer, 2, 2))
    second.start()
    assert gate.reached.wait(60)
    assert gate.calls == [1]
    gate.open()
    second.join()
    writer.wait()
    assert gate.calls == [1, 2]
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, Stopped])
def test_whatever_ends_a_training_what_was_begun_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    gate = Gate(monkeypatch)

    def crash() -> None:
        with Writer(tmp_path) as writer:
            put(writer, 1, 1)
            threading.Timer(0.05, gate.open).start()
            raise error(15)

    with pytest.raises(error):
        crash()
    assert value_of(tmp_path) == 1


def test_an_error_in_the_thread_is_raised_at_the_next_save_and_at_the_end(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    with disks.failing(0, errno.EIO):
        put(writer, 2, 2)
        with pytest.raises(CheckpointError, match="update 2 cannot be saved: Input/output error"):
            writer.wait()
    for later in (lambda: put(writer, 3, 3), writer.close):
        with pytest.raises(CheckpointError, match="update 2 cannot be saved"):
            later()


def test_an_error_in_the_thread_does_not_hide_the_one_that_ends_the_run(tmp_path: Path) -> None:
    with (
        disks.failing(0, errno.EIO),
        pytest.raises(ZeroDivisionError),
        Writer(tmp_path) as writer,
    ):
        put(writer, 1, 1)
        raise ZeroDivisionError


# -- disks that fail ------------------------------------------------------------------------------


def beside(folder: Path) -> Callable[[], Writer]:
    """A save beside two others, the older of which has to go."""
    for step in (1, 2):
        put(inline(folder), step, 1)

    def save() -> Writer:
        writer = inline(folder)
        put(writer, 3, 2)
        return writer

    return save


def again(folder: Path) -> Callable[[], Writer]:
    """A save of the only step there is, once more."""
    put(inline(folder), 1, 1)

    def save() -> Writer:
        writer = inline(folder)
        put(writer, 1, 2)
        return writer

    return save


CASES = pytest.mark.parametrize("case", [beside, again])


def points(case: Callable[[Path], Callable[[], Writer]], folder: Path) -> int:
    """How often the disk is touched by a save that goes well."""
    save = case(folder)
    with disks.failing() as disk:
        save()
    assert disk.touches > 20
    return disk.touches


@CASES
def test_a_death_at_any_point_leaves_the_old_or_the_new(
    tmp_path: Path, case: Callable[[Path], Callable[[], Writer]]
) -> None:
    found = []
    for at in range(points(case, tmp_path / "all")):
        folder = tmp_path / str(at)
        save = case(folder)
        with disks.failing(at), pytest.raises(disks.Death):
            save()
        found.append(value_of(folder))
        for path in checkpoint._steps(folder):
            checkpoint.verify(path)  # nothing incomplete has a name
        save()
        assert value_of(folder) == 2
        assert names(folder) == names(tmp_path / "all"), "what the crash left is swept"
    assert found == sorted(found)
    assert set(found) == {1, 2}


@CASES
def test_two_deaths_are_no_worse_than_one(
    tmp_path: Path, case: Callable[[Path], Callable[[], Writer]]
) -> None:
    total = points(case, tmp_path / "all")
    for first in range(10, total, 2):
        for second in range(0, total, 5):
            folder = tmp_path / f"{first}-{second}"
            save = case(folder)
            before = 1
            for at in (first, second):
                with disks.failing(at), pytest.raises(disks.Death):
                    save()
                assert value_of(folder) >= before
                before = value_of(folder)


@CASES
@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_skips_the_save_with_an_alarm(
    tmp_path: Path, case: Callable[[Path], Callable[[], Writer]], error: int, caplog
) -> None:
    for at in range(points(case, tmp_path / "all")):
        folder = tmp_path / str(at)
        save = case(folder)
        caplog.clear()
        with disks.failing(at, error):
            writer = save()
        if writer.alarms:
            assert writer.alarms[0] in caplog.text
        if writer.alarms and "is not saved" in writer.alarms[0]:
            with pytest.raises(CheckpointError, match="could not be saved: the disk is full"):
                writer.close()
        else:
            assert value_of(folder) == 2
        value_of(folder)
        put(writer, 9, 9)
        writer.close()
        assert value_of(folder) == 9
        assert not list(folder.glob(".*"))


@CASES
@pytest.mark.parametrize("error", BROKEN)
def test_a_broken_disk_is_named_and_what_was_saved_stays(
    tmp_path: Path, case: Callable[[Path], Callable[[], Writer]], error: int
) -> None:
    raised = 0
    for at in range(points(case, tmp_path / "all")):
        folder = tmp_path / str(at)
        save = case(folder)
        try:
            with disks.failing(at, error):
                save()
        except CheckpointError as exc:
            assert "cannot be saved" in exc.what
            raised += 1
        assert value_of(folder) in (1, 2)
        for path in checkpoint._steps(folder):
            checkpoint.verify(path)
    assert raised > 15


def test_a_disk_without_room_for_the_weights_is_not_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = inline(tmp_path / "checkpoints")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(99, 68, 31))
    put(writer, 1, 1)  # 8 numbers of 4 bytes
    assert writer.alarms == ["update 1 is not saved: No space left on device"]
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(99, 67, 32))
    put(writer, 2, 2)
    writer.close()


def test_what_cannot_be_read_back_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        put(inline(tmp_path), step, step)
    real = sealed._store

    def rot(path: Path, data: bytes) -> dict[str, object]:
        listed = real(path, data)
        if path.name == "model.safetensors":
            path.write_bytes(data[:-1] + b"?")
        return listed

    monkeypatch.setattr(sealed, "_store", rot)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has another SHA-256"):
        put(inline(tmp_path), 3, 3)
    assert value_of(tmp_path) == 2
    assert (tmp_path / "step-00000001").exists()


# -- what is kept ---------------------------------------------------------------------------------


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


def test_the_best_few_and_the_milestones_are_kept(tmp_path: Path) -> None:
    writer = inline(tmp_path, keep=2, keep_best=2, milestone_every=4)
    for step in range(1, 12):
        best = [[0.1, 3], [0.2, 6], [0.3, 1]] if step >= 6 else [[0.1, 3]] if step >= 3 else []
        put(writer, step, step, best_steps=best)
    assert steps(tmp_path) == [3, 4, 6, 8, 10, 11]
    assert checkpoint.best_steps(tmp_path) == [3, 6]
    assert checkpoint.find(tmp_path).name == "step-00000003"


def test_protected_ones_are_kept_while_they_are(tmp_path: Path) -> None:
    writer = inline(tmp_path)
    for step in range(1, 8):
        writer.save(step, model_of(step), SPEC, protected=[2] if step < 6 else [3])
        assert (2 in steps(tmp_path)) == (2 <= step < 6)
    assert steps(tmp_path) == [6, 7], "what was not protected all the time is gone"


def test_a_best_one_that_had_no_room_leaves_the_best_before_it(tmp_path: Path) -> None:
    writer = inline(tmp_path)
    put(writer, 1, 1, best_steps=[[0.5, 1]])
    with disks.failing(3, errno.ENOSPC):
        put(writer, 2, 2, best_steps=[[0.4, 2]])
    for step in (3, 4, 5):
        put(writer, step, step, best_steps=[[0.4, 2]])
    assert steps(tmp_path) == [1, 4, 5]
    assert checkpoint.find(tmp_path).name == "step-00000001"


def test_what_a_crash_left_is_swept_before_its_room_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disks.failing(8), pytest.raises(disks.Death):
        put(inline(tmp_path), 1, 1)
    assert names(tmp_path) != []
    seen: list[list[str]] = []
    real = sealed.write
    monkeypatch.setattr(
        sealed, "write", lambda *args: (seen.append(names(tmp_path)), real(*args))[1]
    )
    put(inline(tmp_path), 2, 2)
    assert seen == [[]]


def test_damaged_ones_later_than_where_the_run_goes_on_do_not_count(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        put(inline(tmp_path, keep=4), step, step, best_steps=[[0.5, 4]])
    for step in (3, 4):
        (tmp_path / f"step-{step:08d}" / "model.safetensors").write_bytes(b"")
    (tmp_path / "step-00000002" / "state.json").write_bytes(b"{")
    assert checkpoint.find(tmp_path, best=False).name == "step-00000001"
    put(inline(tmp_path, milestone_every=3), 2, 2)
    assert steps(tmp_path) == [1, 2]
    assert value_of(tmp_path) == 2


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["well", "death", "full"]), st.integers(0, 40), st.booleans()),
    min_size=1,
    max_size=10,
)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(OPERATIONS, st.integers(2, 3), st.integers(1, 2), st.sampled_from([0, 3]))
def test_after_any_interleaving_there_are_enough_and_not_too_many(
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[tuple[str, int, bool]],
    keep: int,
    keep_best: int,
    milestone_every: int,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    writer = inline(folder, keep=keep, keep_best=keep_best, milestone_every=milestone_every)
    done, best, written = 0, [], 0
    for kind, at, good in operations:
        done += 1
        if good:
            best = [[-float(done), done], *best][:keep_best]
        point, error = (None if kind == "well" else at), (None if kind == "death" else FULL[0])
        with contextlib.suppress(disks.Death), disks.failing(point, error):
            put(writer, done, done, best_steps=best)
        there = [
            step for step in steps(folder) if checkpoint.verify(folder / f"step-{step:08d}") is None
        ]
        written = max(written, len(there))
        assert len(there) >= min(2, written)
        if kind == "well":
            milestones = done // milestone_every if milestone_every else 0
            assert there[-1] == done
            assert len(there) <= keep + keep_best + milestones
        if kind == "death":  # and go on from there
            done = value_of(folder) if there else 0
            newest = folder / f"step-{done:08d}" / "state.json"
            best = json.loads(newest.read_text())["best_steps"] if there else []
