"""A model spread over two processes learns what one learns; their checkpoints are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
# What torchrun starts twice, and the tests once: runs of test_trainer.build, one after the other.
SCRIPT = """
import dataclasses, json, math, sys
from pathlib import Path

import torch
import toys
from test_trainer import Memory, build, stop_at
from w2vtool import device
from w2vtool.architecture import Dropouts
from w2vtool.errors import Stopped
from w2vtool.model import regions
from w2vtool.schema import OptimConfig
from w2vtool.trainer import train

corpus, out = map(Path, sys.argv[1:3])
optim = OptimConfig(lr=3e-4, clip=0.5)
plain = dict(bins=4, optim=optim, shard=True, valid_every=3)
real = regions.compile_regions
regions.compile_regions = lambda model: real(model, "aot_eager")
torch.set_num_threads(1)


class Spoilt:
    # An objective whose loss is not a number at update 2, in the first micro-batch of all
    def __init__(self, objective):
        self.objective = objective
        self.chance = getattr(objective, "chance", None)

    def __call__(self, model, batch, step):
        loss = self.objective(model, batch, step)
        if model.training and step == 2:
            loss = dataclasses.replace(loss, total=loss.total * math.nan)
        return loss


def run(kind, name, memory=None, resume=False, **more):
    job = build(kind, corpus, out, name, **{**plain, **more})
    job = dataclasses.replace(job, rank=rank, world=world)
    if resume:
        job.resume()
    memory = memory or Memory()
    try:
        train(job, memory)
    except Stopped:
        pass
    here = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel()
               for p in job.model.parameters())
    return {
        "lines": memory.lines,
        "share": here / sum(p.numel() for p in job.model.parameters()),
        "skipped": job.tally[1].item(),
    }


with device.processes(torch.device("cpu")) as (rank, world):
    if sys.argv[3:] == ["compiled"]:
        run("pretrain", "compiled", compile=True, dropouts=Dropouts())
        run("pretrain", "plain", dropouts=Dropouts())
        sys.exit()
    only_on = world == 1 and len(sys.argv) > 3
    found = {} if only_on else {
        "pretrain": run("pretrain", "pretrain"),
        "ctc": run("ctc", "ctc", recompute=True),
        "thawed": run("ctc", "thawed", freeze_updates=2, feature_gradient=0.0),
        "spoilt": run("ctc", "spoilt", wrap=Spoilt),
        "half": run("pretrain", "half", memory=stop_at(3)),
    }
    if len(sys.argv) > 3:  # half of a run of the other number of processes
        out = Path(sys.argv[3])
        found["other"] = run("pretrain", "half", resume=True)
    Path(f"{sys.argv[2]}-{rank}.json").write_text(json.dumps(found))
"""


def start(folder: Path, corpus: Path, processes: int, name: str, *more: str) -> None:
    """Run the script in so many processes; its runs go to the folder ``name``."""
    (folder / "script.py").write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = [str(folder / "script.py"), str(corpus), str(folder / name), *more]
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "tests", "tests/unit"))
    done = subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), *words],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, toy_corpus: Path) -> dict[str, Any]:
    """What one process and two said of the same runs, and the folder with ``one`` and ``two``."""
    folder = tmp_path_factory.mktemp("sharding")
    start(folder, toy_corpus, 1, "one")
    start(folder, toy_corpus, 2, "two", str(folder / "one"))
    start(folder, toy_corpus, 1, "again", str(folder / "two"))
    names = ("one", "two", "again")
    said = {name: json.loads((folder / f"{name}-0.json").read_text()) for name in names}
    return {**said, "folder": folder}


def tensors(folder: Path, step: int = 6) -> dict[str, np.ndarray]:
    path = folder / f"step-{step:08d}"
    found = load_file(path / "model.safetensors")
    moments = load_file(path / "optimizer.safetensors")
    return {**found, **{f"optimizer/{name}": value for name, value in moments.items()}}


def same(one: Path, other: Path) -> None:
    """The same files to rounding: as many weights and moments, of the same shapes."""
    mine, yours = tensors(one), tensors(other)
    assert mine.keys() == yours.keys()
    for name, value in mine.items():
        assert value.shape == yours[name].shape and value.dtype == yours[name].dtype
        assert np.abs(value - yours[name]).max() <= 1e-6 * max(1.0, np.abs(value).max()), name


@pytest.mark.parametrize("name", ["pretrain", "ctc", "thawed"])
def test_two_sharded_processes_learn_what_one_does(runs: dict[str, Any], name: str) -> None:
    one, two = runs["one"][name]["lines"], runs["two"][name]["lines"]
    assert len(one) == len(two) >= 3
    for (step, mine), (other, yours) in zip(one, two, strict=True):
        assert step == other
        assert mine == pytest.approx(yours, rel=1e-5)  # loss, gradient norm, perplexities …
    same(runs["folder"] / "one" / name, runs["folder"] / "two" / name)


def test_each_keeps_its_part_of_the_weights_only(runs: dict[str, Any]) -> None:
    assert runs["one"]["pretrain"]["share"] == 1
    assert runs["two"]["pretrain"]["share"] == pytest.approx(0.5, abs=0.02)


def test_an_update_that_is_not_finite_is_skipped_by_both(runs: dict[str, Any]) -> None:
    assert runs["one"]["spoilt"]["skipped"] == runs["two"]["spoilt"]["skipped"] == 1
    same(runs["folder"] / "one" / "spoilt", runs["folder"] / "two" / "spoilt")


@pytest.mark.slow
def test_compiled_shards_learn_what_plain_ones_do(toy_corpus: Path, tmp_path: Path) -> None:
    start(tmp_path, toy_corpus, 2, "two", "compiled")
    same(tmp_path / "two" / "compiled", tmp_path / "two" / "plain")


@pytest.mark.parametrize(("by", "began"), [("two", "one"), ("again", "two")])
def test_a_run_goes_on_sharded_where_it_was_not_and_the_other_way_round(
    runs: dict[str, Any], by: str, began: str
) -> None:
    assert runs[by]["other"]["lines"][-1][0] == 6
    same(runs["folder"] / began / "half", runs["folder"] / "one" / "pretrain")
