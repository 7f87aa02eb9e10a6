"""A bad row costs itself: it is named before the work or at its end, and all others are done."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import toys

from w2vtool import emissions, manifest, parts
from w2vtool.manifest import Utterance


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five utterances in parts of two: of one the file is gone, in another there are NaNs."""
    monkeypatch.setattr(parts, "PART_ROWS", 2)
    path = toys.corpus(tmp_path, "data", 5, seed=3)
    (tmp_path / "audio/data-1.wav").unlink()
    damage(tmp_path / "audio/data-4.wav")
    return path


def damage(path: Path) -> None:
    wave, rate = soundfile.read(path, dtype="float32")
    wave[100] = np.nan
    soundfile.write(path, wave, rate, subtype="FLOAT")


def repair(folder: Path) -> None:
    whole = toys.corpus(folder / "whole", "data", 5, seed=3)
    for path in (whole.parent / "audio").iterdir():
        path.replace(folder / "audio" / path.name)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(task: str, out: Path, model: Path, *more: object) -> list[object]:
    """The words of a task that goes on where it was."""
    own = ["--out", out] if task == "extract" else ["--run-dir", out, "--resume"]
    return [task, *own, "--checkpoint", model, "--device", "cpu", *more]


HEAD = {"decode": "hyp.jsonl", "extract": "index.jsonl"}


