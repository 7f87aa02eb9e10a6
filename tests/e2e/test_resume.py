"""The command, stopped half-way and resumed, makes what it makes undisturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toys
from safetensors.numpy import load_file

from w2vtool import checkpoint

ROOT = Path(__file__).parents[2]
UPDATES = 60
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    toys.corpus(folder, "train", 12, seed=1)
    toys.corpus(folder, "valid", 3, seed=2)
    return toys.recipe(
        folder / "tiny.yaml",
        folder / "train.jsonl",
        folder / "valid.jsonl",
        updates=UPDATES,
        log_every=3,
        valid_every=20,
        save_every=25,
    )


def result(run: Path) -> dict[str, bytes]:
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


@forks
@pytest.mark.parametrize("task", ["pretrain", "finetune-ctc"])
def test_equal_runs_are_equal_and_a_stopped_one_makes_the_same(
    task: str, recipe: Path, w2v: Callable[..., Any], tmp_path: Path
) -> None:
    """A run alone, one with loader processes, and one of each kind that is stopped half-way."""
    words = (task, recipe, "--json")
    whole = [w2v(*words, "--run-dir", tmp_path / f"whole-{n}", f"loop.workers={n}") for n in (0, 2)]
    assert [done.code for done in whole] == [0, 0]
    summaries = [json.loads(done.out) for done in whole]
    expected, lines = result(tmp_path / "whole-0"), metrics(tmp_path / "whole-0")
    assert result(tmp_path / "whole-2") == expected
    assert metrics(tmp_path / "whole-2") == lines
    workers = 0 if task == "pretrain" else 2
    run = tmp_path / "stopped"
    stop_half_way([*map(str, words), "--run-dir", str(run), f"loop.workers={workers}"], run)
    done = w2v(*words, "--run-dir", run, f"loop.workers={workers}", "--resume")
    assert done.code == 0, done.err
    assert f"of {UPDATES}" not in done.out
    assert "going on at update" in done.err
    assert result(run) == expected
    assert metrics(run) == lines
    last = json.loads(done.out)
    for key in ("updates", "best_step", "audio_hours_seen", "skipped_updates", "valid"):
        assert last[key] == summaries[0][key] == summaries[1][key], key


def test_a_feature_encoder_without_gradient_is_not_shrunk_either(
    recipe: Path, w2v: Callable[..., Any], tmp_path: Path
) -> None:
    words = ("loop.updates=2", "loop.save_every=1", "objective.feature_gradient=0")
    assert w2v("pretrain", recipe, "--run-dir", tmp_path / "run", *words).code == 0
    first, second = (
        load_file(tmp_path / f"run/checkpoints/step-{step:08d}/model.safetensors")
        for step in (1, 2)
    )
    moved = {name for name in first if not (first[name] == second[name]).all()}
    assert moved and not any("feature_encoder" in name for name in moved)


def stop_half_way(words: list[str], run: Path) -> None:
    """Start the command, and send SIGTERM to it and to all that it started, as torchrun does."""
    with subprocess.Popen(
        [sys.executable, "-m", "w2vtool", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        written = run / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (written.exists() and written.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert "stopped by signal 15; --resume goes on from what was saved" in err
    assert out == ""
    at = int(checkpoint.find(run, best=False).name[5:])
    assert 0 < at < UPDATES
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"


def test_what_a_killed_run_wrote_after_its_checkpoint_is_not_kept_twice(
    recipe: Path, w2v: Callable[..., Any], tmp_path: Path
) -> None:
    words = ("finetune-ctc", recipe, "--run-dir", tmp_path / "run")
    assert w2v(*words).code == 0
    lines = metrics(tmp_path / "run")
    newest = checkpoint.find(tmp_path / "run", best=False)
    (newest / "MANIFEST.json").unlink()  # as if the last 10 updates had not been saved
    done = w2v(*words, "--resume")
    assert done.code == 0
    assert "damaged checkpoint: MANIFEST.json: No such file" in done.err
    assert metrics(tmp_path / "run") == lines


def test_resuming_a_finished_run_does_nothing_and_says_the_same(
    recipe: Path, w2v: Callable[..., Any], tmp_path: Path
) -> None:
    words = ("pretrain", recipe, "--run-dir", tmp_path / "run", "--json", "loop.updates=3")
    first, again = w2v(*words), w2v(*words, "--resume")
    assert (first.code, again.code) == (0, 0)
    assert json.loads(first.out) == json.loads(again.out)
    assert [row["step"] for row in metrics(tmp_path / "run")] == [3, 3]
