"""Runs that are killed, at any moment and any system call, lose nothing that was saved."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import disks
import pytest
import toys
from zygote import ROOT, Zygote

from w2vtool import checkpoint, sealed
from w2vtool.errors import ConfigError
from w2vtool.run import Run

UPDATES = 40
KILLS = 25  # of each task


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    toys.corpus(folder, "train", 12, seed=1)
    toys.corpus(folder, "valid", 3, seed=2)
    return toys.recipe(
        folder / "tiny.yaml",
        folder / "train.jsonl",
        folder / "valid.jsonl",
        updates=UPDATES,
        log_every=1,
        valid_every=5,
        save_every=2,
    )


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("zygote")) as process:
        yield process


def result(run: Path) -> dict[str, bytes]:
    """The files of the last checkpoint, which must be that of the last update."""
    newest = checkpoint.find(run, best=False)
    assert newest.name == f"step-{UPDATES:08d}"
    return {path.name: path.read_bytes() for path in newest.iterdir()}


def metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics without what depends on the time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if key != "time" and not key.startswith("speed/")}
        for row in rows
    ]


def kept(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def assert_as_undisturbed(run: Path, whole: Path) -> None:
    assert result(run) == result(whole)
    assert metrics(run) == metrics(whole)
    assert kept(run) == kept(whole)


# -- SIGKILL --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pretrain", "finetune-ctc"])
def test_a_run_killed_again_and_again_makes_what_an_undisturbed_one_makes(
    task: str, recipe: Path, zygote: Zygote, tmp_path: Path
) -> None:
    began = time.monotonic()
    assert zygote.run(task, recipe, "--run-dir", tmp_path / "whole") == 0
    length = time.monotonic() - began
    times, kills, runs = random.Random(task), 0, 0
    while kills < KILLS:
        runs += 1
        run = tmp_path / f"killed-{runs}"
        words = (task, recipe, "--run-dir", run, "--resume", f"loop.workers={runs % 2}")
        while True:
            process = zygote.start(*words)
            if kills < KILLS:
                time.sleep(times.uniform(0, 0.5 * length))
                os.kill(process, signal.SIGKILL)
            code = zygote.end()
            if code == 0:
                break
            assert code == -signal.SIGKILL, zygote.err.read_text()
            kills += 1
        assert_as_undisturbed(run, tmp_path / "whole")


def test_the_lock_goes_with_a_killed_process_and_not_with_its_children(
    recipe: Path, zygote: Zygote, tmp_path: Path
) -> None:
    """Loader processes outlive a killed one for a while: they must not keep others out."""
    words = ("pretrain", recipe, "--run-dir", tmp_path / "run", "loop.workers=2")
    process = zygote.start(*words, "loop.updates=100000")
    wait_for_lines(tmp_path / "run" / "metrics.jsonl", 3)
    with (
        pytest.raises(ConfigError, match=f"in use by process {process} on "),
        Run("pretrain", tmp_path / "run", resume=True) as second,
    ):
        assert second.folder
    os.kill(process, signal.SIGKILL)
    assert zygote.end() == -signal.SIGKILL
    assert zygote.run(*words, "--resume") == 0, zygote.err.read_text()


def wait_for_lines(path: Path, number: int) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_bytes().count(b"\n") >= number):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_run_killed_while_its_folder_is_made_can_be_resumed(tmp_path: Path) -> None:
    def begin(folder: Path) -> None:
        with Run("toy", folder, resume=True, config_text="a: 1\n") as run:
            assert run.folder

    with disks.failing() as disk:
        begin(tmp_path / "whole")
    assert disk.touches > 5
    for at in range(disk.touches):
        if (child := os.fork()) == 0:  # only a process that really ends lets go of the lock
            with disks.failing(at):
                try:
                    begin(tmp_path / str(at))
                finally:
                    os._exit(0)
        os.waitpid(child, 0)
        begin(tmp_path / str(at))
        assert json.loads((tmp_path / str(at) / "run.json").read_text())["status"] == "done"
        assert (tmp_path / str(at) / "config.yaml").read_text() == "a: 1\n"


# -- signals --------------------------------------------------------------------------------------

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_at_any_time_is_heeded_within_20_s_and_costs_no_update(
    number: signal.Signals, workers: int, recipe: Path, zygote: Zygote, tmp_path: Path
) -> None:
    task = "pretrain" if workers else "finetune-ctc"
    words = (task, recipe, f"loop.workers={workers}", "loop.save_every=1000", "--run-dir")
    began = time.monotonic()
    assert zygote.run(*words, tmp_path / "whole") == 0
    length, times = time.monotonic() - began, random.Random(f"{number}{workers}")
    ends = set()
    for i in range(5):
        run = tmp_path / f"run-{i}"
        process = zygote.start(*words, run)
        wait_for_lines(run / "run.json", 1)  # before that there is nothing to lose
        time.sleep(times.uniform(0, length))
        sent = time.monotonic()
        os.killpg(process, number)  # with its loaders, as torchrun and Slurm do
        code = zygote.end()
        ends.add(code)
        assert time.monotonic() - sent < 20 + length * (number == signal.SIGUSR1)
        if code == -number:  # after the last of the run, while Python ended
            assert json.loads((run / "run.json").read_text())["status"] == "done"
            code = 0
        assert code in (0, CODES[number]), zygote.err.read_text()
        if code:
            done = [row["step"] for row in metrics(run) if "train/loss" in row]
            saved = [int(name[5:]) for name in kept(run)] if (run / "checkpoints").exists() else []
            assert done[-1:] == saved[-1:]
            assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
            assert zygote.run(*words, run, "--resume") == 0, zygote.err.read_text()
        assert result(run) == result(tmp_path / "whole")
        assert metrics(run) == metrics(tmp_path / "whole")
    assert CODES[number] in ends


DURING_A_SAVE = """
import os, signal
from w2vtool import sealed, trainer
store, update, asked = sealed._store, trainer.Training.update, []
def interrupted(path, data):
    if path.parent.name.startswith(".step-00000004") and not asked:
        asked.append(path)
        os.kill(os.getpid(), {number})
        signal.sigtimedwait([], 0.05)
    return store(path, data)
