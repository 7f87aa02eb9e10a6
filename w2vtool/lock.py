"""One folder, one process: a lock that is seen on this machine and, where flock is not, on others.

Goes in: a run folder. Goes out: a ``Lock`` that is held until it is closed or its process dies, or
a ConfigError that names who has it.

Why two means: ``flock`` goes with its process, at once, but some network file systems keep it to
one host. So the owner also stamps the file every few seconds. Whoever finds another host's name
in it watches: a stamp that moves belongs to a living process, one that stands to a dead one. Clocks
of the hosts are never compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from w2vtool.errors import ConfigError

BEAT_SECONDS = 5.0
# How long a stamp must stand still. Network file systems are asked anew when a file is opened.
WATCH_SECONDS = 20.0


class Lock:
    """The lock of ``folder``, taken. ``say`` is told when another host's stamp has to be watched.

    Raises ConfigError when another process has it.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.path = folder / ".lock"
        self._flocked = True
        self._file = self._flock()
        try:
            self._watch(say)
        except BaseException:
            self._file.close()
            raise
        # the lock stays while any process has the file open: a loader that outlives a killed run
        os.register_at_fork(after_in_child=self._file.close)
        self._file.truncate(0)
        self._file.write(f"{os.getpid()} on {platform.node()}\n")
        self._file.flush()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of it; the next one need not watch."""
        self._end.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._file.truncate(0)
        self._file.close()

    def _flock(self) -> IO[str]:
        try:
            file = self.path.open("a+", encoding="utf-8")
        except FileNotFoundError:
            raise self._moved() from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise self._taken(owner) from None
        except OSError:  # a file system without locks: the stamp has to do
            self._flocked = False
        if not self._here(file):
            file.close()
            raise self._moved()
        return file

    def _here(self, file: IO[str]) -> bool:
        """Whether the file is still at its path: a folder may have been moved meanwhile."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _watch(self, say: Callable[[str], None]) -> None:
        """Return when nobody that flock would not show stamps the file."""
        self._file.seek(0)
        owner = self._file.read().strip()
        if not owner or (self._flocked and owner.endswith(f" on {platform.node()}")):
            return
        say(f"{self.path.parent} was last used by process {owner}; looking whether that is alive")
        before = self._stamp()
        end = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, WATCH_SECONDS / 4))
            if self._stamp() != before:
                raise self._taken(owner)

    def _stamp(self) -> int:
        with self.path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # the folder was moved away, or the disk is gone
                os.utime(self._file.fileno())

    def _moved(self) -> ConfigError:
        what, hint = "another run began here at the same time", "choose another --run-dir"
        return ConfigError(what, where=str(self.path.parent), hint=hint)

    def _taken(self, owner: str) -> ConfigError:
        hint = "wait for it, stop it, or choose another --run-dir"
        where = str(self.path.parent)
        return ConfigError(f"in use by process {owner or 'unknown'}", where=where, hint=hint)
