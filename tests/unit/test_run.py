"""A run folder says what ran and how it ended, is never overwritten, and belongs to one process."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from w2vtool import run as runs
from w2vtool.errors import ConfigError, DataError, Stopped
from w2vtool.run import Run, file_sha256, jsonable, record, write_atomic


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def test_a_run_leaves_who_what_when_and_how_it_ended(tmp_path: Path) -> None:
    with Run("toy", tmp_path / "w" / "toy", config_text="a: 1\n", digest="d") as run:
        assert not run.created and not (tmp_path / "w").exists()
        folder = run.folder
        assert facts(folder)["status"] == "running"
        run.note(manifest=Path("m.jsonl"), loss=float("nan"))
        run.summary = {"wer": 0.1}
    found = facts(folder)
    assert (found["status"], found["task"], found["config_sha256"]) == ("done", "toy", "d")
    assert found["notes"] == {"manifest": "m.jsonl", "loss": None}
    assert found["summary"] == {"wer": 0.1} and found["versions"]["python"]
    assert found["ended"] >= found["started"] and found["pid"] == os.getpid()
    assert (folder / "config.yaml").read_text() == "a: 1\n"


def test_a_run_that_never_uses_its_folder_makes_none(tmp_path: Path) -> None:
    with Run("toy", tmp_path / "toy") as run:
        run.note(seen=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DataError("bad", where="x"), "failed"),
        (ValueError("bug"), "failed"),
        (Stopped(15), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(143), "interrupted"),
        (SystemExit(0), "failed"),
    ],
    ids=repr,
)
def test_how_a_run_ends_is_its_status(error: BaseException, status: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), Run("toy", tmp_path / "toy") as run:
        assert run.folder
        raise error
    assert facts(tmp_path / "toy")["status"] == status
    assert type(error).__name__ in facts(tmp_path / "toy")["error"]


def test_an_older_run_is_renamed_never_overwritten(tmp_path: Path) -> None:
    for number in range(3):
        with Run("toy", tmp_path / "toy") as run:
            (run.folder / "result").write_text(str(number))
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found[0] == "toy" and all(name.startswith("toy~2") for name in found[1:])
    results = {(tmp_path / name / "result").read_text() for name in found}
    assert results == {"0", "1", "2"} and (tmp_path / "toy/result").read_text() == "2"


def test_resume_keeps_the_folder_and_its_history(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(Stopped), Run("toy", tmp_path / "toy", config_text="a", digest="1") as run:
        run.metrics(1, {"loss": 1.0})
        run.note(first=1)
        raise Stopped(15)
    with (tmp_path / "toy/metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')  # cut off by a crash
    with Run("toy", tmp_path / "toy", config_text="b", digest="2", resume=True) as run:
        run.metrics(2, {"loss": 0.5})
        run.note(second=2)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    lines = (tmp_path / "toy/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[2])["step"] == 2
    found = facts(tmp_path / "toy")
    assert found["resumed_from"][0]["status"] == "interrupted"
    assert found["notes"] == {"first": 1, "second": 2}
    assert len(list((tmp_path / "toy").glob("config~*.yaml"))) == 1
    assert "config differs" in capsys.readouterr().err


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("miaow")
    with pytest.raises(ConfigError, match="not a run folder"), Run("t", tmp_path / "photos") as run:
        assert run.folder
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="not a folder"), Run("t", tmp_path / "file") as run:
        assert run.folder


def test_a_live_folder_belongs_to_one_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from w2vtool.run import Run\n"
        "with Run('toy', pathlib.Path(sys.argv[1])) as run:\n"
        "    run.folder; print('ready', flush=True); sys.stdin.read()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(tmp_path / "toy")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        for resume in (False, True):
            with (
                pytest.raises(ConfigError, match=f"in use by process {other.pid}"),
                Run("toy", tmp_path / "toy", resume=resume) as run,
            ):
                assert run.folder
        other.communicate("")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    with Run("toy", tmp_path / "toy", resume=True) as run:
        assert run.folder


def test_other_ranks_write_and_print_nothing(tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with Run("toy", tmp_path / "toy") as run:
        assert (run.rank, run.world, run.folder) == (1, 2, tmp_path / "toy")
        run.note(a=1)
        run.metrics(1, {"loss": 1.0})
        run.say("hello")
        run.result("result")
        run.table("t", ["a"], [["b"]])
        with run.progress(2, "toy") as bar:
            bar.update(1)
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


def test_metrics_are_strict_json_with_step_and_time(tmp_path: Path) -> None:
    with Run("toy", tmp_path / "toy") as run:
        run.metrics(3, {"train/loss": 1.5, "train/bad": float("inf")})
    row = json.loads((tmp_path / "toy/metrics.jsonl").read_text())
    assert row.pop("time") and row == {"step": 3, "train/loss": 1.5, "train/bad": None}


def test_what_is_said_and_logged_is_in_the_log(tmp_path: Path, capsys: Any) -> None:
    handlers = list(logging.getLogger().handlers)
    with Run("toy", tmp_path / "toy") as run:
        run.say("before")
        assert run.folder
        run.say("after %s")
        logging.getLogger("somewhere").warning("logged %d", 3)
    text = (tmp_path / "toy/log.txt").read_text()
    assert "after %s" in text and "logged 3" in text and "before" not in text
    assert capsys.readouterr().err.splitlines()[:2] == ["before", "after %s"]
    assert logging.getLogger().handlers == handlers


def test_while_an_older_run_is_moved_away_nobody_else_gets_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else both move what is there: the later one the folder that the earlier one just made."""
    with Run("toy", tmp_path / "toy") as run:
        assert run.folder
    real = runs._move_away

    def move(folder: Path, old: Any) -> None:
        monkeypatch.setattr(runs, "_move_away", real)
        with (
            pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"),
            Run("toy", tmp_path / "toy") as second,
        ):
            assert second.folder
        real(folder, old)

    monkeypatch.setattr(runs, "_move_away", move)
    with Run("toy", tmp_path / "toy") as first:
        assert facts(first.folder)["status"] == "running"
    assert len(list(tmp_path.iterdir())) == 2


