"""A row of a manifest: the quick way and the careful way agree, and so does the JSON schema."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2vtool import manifest, rows
from w2vtool.rows import Utterance

ROW = {"id": "a", "audio": "a.wav", "duration": 1.5}
SCHEMA = json.loads((Path(rows.__file__).parent / "manifest.schema.json").read_text("utf-8"))

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
spans = st.none() | st.tuples(st.integers(0, 2**62 - 1), st.integers(1, 2**62 - 1))


@st.composite
def utterances(draw: st.DrawFn) -> Utterance:
    """Rows of all shapes, those that the quick way knows among them."""
    row = Utterance(
        draw(names),
        draw(names),
        draw(st.floats(0, 1e9, exclude_min=True, exclude_max=True)),
        draw(st.sampled_from([0.0, 1.5]) | st.floats(0, 1e8)),
        draw(st.integers(1, 2**40)),
        draw(st.none() | texts),
        draw(st.none() | texts),
        draw(st.none() | texts),
        draw(st.just({}) | st.dictionaries(names.map("x-{}".format), st.integers(), max_size=2)),
    )
    span = draw(spans)
    return row if span is None else replace(row, start=span[0], length=span[1])


@given(utterances())
def test_a_written_row_is_read_back_the_same_by_both_ways(row: Utterance) -> None:
    line = rows.written(row)[0].rstrip()
    assert rows.parse(line) == rows._parsed(line) == row
    assert rows.parse_hashed(line + b"\n") == (row, rows.hashed(row))
    assert rows.written(row) == (line + b"\n", rows.hashed(row))


@settings(max_examples=300)
@given(utterances(), st.data())
def test_the_quick_way_refuses_what_the_careful_way_refuses(row: Utterance, data: Any) -> None:
    line = bytearray(rows.written(row)[0].rstrip())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(line) - 1))
        line[place] = data.draw(st.sampled_from(list(b'09.e-"\\{}, \t\x0b\x7f\xffax:')))
    found = []
    for way in (rows.parse, rows._parsed, lambda raw: rows.parse_hashed(raw)[0]):
        try:
            found.append(repr(way(bytes(line))))
        except ValueError as error:
            found.append(str(error.args))
    assert found[0] == found[1] == found[2]


@given(utterances())
def test_where_the_audio_lies_is_not_hashed(row: Utterance) -> None:
    moved = replace(row, audio="shards/x-00000.tar", start=512, length=99)
    assert rows.hashed(moved) == rows.hashed(replace(row, audio="b", start=None, length=None))
    assert rows.hashed(row) != rows.hashed(replace(row, id=row.id + "x"))


def test_the_hash_of_a_manifest_is_that_of_earlier_versions() -> None:
    found = [
        Utterance("a", "a.wav", 1.25, text="HÉ", speaker="x", extra={"z": 1, "b": [2]}),
        Utterance("b", "b.wav", 2.0, offset=0.5, sample_rate=8000, lang="de"),
    ]
    assert manifest.sha256(found) == (
        "c83ee315cc375246ba35922a498f2511919e153a83050cc3f2ee14b65f410c6c"
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"start": 5}, "'start' alone"),
        ({"length": 5}, "'length' alone"),
        ({"start": -1, "length": 5}, "'start' is '-1', not a whole number of bytes from 0 on"),
        ({"start": 0, "length": 0}, "'length' is '0', not a whole number of bytes from 1 on"),
        ({"start": 0.5, "length": 5}, "'start' is '0.5', not a whole number of bytes"),
        ({"start": True, "length": 5}, "'start' is 'True', not a whole number of bytes"),
    ],
)
def test_a_byte_range_that_is_none_is_named(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        rows.parse(json.dumps(ROW | more).encode())
    assert said in caught.value.args[0]


def test_a_byte_range_is_written_after_the_audio() -> None:
    row = Utterance("a", "x.tar", 1.0, start=0, length=7)
    assert rows.written(row)[0].startswith(
        b'{"id": "a", "audio": "x.tar", "start": 0, "length": 7, '
    )
    assert row.span == (0, 7)
    assert Utterance("a", "a.wav", 1.0).span is None


def test_whole_numbers_of_tables_of_floats_are_whole() -> None:
    line = json.dumps(ROW | {"sample_rate": 8000.0, "start": 0.0, "length": 5.0}).encode()
    row = rows.parse(line)
    assert (row.sample_rate, row.span) == (8000, (0, 5))
    found = rows.written(row)[0]
    assert b'"sample_rate": 8000' in found and b"8000.0" not in found


# -- the schema -------------------------------------------------------------------------------


def accepts(record: Any) -> bool:
    jsonschema = pytest.importorskip("jsonschema")
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(record))


@given(utterances())
def test_the_schema_accepts_what_is_written(row: Utterance) -> None:
    assert accepts(json.loads(rows.written(row)[0]))


VALUES = st.sampled_from(
    [None, True, 0, 1, -1, 0.5, 2.0, 1e9, 1e10, 2**62, "", "a", "a\n", "é", "\x7f", [], {}]
)
RECORDS = st.dictionaries(st.sampled_from([*rows.KEYS, "audio_filepath", "x"]), VALUES)


@settings(max_examples=400)
@given(RECORDS, st.booleans())
def test_the_schema_accepts_and_refuses_as_reading_does(record: dict[str, Any], full: bool) -> None:
    if full:
        record = ROW | record
    try:
        rows.parse(json.dumps(record).encode())
    except ValueError:
        assert not accepts(record)
    else:
        assert accepts(record)


def test_the_schema_names_every_key() -> None:
    assert set(SCHEMA["properties"]) == {*rows.KEYS, "audio_filepath"}
