"""A finished part is taken over if and only if the same would be done to the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2vtool import parts


def identify(row: Any) -> dict[str, Any]:
    return {"row": row}


rows = st.lists(st.integers() | st.text(max_size=3), min_size=1, max_size=300)


@given(rows)
def test_every_row_is_in_one_part_and_in_order(given_rows: list[Any]) -> None:
    cut = parts.cut(given_rows, {"task": "x"}, identify)
    assert [row for part in cut for row in part.rows] == given_rows
    assert [part.number for part in cut] == list(range(len(cut)))
    assert all(len(part.rows) == parts.PART_ROWS for part in cut[:-1])


@given(rows, st.data())
def test_another_row_or_another_thing_to_do_is_another_key(
    given_rows: list[Any], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(given_rows) - 1))
    changed = [*given_rows[:at], [given_rows[at]], *given_rows[at + 1 :]]
    before = [part.key() for part in parts.cut(given_rows, {"lm": None}, identify)]
    after = [part.key() for part in parts.cut(changed, {"lm": None}, identify)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [
        number != at // parts.PART_ROWS for number in range(len(before))
    ]
    other = [part.key() for part in parts.cut(given_rows, {"lm": "big.arpa"}, identify)]
    assert not set(before) & set(other)
    assert before == [part.key() for part in parts.cut(given_rows, {"lm": None}, identify)]


@pytest.fixture
def part(tmp_path: Path) -> parts.Part:
    [made] = parts.cut([1, 2], {}, identify)
    parts.write(tmp_path, made, [{"id": 1, "text": "É\u2028"}, {"id": 2}])
    return made


def test_a_part_is_read_back(part: parts.Part, tmp_path: Path) -> None:
    assert parts.is_done(tmp_path, part)
    assert parts.read(tmp_path, part) == [{"id": 1, "text": "É\u2028"}, {"id": 2}]
    assert [path.name for path in tmp_path.iterdir()] == ["part-000000.jsonl"]


def test_a_part_of_something_else_is_not_taken(part: parts.Part, tmp_path: Path) -> None:
    [other] = parts.cut([1, 2], {"more": 1}, identify)
    assert not parts.is_done(tmp_path, other) and parts.read(tmp_path, other) is None


def test_a_part_that_was_cut_short_or_changed_is_not_read(part: parts.Part, tmp_path: Path) -> None:
    path = part.path(tmp_path)
    whole = path.read_bytes()
    for end in range(len(whole) - 1):
        path.write_bytes(whole[:end])
        assert parts.read(tmp_path, part) is None, end
    path.write_bytes(b"[1]\n" + whole)
    assert not parts.is_done(tmp_path, part) and parts.read(tmp_path, part) is None
