"""Two processes make the weights that one makes, and stop as one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
import toys
from safetensors.numpy import load_file

from w2vtool import checkpoint

ROOT = Path(__file__).parents[2]
# What torchrun starts twice: pre-training, CTC, and CTC again with a signal for one process only.
SCRIPT = """
import os, signal, sys, time
from w2vtool import cli, trainer

def run(*words):
    try:
        cli.main(list(words))
    except SystemExit as ended:
        return ended.code or 0

recipe, work = sys.argv[1:]
codes = [run(task, recipe, "--work", work) for task in ("pretrain", "finetune-ctc")]

real = trainer.Training.update
def update(self, batches, stop):
    if self.rank == 1 and self.done == 2:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    return real(self, batches, stop)
trainer.Training.update = update
codes.append(run("finetune-ctc", recipe, "--work", work + "-stopped"))
with open(f"{work}-rank{os.environ['RANK']}.txt", "w") as file:
    print(codes, file=file)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe, and the folder of the runs that two processes made of it."""
    folder = tmp_path_factory.mktemp("two")
    toys.corpus(folder, "train", 12, seed=1)
    toys.corpus(folder, "valid", 2, seed=2)  # one bin: the second process has nothing to validate
    recipe = toys.recipe(
        folder / "tiny.yaml", folder / "train.jsonl", folder / "valid.jsonl", updates=4
    )
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(folder / "script.py"), str(recipe), str(folder / "two")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        codes = (folder / f"two-rank{rank}.txt").read_text().strip()
        assert codes == "[0, 0, 143]", f"{codes} on rank {rank}: {done.stderr}"
    assert done.stderr.count("4 updates of") == 3, "only one process speaks"
    return recipe, folder / "two"


def newest(run: Path) -> Path:
    return checkpoint.find(run, best=False)


@pytest.mark.parametrize("task", ["pretrain", "finetune-ctc"])
def test_two_processes_make_the_weights_of_one(
    two: tuple[Path, Path], task: str, w2v: Callable[..., Any], tmp_path: Path
) -> None:
    recipe, both = two
    assert w2v(task, recipe, "--work", tmp_path).code == 0
    alone, together = newest(tmp_path / task), newest(both / task)
    assert alone.name == together.name == "step-00000004"
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = load_file(alone / name), load_file(together / name)
        assert one.keys() == other.keys()
        # a sum of two gradients has no order: not within 1e-6, but equal
        assert all((one[key] == other[key]).all() for key in one)
    states = [json.loads((path / "state.json").read_text()) for path in (alone, together)]
    assert states[0]["seconds"] == pytest.approx(states[1]["seconds"])
    assert states[0]["validated"] == pytest.approx(states[1]["validated"])
    assert json.loads((both / task / "run.json").read_text())["world"] == 2


def test_all_processes_stop_at_the_update_in_which_one_was_asked(two: tuple[Path, Path]) -> None:
    stopped = two[1].with_name("two-stopped") / "finetune-ctc"
    assert newest(stopped).name == "step-00000003"
    assert json.loads((stopped / "run.json").read_text())["status"] == "interrupted"


def test_one_process_goes_on_where_two_were_stopped(
    two: tuple[Path, Path], w2v: Callable[..., Any]
) -> None:
    work = two[1].with_name("two-stopped")
    assert w2v("finetune-ctc", two[0], "--work", work, "--resume").code == 0
    weights = [
        (newest(run / "finetune-ctc") / "model.safetensors").read_bytes() for run in (work, two[1])
    ]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_at_random_is_restarted_and_ends_as_if_alone(
    two: tuple[Path, Path], w2v: Callable[..., Any], tmp_path: Path
) -> None:
    """The command of the docs, which says --resume from the first: then there is nothing yet."""
    settings = ("loop.updates=60", "loop.save_every=3", "loop.valid_every=20", "loop.log_every=5")
    words = ("finetune-ctc", two[0], *settings, "--run-dir")
    assert w2v(*words, tmp_path / "alone").code == 0
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=9"]
    random, run = Random(0), tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-m", *launcher, "-m", "w2vtool", *map(str, (*words, run)), "--resume"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as torchrun:
        drain = ThreadPoolExecutor(1).submit(torchrun.communicate)
        for step in sorted(random.sample(range(3, 55), 4)):
            wait(lambda step=step: saved(run) >= step, torchrun)
            time.sleep(random.uniform(0, 0.1))
            rank = random.randrange(2)
            wait(lambda rank=rank: rank in ranks(torchrun.pid), torchrun)
            os.kill(ranks(torchrun.pid)[rank], signal.SIGKILL)
        err = drain.result(timeout=200)[1]
    assert torchrun.returncode == 0, err
    assert json.loads((run / "run.json").read_text())["resumed_from"]
    alone, restarted = newest(tmp_path / "alone"), newest(run)
    assert restarted.name == "step-00000060"
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (alone / name).read_bytes() == (restarted / name).read_bytes()
    losses = [
        [(row["step"], row["valid/loss"]) for row in rows(path) if "valid/loss" in row]
        for path in (run, tmp_path / "alone")
    ]
    assert losses[0] == [(step, pytest.approx(loss)) for step, loss in losses[1]]


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def saved(run: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.name[5:13]) for path in run.glob("checkpoints/step-*")), default=0)


def ranks(torchrun: int) -> dict[int, int]:
    """The processes that torchrun started, by rank."""
    found = {}
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has just ended
            told = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            found.update({int(line[5:]): int(child) for line in told if line[:5] == b"RANK="})
    return found


def wait(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


DYING = """
import os, signal, sys, time
from w2vtool import cli, trainer

real = trainer.Training.update
def update(self, batches, stop):
    if self.rank == 1 and self.done == 2:
        # the first process may not have heard yet what it adds up before it saves
        while not (self.folder / "step-00000002").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, batches, stop)
trainer.Training.update = update
cli.main(["finetune-ctc", *sys.argv[1:]])
"""


def test_a_process_whose_peer_is_killed_says_so_and_what_was_saved_goes_on(
    two: tuple[Path, Path], w2v: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    words = [two[0], "loop.save_every=1", "loop.async_save=false", "--run-dir", tmp_path / "run"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    meeting["OMP_NUM_THREADS"] = "1"  # as in the run that it is compared with
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(tmp_path / "dying.py"), *map(str, words)],
                    env={**os.environ, "PYTHONPATH": str(ROOT), **meeting, "RANK": str(rank)},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for rank in (0, 1)
        ]
        said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [7, -signal.SIGKILL], said
    assert "process 0 of 2: another process of this run died" in said[0]
    assert "hint: its own message says why" in said[0]
    assert "Traceback" not in said[0]
    assert newest(tmp_path / "run").name == "step-00000002"
    assert w2v("finetune-ctc", *words, "--resume").code == 0
    weights = [
        load_file(newest(run) / "model.safetensors")
        for run in (tmp_path / "run", two[1] / "finetune-ctc")
    ]
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])


def test_bins_that_cannot_be_spread_are_refused(
    two: tuple[Path, Path], w2v: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from w2vtool import device, training
    from w2vtool.errors import ConfigError
    from w2vtool.schema import LoopConfig

    monkeypatch.setattr(device, "processes", lambda chosen: _three())
    with (
        pytest.raises(ConfigError, match="bins = 2 micro-batches cannot be spread over 3"),
        training.start(LoopConfig(bins=2, device="cpu"), None),  # type: ignore[arg-type]
    ):
        pass


def _three() -> Any:
    from contextlib import nullcontext

    return nullcontext((0, 3))
