"""The benchmarks count what they say they count, and run on tiny networks."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toys

from w2vtool import bench, bench_machine, flops, labels, training
from w2vtool.batches import Batch, ctc_batch
from w2vtool.errors import Stopped
from w2vtool.schema import LoopConfig
from w2vtool.tasks import bench as tasks
from w2vtool.testing import check_task, run_for
from w2vtool.tokens import Tokens

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
NETWORK = {f"model.{name}": json.dumps(value) for name, value in toys.SIZES.items()}
NETWORK |= {"model.architecture": "small", "warmup": "1"}
LOOP = {"loop.device": "cpu", "loop.updates": "2", "loop.max_seconds": "1"}
PRETRAIN = {**NETWORK, **LOOP, "loop.bin_seconds": "3", "objective.negatives": "5"}
FINETUNE = {
    **NETWORK,
    **LOOP,
    "loop.bin_seconds": "3",
    "lengths": "equal",
    "mask.channel_length": "4",
}
EXTRACT = {**NETWORK, "device": "cpu", "batch_seconds": "3", "utterance_seconds": "1"}
DATA = {**NETWORK, **LOOP, "loop.bin_seconds": "3", "files": "6"}
FIGURES = {
    "audio_s_per_s": float,
    "mfu": type(None),  # of a CPU
    "flops_per_audio_s": float,
    "padding": float,
    "data_wait": float,
    "peak_memory_bytes": int,
    "compilations": int,
    "updates": int,
    "device": str,
    "torch": str,
    "threads": int,
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``import peers`` finds benchmarks/peers.py, and leaves nothing behind."""
    before, environment = set(sys.modules), dict(os.environ)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield
    ours = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    for name in ours - before:
        sys.modules.pop(name, None)
    for name in set(os.environ) - set(environment):
        del os.environ[name]


# -- the tasks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "values", "other"),
    [
        (tasks.PRETRAIN, PRETRAIN, {}),
        (tasks.FINETUNE, FINETUNE, {}),
        (tasks.EXTRACT, EXTRACT, {"data_wait": type(None)}),
        (tasks.DATA, DATA, {"flops_per_audio_s": type(None)}),
    ],
    ids=["pretrain", "finetune", "extract", "data"],
)
def test_a_bench_keeps_the_contract_gives_all_figures_and_leaves_no_file(
    task: Any, values: dict[str, str], other: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = check_task(task, values, tmp_path)
    assert {name: type(found[name]) for name in FIGURES} == {**FIGURES, **other}
    assert found["audio_s_per_s"] == pytest.approx(found["audio_s"] / found["seconds"])
    assert found["compilations"] == 0
    assert found["padding"] == 0
    assert 0 <= (found["data_wait"] or 0) <= 1
    assert not list(tmp_path.iterdir())


def test_what_is_timed_is_what_was_asked_for(tmp_path: Path) -> None:
    found = check_task(tasks.PRETRAIN, PRETRAIN, tmp_path)
    assert found["updates"] == 2
    assert found["audio_s"] == 2 * 3
    found = check_task(tasks.EXTRACT, {**EXTRACT, "batches": "3"}, tmp_path)
    assert found["updates"] == 3
    assert found["audio_s"] == 3 * 3
    cost = sum(flops.forward(toys.TINY.model_copy(update={"norm_first": True}), 16_000).values())
    assert found["flops_per_audio_s"] == cost


def test_padding_is_what_rows_are_short_of_the_longest(tmp_path: Path) -> None:
    mixed = {**FINETUNE, "lengths": "mixed", "loop.max_seconds": "17", "loop.bin_seconds": "40"}
    found = check_task(tasks.FINETUNE, mixed, tmp_path)
    assert 0 < found["padding"] < 0.05


def test_a_signal_ends_a_bench(tmp_path: Path) -> None:
    run = run_for(tmp_path)
    run.stop.signal = 15
    config = tasks.BenchPretrainConfig.model_validate(
        {"model": {"architecture": "small", **toys.SIZES}, "loop": {"updates": 2, "bins": 1}}
    )
    with pytest.raises(Stopped):
        tasks.PRETRAIN.run(config, run)


# -- the parts --------------------------------------------------------------------------------


def test_made_up_utterances_are_as_long_as_they_say_and_have_text_that_fits() -> None:
    found = bench.noise([0.5, 1.0, 2.5])
    assert [len(found.audio(row)) for row in found.rows] == [8000, 16_000, 40_000]
    assert not np.array_equal(found.audio(found.rows[0]), found.audio(found.rows[1])[:8000])
    assert labels.fit(found, Tokens(), toys.TINY) is found


def test_mixed_utterances_are_as_long_as_those_of_librispeech() -> None:
    seconds = np.array(bench.durations("mixed", 40.0, 87.5))
    assert 12 < seconds.mean() < 12.6  # the mean of train-960 is 12.3 s
    assert seconds.max() < 17
    assert max(bench.durations("mixed", 10.0, 87.5)) == 10


def test_equal_utterances_fill_their_bins() -> None:
    loop = LoopConfig(bin_seconds=31.25, max_seconds=15.625)
    found = bench.noise(bench.durations("equal", loop.max_seconds, loop.bin_seconds))
    collate = partial(ctc_batch, architecture=toys.TINY, tokens=Tokens(), mask=None)
    plan = training.split(found, loop, collate, crop=False).plan
    assert {len(plan.bin(number).rows) for number in range(8)} == {2}


def test_the_meter_counts_from_its_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(clock)))
    key_B = torch.arange(2)
    padded = Batch(torch.zeros(2, 16_000), torch.tensor([16_000, 8000]), key_B, 0, [0, 1])
    meter = bench.Meter(iter([padded] * 3), lambda batch: len(batch.rows))
    next(meter)
    meter.reset()
    assert list(meter) == [padded, padded]
    assert (meter.audio, meter.held, meter.waited, meter.flops) == (3.0, 4.0, 2.0, 4)


