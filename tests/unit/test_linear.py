"""No regular expression of the package can be made slow: repeats within repeats are parted."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from re import _constants as constants  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[2] / "w2vtool"
FUNCTIONS = {"compile", "match", "fullmatch", "search", "sub", "split", "findall", "finditer"}
REPEATS = (constants.MAX_REPEAT, constants.MIN_REPEAT)
MANY = 100  # a repeat with a smaller bound costs a constant


def patterns() -> Iterator[str]:
    """Patterns that are written out where ``re`` is called, anywhere in the package."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if called and ast.unparse(node.func.value) == "re" and node.func.attr in FUNCTIONS:  # type: ignore[attr-defined]
                first = node.args[0]  # type: ignore[attr-defined]
                if isinstance(first, ast.Constant):
                    value = first.value
                    yield value if isinstance(value, str) else value.decode("latin-1")


def slow(pattern: str) -> list[str]:
    """Unbounded repeats of something that begins with, or is, an unbounded repeat itself."""
    return list(_slow(parser.parse(pattern)))


def _slow(items: Any) -> Iterator[str]:
    for kind, value in items:
        if kind in REPEATS and value[1] > MANY:
            body = list(value[2])
            if any(True for _ in _unbounded(body)) and not _parted(body):
                yield str(body)
        for inner in _inside(kind, value):
            yield from _slow(inner)


def _inside(kind: Any, value: Any) -> Iterator[Any]:
    if kind in REPEATS:
        yield value[2]
    elif kind is constants.SUBPATTERN:
        yield value[3]
    elif kind is constants.BRANCH:
        yield from value[1]
    elif kind in (constants.ASSERT, constants.ASSERT_NOT):
        yield value[1]


def _unbounded(items: Any) -> Iterator[Any]:
    for kind, value in items:
        if kind in REPEATS and value[1] > MANY:
            yield value[2]
        for inner in _inside(kind, value):
            yield from _unbounded(inner)


def _parted(body: list[Any]) -> bool:
    """Whether it begins with a character that the repeats inside of it cannot take."""
    while body and body[0][0] is constants.SUBPATTERN:
        body = [*body[0][1][3], *body[1:]]
    if not body or body[0][0] is not constants.LITERAL:
        return False
    first = chr(body[0][1])
    return not any(_takes(inner, first) for inner in _unbounded(body))


def _takes(items: Any, letter: str) -> bool:
    for kind, value in items:
        if kind is constants.LITERAL and chr(value) == letter:
            return True
        if kind in (constants.ANY, constants.NOT_LITERAL):
            return True
        if kind is constants.IN and _in(value, letter):
            return True
        if any(_takes(inner, letter) for inner in _inside(kind, value)):
            return True
    return False


def _in(items: Any, letter: str) -> bool:
    for kind, value in items:
        if kind is constants.NEGATE:
            return True  # too much to tell
        if kind is constants.LITERAL and chr(value) == letter:
            return True
        if kind is constants.RANGE and value[0] <= ord(letter) <= value[1]:
            return True
        if kind is constants.CATEGORY:
            names = {"WORD": r"\w", "DIGIT": r"\d", "SPACE": r"\s"}
            found = next((p for name, p in names.items() if str(value).endswith("_" + name)), ".")
            negated = "_NOT_" in str(value)
            if bool(re.fullmatch(found, letter)) != negated:
                return True
    return False


@pytest.mark.parametrize("pattern", sorted(set(patterns())))
def test_no_pattern_repeats_what_repeats(pattern: str) -> None:
    assert slow(pattern) == []


@pytest.mark.parametrize("pattern", ["(a+)+", r"(\w*)*x", r"([ab]+,?)*", r"( ?\w+)*", "(.*x)*"])
def test_the_search_for_slow_patterns_finds_them(pattern: str) -> None:
    assert slow(pattern)


@pytest.mark.parametrize(
    "pattern", [r"\w+( \w+)*", r"(\.[\w-]*)*", "(ab){1,5}", r"(?:/[^/]{1,9})*"]
)
def test_parted_and_bounded_repeats_are_fine(pattern: str) -> None:
    assert slow(pattern) == []
