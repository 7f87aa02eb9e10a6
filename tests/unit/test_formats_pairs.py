"""Each format to each other and back to ours: what both carry is what was there, to the bit."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2vtool import manifest
from w2vtool.formats import convert
from w2vtool.formats.convert import FORMATS
from w2vtool.formats.rows import Options
from w2vtool.manifest import Utterance

PLACES = {
    "manifest": "m.jsonl",
    "fairseq": "train.tsv",
    "nemo": "nemo.json",
    "kaldi": "data",
    "lhotse": "cuts.jsonl.gz",
    "csv": "table.csv",
    "hf": "folder",
}
PAIRS = [(one, other) for one in FORMATS for other in FORMATS]
COMPARED = ("id", "offset", "duration", "sample_rate", "text", "speaker", "lang")

# what no line-based format could hold is left out here, and tested as a refusal elsewhere
_LETTERS = st.characters(
    codec="utf-8", exclude_categories=["Cc", "Cs", "Z"], exclude_characters="|"
)
words = st.text(_LETTERS, min_size=1, max_size=6)
texts = st.lists(words, min_size=1, max_size=4).map(" ".join)
names = st.text(st.sampled_from("abcXYZ019_-ßé中,\"'=%"), min_size=1, max_size=8)
json_values = st.one_of(st.booleans(), st.integers(-5, 5), st.floats(-9, 9), words, st.none())


@st.composite
def rows_of(draw: Any, *, segments: bool, rate: bool) -> list[Utterance]:
    """Rows on the grid of 16 kHz; ids are unique, and those of the audio files."""
    ids = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    return [
        Utterance(
            f"{name}.x",
            f"wav/{name}.x.flac",
            draw(st.integers(1, 400_000)) / 16_000,
            offset=draw(st.integers(0, 99_999)) / 16_000 if segments else 0.0,
            sample_rate=draw(st.sampled_from([8_000, 16_000])) if rate else 16_000,
            text=draw(st.none() | texts),
            speaker=draw(st.none() | names),
            lang=draw(st.none() | names),
            extra=draw(st.dictionaries(st.sampled_from(["snr", "mood"]), json_values, max_size=2)),
        )
        for name in ids
    ]


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_disks() -> Iterator[None]:
    """Thousands of small files: whether they would survive a power cut is not the question."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)
        yield


def carried(row: Utterance, holds: frozenset[str], folder: Path) -> dict[str, Any]:
    """What is to survive of a row in formats that hold these keys."""
    found = {key: getattr(row, key) for key in COMPARED if key in holds}
    if "extra" in holds:
        found |= {f"extra {key}": value for key, value in row.extra.items()}
    return found | {"audio": str(folder / row.audio)}


@pytest.mark.parametrize(("one", "other"), PAIRS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_two_formats_in_a_row_keep_what_both_carry(one: str, other: str, data: Any) -> None:
    holds = FORMATS[one].holds & FORMATS[other].holds
    segments = "offset" in holds
    rows = data.draw(rows_of(segments=segments, rate="sample_rate" in holds))
    if "csv" in (one, other):  # a table holds text
        rows = [
            replace(row, extra={k: v for k, v in row.extra.items() if isinstance(v, str)})
            for row in rows
        ]
    if "kaldi" in (one, other):  # there, a speaker called as the utterance is no speaker
        rows = [replace(row, speaker=row.speaker and f"{row.speaker}-s") for row in rows]
    folder = Path(tempfile.mkdtemp())
    try:
        manifest.write(folder / "in.jsonl", rows)
        (folder / "there").mkdir()
        steps = [("manifest", folder / "in.jsonl"), (one, folder / PLACES[one])]
        steps += [(other, folder / "there" / PLACES[other]), ("manifest", folder / "out.jsonl")]
        for (origin, source), (target, out) in pairwise(steps):
            convert.convert(source, out, origin=origin, target=target)
        found = manifest.read(folder / "out.jsonl")
        expected = [carried(row, holds, folder) for row in rows]
        got = [carried(unlinked(row, folder), holds, folder) for row in found.rows]
        assert sorted(got, key=lambda r: r["audio"]) == sorted(expected, key=lambda r: r["audio"])
        if "kaldi" not in (one, other):
            assert got == expected, "the order of the rows has changed"
    finally:
        shutil.rmtree(folder)


def unlinked(row: Utterance, folder: Path) -> Utterance:
    """An audiofolder links audio from elsewhere: what the link leads to is the same audio."""
    path = folder / row.audio
    while path.is_symlink():
        path = path.readlink()
    return replace(row, audio=str(path))


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_equal_rows_give_equal_bytes(kind: str, tmp_path: Path) -> None:
    rows = [Utterance(f"s-{i}", f"a/{i}.wav", 1.5, text="A B", speaker="s") for i in range(3)]
    manifest.write(tmp_path / "in.jsonl", rows)
    found = []
    for _ in range(2):
        out = tmp_path / PLACES[kind]
        convert.convert(tmp_path / "in.jsonl", out, target=kind, force=True)
        files = [out] if out.is_file() else sorted(p for p in out.rglob("*") if p.is_file())
        found.append([(path.name, path.read_bytes()) for path in files])
    assert found[0] == found[1]
    left = [path.name for path in tmp_path.rglob(".*")]
    assert not left, "temporary files stay behind"


@pytest.mark.parametrize("kind", ["manifest", "fairseq", "csv"])
def test_bytes_of_an_archive_survive(kind: str, tmp_path: Path) -> None:
    rows = [Utterance("x", "a.zip", 1.5, text="A", start=40, length=100)]
    rows += [Utterance("y", "a.zip", 0.5, text="B", start=200, length=90)]
    manifest.write(tmp_path / "in.jsonl", rows)
    convert.convert(tmp_path / "in.jsonl", tmp_path / PLACES[kind], target=kind, force=True)
    convert.convert(tmp_path / PLACES[kind], tmp_path / "out.jsonl", origin=kind)
    found = manifest.read(tmp_path / "out.jsonl").rows
    assert [(r.audio, r.start, r.length, r.duration, r.text) for r in found] == [
        ("a.zip", 40, 100, 1.5, "A"),
        ("a.zip", 200, 90, 0.5, "B"),
    ]


def test_the_columns_of_a_table_are_those_that_were_asked_for(tmp_path: Path) -> None:
    manifest.write(tmp_path / "in.jsonl", [Utterance("x", "a.wav", 1.5, text="A", speaker="s")])
    options = Options({"audio": "path", "text": "sentence", "speaker": "client_id"})
    convert.convert(tmp_path / "in.jsonl", tmp_path / "t.tsv", target="csv", options=options)
    heading, line = (tmp_path / "t.tsv").read_text().splitlines()
    assert heading == "id\tpath\toffset\tduration\tsample_rate\tsentence\tclient_id"
    assert line == "x\ta.wav\t0.0\t1.5\t16000\tA\ts"
    convert.convert(tmp_path / "t.tsv", tmp_path / "o.jsonl", origin="csv", options=options)
    assert manifest.read(tmp_path / "o.jsonl").rows == manifest.read(tmp_path / "in.jsonl").rows
