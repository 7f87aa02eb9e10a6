"""The decoder's benchmark chooses by its rules, loses no side silently, and runs end to end."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "decoder.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The scripts as modules, which leave nothing behind."""
    before, environment = set(sys.modules), dict(os.environ)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import decoder
    import decoder_batch
    import decoder_made
    import decoder_peers
    import decoder_worker

    yield SimpleNamespace(
        decoder=decoder,
        batch=decoder_batch,
        made=decoder_made,
        peers=decoder_peers,
        worker=decoder_worker,
    )
    for name in {path.stem for path in SCRIPT.parent.glob("*.py")} - before:
        sys.modules.pop(name, None)
    for name in set(os.environ) - set(environment):
        del os.environ[name]


class Fake:
    """A worker whose answers are functions of the options."""

    def __init__(self, found: Any, seconds: Sequence[float] = (1.0,)) -> None:
        self.loading = {"load_s": 0.5, "memory_mb": 10.0}
        self.found, self.seconds, self.asked = found, list(seconds), []

    def decode(self, options: dict[str, Any], part: str, utterances: int) -> Any:
        self.asked.append((part, options))
        spent = self.seconds[(len(self.asked) - 1) % len(self.seconds)]
        return SimpleNamespace(found=self.found(options), cpu_s=spent, wall_s=2 * spent)

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def small(bench: SimpleNamespace) -> Any:
    return bench.made.Made(300, 500, 300, dev=3, test=4, seconds=1.0)


# -- choices ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "beam"),
    [
        ({50: -10.0, 100: -9.5, 150: -9.0, 200: -8.99, 500: -8.985}, 150),
        ({50: -9.0, 100: -9.0, 150: -9.0, 200: -9.0, 500: -9.0}, 50),
        ({50: -9.0, 100: -9.0, 150: -9.0, 200: -9.0, 500: -8.9}, 500),
    ],
)
def test_the_narrowest_search_that_finds_what_the_widest_finds_is_chosen_on_dev(
    bench: SimpleNamespace, scores: dict[int, float], beam: int
) -> None:
    worker = Fake(lambda options: [("ONE", scores[options["beam"]])])
    chosen = bench.decoder.Tuner(worker, ["ONE"]).closed()
    assert chosen["beam"] == beam
    assert {part for part, _ in worker.asked} == {"dev"}


def test_weights_are_those_with_the_fewest_errors_on_dev(bench: SimpleNamespace) -> None:
    def found(options: dict[str, Any]) -> list[tuple[str, float]]:
        good = (options["lm_weight"], options["word_score"]) == (2.5, 1.0)
        return [("ONE" if good else "TWO" if options["lm_weight"] == 2.5 else "TWO TWO", -1.0)]

    chosen = bench.decoder.Tuner(Fake(found), ["ONE"]).closed()
    assert (chosen["lm_weight"], chosen["word_score"]) == (2.5, 1.0)


def test_of_open_searches_with_equal_errors_the_narrowest_is_chosen(bench: SimpleNamespace) -> None:
    worker = Fake(lambda options: [("ONE" if options["beam"] >= 50 else "TWO", -1.0)])
    assert bench.decoder.Tuner(worker, ["ONE"]).open()["beam"] == 50


# -- the race ---------------------------------------------------------------------------------


def race(bench: SimpleNamespace, **sides: Fake) -> Any:
    with ExitStack() as stack:
        found = bench.decoder.Race(stack, lambda program, options: sides[program])
        for side in sides:
            found.add(side, side, {})
    return found


def test_one_noisy_round_does_not_change_a_figure(bench: SimpleNamespace) -> None:
    said = [("ONE", -1.0)]
    ours = Fake(lambda _: said, [0.1, 9.0, 0.1])
    theirs = Fake(lambda _: said, [1.0, 1.0, 1.0])
    rows = race(bench, ours_numba=ours, flashlight_1500=theirs).run(["ONE"])
    assert rows["ours_numba"]["ms"] == pytest.approx(100)
    assert rows["ours_numba"]["wall_ms"] == pytest.approx(200)
    assert rows["ours_numba"]["speed"] == pytest.approx(10)


def test_a_score_that_is_not_told_is_null(bench: SimpleNamespace) -> None:
    rows = race(bench, pyctcdecode=Fake(lambda _: [("ONE", math.nan)])).run(["ONE"])
    assert rows["pyctcdecode"]["objective"] is None


