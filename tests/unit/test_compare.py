"""A manifest beside its audio: every way in which a file can differ from its row is told."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from w2vtool import compare, manifest
from w2vtool.compare import Mismatch
from w2vtool.manifest import Manifest, Utterance
from w2vtool.survey_parts import Verify


def save(path: Path, seconds: float = 0.5, rate: int = 16_000) -> None:
    tone = np.sin(np.arange(round(seconds * rate)) / 9) / 3
    soundfile.write(path, tone, rate, subtype="PCM_16")


@pytest.fixture
def rows(tmp_path: Path) -> list[Utterance]:
    """Six rows of six files."""
    for number in range(6):
        save(tmp_path / f"{number}.wav")
    return [Utterance(f"u{n}", f"{n}.wav", 0.5, text="HI") for n in range(6)]


def check(
    folder: Path, rows: list[Utterance], *, jobs: int = 0, verify: Verify = "header"
) -> list[tuple[int, str, str]]:
    """Line, id and reason of all that is found."""
    path = folder / "data.jsonl"
    manifest.write(path, rows)
    found = list(compare.compare(manifest.read(path), jobs=jobs, verify=verify))
    return [(one.line, one.id, one.reason) for one in found]


@pytest.mark.parametrize("verify", ["header", "decode"])
@pytest.mark.parametrize("jobs", [0, 2])
def test_a_manifest_that_fits_its_files_has_no_problems(
    tmp_path: Path, rows: list[Utterance], jobs: int, verify: Verify
) -> None:
    assert check(tmp_path, rows, jobs=jobs, verify=verify) == []


@pytest.mark.parametrize("jobs", [0, 2])
def test_what_became_of_each_file_is_told_in_the_order_of_the_rows(
    tmp_path: Path, rows: list[Utterance], jobs: int
) -> None:
    (tmp_path / "0.wav").unlink()
    save(tmp_path / "1.wav", 0.4)
    save(tmp_path / "2.wav", 0.6)
    save(tmp_path / "3.wav", 0.5, rate=8_000)
    (tmp_path / "4.wav").write_bytes(b"text")
    rows[5] = replace(rows[5], text="A" * 40)
    assert check(tmp_path, rows, jobs=jobs) == [
        (1, "u0", "missing"),
        (2, "u1", "range"),
        (4, "u3", "rate"),
        (5, "u4", "not-audio"),
        (6, "u5", "text-too-long"),
        (3, "u2", "longer"),
    ]


def test_damage_inside_shows_when_it_is_decoded(tmp_path: Path, rows: list[Utterance]) -> None:
    soundfile.write(tmp_path / "2.wav", np.full(8000, np.nan), 16_000, subtype="FLOAT")
    assert check(tmp_path, rows) == []
    assert check(tmp_path, rows, verify="decode") == [(3, "u2", "not-finite")]


def test_parts_of_a_file_say_nothing_about_its_length(tmp_path: Path) -> None:
    save(tmp_path / "long.wav", 10)
    rows = [Utterance(f"u{n}", "long.wav", 2.0, offset=2.0 * n) for n in range(5)]
    assert check(tmp_path, rows) == []
    assert check(tmp_path, rows[3:4]) == []
    assert check(tmp_path, rows[:1]) == [(1, "u0", "longer")]
    past = replace(rows[4], id="past", offset=8.5)
    assert check(tmp_path, [*rows, past]) == [(6, "past", "range")]


def test_the_same_audio_twice_names_the_other_row(tmp_path: Path, rows: list[Utterance]) -> None:
    rows.append(replace(rows[1], id="again"))
    path = tmp_path / "data.jsonl"
    manifest.write(path, rows)
    what = "the same audio as 'u1' in line 2"
    found = list(compare.compare(manifest.read(path)))
    assert found == [Mismatch(7, "again", "same-audio", what)]


def test_a_rate_that_the_manifest_does_not_state_is_no_problem(tmp_path: Path) -> None:
    save(tmp_path / "a.wav", rate=44_100)
    path = tmp_path / "data.jsonl"
    path.write_text('{"audio_filepath": "a.wav", "duration": 0.5}\n')
    assert list(compare.compare(manifest.read(path))) == []
    path.write_text('{"audio_filepath": "a.wav", "duration": 0.5, "sample_rate": 16000}\n')
    assert [one.reason for one in compare.compare(manifest.read(path))] == ["rate"]


def test_each_file_is_probed_once_for_neighbouring_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "long.wav", 10)
    probed: list[Path] = []
    probe = compare.probe
    monkeypatch.setattr(
        compare, "probe", lambda path, **more: [probed.append(path), probe(path, **more)][1]
    )
    rows = [Utterance(f"u{n}", "long.wav", 0.1, offset=0.1 * n) for n in range(40)]
    assert check(tmp_path, rows) == []
    assert len(probed) == 1


def crash(path: Path, **more: Any) -> Any:
    os._exit(9)


def crash_on_one(folder: Path, verify: Verify, line: compare.Line) -> compare._Compared:
    if b'"u3"' in line[1]:
        compare.load = crash  # in this process only
        verify = "decode"
    return compare._compare(folder, verify, line)


def test_a_decoder_that_crashes_costs_its_own_row(
    tmp_path: Path, rows: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "partial", lambda work, *more: partial(crash_on_one, *more))
    assert check(tmp_path, rows, jobs=2) == [(4, "u3", "decoder-crash")]


def test_progress_counts_rows_and_may_stop(tmp_path: Path, rows: list[Utterance]) -> None:
    path = tmp_path / "data.jsonl"
    manifest.write(path, rows)
    opened: Manifest = manifest.read(path)
    seen: list[tuple[int, int]] = []
    list(compare.compare(opened, on_progress=lambda *at: seen.append(at)))
    assert seen == [(6, 6)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(compare.compare(opened, jobs=2, on_progress=stop))
