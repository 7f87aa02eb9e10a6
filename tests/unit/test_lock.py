"""A folder belongs to one process: on this host by flock, on others by a stamp that moves."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from w2vtool import lock
from w2vtool.errors import ConfigError
from w2vtool.lock import Lock


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.6)


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Path]:
    """A lock file that a process of another host keeps stamping; its flock is not seen here."""
    path, end = tmp_path / ".lock", threading.Event()
    path.write_text("77 on elsewhere\n")

    def beat() -> None:
        while not end.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    yield tmp_path
    end.set()
    thread.join()


def test_a_folder_that_a_living_process_of_another_host_stamps_is_refused(stranger: Path) -> None:
    said: list[str] = []
    with pytest.raises(ConfigError, match="in use by process 77 on elsewhere"):
        Lock(stranger, said.append)
    assert "77 on elsewhere" in said[0]
    assert (stranger / ".lock").read_text() == "77 on elsewhere\n"  # its owner is not erased


def test_a_folder_of_a_dead_process_of_another_host_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("77 on elsewhere\n")
    taken = Lock(tmp_path)
    assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")
    taken.close()


def test_after_an_orderly_end_nobody_watches(tmp_path: Path) -> None:
    Lock(tmp_path).close()
    said: list[str] = []
    Lock(tmp_path, said.append).close()
    assert said == [] and (tmp_path / ".lock").read_text() == ""


def test_a_held_lock_is_stamped_until_it_is_closed(tmp_path: Path) -> None:
    held, path = Lock(tmp_path), tmp_path / ".lock"
    os.utime(path, (0, 0))
    for _ in range(200):
        if path.stat().st_mtime:
            break
        threading.Event().wait(0.05)
    assert path.stat().st_mtime
    held.close()
    os.utime(path, (0, 0))
    threading.Event().wait(0.2)
    assert path.stat().st_mtime == 0


def test_without_flock_the_stamp_keeps_a_second_process_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    first = Lock(tmp_path)
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        Lock(tmp_path)
    first.close()
    Lock(tmp_path).close()


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_moved_away_meanwhile_is_not_taken(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock would be that of a folder elsewhere, whether or not there is a new one."""
    folder, real = tmp_path / "toy", lock.fcntl.flock
    folder.mkdir()

    def late(*args: Any) -> None:
        folder.rename(tmp_path / "older")
        if again:
            folder.mkdir()
            (folder / ".lock").touch()
        real(*args)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with pytest.raises(ConfigError, match="another run began here at the same time"):
        Lock(folder)
    monkeypatch.setattr(lock.fcntl, "flock", real)
    Lock(tmp_path / "older").close()
