"""Looking at many files: none is looked at twice, not after a kill; a crash costs one file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from w2vtool import corpora, manifest, survey, survey_parts
from w2vtool.manifest import Candidate

ROOT = Path(__file__).parents[2]


def clips(folder: Path, count: int) -> list[Path]:
    """Short recordings, each of its own length."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}.wav" for number in range(count)]
    for number, path in enumerate(paths):
        time_S = np.arange(800 + number) / 16_000
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * 300 * time_S), 16_000, subtype="PCM_16")
    return paths


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were decoded."""
    found: list[str] = []
    decode = survey.opened

    def counted(path: Path, **more: Any) -> Any:
        found.append(path.name)
        return decode(path, **more)

    monkeypatch.setattr(survey, "opened", counted)
    return found


# -- parts ------------------------------------------------------------------------------------


@given(st.lists(st.text("abc/", max_size=9), max_size=400))
def test_parts_are_all_files_in_their_order(paths: list[str]) -> None:
    found = list(survey_parts.cut(paths))
    assert [path for part in found for path in part] == paths
    assert all(1 <= len(part) <= 128 for part in found)


def test_a_new_file_changes_the_part_that_it_is_in() -> None:
    paths = [f"/corpus/{number}.wav" for number in range(4000)]
    before = {tuple(part) for part in survey_parts.cut(paths)}
    after = {
        tuple(part) for part in survey_parts.cut([*paths[:700], "/corpus/new.wav", *paths[700:]])
    }
    assert len(before) > 60
    assert len(after - before) <= 2


def test_a_second_run_decodes_nothing_and_gives_the_same_bytes(
    tmp_path: Path, looked: list[str]
) -> None:
    clips(tmp_path / "a", 150)
    out = tmp_path / "a.jsonl"
    corpora.build_manifest([tmp_path / "a"], out)
    first = out.read_bytes()
    assert len(looked) == 150
    looked.clear()
    corpora.build_manifest([tmp_path / "a"], out)
    assert not looked
    assert out.read_bytes() == first


def test_what_changed_is_decoded_again_and_old_parts_go(tmp_path: Path, looked: list[str]) -> None:
    paths = clips(tmp_path / "a", 600)
    out = tmp_path / "a.jsonl"
    corpora.build_manifest([tmp_path / "a"], out)
    before = set((tmp_path / ".a.jsonl.parts").glob("*/*"))
    looked.clear()
    soundfile.write(paths[70], np.ones(4000) / 2, 16_000)
    paths[3].unlink()
    report = corpora.build_manifest([tmp_path / "a"], out)
    assert "0070.wav" in looked
    assert 0 < len(looked) < 590
    assert report.built.rows[69].duration == 0.25
    now = set((tmp_path / ".a.jsonl.parts").glob("*/*"))
    assert 0 < len(now & before) < len(before)
    assert len(now) <= len(before)


def test_headers_do_not_count_as_decoded(tmp_path: Path, looked: list[str]) -> None:
    clips(tmp_path / "a", 40)
    out = tmp_path / "a.jsonl"
    quick = corpora.build_manifest([tmp_path / "a"], out, verify="header")
    assert not looked
    full = corpora.build_manifest([tmp_path / "a"], out)
    assert len(looked) == 40
    assert quick.built.rows == full.built.rows


def test_headers_find_what_headers_say_and_no_more(tmp_path: Path) -> None:
    paths = clips(tmp_path, 4)
    soundfile.write(paths[1], np.full(800, np.nan, "f4"), 16_000, subtype="FLOAT")
    paths[2].write_bytes(paths[2].read_bytes()[:500])
    soundfile.write(paths[3], np.zeros((900, 2)), 8_000)
    items = [Candidate(path.stem, path) for path in paths]
    built = manifest.build(items, verify="header")
    assert [item.reason for item in built.rejected] == ["truncated"]
    assert [row.samples for row in built.rows] == [800, 800, 1800]
    assert (built.resampled, built.mixed_down, built.silent) == ({8000: 1}, 1, [])


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[[1]]", b'{"a": 1}', b"\xff"])
def test_damaged_parts_are_made_again(tmp_path: Path, content: bytes, looked: list[str]) -> None:
    paths = clips(tmp_path / "a", 60)
    wanted = list(survey_parts.look_at(paths, jobs=0, keep=tmp_path / "parts"))
    for part in (tmp_path / "parts").glob("*/*"):
        part.write_bytes(content)
    looked.clear()
    assert list(survey_parts.look_at(paths, jobs=0, keep=tmp_path / "parts")) == wanted
    assert len(looked) == 60
    assert list(survey_parts.look_at(paths, jobs=2, keep=tmp_path / "parts")) == wanted
    assert len(looked) == 60


def test_a_folder_that_cannot_be_written_costs_the_parts_only(tmp_path: Path) -> None:
    (tmp_path / "parts").touch()
    paths = clips(tmp_path / "a", 3)
    found = list(survey_parts.look_at(paths, jobs=0, keep=tmp_path / "parts"))
    assert [item.samples for item in found] == [800, 801, 802]


# -- stops and kills ---------------------------------------------------------------------------

KILLED = """
import sys, time
from pathlib import Path
from w2vtool import corpora, survey

