"""Conditions on rows, one by one and together; patterns that cannot hang; the part by hours."""

from __future__ import annotations

import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from w2vtool import manifest, selection, splits, views
from w2vtool.errors import ConfigError, DataError
from w2vtool.manifest import Utterance
from w2vtool.schema import DataConfig
from w2vtool.tasks.manifest_filter import FilterConfig, conditions

ROWS = [
    Utterance("a", "a.wav", 1.0, text="HELLO", speaker="s1", lang="en"),
    Utterance("b", "b.wav", 5.0, text="GUTEN TAG ß", speaker="s2", lang="de"),
    Utterance("c", "c.wav", 30.0, speaker="s1", lang="en"),
    Utterance("d", "d.wav", 10.0, text="YES", lang="en"),
]


def kept(**config: Any) -> str:
    """Ids of what stays."""
    found = conditions(FilterConfig(manifest="m.jsonl", out="o.jsonl", **config))
    mask, dropped = selection.keep(ROWS, found)
    assert mask.sum() + sum(one.rows for one in dropped.values()) == len(ROWS)
    return "".join(row.id for row, stays in zip(ROWS, mask, strict=True) if stays)


@pytest.mark.parametrize(
    ("config", "ids"),
    [
        ({"min_seconds": 5}, "bcd"),
        ({"max_seconds": 5}, "ab"),
        ({"min_seconds": 5, "max_seconds": 10}, "bd"),
        ({"speakers": ["s1"]}, "ac"),
        ({"langs": ["de", "fr"]}, "b"),
        ({"with_text": True}, "abd"),
        ({"match": "^(HELLO|YES)$"}, "ad"),
        ({"no_match": "[A-Z]+ [A-Z]+"}, "acd"),
        ({"alphabet": "HELOYS"}, "acd"),
        ({"min_rate": 1}, "ab"),
        ({"max_rate": 2.2}, "bd"),
        ({"min_rate": 2.2, "max_rate": 2.2}, "b"),
        ({"with_text": True, "speakers": ["s1"]}, "a"),
    ],
)
def test_a_condition_keeps_what_meets_it(config: dict[str, Any], ids: str) -> None:
    assert kept(**config) == ids


def test_lists_of_ids(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbfa\r\n\r\nd\nzzz\n")
    assert kept(keep_ids=tmp_path / "ids.txt") == "ad"
    assert kept(drop_ids=tmp_path / "ids.txt") == "bc"
    (tmp_path / "ids.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match="2: not UTF-8"):
        kept(keep_ids=tmp_path / "ids.txt")


def test_a_row_is_counted_at_the_first_condition_that_it_fails() -> None:
    config = FilterConfig(manifest="m", out="o", langs=["en"], max_seconds=20, with_text=True)
    _, dropped = selection.keep(ROWS, conditions(config))
    assert dropped == {
        "in en": (1, 5.0),
        "audio at most 20 s": (1, 30.0),
        "with text": (0, 0.0),
    }


def test_time_of_a_pattern_is_linear_in_the_text() -> None:
    """With backtracking the long text would take 2^100,000 times what the short one takes."""
    has = selection.pattern("(A+)+B$|(A|AA)+C$", "--match")
    started = time.process_time()
    assert not has("A" * 100_000 + "D")
    assert time.process_time() - started < 60, "this took for ever"


@pytest.mark.parametrize("text", ["(?=A)", r"(A)\1", "(", "[z-a]", "a{9999999}"])
def test_patterns_that_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no regular expression"):
        selection.pattern(text, "--match")


@pytest.mark.parametrize("hours", [0.01, 0.2, 5.0])
def test_the_part_by_hours_is_that_of_a_recipe(tmp_path: Path, hours: float) -> None:
    rows = [Utterance(f"id{i}", f"{i}.wav", 1 + i % 9) for i in range(300)]
    manifest.write(tmp_path / "m.jsonl", rows)
    data = DataConfig(train=[str(tmp_path / "m.jsonl")], hours=hours)
    recipe = {row.id for row in splits.open_split(data, "train").rows}
    assert {rows[i].id for i in views.some_hours(rows, hours)} == recipe
    by_hash = sorted(rows, key=lambda row: blake2b(row.id.encode(), digest_size=8).digest())
    first, seconds = set[str](), 0.0
    for row in by_hash:
        if seconds < hours * 3600:
            first.add(row.id)
        seconds += row.duration
    assert first == recipe  # of these rows, whatever the version of w2vtool
