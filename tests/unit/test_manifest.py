"""Manifests: round trips, every kind of bad row with its line, and the making from audio files."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2vtool import manifest, survey
from w2vtool.errors import DataError
from w2vtool.manifest import Candidate, Utterance

ROW = {"id": "a", "audio": "a.wav", "duration": 1.5}


def tone(seconds: float, *, hertz: float = 300, rate: int = 16_000) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype("f4") / 3


def write_text(folder: Path, *lines: str | bytes | dict[str, Any]) -> Path:
    path = folder / "data.jsonl"
    raw = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"".join((x.encode() if isinstance(x, str) else x) + b"\n" for x in raw))
    return path


def problem(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        manifest.read(path)
    return caught.value


# -- reading ----------------------------------------------------------------------------------


def test_a_row_is_read_with_its_defaults_and_unknown_keys_are_kept(tmp_path: Path) -> None:
    path = write_text(tmp_path, ROW | {"snr": 3.5, "text": None, "offset": None})
    assert manifest.read(path).rows == [
        Utterance("a", "a.wav", 1.5, sample_rate=None, extra={"snr": 3.5})
    ]


def test_nemo_rows_are_understood(tmp_path: Path) -> None:
    nemo = {"audio_filepath": "wav/x.1.wav", "duration": 2, "text": "hi"}
    (row,) = manifest.read(write_text(tmp_path, nemo)).rows
    assert row == Utterance("wav/x.1", "wav/x.1.wav", 2.0, sample_rate=None, text="hi")
    assert isinstance(row.duration, float)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"audio": "a.wav", "duration": 1}, None),
        ({"id": "a", "duration": 1}, "missing key 'audio'"),
        ({"id": "a", "audio": "a.wav"}, "missing key 'duration'"),
        (ROW | {"id": None}, "missing key 'id'"),
        (ROW | {"duration": 0}, "'duration' is '0'; it must be above 0"),
        (ROW | {"duration": -1.5}, "must be above 0"),
        (ROW | {"duration": "1.5"}, "not a number of seconds"),
        (ROW | {"duration": True}, "not a number of seconds"),
        (ROW | {"offset": -1}, "'offset' is '-1'; it must be at least 0"),
        (ROW | {"sample_rate": 16000.5}, "not a whole number of Hz"),
        (ROW | {"text": 7}, "'text' is '7', not a string"),
        (ROW | {"speaker": 7}, "'speaker' is '7', not a string"),
        (ROW | {"id": ""}, "'id' is '': empty"),
        (ROW | {"audio": "a\0.wav"}, "control characters"),
        (ROW | {"audio_filepath": "b.wav"}, "both 'audio' and 'audio_filepath'"),
        ('{"id": "a", "audio": "a.wav", "duration": NaN}', "NaN is not a JSON number"),
        ('{"id": "a", "audio": "a.wav", "duration": 1e999}', "not a number of seconds"),
        ('{"id": "a", "audio": "a.wav", "duration": 1, "x": [-1e999]}', "a number in extra beyond"),
        ('{"id": "a", "audio": "a.wav", "duration": 1' + "0" * 400 + "}", "not a number"),
        ('{"id": "a", "id": "b", "audio": "a.wav", "duration": 1}', "key 'id' stands twice"),
        ('{"id": "a\\ud800", "audio": "a.wav", "duration": 1}', "surrogate"),
        ('{"id": "a", ', "not JSON (Expecting"),
        ("[1, 2]", "not a JSON object: [1, 2]"),
        ("[" * 100_000, "nested too deeply"),
        (b'{"id": "\xff"}', "not UTF-8 (byte 9 of the line)"),
    ],
)
def test_a_bad_row_is_named_with_its_line(
    tmp_path: Path, line: str | bytes | dict[str, Any], said: str | None
) -> None:
    path = write_text(tmp_path, ROW | {"id": "first"}, "", line)
    if said is None:
        assert len(manifest.read(path).rows) == 2
        return
    error = problem(path)
    assert error.where == f"{path}:3"
    assert said in error.what


def test_all_bad_rows_are_told_at_once_up_to_twenty(tmp_path: Path) -> None:
    path = write_text(tmp_path, ROW, *[{"id": f"x{n}"} for n in range(15)], ROW)
    error = problem(path)
    assert error.where == str(path)
    assert "31 bad rows" in error.what  # two keys each, and the id of the last line
    assert f"{path}:2: missing key 'audio'" in error.what
    assert "and 11 more" in error.what
    assert len(error.what.splitlines()) == 22


def test_a_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    path = write_text(tmp_path, ROW, ROW | {"id": "b"}, ROW)
    error = problem(path)
    assert error.where == f"{path}:3"
    assert error.what == "id 'a' is already in line 1"


def test_an_empty_or_missing_manifest_is_an_error(tmp_path: Path) -> None:
    assert problem(write_text(tmp_path, "", "  ")).what == "the manifest is empty"
    assert "cannot be read" in problem(tmp_path / "none.jsonl").what
    assert "cannot be read" in problem(tmp_path).what


@pytest.mark.parametrize("text", [b"a.wav\tONE\nb.wav\tTWO\n", b"[1]\n", b"\xff\n"])
def test_what_is_no_manifest_at_all_is_told_in_one_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "t.tsv").write_bytes(text)
    (tmp_path / "folder").mkdir()
    assert problem(tmp_path / "t.tsv").what == "is not a manifest: no line is a JSON object"
    for name in ("t.tsv", "folder"):
        assert "w2vtool manifest" in problem(tmp_path / name).hint
    (tmp_path / "t.json").write_bytes(text + b'{"id": 1}\n')
    assert "bad rows" in problem(tmp_path / "t.json").what


def test_line_ends_and_byte_order_marks_of_windows_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n")
    assert len(manifest.read(path).rows) == 1


# -- writing ----------------------------------------------------------------------------------

words = st.text(
    st.characters(
        exclude_categories=["Cs"], exclude_characters=[chr(n) for n in (*range(32), 127)]
    ),
    min_size=1,
    max_size=12,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
utterances = st.builds(
    Utterance,
    id=words,
    audio=words,
    duration=st.floats(0.001, 1e5),
    offset=st.floats(0, 1e5),
    sample_rate=st.integers(1, 192_000),
    text=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    speaker=st.none() | words,
    lang=st.none() | words,
    extra=st.dictionaries(words.map("x-{}".format), values, max_size=3),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(utterances, min_size=1, max_size=5, unique_by=lambda row: row.id))
def test_what_is_written_is_read_back_and_writes_the_same_bytes(
    tmp_path: Path, rows: list[Utterance]
) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    manifest.write(one, rows)
    found = manifest.read(one)
    assert found.rows == rows
    assert found.sha256 == manifest.sha256(rows)
    manifest.write(two, found.rows)
    assert one.read_bytes() == two.read_bytes()


def test_keys_are_written_in_a_fixed_order_whatever_the_order_of_the_extras(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    one = Utterance("a", "a.wav", 2, text="\u00c9", extra={"z": {"b": 1, "a": 2}, "c": 3})
    manifest.write(path, [one])
    assert path.read_text("utf-8") == (
        '{"id": "a", "audio": "a.wav", "offset": 0.0, "duration": 2.0, "sample_rate": 16000, '
        '"text": "\u00c9", "c": 3, "z": {"a": 2, "b": 1}}\n'
    )
    two = replace(one, duration=2.0, extra={"c": 3, "z": {"a": 2, "b": 1}})
    before = path.read_bytes()
    manifest.write(path, [two])
    assert one == two
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([Utterance("a", "a.wav", 1.0), Utterance("a", "b.wav", 1.0)], "id 'a' stands in 2 rows"),
        ([Utterance("a", "a.wav", 0.0)], "'duration' is '0.0'"),
        ([Utterance("", "a.wav", 1.0)], "'id' is ''"),
        ([Utterance("a", "a.wav", 1.0, extra={"text": "x"})], "'text' in extra"),
        ([Utterance("a", "caf\udce9.wav", 1.0)], "not UTF-8"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(
    tmp_path: Path, rows: list[Utterance], said: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("before")
    with pytest.raises(DataError, match=said):
        manifest.write(path, rows)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]  # no temporary file either


def test_writing_where_one_cannot_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        manifest.write(tmp_path / "file" / "a.jsonl", [Utterance("a", "a.wav", 1.0)])


def test_the_hash_depends_on_the_rows_and_not_on_where_the_audio_lies() -> None:
    rows = [Utterance("a", "a.wav", 1.0, text="HI"), Utterance("b", "b.wav", 1.0)]
    moved = [replace(row, audio="/elsewhere/" + row.audio) for row in rows]
    assert manifest.sha256(rows) == manifest.sha256(moved)
    assert manifest.sha256(rows) != manifest.sha256(rows[::-1])
    assert manifest.sha256(rows) != manifest.sha256([replace(rows[0], text="HO"), rows[1]])


# -- a manifest and its audio -----------------------------------------------------------------


def test_audio_is_found_beside_the_manifest_or_by_its_full_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    soundfile.write(tmp_path / "sub" / "a.wav", tone(1), 16_000)
    path = write_text(
        tmp_path,
        {"id": "whole", "audio": "sub/a.wav", "duration": 1},
        {"id": "part", "audio": str(tmp_path / "sub" / "a.wav"), "offset": 0.5, "duration": 0.25},
    )
    found = manifest.read(path)
    whole, part = (found.audio(row) for row in found.rows)
    assert len(whole) == found.rows[0].samples == 16_000
    assert np.array_equal(part, whole[8_000:12_000])
    assert found.seconds == 1.25
    assert found.audio_path(found.rows[0]) == tmp_path / "sub" / "a.wav"


def test_audio_that_changed_after_the_manifest_is_named_with_row_and_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1), 16_000)
    found = manifest.read(write_text(tmp_path, ROW))
    with pytest.raises(DataError, match=r"1\.5 s from 0 s on is not within its 1\.000 s") as caught:
        found.audio(found.rows[0])
    assert "(a)" in caught.value.where
    assert "a.wav" in caught.value.where


# -- building ---------------------------------------------------------------------------------


def make(folder: Path, name: str, samples: np.ndarray, rate: int = 16_000) -> Path:
    soundfile.write(folder / name, (samples * 32_767).astype(np.int16), rate)
    return folder / name


def test_rows_come_in_the_order_of_the_candidates_with_exact_lengths(tmp_path: Path) -> None:
    items = [
        Candidate(f"u{n}", make(tmp_path, f"{n}.wav", tone(0.1 + n / 16_000)), "HI", "ann")
        for n in (5, 3, 4)
    ]
    seen: list[tuple[int, int]] = []
    built = manifest.build(items, on_progress=lambda *at: seen.append(at))
    assert [row.id for row in built.rows] == ["u5", "u3", "u4"]
    assert [row.samples for row in built.rows] == [1_605, 1_603, 1_604]
    assert (built.rows[0].text, built.rows[0].speaker) == ("HI", "ann")
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert not built.rejected


def test_what_cannot_be_used_is_rejected_with_its_reason(tmp_path: Path) -> None:
    good = make(tmp_path, "good.wav", tone(0.5))
    text = tmp_path / "text.wav"
    text.write_text("not audio at all")
    nan = tmp_path / "nan.wav"
    soundfile.write(nan, np.full(800, np.nan, "f4"), 16_000, subtype="FLOAT")
    cut = make(tmp_path, "cut.wav", tone(0.6))
    cut.write_bytes(cut.read_bytes()[:5_000])
    items = [
        Candidate("text", text),
        Candidate("none", tmp_path / "none.wav"),
        Candidate("nan", nan),
        Candidate("cut", cut),
        Candidate("short", make(tmp_path, "short.wav", tone(0.024))),
        Candidate("good", good),
        Candidate("good", make(tmp_path, "other.wav", tone(0.5, hertz=200))),
        Candidate("long", make(tmp_path, "long.wav", tone(0.2)), "A" * 9, None, "t.tsv:7"),
        Candidate("bad\nname", make(tmp_path, "name.wav", tone(0.3))),
    ]
    built = manifest.build(items)
    assert [row.id for row in built.rows] == ["good"]
    reasons = [item.reason for item in built.rejected]
    assert reasons == [
        *("not-audio", "missing", "not-finite", "truncated", "too-short"),
        *("duplicate-id", "text-too-long", "bad-name"),
    ]
    assert str(good) in built.rejected[5].detail
    assert built.rejected[4].detail == "384 samples; one frame takes 400"


@pytest.mark.parametrize(("text", "fits"), [("ABCABCAB", True), ("ABCABCABC", False)])
def test_text_needs_a_frame_for_each_letter_and_bar(tmp_path: Path, text: str, fits: bool) -> None:
    path = make(tmp_path, "a.wav", np.zeros(400 + 8 * 320, "f4"))  # 9 frames
    built = manifest.build([Candidate("a", path, text)])
    assert bool(built.rows) is fits
    if not fits:
        assert built.rejected[0].detail == "its text takes 10 frames, the audio has 9"


def test_repeated_letters_need_a_blank_between_them(tmp_path: Path) -> None:
    path = make(tmp_path, "a.wav", np.zeros(400 + 8 * 320, "f4"))
    assert manifest.build([Candidate("a", path, "AABBCAB")]).rejected[0].reason == "text-too-long"


def test_frames_are_those_of_the_feature_encoder() -> None:
    found = [manifest.emission_frames(samples) for samples in (0, 399, 400, 719, 720, 16_000)]
    assert found == [0, 0, 1, 1, 2, 49]


def test_odd_but_usable_audio_is_kept_and_counted(tmp_path: Path) -> None:
    both = np.stack([tone(0.3, rate=44_100), tone(0.3, hertz=500, rate=44_100)], axis=1)
    items = [
        Candidate("plain", make(tmp_path, "plain.wav", tone(0.3))),
        Candidate("twin", make(tmp_path, "twin.flac", tone(0.3))),
        Candidate("stereo", make(tmp_path, "stereo.wav", both, 44_100)),
        Candidate("phone", make(tmp_path, "phone.wav", tone(0.3, rate=8_000), 8_000)),
        Candidate("silent", make(tmp_path, "silent.wav", np.zeros(4_800))),
    ]
    built = manifest.build(items)
    assert [row.id for row in built.rows] == [item.id for item in items]
    assert [row.sample_rate for row in built.rows] == [16_000, 16_000, 44_100, 8_000, 16_000]
    assert {row.samples for row in built.rows} == {4_800}
    assert built.resampled == {44_100: 1, 8_000: 1}
    assert built.mixed_down == 1
    assert built.silent == ["silent"]
    assert built.duplicates == [("twin", "plain")]


def test_several_processes_give_what_one_gives(tmp_path: Path) -> None:
    items = [
        Candidate(f"u{n}", make(tmp_path, f"{n}.wav", tone(0.05 + n / 500))) for n in range(40)
    ]
    items[7].path.write_bytes(b"broken")
    one, two = manifest.build(items), manifest.build(items, jobs=2)
    assert two.rows == one.rows
    assert two.rejected == one.rejected
    assert [item.reason for item in one.rejected] == ["not-audio"]


def crash_on_seven(path: Path) -> survey.Inspected:
    if path.name == "7":
        os._exit(9)
    return survey.Inspected(detail=path.name)


def test_a_decoder_that_crashes_costs_its_own_file_only() -> None:
    paths = [Path(str(n)) for n in range(20)]
    found = list(survey.inspect_all(paths, jobs=2, inspect=crash_on_seven))
    assert [item.reason for item in found] == ["decoder-crash" if n == 7 else "" for n in range(20)]
    assert [item.detail for item in found[8:]] == [str(n) for n in range(8, 20)]


def test_an_unforeseen_error_in_a_file_is_a_reject(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise ZeroDivisionError("by 0")

    monkeypatch.setattr(survey, "opened", fail)
    found = survey.inspect(Path("a.wav"))
    assert (found.reason, found.detail) == ("unreadable", "ZeroDivisionError: by 0")


def test_building_can_be_stopped_from_the_progress_callback(tmp_path: Path) -> None:
    items = [Candidate(str(n), make(tmp_path, f"{n}.wav", tone(0.1))) for n in range(3)]
    calls: list[int] = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        manifest.build(items, on_progress=stop)
    assert calls == [1]