sealed._store = interrupted
"""


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_during_a_save_waits_for_it(
    number: signal.Signals, recipe: Path, zygote: Zygote, tmp_path: Path
) -> None:
    words = ("finetune-ctc", recipe, "loop.updates=8", "--run-dir")
    assert zygote.run(*words, tmp_path / "whole") == 0
    run = tmp_path / "run"
    code = zygote.run(*words, run, before=DURING_A_SAVE.format(number=int(number)))
    assert code == CODES[number], zygote.err.read_text()
    assert all(not name.startswith(".") for name in kept(run))
    if code:
        assert int(kept(run)[-1][5:]) in (4, 5, 6)
        assert zygote.run(*words, run, "--resume") == 0
    last = [checkpoint.find(folder, best=False) for folder in (run, tmp_path / "whole")]
    assert last[0].name == last[1].name == "step-00000008"
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes()
    assert metrics(run) == metrics(tmp_path / "whole")


# -- every system call of a save ------------------------------------------------------------------

SAVE = """
import os, sys
from pathlib import Path
from w2vtool import sealed
folder = Path(sys.argv[1])
os.path.exists("/begin")
sealed.write(folder / "step-00000001", {name: lambda: b"new" * 1000 for name in ("model", "state")})
sealed.discard(folder / "step-00000000")
os.path.exists("/end")
"""


def save(folder: Path, *strace: str) -> subprocess.CompletedProcess[str]:
    """Save a step again, and delete the one before it, in a process that strace looks after."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("step-00000000", "step-00000001"):
        sealed.write(folder / name, {name: lambda: b"old" * 1000 for name in ("model", "state")})
    return subprocess.run(
        ["strace", *strace, sys.executable, "-S", "-c", SAVE, str(folder)],
        env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )


def found(folder: Path) -> bytes:
    """What a reader finds in the newest folder of the step; all that has a name must be whole."""
    contents = []
    for name in ("step-00000001.new", "step-00000001", "step-00000000"):
        if (path := folder / name).exists():
            listed = sealed.manifest(path)
            contents += [{sealed.read(path, part, listed)[:3] for part in listed}]
    assert all(len(parts) == 1 for parts in contents)
    return contents[0].pop()


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int]]:
    """The system calls of a save: each with its number among those of its name."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not here")
    folder = tmp_path_factory.mktemp("calls")
    done = save(folder / "run", "-o", str(folder / "log"))
    if done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr}")
    assert found(folder / "run") == b"new"
    before, inside = (folder / "log").read_text().split('"/begin"')
    counts: dict[str, int] = {}
    for name in re.findall(r"^(\w+)\(", before, re.MULTILINE):
        counts[name] = counts.get(name, 0) + 1
    out = []
    for name in re.findall(r"^(\w+)\(", inside.split('"/end"')[0], re.MULTILINE):
        counts[name] = counts.get(name, 0) + 1
        out.append((name, counts[name]))
    return out


@pytest.mark.slow
def test_a_kill_at_any_system_call_of_a_save_leaves_the_old_or_the_new(
    calls: list[tuple[str, int]], tmp_path: Path
) -> None:
    assert len(calls) > 60
    ends = []
    for name, number in calls:
        spec = f"inject={name}:signal=SIGKILL:when={number}"
        done = save(tmp_path / "run", "-e", f"trace={name}", "-e", spec)
        assert done.returncode == -signal.SIGKILL, (name, number, done.stderr)
        ends.append(found(tmp_path / "run"))
    assert ends == sorted(ends, reverse=True), "from old to new, and never back"
    assert set(ends) == {b"old", b"new"}


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_an_error_of_any_system_call_of_a_save_leaves_the_old_or_the_new(
    error: str, calls: list[tuple[str, int]], tmp_path: Path
) -> None:
    raised = 0
    for name, number in calls:
        if name in ("mkdir", "openat", "write", "fsync", "rename", "close", "unlinkat", "rmdir"):
            spec = f"inject={name}:error={error}:when={number}"
            done = save(tmp_path / "run", "-e", f"trace={name}", "-e", spec)
            assert f"[Errno {getattr(errno, error)}]" in done.stderr or done.returncode == 0
            raised += done.returncode != 0
            assert found(tmp_path / "run") == b"new" or done.returncode
    assert raised > 15