def test_a_side_that_ends_in_a_round_is_left_out(
    bench: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(_: Any) -> Any:
        raise bench.peers.Absent("killed")

    rows = race(bench, a=Fake(lost), b=Fake(lambda _: [("ONE", -1.0)])).run(["ONE"])
    assert list(rows) == ["b"]
    assert "a: ended: killed" in capsys.readouterr().err


@pytest.mark.parametrize("python", [None, "nowhere/python", sys.executable])
def test_without_an_interpreter_for_pyctcdecode_a_line_says_what_to_do(
    bench: SimpleNamespace, tmp_path: Path, python: str | None
) -> None:
    (tmp_path / "task.json").write_text("{}")
    peers = Path(python) if python else None
    with pytest.raises(bench.peers.Absent, match=r"--install|No such file|No module named"):
        bench.peers.Worker("pyctcdecode", tmp_path / "task.json", {}, peers, tmp_path)


def test_a_process_that_is_killed_ends_with_a_reason_and_leaves_nothing_open(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    job = bench.decoder.open_job(bench.made.make(tmp_path / "job", small(bench)), tmp_path)
    (tmp_path / "task.json").write_text(json.dumps(job.task()))
    start = bench.peers.Worker
    with start("ours", tmp_path / "task.json", {"engine": "torch"}, None, tmp_path) as worker:
        assert len(worker.decode({"engine": "torch"}, "test", 2).found) == 2
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(bench.peers.Absent, match="ended with -9"):
            worker.decode({"engine": "torch"}, "test", 2)


# -- the made-up job, and the batch ------------------------------------------------------------


def test_a_made_up_job_is_the_same_each_time_and_is_one(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    folders = [bench.made.make(tmp_path / name, small(bench)) for name in "ab"]
    job = bench.decoder.open_job(folders[0], tmp_path)
    assert len(job.texts("test")) == 4
    for part in ("dev", "test"):
        one, other = (bench.worker.split(str(folder), part) for folder in folders)
        assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))
        assert np.exp(np.concatenate(one)).sum(1) == pytest.approx(1, abs=1e-4)
    known = set(job.lexicon.words)
    assert all(word in known for text in job.texts("test") for word in text.split())


def test_a_kept_language_model_is_that_of_the_same_text(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    folder = bench.made.make(tmp_path / "job", small(bench))
    arpas = [bench.decoder.open_job(folder, tmp_path).arpa for _ in range(2)]
    with (folder / "corpus.txt").open("a") as file:
        file.write("ONE MORE LINE\n")
    arpas.append(bench.decoder.open_job(folder, tmp_path).arpa)
    assert arpas[0] == arpas[1] != arpas[2]
    assert b"MORE" in arpas[2].read_bytes()


def test_operations_and_waits_are_counted(bench: SimpleNamespace) -> None:
    x = torch.arange(6.0)
    with bench.batch.Operations() as counted:
        y = (x + 1)[x > 2]  # two comparisons or sums, one index that waits
        y.view(-1)
        int(y.sum())  # a sum, and a wait
    assert (counted.all, counted.waits) == (5, 2)


@pytest.mark.slow
def test_a_batch_is_decoded_alike_by_both_engines(bench: SimpleNamespace, tmp_path: Path) -> None:
    job = bench.made.make(tmp_path / "job", small(bench))
    found = bench.batch.measure(torch.device("cpu"), job, tmp_path, 6)
    assert found["utterances"] == 6
    for mode in ("lexicon", "open"):
        assert found[mode]["equal"] == 1
        assert found[mode]["audio_s_per_s"] > 0
        assert 0 < found[mode]["waits_a_frame"] < found[mode]["operations_a_frame"]


@pytest.mark.slow
def test_the_whole_script_ends_with_a_line_of_json(bench: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("flashlight")
    job = bench.made.make(tmp_path / "job", small(bench))
    words = ("--job", job, "--work", tmp_path / "work", "--json")
    words += ("--peers-python", tmp_path / "nowhere")
    done = subprocess.run(
        [sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "pyctcdecode: left out" in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["pyctcdecode"] is None
    for side in ("ours_numba", "ours_torch", "ours_open", "flashlight_50", "flashlight_1500"):
        figures = {"wer", "objective", "ms", "wall_ms", "speed", "load_s", "memory_mb"}
        assert set(found[side]) == figures, side
    assert found["ours_torch"]["objective"] == found["ours_numba"]["objective"]
    within = found["flashlight_1500"]["objective"] - bench.decoder.WITHIN
    assert found["ours_numba"]["objective"] >= within
    assert found["utterances"] == 4
    assert found["threads_2"] > 0
