"""Metrics go where they are asked to; a place that fails never stops the training."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from test_trainer import Memory, build, newest, same

from w2vtool import sinks
from w2vtool.errors import ConfigError
from w2vtool.sinks import Outlets, TensorBoard
from w2vtool.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def make(toy_corpus: Path, tmp_path: Path) -> Any:
    return partial(build, "ctc", toy_corpus, tmp_path, log_every=1)


class Failing:
    """A sink whose n-th call fails."""

    def __init__(self, error: Exception, at: int) -> None:
        self.error, self.at, self.calls = error, at, 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error

    def close(self) -> None:
        self.write(0, {})


class Full(Memory):
    """A recorder whose disk is full for a while."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.bad, self.calls = bad, 0

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.calls += 1
        if self.calls in self.bad:
            raise OSError(28, "No space left on device")
        super().metrics(step, values)

    def note(self, **facts: object) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("queue"), KeyError("x")])
def test_a_sink_that_fails_is_warned_of_once_and_dropped(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    told, bad, good = Memory(), Failing(error, 2), Failing(error, 99)
    out = Outlets(told, [bad, good])
    for step in range(5):
        out.metrics(step, {"a": 1.0})
    out.close()
    assert (bad.calls, good.calls) == (2, 6)
    assert len(told.lines) == 5
    assert len(caplog.messages) == 1
    assert (
        f"Failing failed and gets no more metrics; the training goes on ({type(error).__name__}"
        in (caplog.text)
    )


def test_a_sink_that_fails_to_close_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    Outlets(Memory(), [Failing(OSError("gone"), 1)]).close()
    assert len(caplog.messages) == 1


def test_a_full_disk_costs_lines_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    told = Full({2, 3, 5})
    out = Outlets(told)
    for step in range(1, 7):
        out.metrics(step, {"a": 1.0})
    assert [step for step, _ in told.lines] == [1, 4, 6]
    assert len(caplog.messages) == 2, "once each time that it begins"
    assert "No space left on device" in caplog.text


def test_what_the_recorder_gets_wrong_by_itself_is_not_hidden() -> None:
    class Broken(Memory):
        def metrics(self, step: int, values: dict[str, float]) -> None:
            raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        Outlets(Broken()).metrics(1, {})


def test_training_with_sinks_that_fail_gives_the_same_weights(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make("plain")
    train(plain, Memory())
    monkeypatch.setattr(sinks, "TensorBoard", lambda *_: Failing(RuntimeError("queue"), 3))
    job = make("disturbed")
    job.tensorboard = True
    train(job, Full({1, 2}))
    same(newest(plain), newest(job))


# -- TensorBoard ----------------------------------------------------------------------------------


class Writer:
    """What is used of ``torch.utils.tensorboard.SummaryWriter``."""

    made: ClassVar[list[Writer]] = []

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.folder, self.purge_step = folder, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.closed = False
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        assert not self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_tensorboard_gets_every_line_where_it_is_asked_for(make: Any, board: list[Writer]) -> None:
    told, job = Memory(), make()
    train(job, told)
    assert not board
    job = make()
    job.tensorboard = True
    told = Memory()
    train(job, told)
    (writer,) = board
    assert writer.folder == str(job.folder.parent / "tensorboard")
    assert writer.closed
    wanted = [(k, v, step) for step, values in told.lines for k, v in values.items()]
    assert [found for found in writer.scalars if not found[0].startswith("speed/")] == wanted
    assert writer.purge_step is None


def test_a_resumed_run_hides_the_events_that_it_makes_again(make: Any, board: list[Writer]) -> None:
    train(make(), Memory())
    again = make(updates=8)
    again.resume()
    again.tensorboard = True
    train(again, Memory())
    assert [writer.purge_step for writer in board] == [7]


def test_only_the_first_process_writes_events(make: Any, board: list[Writer]) -> None:
    job = make()
    job.tensorboard, job.rank = True, 1
    with sinks.outlets(job, Memory()) as out:
        assert not out.sinks
    assert not board


def test_without_tensorboard_the_error_says_how_to_get_it(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="TensorBoard cannot be imported") as caught:
        TensorBoard(tmp_path, 0)
    assert "w2vtool[tensorboard]" in caught.value.hint
    job = make()
    job.tensorboard = True
    with pytest.raises(ConfigError):
        train(job, Memory())
    assert job.done == 0