decode = survey.opened
def slow(path, **more):
    time.sleep(0.005)
    return decode(path, **more)
survey.opened = slow  # in the processes too, which run this file again
if __name__ == "__main__":
    corpora.build_manifest([Path("a")], Path("a.jsonl"), jobs=int(sys.argv[1]))
"""


@pytest.mark.parametrize("jobs", [0, 2])
def test_a_build_that_was_killed_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, jobs: int, looked: list[str]
) -> None:
    paths = clips(tmp_path / "a", 800)
    paths[11].write_bytes(b"no audio")
    kept = tmp_path / ".a.jsonl.parts"
    script = tmp_path / "slow.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(script), str(jobs)]
    running = subprocess.Popen(words, cwd=tmp_path, env=environment, start_new_session=True)
    try:
        patience = time.monotonic() + 60
        while len(list(kept.glob("*/*.json"))) < 4:
            assert running.poll() is None, "it was done before it could be killed"
            assert time.monotonic() < patience
            time.sleep(0.005)
        os.kill(running.pid, signal.SIGKILL)
    finally:
        running.kill()
        running.wait()
    assert not (tmp_path / "a.jsonl").exists()
    resumed = corpora.build_manifest([tmp_path / "a"], tmp_path / "a.jsonl")
    assert 0 < len(looked) <= 796  # four parts at least were kept
    corpora.build_manifest([tmp_path / "a"], tmp_path / "fresh.jsonl")
    assert (tmp_path / "fresh.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert [item.reason for item in resumed.built.rejected] == ["not-audio"]


def test_processes_of_a_killed_parent_end(tmp_path: Path) -> None:
    script = tmp_path / "naps.py"
    script.write_text(
        "import os, time\nfrom w2vtool import workers\n"
        "def pid(_):\n  return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "  results = workers.each(pid, range(99), jobs=1, lost=print)\n"
        "  print(next(results), flush=True)\n  time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    with running.stdout:
        worker = int(running.stdout.readline())
        running.kill()
        running.wait()
    command = Path(f"/proc/{worker}/cmdline")
    patience = time.monotonic() + 20
    while command.exists() and command.read_bytes():  # empty: a zombie that nobody collects
        assert time.monotonic() < patience
        time.sleep(0.02)


# -- parts of files ---------------------------------------------------------------------------


def test_segments_are_parts_of_a_file_that_is_decoded_once(
    tmp_path: Path, looked: list[str]
) -> None:
    long, other = tmp_path / "long.wav", tmp_path / "other.wav"
    for path in (long, other):
        soundfile.write(path, np.sin(np.arange(32_000)) / 3, 16_000, subtype="PCM_16")
    items = [
        Candidate("a", long, "HI", offset=0.5, duration=1.0, lang="en", extra={"x": 1}),
        Candidate("whole", other),
        Candidate("b", long, offset=1.5),
        Candidate("late", long, where="segments:4", offset=1.5, duration=0.6),
        Candidate("before", long, offset=-0.1, duration=0.6),
        Candidate("nothing", long, offset=2.0),
        Candidate("rounded", long, offset=1.0, duration=1.005),
        Candidate("short", long, offset=1.0, duration=0.02),
        Candidate("much", long, "A" * 30, offset=0.0, duration=0.2),
        Candidate("copy", long),
    ]
    built = manifest.build(items)
    assert sorted(looked) == ["long.wav", "other.wav"]
    assert [(row.id, row.offset, row.duration) for row in built.rows] == [
        ("a", 0.5, 1.0),
        ("whole", 0.0, 2.0),
        ("b", 1.5, 0.5),
        ("rounded", 1.0, 1.0),
        ("copy", 0.0, 2.0),
    ]
    assert (built.rows[0].lang, built.rows[0].extra) == ("en", {"x": 1})
    reasons = [item.reason for item in built.rejected]
    assert reasons == ["range", "range", "range", "too-short", "text-too-long"]
    assert built.rejected[0].detail == "0.6 s from 1.5 s on is not within its 2.000 s (segments:4)"
    assert built.duplicates == [("copy", "whole")]
