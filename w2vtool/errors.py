"""Errors that a person can put right, and the exit code of each kind.

Exit codes: 0 done, 1 a bug in w2vtool, 2 usage or recipe, 3 data, 4 plug-in, 5 checkpoint,
6 updates were skipped again and again (``guards.Diverged``), 7 another process of the run died
(``device.PeerLost``), 143 stopped by SIGTERM after saving.
"""

from __future__ import annotations

from collections.abc import Sequence

SHOWN_PROBLEMS = 20  # of a list of problems, those that an error names


class UserError(Exception):
    """Something outside of the program is wrong.

    ``what`` is the fact with the offending value, ``where`` a ``file:line``, an utterance id or a
    flag, ``hint`` what to do next. Only ``cli.main`` catches it, and prints it without a traceback.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.hint = what, where, hint

    @property
    def fact(self) -> str:
        """Where and what, without the hint: one problem of a list."""
        return f"{self.where}: {self.what}" if self.where else self.what

    def __str__(self) -> str:
        return f"{self.fact}\n  hint: {self.hint}" if self.hint else self.fact

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments do not survive a pool
        return (_rebuild, (type(self), self.what, self.where, self.hint))


def shortened(problems: Sequence[str], count: int | None = None) -> list[str]:
    """The first 20 problems, and how many more there are; ``count`` of them if not all are here."""
    rest = (len(problems) if count is None else count) - SHOWN_PROBLEMS
    return [*problems[:SHOWN_PROBLEMS], *([f"… and {rest} more"] if rest > 0 else [])]


def _rebuild(kind: type[UserError], what: str, where: str, hint: str) -> UserError:
    return kind(what, where=where, hint=hint)


class ConfigError(UserError):
    """A recipe, a flag or a ``key=value`` is wrong."""


class DataError(UserError):
    """Audio, a manifest, a text or a language model is wrong."""

    exit_code = 3


class PluginError(UserError):
    """A task plug-in cannot be loaded or breaks the contract."""

    exit_code = 4


class CheckpointError(UserError):
    """A checkpoint is damaged, or belongs to another model or vocabulary."""

    exit_code = 5


class Stopped(Exception):
    """The run was stopped by a signal, after everything was saved. ``signal`` is its number.

    ``again`` is what goes on with it.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.exit_code = 128 + signal
        self.again = "the same command"
