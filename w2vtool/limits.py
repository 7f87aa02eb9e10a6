"""What a process that decodes files of strangers may take, and how it keeps quiet.

Goes in: ``Limits``. Goes out: a process that cannot write files or core dumps, gets no more memory
than that, dies when one file takes too long, and leaves Ctrl-C to its parent.

Why an alarm and not an exception: a decoder that hangs does not come back to Python. Why the memory
is counted as data (RLIMIT_DATA) and not as addresses: libraries map far more than they use.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path
from typing import NamedTuple

_STATUS = Path("/proc/self/status")


class Limits(NamedTuple):
    """For one file: bytes on top of what the process has at its start, and seconds of the clock."""

    memory_bytes: int = 384 << 20  # decoding goes by blocks of up to 32 MB, however long the file
    seconds: float = 120.0  # 30 hours of Opus, the slowest format


DEFAULT = Limits()


def confine(limits: Limits) -> None:
    """Put this process under limits for the rest of its life, and send its stderr nowhere.

    C decoders write warnings about single files there. Limits that the system does not have are
    left out.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with Path(os.devnull).open("w") as sink:
        os.dup2(sink.fileno(), 2)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    if held := _data_bytes():
        _lower(resource.RLIMIT_DATA, held + limits.memory_bytes)


def allow(seconds: float) -> None:
    """Let the process die by SIGALRM if this is not called again in time; 0: not any more."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _lower(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard == resource.RLIM_INFINITY or value < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (value, value))


def _data_bytes() -> int:
    """Private memory of this process; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return 0