# -- signals ----------------------------------------------------------------------------------


def test_a_task_that_looks_at_stop_is_only_told(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Run("toy", tmp_path / "toy") as run:
        stop = run.stop
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.save and stop.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_lets_the_task_save(
    tmp_path: Path,
) -> None:
    """A launcher that was told, too, passes it on: its processes get SIGTERM twice."""
    with Run("toy", tmp_path / "toy") as run:
        stop = run.stop
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_task_that_does_not_look_is_stopped_at_once(
    number: int, error: type[BaseException], tmp_path: Path
) -> None:
    with pytest.raises(error), Run("toy", tmp_path / "toy") as run:
        assert run.folder
        os.kill(os.getpid(), number)
        signal.pause()
    assert facts(tmp_path / "toy")["status"] == "interrupted"


def test_the_run_that_started_this_one_learns_of_the_signal(tmp_path: Path) -> None:
    with Run("run", tmp_path / "run") as outer:
        assert outer.stop.signal is None
        with Run("toy", tmp_path / "toy", parent=outer) as inner:
            assert inner.stop.signal is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.stop.signal == signal.SIGTERM and outer.stop.signal is None
        assert outer.stop.signal == signal.SIGTERM


def test_a_run_in_a_thread_leaves_signals_alone(tmp_path: Path) -> None:
    def work() -> None:
        with Run("toy", tmp_path / "toy") as run:
            assert run.folder

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert facts(tmp_path / "toy")["status"] == "done"


# -- files ------------------------------------------------------------------------------------


def test_an_atomic_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "new" / "a.txt"
    write_atomic(path, "one ü")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("crash")))
    with pytest.raises(OSError, match="crash"):
        write_atomic(path, "three")
    assert path.read_bytes() == b"two" and [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_an_atomic_write_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_atomic(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="wanted") as caught:
        write_atomic(tmp_path / "wanted", "text")
    assert caught.value.filename == str(tmp_path / "wanted")
    assert list(tmp_path.iterdir()) == []


def test_hashes_and_records(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")
    assert record(tmp_path) is None
    (tmp_path / "run.json").write_text('{"status": "do')
    assert record(tmp_path) == {}


def test_what_json_cannot_hold_is_an_error() -> None:
    assert jsonable({"a": (1, 2.0, None), 3: {"b": float("-inf")}}) == {
        "a": [1, 2.0, None],
        "3": {"b": None},
    }
    with pytest.raises(TypeError, match="object does not fit in JSON"):
        jsonable({"a": object()})


def test_a_full_disk_at_the_end_hides_neither_the_result_nor_the_error(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with Run("toy", tmp_path / "toy") as run:
        assert run.folder
        run.metrics(1, {"loss": 1.0})
        monkeypatch.setattr("w2vtool.run.write_atomic", full)
    assert "run.json cannot be written (No space left" in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(Stopped), Run("toy", tmp_path / "toy", resume=True) as run:
        assert run.folder
        monkeypatch.setattr("w2vtool.run.write_atomic", full)
        raise Stopped(15)
