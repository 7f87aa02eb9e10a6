"""Two processes make the weights that one makes, and stop as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toys
from safetensors.numpy import load_file

from w2vtool import checkpoint

ROOT = Path(__file__).parents[2]
# What torchrun starts twice: pre-training, CTC, and CTC again with a signal for one process only.
SCRIPT = """
import os, signal, sys, time
import torch.distributed as dist
from w2vtool import cli, trainer

# what torchrun gives its processes to meet with serves for one meeting: join once, leave at the end
join, leave = dist.init_process_group, dist.destroy_process_group
dist.init_process_group = lambda *words: dist.is_initialized() or join(*words)
dist.destroy_process_group = lambda: None

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
leave()
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
