"""What is said while numba compiles the search, which takes 10 to 20 seconds, once on a machine.

Goes in: who is told. Goes out: a context in which he is, if anything is compiled: numba tells by an
event of its own, and there is none where it finds the code in its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba.core import event

TEXT = "compiling the search for this machine: 10 to 20 seconds, once"


class _Listener(event.Listener):
    """Tells at the first compilation."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.told = say, False

    def on_start(self, event: Any) -> None:
        """Called by numba before each function."""
        if not self.told:
            self.told = True
            self.say(TEXT)

    def on_end(self, event: Any) -> None:
        """Called by numba after each."""


@contextmanager
def told(say: Callable[[str], None]) -> Iterator[None]:
    """Tell ``say``, once, if numba compiles something meanwhile."""
    with event.install_listener("numba:compile", _Listener(say)):
        yield