@pytest.mark.parametrize("task", HEAD)
@pytest.mark.parametrize("more", [(), ("--jobs", 2)], ids=["here", "pool"])
def test_other_rows_are_there_and_a_second_run_does_what_is_missing(
    data: Path,
    tmp_path: Path,
    tiny_ctc: Path,
    w2v: Callable[..., Any],
    task: str,
    more: tuple[object, ...],
) -> None:
    out, folder = tmp_path / "out", tmp_path / "audio"
    words = command(task, out, tiny_ctc, *more, data)
    done = w2v(*words)
    assert done.code == 3, done.err
    before, _, after = done.err.partition("error: ")
    assert "1 of 5 utterances cannot be decoded\n  data-1: " in before and "data-4" not in before
    assert "2 of 5 rejected" in after and "[missing]" in after and "[not-finite]" in after
    assert [line["id"] for line in lines(out / HEAD[task])] == ["data-0", "data-2", "data-3"]
    rejected = lines(out / "rejected.jsonl")
    assert [(x["id"], x["path"], x["reason"]) for x in rejected] == [
        ("data-1", str(folder / "data-1.wav"), "missing"),
        ("data-4", str(folder / "data-4.wav"), "not-finite"),
    ]
    made = {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert w2v(*words).code == 3
    repair(tmp_path)
    done = w2v(*words)
    assert done.code == 0, done.err
    assert [line["id"] for line in lines(out / HEAD[task])] == [f"data-{i}" for i in range(5)]
    assert not (out / "rejected.jsonl").exists()
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    assert len(made) == (3 if task == "extract" else 0)
    done = w2v(*[w for w in command(task, tmp_path / "clean", tiny_ctc, data) if w != "--resume"])
    assert done.code == 0, done.err
    whole = lines(tmp_path / "clean" / HEAD[task])
    for one, other in zip(lines(out / HEAD[task]), whole, strict=True):
        assert one["id"] == other["id"] and one.get("text") == other.get("text")


@pytest.mark.parametrize("task", HEAD)
def test_strict_stops_before_the_work_and_names_all(
    data: Path, tmp_path: Path, tiny_ctc: Path, w2v: Callable[..., Any], task: str
) -> None:
    (tmp_path / "audio/data-3.wav").unlink()
    done = w2v(*command(task, tmp_path / "out", tiny_ctc, "--strict", data))
    assert done.code == 3
    assert "2 of 5 utterances cannot be decoded\n  data-1: " in done.err and "data-3: " in done.err
    assert not list((tmp_path / "out").rglob("part-*"))


def test_strict_stops_at_damage_that_only_decoding_shows(
    data: Path, tmp_path: Path, tiny_ctc: Path, w2v: Callable[..., Any]
) -> None:
    rows = manifest.read(data).rows
    manifest.write(data, [rows[0], rows[4]])
    done = w2v(*command("decode", tmp_path / "out", tiny_ctc, "--strict", data))
    assert done.code == 3 and "NaN or infinite" in done.err and "(data-4)" in done.err
    assert not (tmp_path / "out/hyp.jsonl").exists()


@pytest.mark.parametrize("more", [("--stream",), ("--cache", "kept")], ids=["stream", "cache"])
def test_streams_and_caches_go_on_too(
    data: Path,
    tmp_path: Path,
    tiny_ctc: Path,
    w2v: Callable[..., Any],
    more: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        done = w2v(*command("decode", tmp_path / "out", tiny_ctc, *more, data))
        assert done.code == 3, done.err
        names = [line["id"] for line in lines(tmp_path / "out/hyp.jsonl")]
        assert names == ["data-0", "data-2", "data-3"]


def test_when_no_row_can_be_used_nothing_is_begun(
    data: Path, tmp_path: Path, tiny_ctc: Path, w2v: Callable[..., Any]
) -> None:
    for path in (tmp_path / "audio").iterdir():
        path.unlink()
    done = w2v(*command("extract", tmp_path / "out", tiny_ctc, data))
    assert done.code == 3 and "5 of 5 utterances cannot be decoded" in done.err
    assert not (tmp_path / "out/index.jsonl").exists()


@pytest.mark.parametrize("task", HEAD)
def test_a_bad_file_that_was_named_costs_itself(
    data: Path, tmp_path: Path, tiny_ctc: Path, w2v: Callable[..., Any], task: str
) -> None:
    bad, good, out = tmp_path / "audio/bad.wav", tmp_path / "audio/data-0.wav", tmp_path / "out"
    bad.write_bytes(b"RIFF")
    words = command(task, out, tiny_ctc, bad, good)
    done = w2v(*words, "--strict")
    assert done.code == 3 and not (out / HEAD[task]).exists()
    done = w2v(*words)
    before, _, after = done.err.partition("error: ")
    assert done.code == 3 and f"{bad}: is not audio" in before
    assert after.startswith(f"1 of 2 rejected\n  bad: {bad}: is not audio")
    assert [line["id"] for line in lines(out / HEAD[task])] == ["data-0"]
    assert [line["reason"] for line in lines(out / "rejected.jsonl")] == ["not-audio"]
    bad.write_bytes(good.read_bytes())
    assert w2v(*words).code == 0
    assert [line["id"] for line in lines(out / HEAD[task])] == ["bad", "data-0"]
    assert not (out / "rejected.jsonl").exists()


@pytest.mark.parametrize("wrong", ["gone.wav", "notes.txt", "folder"])
def test_what_is_no_audio_file_by_its_name_stops_at_once(
    data: Path, tmp_path: Path, tiny_ctc: Path, w2v: Callable[..., Any], wrong: str
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    done = w2v(
        *command("decode", tmp_path / "out", tiny_ctc, tmp_path / "audio/data-0.wav"),
        tmp_path / wrong,
    )
    assert done.code == 3 and wrong in done.err
    assert not (tmp_path / "out/hyp.jsonl").exists()


# -- rows are read when they are needed -----------------------------------------------------------


def test_rows_of_a_large_manifest_are_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "CACHE_BYTES", 0)
    path = tmp_path / "large.jsonl"
    manifest.write(path, (Utterance(f"{i}", f"{i}.wav", 1.0) for i in range(1000)))
    jobs = emissions.open_inputs([path])
    cut = parts.cut(jobs, {}, emissions.identify)
    gc.collect()
    held = sum(type(found) is Utterance for found in gc.get_objects())
    assert len(cut) == 8 and held < 100
    assert [row.id for part in cut for _, row in part.rows] == [f"{i}" for i in range(1000)]


def test_jobs_are_a_sequence(tmp_path: Path) -> None:
    paths = [toys.corpus(tmp_path, name, rows, seed=1) for name, rows in (("a", 3), ("b", 4))]
    jobs = emissions.open_inputs(paths)
    names = [row.id for path in paths for row in manifest.read(path).rows]
    every = [slice(a, b, c) for a in range(-8, 9) for b in range(-8, 9) for c in (1, 2, -1)]
    for part in (slice(None), *every):
        assert [row.id for _, row in jobs[part]] == names[part]
    assert [jobs[i][1].id for i in range(-7, 7)] == names * 2
    assert jobs[1:6][2:4][1][1].id == names[4] and jobs[6][0].path == paths[1]
    with pytest.raises(IndexError):
        jobs[7]
