"""Large manifests: rows made on demand are those of the file, no old column is believed."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_rows import utterances

from w2vtool import columns, manifest, scan, views
from w2vtool.columns import Rows
from w2vtool.errors import DataError
from w2vtool.rows import Utterance, written


@pytest.fixture(autouse=True)
def every_manifest_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "CACHE_BYTES", 0)
    monkeypatch.setattr(columns, "_CLOCK_NS", 20_000_000)  # quick enough for a test


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Manifests that were read in full."""
    found: list[Path] = []

    def counted(path: Path, *more: Any) -> Any:
        found.append(path)
        return scan.checked(path, *more)

    monkeypatch.setattr(columns, "checked", counted)
    return found


def rows(count: int, first: int = 0) -> list[Utterance]:
    texts = [None, "EINS", "zwölf Boxkämpfer", 'a "quoted" one']
    return [
        Utterance(f"u{n:05d}", f"{n}.wav", 1 + n / 16_000, text=texts[n % 4], extra={"n": n % 3})
        for n in range(first, first + count)
    ]


def line(row: Utterance) -> bytes:
    return written(row)[0]


def place(path: Path) -> Path:
    return path.with_name(f".{path.name}.columns")


def eager(path: Path) -> list[Utterance]:
    return [found.row for found in scan.checked(path)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(utterances(), min_size=1, max_size=6, unique_by=lambda row: row.id))
def test_rows_read_lazily_are_those_that_were_written(
    tmp_path: Path, rows: list[Utterance]
) -> None:
    path = tmp_path / "a.jsonl"
    manifest.write(path, rows)
    for _ in range(2):
        found = manifest.read(path)
        assert isinstance(found.rows, Rows)
        assert list(found.rows) == rows == eager(path)
        assert [found.rows[n] for n in range(-len(rows), 0)] == rows
        assert found.durations.tolist() == [row.duration for row in rows]
        assert found.sha256 == manifest.sha256(rows)
        assert found.seconds == pytest.approx(sum(row.duration for row in rows))
        place(path).unlink()  # the second time without the columns of the writer


def test_any_file_that_can_be_read_can_be_read_lazily(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": "a", "audio": "a.wav", "duration": 1}\r\n\n   \n'
        b'{"audio_filepath": "x/b.wav", "duration": 2.5, "text": "\xc3\xa9", "k": [1, 2]}\n\n'
        b'{"id":"c","duration":3e0,"audio":"c.wav"}'
    )
    monkeypatch.setattr(columns, "_BLOCK", 40)  # blocks that hold less than a row
    found = manifest.read(path)
    assert list(found.rows) == eager(path) == [found.rows[0], found.rows[1], found.rows[2]]
    assert [row.id for row in found.rows[::-1]] == ["c", "x/b", "a"]
    assert found.rows[1:] == eager(path)[1:]
    assert found.rows[np.int64(2)].id == "c"
    assert found.sha256 == manifest.sha256(eager(path))
    for number in (3, -4):
        with pytest.raises(IndexError):
            found.rows[number]


def test_the_second_reading_reads_no_rows(tmp_path: Path, readings: list[Path]) -> None:
    path = tmp_path / "a.jsonl"
    manifest.write(path, rows(50))
    assert list(manifest.read(path).rows) == rows(50)
    assert not readings  # the writer left the columns
    place(path).unlink()
    manifest.read(path)
    assert readings == [path]
    assert list(manifest.read(path).rows) == rows(50)
    assert readings == [path]


def test_small_manifests_get_no_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "CACHE_BYTES", 1 << 20)
    path = tmp_path / "a.jsonl"
    manifest.write(path, rows(50))
    assert manifest.read(path).rows == rows(50)
    assert list(tmp_path.iterdir()) == [path]


# -- a changed manifest -----------------------------------------------------------------------


def in_place(path: Path, text: bytes) -> None:
    with path.open("r+b") as file:
        file.write(text)
        file.truncate()