def test_peak_memory_is_that_of_what_is_gone_again() -> None:
    memory = bench_machine.PeakMemory(CPU)
    held = np.ones(64 << 20, np.uint8)
    del held
    assert memory.bytes > 60 << 20


def test_compilations_are_read_from_dynamo_if_it_was_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo.utils", raising=False)
    assert bench_machine.compilations() == 0
    dynamo = SimpleNamespace(counters={"stats": {"unique_graphs": 3}})
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", dynamo)
    assert bench_machine.compilations() == 3


# -- the scripts ------------------------------------------------------------------------------


def tiny_work() -> Any:
    import sides

    return sides.Work(toys.GROUP.model_copy(update={"heads": 4}), 2, 1.0)


@pytest.mark.usefixtures("scripts")
def test_the_sides_of_pre_training_compute_the_same() -> None:
    pytest.importorskip("transformers")
    import peers

    found = peers.compare(tiny_work(), "pretrain-fp32", 1, 0.0)
    assert found["loss"]["ours"] == pytest.approx(found["loss"]["transformers"], rel=1e-5)
    assert found["loss"]["gradients_apart"] < 1e-4
    assert found["ratio"] > 0


@pytest.mark.usefixtures("scripts")
def test_sides_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    import sides

    wrong = sides.OBJECTIVE.model_copy(update={"logit_temperature": 0.2})
    monkeypatch.setattr(sides, "OBJECTIVE", wrong)
    with pytest.raises(SystemExit, match="do not compute the same"):
        sides.agreement(tiny_work(), sides.batch_of(tiny_work()), 1e-3)


@pytest.mark.usefixtures("scripts")
def test_bf16_is_compared_with_both_of_their_precisions() -> None:
    pytest.importorskip("transformers")
    import peers

    steps = peers.pretraining(tiny_work(), "bf16", [])
    assert {"ours", "transformers", "transformers_fp32"} <= set(steps)
    assert peers.ratio_key("transformers") == "ratio"
    assert peers.ratio_key("transformers_fp32") == "ratio_fp32"
    assert peers.ratio_key("torchaudio") == "ratio_torchaudio"


