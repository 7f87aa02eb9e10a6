"""The same parts, files and results on every engine, whatever dies and whoever goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import toys
from works import Squares

from w2vtool import emissions, engines, parts
from w2vtool.errors import CheckpointError, ConfigError, DataError, Stopped
from w2vtool.run import Stop

ROWS = range(10)


def cut(work: Squares) -> list[parts.Part]:
    return [parts.Part(i, list(ROWS[2 * i : 2 * i + 2]), repr) for i in range(len(ROWS) // 2)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def everything(work: Squares, folder: Path, **how: Any) -> list[dict[str, int]]:
    found = engines.run(work, cut(work), folder, device="cpu", **how)
    return [line for lines in found for line in lines]


WANTED = [{"id": row, "square": row * row} for row in ROWS]


@pytest.fixture
def here(tmp_path: Path) -> dict[str, bytes]:
    """The files that one process makes."""
    (tmp_path / "first").mkdir()
    assert everything(Squares(tmp_path / "first"), tmp_path / "here") == WANTED
    return files(tmp_path / "here")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A Ray of this machine with two places."""
    ray = pytest.importorskip("ray")
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1])])
    ray.init(
        num_cpus=2,
        log_to_driver=False,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield ray
    ray.shutdown()


def test_a_pool_makes_what_one_process_makes(here: dict[str, bytes], tmp_path: Path) -> None:
    done: list[int] = []
    work = Squares(tmp_path)
    assert everything(work, tmp_path / "pool", jobs=2, on_progress=done.append) == WANTED
    assert files(tmp_path / "pool") == here
    assert work.done() == list(ROWS) and done[0] == 0 and done[-1] == len(ROWS)


def test_what_is_done_is_not_done_again(here: dict[str, bytes], tmp_path: Path) -> None:
    work, done = Squares(tmp_path), list[int]()
    (tmp_path / "here/part-000003.jsonl").unlink()
    assert everything(work, tmp_path / "here", jobs=2, on_progress=done.append) == WANTED
    assert work.done() == [6, 7] and done == [8, 10]
    assert files(tmp_path / "here") == here


def test_a_damaged_part_is_made_again_by_the_next_run(
    here: dict[str, bytes], tmp_path: Path
) -> None:
    """Its first line says that it is finished; the others are only looked at in the end."""
    path = tmp_path / "here/part-000003.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="a finished part has gone") as raised:
        everything(Squares(tmp_path), tmp_path / "here")
    assert raised.value.hint == "run the command again"
    assert everything(Squares(tmp_path), tmp_path / "here") == WANTED
    assert files(tmp_path / "here") == here


def test_a_process_that_dies_costs_its_part_and_no_more(
    here: dict[str, bytes], tmp_path: Path
) -> None:
    work = Squares(tmp_path, deadly=(5,))
    assert everything(work, tmp_path / "pool", jobs=2) == WANTED
    assert files(tmp_path / "pool") == here and work.done().count(5) == 2


@pytest.mark.slow
def test_a_row_that_always_kills_ends_the_job_and_leaves_the_rest(tmp_path: Path) -> None:
    work = Squares(tmp_path, deadly=(5,), always=True)
    with pytest.raises(DataError, match="have died 3 times"):
        everything(work, tmp_path / "pool", jobs=2)
    assert work.done().count(5) == 3 and "part-000002.jsonl" not in files(tmp_path / "pool")


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_arrives_as_it_was_raised(tmp_path: Path, jobs: int) -> None:
    with pytest.raises(DataError, match="7 cannot be squared") as raised:
        everything(Squares(tmp_path, bad=(7,)), tmp_path / "out", jobs=jobs)
    assert raised.value.where == "numbers.txt:7" and raised.value.hint == "leave it out"


@pytest.mark.parametrize("jobs", [1, 2])
def test_work_that_cannot_start_says_why(tmp_path: Path, jobs: int) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        everything(Squares(tmp_path, lost=True), tmp_path / "out", jobs=jobs)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_signal_keeps_what_is_finished(here: dict[str, bytes], tmp_path: Path, jobs: int) -> None:
    stop, work = Stop(), Squares(tmp_path)

    def after_four(done: int) -> None:
        if done >= 4:
            stop.signal = signal.SIGTERM

    with pytest.raises(Stopped):
        everything(work, tmp_path / "out", jobs=jobs, stop=stop, on_progress=after_four)
    kept = files(tmp_path / "out")
    assert kept and kept.items() < here.items()
    met = set(work.done())
    assert everything(Squares(tmp_path), tmp_path / "out") == WANTED
    again = [row for row in ROWS if work.done().count(row) > 1]
    finished = {row for row in met if f"part-{row // 2:06d}.jsonl" in kept}
    assert not finished & set(again), "a part that was finished was done again"


def test_a_signal_ends_a_long_row_of_a_pool(tmp_path: Path) -> None:
    stop, work = Stop(), Squares(tmp_path, endless=True)

    def signal_comes() -> None:
        while not work.done():
            time.sleep(0.01)
        stop.signal = signal.SIGTERM

    watcher = threading.Thread(target=signal_comes)
    watcher.start()
    with pytest.raises(Stopped):
        everything(work, tmp_path / "out", jobs=2, stop=stop)
    watcher.join()
    assert not (tmp_path / "nobody came").exists()


def test_ray_makes_what_one_process_makes(
    here: dict[str, bytes], tmp_path: Path, cluster: Any
) -> None:
    work = Squares(tmp_path)
    (tmp_path / "ray").mkdir()
    begun = here["part-000001.jsonl"]  # by another engine
    (tmp_path / "ray/part-000001.jsonl").write_bytes(begun)
    assert everything(work, tmp_path / "ray", jobs=2, engine="ray") == WANTED
    assert files(tmp_path / "ray") == here
    assert work.done() == [0, 1, 4, 5, 6, 7, 8, 9]


def test_a_ray_process_that_is_killed_costs_its_part_and_no_more(
    here: dict[str, bytes], tmp_path: Path, cluster: Any
) -> None:
    work = Squares(tmp_path, deadly=(5,))
    assert everything(work, tmp_path / "ray", jobs=2, engine="ray") == WANTED
    assert files(tmp_path / "ray") == here and work.done().count(5) == 2


@pytest.mark.slow
def test_a_row_that_always_kills_ends_the_job_on_ray_too(tmp_path: Path, cluster: Any) -> None:
    work = Squares(tmp_path, deadly=(5,), always=True)
    with pytest.raises(DataError, match="has died 3 times"):
        everything(work, tmp_path / "ray", jobs=2, engine="ray")
    assert work.done().count(5) == 3 and "part-000002.jsonl" not in files(tmp_path / "ray")


@pytest.mark.slow
def test_ray_passes_errors_on(tmp_path: Path, cluster: Any) -> None:
    with pytest.raises(DataError, match="7 cannot be squared") as raised:
        everything(Squares(tmp_path, bad=(7,)), tmp_path / "out", jobs=2, engine="ray")
    assert raised.value.where == "numbers.txt:7"


@pytest.mark.slow
def test_more_processes_than_ray_has_places_do_not_hang(tmp_path: Path, cluster: Any) -> None:
    assert everything(Squares(tmp_path), tmp_path / "out", jobs=5, engine="ray") == WANTED


@pytest.mark.parametrize("how", [{}, {"jobs": 2}, {"jobs": 2, "engine": "ray"}], ids=str)
def test_rejected_rows_are_in_their_places_and_are_all_that_is_tried_again(
    here: dict[str, bytes], tmp_path: Path, how: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if "engine" in how:
        request.getfixturevalue("cluster")
    work, out = Squares(tmp_path, unfit=(3, 4, 5)), tmp_path / "out"
    wanted = [{"id": n, "rejected": n % 2} if n in work.unfit else WANTED[n] for n in ROWS]
    assert everything(work, out, **how) == wanted
    assert everything(replace(work, unfit=(5,)), out, **how) == [
        *WANTED[:5],
        wanted[5],
        *WANTED[6:],
    ]
    done: list[int] = []
    assert everything(replace(work, unfit=()), out, on_progress=done.append, **how) == WANTED
    assert files(out) == here and done[-1] == len(ROWS)
    assert [row for row in ROWS for _ in range(work.done().count(row) - 1)] == [3, 4, 5, 5]


def test_halves_of_files_that_a_killed_job_left_are_swept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.part-000001.jsonl.abc.part").write_text("half")
    everything(Squares(tmp_path), tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


def test_without_ray_there_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray cannot be imported") as raised:
        everything(Squares(tmp_path), tmp_path / "out", engine="ray")
    assert "w2vtool[ray]" in raised.value.hint


# -- the tasks ------------------------------------------------------------------------------------


@pytest.fixture
def two_cores() -> Iterator[None]:
    """Processes divide the cores: of two, each has one thread."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(cores)[:2]))
    yield
    os.sched_setaffinity(0, cores)


@pytest.fixture
def tasks(
    one_thread: None, two_cores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """Both tasks over 5 utterances in parts of 2, by the words given; gives all that they wrote."""
    monkeypatch.setattr(parts, "PART_ROWS", 2)
    monkeypatch.chdir(tmp_path)
    data = toys.corpus(tmp_path, "data", 5, seed=3)
    model = toys.save(tmp_path / "model", "ctc")
    from w2vtool import cli

    def both(out: str, *words: str) -> dict[str, bytes]:
        common = [str(data), "--checkpoint", str(model), "--device", "cpu", *words]
        for own in (["decode", "--run-dir", f"{out}/decode"], ["extract", "--out", f"{out}/f"]):
            with pytest.raises(SystemExit) as ended:
                cli.main([*own, *common])
            assert not ended.value.code
        made = [*Path(out, "f").rglob("*"), *Path(out, "decode/parts").iterdir()]
        made.append(Path(out, "decode/hyp.jsonl"))
        return {str(p.relative_to(out)): p.read_bytes() for p in made if p.is_file()}

    yield both


def test_decode_and_extract_write_the_same_bytes_on_every_engine(
    tasks: Callable[..., dict[str, bytes]], cluster: Any
) -> None:
    wanted = tasks("one")
    assert sum(name.endswith(".safetensors") for name in wanted) == 5
    assert sum("part-" in name for name in wanted) == 6
    assert tasks("pool", "--jobs", "2") == wanted
    assert tasks("ray", "--jobs", "2", "--engine", "ray") == wanted


def test_emissions_of_a_row_know_their_file(tmp_path: Path) -> None:
    [(source, row), *_] = emissions.open_inputs([toys.corpus(tmp_path, "data", 2)])
    before = emissions.identify((source, row))
    source.audio_path(row).write_bytes(source.audio_path(row).read_bytes() + bytes(320))
    assert emissions.identify((source, row)) != before
    source.audio_path(row).unlink()
    assert emissions.identify((source, row))["bytes"] is None


COMMAND = [sys.executable, "-m", "w2vtool"]


def environment(**more: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    } | more


@pytest.mark.slow
def test_torchrun_and_a_kill_give_the_same_bytes(tmp_path: Path) -> None:
    """300 utterances, three parts: by one process, by two under torchrun, and killed ten times."""
    data = toys.corpus(tmp_path, "data", 300, seed=4)
    model = toys.save(tmp_path / "model", "ctc")

    def words(out: str) -> list[str]:
        common = [str(data), "--checkpoint", str(model), "--device", "cpu"]
        return ["extract", "--out", str(tmp_path / out), *common]

    def features(out: str) -> dict[str, bytes]:
        made = [path for path in (tmp_path / out).rglob("[!.]*") if path.is_file()]
        return {str(path.relative_to(tmp_path / out)): path.read_bytes() for path in made}

    subprocess.run([*COMMAND, *words("one")], env=environment(), check=True, timeout=250)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*torchrun, "-m", "w2vtool", *words("two"), "--run-dir", str(tmp_path / "run")],
        env=environment(),
        check=True,
        timeout=250,
    )
    for number in range(10):
        with subprocess.Popen([*COMMAND, *words("killed")], env=environment()) as process:
            deadline = time.monotonic() + 60  # a loaded machine takes long to import torch
            while process.poll() is None and time.monotonic() < deadline:
                if len(list((tmp_path / "killed").glob("data-*"))) >= 12 * (number + 1):
                    process.kill()
                time.sleep(0.002)
    subprocess.run(
        [*COMMAND, *words("killed"), "--jobs", "2"], env=environment(), check=True, timeout=250
    )
    wanted = features("one")
    assert len(wanted) == 305
    for other in (features("two"), features("killed")):
        assert sorted(other) == sorted(wanted)
        assert [name for name in wanted if other[name] != wanted[name]] == []


# -- manifests ------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """100 recordings, two of which cannot be used, and the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for number in range(100):
        tone = np.sin(np.arange(800 + number) / 8).astype("f4") / 3
        soundfile.write(tmp_path / f"a/{number:03d}.wav", tone, 16_000, subtype="PCM_16")
    (tmp_path / "a/017.wav").write_bytes(b"no audio")
    whole = (tmp_path / "a/071.wav").read_bytes()
    (tmp_path / "a/071.wav").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def test_a_manifest_is_the_same_from_ray_and_from_here(
    corpus: Path, w2v: Callable[..., Any], cluster: Any
) -> None:
    assert w2v("manifest", "a", "--out", "here.jsonl").code == 0
    done = w2v("manifest", "a", "--out", "ray.jsonl", "--engine", "ray", "--jobs", "2")
    assert done.code == 0, done.err
    for ending in (".jsonl", ".jsonl.rejected.jsonl"):
        assert Path(f"ray{ending}").read_bytes() == Path(f"here{ending}").read_bytes()
    kept = [
        {path.relative_to(folder): path.read_bytes() for path in folder.glob("*/*")}
        for folder in (Path(".here.jsonl.parts"), Path(".ray.jsonl.parts"))
    ]
    assert kept[0] and kept[0] == kept[1], "what one engine keeps, another can go on from"


def test_processes_of_torchrun_share_the_files_of_a_manifest(
    corpus: Path, w2v: Callable[..., Any]
) -> None:
    assert w2v("manifest", "a", "--out", "here.jsonl").code == 0
    words = [*COMMAND, "manifest", "a", "--out", "two.jsonl", "--run-dir", "run"]
    ranks = [subprocess.Popen(words, env=environment(RANK=rank, WORLD_SIZE="2")) for rank in "01"]
    assert [process.wait(timeout=100) for process in ranks] == [0, 0]
    assert Path("two.jsonl").read_bytes() == Path("here.jsonl").read_bytes()