def renamed(path: Path, text: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(text)
    other.replace(path)


@pytest.mark.parametrize("write", [in_place, renamed])
@pytest.mark.parametrize("restore", [False, True], ids=["new times", "old times"])
def test_a_manifest_of_the_same_size_and_time_is_not_read_from_old_columns(
    tmp_path: Path, write: Callable[[Path, bytes], None], restore: bool
) -> None:
    path = tmp_path / "a.jsonl"
    manifest.write(path, rows(20))
    before = manifest.read(path)
    status, old = path.stat(), path.read_bytes()
    new = old.replace(b"EINS", b"DREI")
    write(path, new)
    if restore:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = manifest.read(path)
    assert found.sha256 != before.sha256
    assert {row.text for row in found.rows} >= {"DREI"}


def test_columns_of_another_manifest_are_not_believed(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    manifest.write(one, rows(20))
    manifest.write(two, rows(20, first=100))
    shutil.copy(place(one), place(two))
    assert list(manifest.read(two).rows) == rows(20, first=100)


def test_a_manifest_that_changes_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    manifest.write(path, rows(20))
    place(path).unlink()

    def slow(path: Path, *more: Any) -> Any:
        yield from scan.checked(path, *more)
        with path.open("ab") as file:
            file.write(b"\n")

    monkeypatch.setattr(columns, "checked", slow)
    with pytest.raises(DataError, match="was changed while it was read"):
        manifest.read(path)
    assert not place(path).exists()


def test_open_rows_outlive_a_new_manifest_in_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    manifest.write(path, rows(20))
    found = manifest.read(path)
    manifest.write(path, rows(30, first=500))
    assert list(found.rows) == rows(20)
    assert len(manifest.read(path).rows) == 30


def test_a_fresh_file_of_a_clock_of_whole_seconds_gets_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a", "audio": "a.wav", "duration": 1}\n')
    second = path.stat().st_mtime_ns // 10**9 * 10**9
    os.utime(path, ns=(second, second))
    assert len(manifest.read(path).rows) == 1
    assert not place(path).exists()


# -- damaged or missing columns ---------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "empty", "text", "old"])
def test_damaged_columns_are_made_again(tmp_path: Path, damage: str, readings: list[Path]) -> None:
    path = tmp_path / "a.jsonl"
    manifest.write(path, rows(40))
    good = place(path).read_bytes()
    bad = {
        "cut": good[:-5],
        "longer": good + bytes(16),
        "empty": b"",
        "text": b"nothing of the kind" * 10,
        "old": good.replace(b"columns2", b"columns1"),
    }
    flips = [bytes([*good[:n], good[n] ^ 4, *good[n + 1 :]]) for n in range(0, len(good), 97)]
    for content in flips if damage == "flip" else [bad[damage]]:
        readings.clear()
        place(path).write_bytes(content)
        assert list(manifest.read(path).rows) == rows(40)
        assert readings == [path]
        assert place(path).read_bytes() == good


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_without_room_for_columns_rows_are_lazy_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(line(row) for row in rows(30)))
    opened = Path.open

    def refuse(self: Path, mode: str = "r", *more: Any, **kind: Any) -> Any:
        if "w" in mode:
            raise OSError(code, os.strerror(code))
        return opened(self, mode, *more, **kind)

    monkeypatch.setattr(Path, "open", refuse)
    found = manifest.read(path)
    assert list(found.rows) == rows(30)
    assert list(pickle.loads(pickle.dumps(found.rows))) == rows(30)  # noqa: S301  our own
    assert list(tmp_path.iterdir()) == [path]


def test_errors_are_those_of_a_small_manifest(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.jsonl"
    raw = [line(row) for row in rows(40)]
    raw[10], raw[11], raw[30] = b"{\n", b"\n", raw[3]
    path.write_bytes(b"".join(raw))
    with pytest.raises(DataError) as lazy:
        manifest.read(path)
    monkeypatch.setattr(manifest, "CACHE_BYTES", 1 << 20)
    with pytest.raises(DataError) as plain:
        manifest.read(path)
    assert str(lazy.value) == str(plain.value)
    assert f"{path}:31: id 'u00003' is already in line 4" in lazy.value.what
    assert f"{path}:11: not JSON" in lazy.value.what
    assert not place(path).exists()


# -- other processes, other views -------------------------------------------------------------


def test_rows_travel_to_other_processes_as_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    manifest.write(path, rows(2000))
    found = manifest.read(path)
    sent = pickle.dumps(found)
    assert len(sent) < 2000  # not a byte for each row
    assert list(pickle.loads(sent).rows) == rows(2000)  # noqa: S301  our own
    renamed(path, path.read_bytes() + line(rows(1, first=5000)[0]))
    with pytest.raises(DataError, match="was changed while it is in use"):
        pickle.loads(sent)  # noqa: S301  our own


def shout(row: Utterance) -> Utterance:
    return replace(row, text=(row.text or "").upper())


def test_views_are_the_rows_that_lists_would_hold(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    manifest.write(one, rows(20))
    manifest.write(two, rows(30, first=100))
    lazy = [manifest.read(path).rows for path in (one, two)]
    plain = [rows(20), rows(30, first=100)]
    numbers = np.array([3, 0, 49, 20, 19])
    made, wanted = (
        views.chosen(views.changed(views.joined(parts), shout), numbers) for parts in (lazy, plain)
    )
    assert not isinstance(made, list)
    assert isinstance(wanted, list)
    assert list(made) == wanted == [made[n] for n in range(-5, 0)]
    assert made[1:4] == wanted[1:4]
    assert views.durations(made).tolist() == views.durations(wanted).tolist()
    assert list(pickle.loads(pickle.dumps(made))) == wanted  # noqa: S301  our own
    assert list(views.joined(lazy)) == plain[0] + plain[1]
    with pytest.raises(IndexError):
        made[5]


# -- streaming --------------------------------------------------------------------------------


def test_streams_give_rows_up_to_the_first_bad_one_and_then_all_that_is_wrong(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    raw = [line(row) for row in rows(10)]
    raw[4], raw[8] = b"[]\n", raw[1]
    path.write_bytes(b"".join(raw))
    seen = []
    with pytest.raises(DataError) as caught:
        for row in manifest.stream(path):
            seen.append(row)
    assert seen == rows(4)
    assert "2 bad rows" in caught.value.what
    assert f"{path}:9: id 'u00001' is already in line 2" in caught.value.what


def test_ids_that_collide_are_no_duplicates(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.jsonl"
    monkeypatch.setattr(scan, "hash", lambda row_id: len(row_id), raising=False)
    manifest.write(path, rows(10))
    assert list(manifest.stream(path)) == rows(10)


def test_a_generator_is_written_and_nothing_stays_of_one_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    def failing() -> Any:
        yield from rows(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        manifest.write(path, failing())
    assert not list(tmp_path.iterdir())
    manifest.write(path, iter(rows(5)))
    assert list(manifest.stream(path)) == rows(5)


def test_a_text_with_half_a_surrogate_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="half a surrogate pair"):
        manifest.write(tmp_path / "a.jsonl", [Utterance("a", "a.wav", 1.0, text="\ud800")])
    assert not list(tmp_path.iterdir())