@pytest.mark.usefixtures("scripts")
def test_a_taught_network_says_what_it_hears_and_so_does_transformers() -> None:
    pytest.importorskip("transformers")
    import peers

    work = tiny_work()._replace(seconds=2.0)
    found = peers.compare(work, "infer-fp32", 1, 0.0)
    assert found["transcripts_equal"]
    assert found["letters"] > 8
    assert found["ratio"] > 0


@pytest.mark.usefixtures("scripts")
def test_sides_that_say_different_things_are_not_compared() -> None:
    import peers

    said = torch.tensor([0, 5, 5, 0, 5, 6])
    also = torch.tensor([5, 0, 0, 5, 6, 0])
    assert peers.transcripts({"ours": lambda: [said], "transformers": lambda: [also]}) == {
        "transcripts_equal": True,
        "letters": 3,
    }
    for other in (torch.tensor([5, 6]), torch.zeros(2, dtype=torch.long)):
        with pytest.raises(SystemExit, match="not equal"):
            peers.transcripts({"ours": lambda: [said], "transformers": lambda x=other: [x]})


@pytest.mark.usefixtures("scripts")
def test_rounds_go_there_and_back_and_the_ratio_is_their_median() -> None:
    import peers

    order: list[str] = []
    steps = {name: partial(order.append, name) for name in ("ours", "transformers")}
    seconds = peers.interleaved(steps, 3, 100.0)
    assert "".join(name[0] for name in order) == "ottootto"
    assert [len(times) for times in seconds.values()] == [3, 3]
    made_up = {"ours": [1.0, 2.0, 1.0], "transformers": [2.0, 2.0, 9.0]}
    assert peers.ratio(made_up, "transformers") == 2.0


@pytest.mark.usefixtures("scripts")
def test_every_part_of_the_gpu_script_runs_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import gpu

    parts = dict(gpu.measure(gpu.Gpu(CPU, gpu.DRY, tmp_path), 60.0))
    assert not {name: found for name, found in parts.items() if "took_s" not in found}
    assert not {name: found for name, found in parts.items() if "failed" in found}
    assert parts["bf16 against float32"]["max_apart"] < 0.05
    assert all(gpu.line(name, found).startswith(name) for name, found in parts.items())
    assert set(gpu.TARGETS) < set(parts)


@pytest.mark.usefixtures("scripts")
def test_the_gpu_script_takes_the_fastest_size_that_fits() -> None:
    import gpu

    def measure(seconds: float) -> dict[str, Any]:
        if seconds > 20:
            raise torch.OutOfMemoryError
        return {"audio_s_per_s": 100 - seconds}

    found = gpu.fastest(measure, (10.0, 20.0, 40.0, 80.0))
    assert found["audio_s_per_s"] == 90
    assert found["tried"] == {"10": 90, "20": 80, "40": "out of memory"}
    with pytest.raises(torch.OutOfMemoryError):
        gpu.fastest(measure, (40.0,))


def script(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
def test_gpu_sh_writes_its_results_and_says_where_there_is_no_gpu(tmp_path: Path) -> None:
    done = script(ROOT / "benchmarks" / "gpu.sh")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no CUDA device" in done.stderr
    done = script(ROOT / "benchmarks" / "gpu.sh", "--dry-run", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert record["dry_run"]
    assert len(record["results"]) == 11


@pytest.mark.slow
@pytest.mark.parametrize("case", ["pretrain-fp32", "infer-fp32"])
def test_peers_ends_with_a_line_of_json(case: str) -> None:
    pytest.importorskip("transformers")
    words = ("--dry-run", "--json", "--only", case)
    done = script(sys.executable, ROOT / "benchmarks" / "peers.py", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    growth = [found[side]["peak_growth_bytes"] for side in ("ours", "transformers")]
    assert found["memory_ratio"] == growth[0] / growth[1]
    assert found["ratio"] > 0
