"""A disk that fails where a test wants it to: with an error, or by the death of the process."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_open = io.open


class Death(BaseException):
    """The process is gone: nothing that is tried after this reaches the disk."""


class Disk:
    """Counts what changes the disk (``touches``), and fails at the number ``at``.

    With ``error`` that one call raises OSError; without, it and all later ones raise Death. A write
    that fails has written half; so has an fsync, for what it did not get down.
    """

    def __init__(self, at: int | None, error: int | None) -> None:
        self.at, self.error, self.touches, self.dead = at, error, 0, False

    def touch(self) -> None:
        if self.dead:
            raise Death
        here, self.touches = self.touches, self.touches + 1
        if here == self.at and self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        if here == self.at:
            self.dead = True
            raise Death

    def guard(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **more: Any) -> Any:
            self.touch()
            return call(*args, **more)

        return guarded

    def fsync(self, handle: int) -> None:
        try:
            self.touch()
        except BaseException:
            there = os.fstat(handle)
            if stat.S_ISREG(there.st_mode):
                os.ftruncate(handle, there.st_size // 2)
            raise

    def open(self, file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        if "r" in mode:
            return _open(file, mode, *args, **more)
        self.touch()
        return _File(_open(file, mode, *args, **more), self)


class _File:
    """An open file whose writes count."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> int:
        try:
            self._disk.touch()
        except BaseException:
            self._file.write(data[: len(data) // 2])
            raise
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()


@contextmanager
def failing(at: int | None = None, error: int | None = None) -> Iterator[Disk]:
    """Let the disk of this process fail as ``Disk`` says; nothing is forced down, to save time."""
    disk = Disk(at, error)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, disk.guard(getattr(os, name)))
        patch.setattr(os, "fsync", disk.fsync)
        patch.setattr(io, "open", disk.open)
        yield disk
