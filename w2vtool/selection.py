"""Which rows of a manifest to keep: conditions, and how many rows each of them dropped.

Goes in: rows. Goes out: whether each row stays, with a count per condition; a row that fails
several counts for the first.

Why pydantic's regular expressions and not ``re``: they are those of Rust's ``regex`` crate, whose
time is linear in the text whatever the pattern, where ``(a+)+$`` keeps ``re`` busy for ever. They
have no look-around and no back-references; the rest is as in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic_core import SchemaError, SchemaValidator, core_schema

from w2vtool.errors import ConfigError, DataError
from w2vtool.formats.rows import lines
from w2vtool.manifest import Utterance


class Condition(NamedTuple):
    """What a row must be: ``name`` is for the report."""

    name: str
    holds: Callable[[Utterance], bool]


class Dropped(NamedTuple):
    """What one condition took out."""

    rows: int
    seconds: float


def pattern(text: str, where: str) -> Callable[[str], bool]:
    """Whether a regular expression is found anywhere in a text; linear time."""
    try:
        found = SchemaValidator(core_schema.str_schema(pattern=text))
    except SchemaError as error:
        reason = str(error).partition("error: ")[2] or str(error)
        hint = "look-around and back-references are not supported: they would need more time"
        what = f"{text!r} is no regular expression ({reason.strip()})"
        raise ConfigError(what, where=where, hint=hint) from error
    return found.isinstance_python


def within(
    value: Callable[[Utterance], float | None],
    low: float | None,
    high: float | None,
    name: str,
    unit: str,
) -> list[Condition]:
    """Bounds on a value of a row, both included; a row without the value fails."""

    def least(row: Utterance) -> bool:
        return (found := value(row)) is not None and low is not None and found >= low

    def most(row: Utterance) -> bool:
        return (found := value(row)) is not None and high is not None and found <= high

    found = [] if low is None else [Condition(f"{name} at least {low:g} {unit}", least)]
    return found + ([] if high is None else [Condition(f"{name} at most {high:g} {unit}", most)])


def rate(row: Utterance) -> float | None:
    """Characters of text a second."""
    return len(row.text) / row.duration if row.text else None


def ids(path: Path) -> frozenset[str]:
    """Ids in a file, one a line. DataError names lines that are not UTF-8."""
    problems: list[str] = []
    found = frozenset(
        line for _, line in lines(path, lambda where, what: problems.append(f"{where}: {what}"))
    )
    if problems:
        raise DataError("\n  ".join(["not a list of ids", *problems[:20]]), where=str(path))
    return found


def keep(
    rows: Sequence[Utterance],
    conditions: Sequence[Condition],
    on_row: Callable[[int], None] = lambda done: None,
) -> tuple[np.ndarray, dict[str, Dropped]]:
    """Which rows stay (bool ``[N]``), and what each condition dropped."""
    kept = np.ones(len(rows), dtype=bool)
    dropped = {condition.name: Dropped(0, 0.0) for condition in conditions}
    for index, row in enumerate(rows):
        for name, holds in conditions:
            if not holds(row):
                kept[index] = False
                dropped[name] = Dropped(
                    dropped[name].rows + 1, dropped[name].seconds + row.duration
                )
                break
        on_row(index + 1)
    return kept, dropped
