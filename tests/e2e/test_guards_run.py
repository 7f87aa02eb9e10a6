"""Runs with spoilt updates and missing files, as commands, by one process and by two."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toys
from safetensors.numpy import load_file

from w2vtool import checkpoint

ROOT = Path(__file__).parents[2]
SPOILT = range(6, 27)  # 21 updates: one more than it takes
GONE = ("train-2", "train-9")
# What torchrun starts twice; the loss of some updates is not a number.
SCRIPT = """
import sys
from w2vtool import cli, objectives

sys.path.insert(0, sys.argv.pop(1))
import test_guards_run

objectives.Ctc.__call__ = test_guards_run.spoilt(objectives.Ctc.__call__)
cli.main(sys.argv[1:])
"""


def spoilt(real: Callable[..., Any], updates: range = SPOILT) -> Callable[..., Any]:
    """The objective, which goes wrong in these updates."""

    def objective(self: Any, model: Any, batch: Any, step: int) -> Any:
        loss = real(self, model, batch, step)
        bad = model.training and step in updates
        return replace(loss, total=loss.total * math.nan) if bad else loss

    return objective


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe for a corpus of which two files are missing."""
    toys.corpus(tmp_path, "train", 12, seed=1)
    toys.corpus(tmp_path, "valid", 2, seed=2)
    for name in GONE:
        (tmp_path / f"audio/{name}.wav").unlink()
    return toys.recipe(
        tmp_path / "tiny.yaml",
        tmp_path / "train.jsonl",
        tmp_path / "valid.jsonl",
        updates=30,
        save_every=5,
        log_every=5,
        valid_every=30,
    )


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_skip_go_back_and_set_aside_as_one_does(
    recipe: Path, w2v: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from w2vtool import objectives

    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    both, alone = tmp_path / "both", tmp_path / "alone"
    words = [tmp_path / "script.py", ROOT / "tests/e2e", "finetune-ctc", recipe, "--run-dir", both]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [*command, *map(str, words)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the weights are those of update 5 again") == 1, "one process speaks"
    assert done.stderr.count("another one stands in") == len(GONE)
    monkeypatch.setattr(objectives.Ctc, "__call__", spoilt(objectives.Ctc.__call__))
    assert w2v("finetune-ctc", recipe, "--run-dir", alone).code == 0
    states = []
    for run in (alone, both):
        listed = (run / "quarantine.jsonl").read_text().splitlines()
        assert sorted(json.loads(line)["id"] for line in listed) == sorted(GONE)
        last = [row for row in metrics(run) if "train/rollbacks" in row][-1]
        assert (last["train/rollbacks"], last["train/skipped"]) == (1, len(SPOILT))
        assert last["data/quarantined"] == len(GONE)
        newest = checkpoint.find(run, best=False)
        assert newest.name == "step-00000030"
        states.append(json.loads((newest / "state.json").read_text()))
    assert states[0]["quarantine"] == states[1]["quarantine"]
    assert states[0]["guards"] == states[1]["guards"]
    assert states[0]["guards"]["rollbacks"] == 1
    one, other = (
        load_file(checkpoint.find(run, best=False) / "model.safetensors") for run in (alone, both)
    )
    assert all((one[key] == other[key]).all() for key in one)


def test_a_run_that_does_not_recover_says_so_and_has_an_exit_code_of_its_own(
    recipe: Path, w2v: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from w2vtool import objectives

    always = spoilt(objectives.Ctc.__call__, range(99))
    monkeypatch.setattr(objectives.Ctc, "__call__", always)
    done = w2v("finetune-ctc", recipe, "--run-dir", tmp_path / "run")
    assert done.code == 6
    assert "update 21: 20 updates in a row were skipped" in done.err
    assert "no checkpoint to go back to" in done.err
    assert "hint: lower optim.lr" in done.err
    assert "Traceback" not in done.err
    said = json.loads((tmp_path / "run/run.json").read_text())
    assert said["status"] == "failed"
    assert said["notes"]["alarm_all_skipped"] == 5
    assert [row["alarm/all_skipped"] for row in metrics(tmp_path / "run")] == [1.0] * 4


def test_a_missing_file_of_the_validation_split_is_an_error_before_the_first_update(
    recipe: Path, w2v: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "audio/valid-1.wav").unlink()
    done = w2v("finetune-ctc", recipe, "--run-dir", tmp_path / "run")
    assert done.code == 3
    assert "valid-1: " in done.err
    assert "no such file" in done.err
    assert not (tmp_path / "run/metrics.jsonl").exists()
