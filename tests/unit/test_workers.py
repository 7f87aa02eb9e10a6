"""Processes that crash, hang or eat memory: each costs the item that did it, and nothing else."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from w2vtool import survey, workers
from w2vtool.errors import DataError
from w2vtool.limits import Limits
from w2vtool.survey import Inspected, inspect_all

SHORT = Limits(memory_bytes=64 << 20, seconds=1.0)


def moody(path: Path) -> Inspected:
    """A decoder that does what the name of a file says."""
    if path.suffix == ".segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.suffix == ".abort":
        os.abort()
    if path.suffix == ".exit":
        os._exit(9)
    if path.suffix == ".loop":
        time.sleep(60)
    return Inspected(detail=path.name)


def greedy(path: Path) -> Iterator[None]:
    bytearray(1 << 30)
    raise AssertionError("got a gigabyte")


def hungry(path: Path) -> Inspected:
    """The real inspection, with a decoder that wants a gigabyte."""
    if path.suffix == ".big":
        survey.opened = greedy  # type: ignore[assignment]  # in this process only
    return survey.inspect(path)


def limits_of(path: Path) -> Inspected:
    kinds = (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_DATA)
    found = [resource.getrlimit(kind) for kind in kinds]
    try:
        path.write_text("x")
    except OSError as error:
        return Inspected(detail=f"{found[:2]} {found[2][0] < 1 << 40} {error.strerror}")
    return Inspected(detail="written")


def named(*places: tuple[int, str], count: int = 40) -> list[Path]:
    endings = dict(places)
    return [Path(f"{n}{endings.get(n, '')}") for n in range(count)]


def test_items_that_kill_their_process_are_told_by_what_they_did() -> None:
    paths = named((0, ".segv"), (7, ".loop"), (8, ".abort"), (30, ".exit"), (39, ".segv"))
    found = list(inspect_all(paths, jobs=2, inspect=moody, limits=SHORT))
    bad = {0: "decoder-crash", 7: "timeout", 8: "decoder-crash", 30: "decoder-crash"}
    bad[39] = "decoder-crash"
    assert [item.reason for item in found] == [bad.get(n, "") for n in range(40)]
    assert [item.detail for n, item in enumerate(found) if n not in bad] == [
        path.name for n, path in enumerate(paths) if n not in bad
    ]
    assert "SIGSEGV" in found[0].detail
    assert "SIGABRT" in found[8].detail
    assert "exit code 9" in found[30].detail


def test_time_is_counted_for_each_file_anew() -> None:
    def_slow = [Path(f"{n}") for n in range(6)]
    found = list(
        inspect_all(def_slow, jobs=1, inspect=a_third_of_a_second, limits=Limits(seconds=1.0))
    )
    assert not any(item.reason for item in found)


def a_third_of_a_second(path: Path) -> Inspected:
    time.sleep(0.3)
    return Inspected()


def test_a_decoder_that_wants_too_much_memory_costs_its_own_file_only(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"no audio")
    paths = [tmp_path / "a.wav", tmp_path / "b.big"]
    found = list(inspect_all(paths, jobs=1, inspect=hungry, limits=SHORT))
    assert [item.reason for item in found] == ["not-audio", "memory"]


def test_a_worker_writes_no_files_and_no_core_dumps_and_has_bounded_memory(tmp_path: Path) -> None:
    found = list(inspect_all([tmp_path / "x"], jobs=1, inspect=limits_of))
    assert found[0].detail == "[(0, 0), (0, 0)] True File too large"


def test_without_jobs_files_are_inspected_in_this_process() -> None:
    assert [item.detail for item in inspect_all(named(count=3), jobs=0, inspect=moody)] == [
        *("0", "1", "2")
    ]


def test_results_come_in_order_also_when_the_first_is_the_slowest() -> None:
    found = workers.each(first_is_slow, list(range(200)), jobs=3, lost=lambda item, code: -1)
    assert list(found) == list(range(200))


def first_is_slow(item: int) -> int:
    if item == 0:
        time.sleep(0.5)
    return item


def test_no_items_need_no_process() -> None:
    assert list(workers.each(first_is_slow, [], jobs=2, lost=lambda item, code: -1)) == []


def test_processes_that_cannot_start_are_an_error_and_no_endless_loop() -> None:
    function = Unreadable()
    with pytest.raises(DataError, match="end before they begin"):
        list(workers.each(function, [1], jobs=1, lost=lambda item, code: -1))


class Unreadable:
    """A function that breaks in the process that it is sent to."""

    def __call__(self, item: int) -> int:
        return item

    def __reduce__(self) -> tuple[object, ...]:
        return (os._exit, (3,))


def test_a_scan_that_is_given_up_leaves_no_process_behind() -> None:
    found = workers.each(pid_of, list(range(100)), jobs=2, lost=lambda item, code: -1)
    first = next(found)
    found.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def pid_of(item: int) -> int:
    return os.getpid()
