"""Corpus layouts: what is found, and what does not fit together, with its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from w2vtool import corpora, manifest
from w2vtool.errors import ConfigError, DataError
from w2vtool.text import Rules


def clip(path: Path, seconds: float = 0.5, *, hertz: float = 300) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(seconds * 16_000)) / 16_000
    soundfile.write(path, np.sin(2 * np.pi * hertz * t) / 4, 16_000)
    return path


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    """Two speakers, three utterances, in LibriSpeech's folders."""
    root = tmp_path / "LibriSpeech"
    for book, lines in {
        "84/121123": ["84-121123-0000 GO DO YOU HEAR", "84-121123-0001 BUT IN LESS"],
        "174/50561": ["174-50561-0000 FORGOTTEN TOO"],
    }.items():
        folder = root / "dev-clean" / book
        for n, line in enumerate(lines):
            clip(folder / f"{line.split()[0]}.flac", 1, hertz=200 + 50 * n + len(line))
        (folder / f"{book.replace('/', '-')}.trans.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder with transcripts.tsv."""
    root = tmp_path / "spoken"
    lines = ["audio/a.wav\tone two\tann", "audio/b.flac\tthree\tbob", "audio/c.ogg\tsix"]
    for n, line in enumerate(lines):
        clip(root / line.split("\t")[0], hertz=200 + 30 * n)
    (root / "transcripts.tsv").write_text("\n".join(lines) + "\n")
    return root


def problems(found: corpora.Scan) -> list[tuple[str, str]]:
    return [(Path(item.path).name, item.reason) for item in found.problems]


def test_librispeech_gives_ids_texts_and_speakers(librispeech: Path) -> None:
    found = corpora.scan(librispeech)
    assert [(item.id, item.text, item.speaker) for item in found.candidates] == [
        ("174-50561-0000", "FORGOTTEN TOO", "174"),
        ("84-121123-0000", "GO DO YOU HEAR", "84"),
        ("84-121123-0001", "BUT IN LESS", "84"),
    ]
    assert all(item.path.is_file() for item in found.candidates)
    assert found.candidates[2].where.endswith("84-121123.trans.txt:2")
    assert not found.problems


def test_librispeech_takes_other_endings(librispeech: Path) -> None:
    for path in list(librispeech.rglob("*.flac")):
        clip(path.with_suffix(".wav"))
        path.unlink()
    assert {item.path.suffix for item in corpora.scan(librispeech).candidates} == {".wav"}


def test_librispeech_tells_what_does_not_fit_with_file_and_line(librispeech: Path) -> None:
    book = librispeech / "dev-clean/84/121123"
    (book / "84-121123-0000.flac").unlink()
    clip(book / "84-121123-0009.flac")
    trans = book / "84-121123.trans.txt"
    trans.write_bytes(trans.read_bytes() + b"84-121123-0002\n84-121123-0003 \xff\n")
    found = corpora.scan(librispeech)
    assert [item.id for item in found.candidates] == ["174-50561-0000", "84-121123-0001"]
    assert sorted(problems(found)) == [
        ("84-121123-0009.flac", "no-transcript"),
        ("84-121123.trans.txt:1", "missing"),
        ("84-121123.trans.txt:3", "bad-line"),
        ("84-121123.trans.txt:4", "not-utf8"),
    ]


def test_a_table_gives_paths_texts_and_speakers(table: Path) -> None:
    found = corpora.scan(table)
    assert [(item.id, item.text, item.speaker) for item in found.candidates] == [
        ("audio/a", "one two", "ann"),
        ("audio/b", "three", "bob"),
        ("audio/c", "six", None),
    ]
    assert not found.problems


def test_any_tsv_file_can_be_the_root_with_or_without_a_heading(table: Path) -> None:
    other = table / "train.tsv"
    other.write_text("\ufeffpath\ttext\tspeaker\r\naudio/b.flac\tthree\tbob\r\n", encoding="utf-8")
    found = corpora.scan(other)
    assert [(item.id, item.text, item.speaker) for item in found.candidates] == [
        ("audio/b", "three", "bob")
    ]
    assert found.candidates[0].path == table / "audio/b.flac"


def test_a_table_tells_what_does_not_fit_with_file_and_line(table: Path) -> None:
    lines = [
        "audio/a.wav\tone",
        "audio/a.wav",
        "audio/a.wav\ttext\tann\tmore",
        "audio/none.wav\ttext\tann",
        "\ttext\tann",
        "audio/b.flac\t\tann",
        "a sentence where a path should be " * 20 + "\taudio/a.wav",
        "nul\0.wav\ttext",
        "audio\ttext",
    ]
    (table / "transcripts.tsv").write_bytes("\n".join(lines).encode() + b"\n\xe9\tx")
    found = corpora.scan(table)
    assert [item.id for item in found.candidates] == ["audio/a"]
    assert sorted(problems(found), key=lambda item: int(item[0].split(":")[1])) == [
        ("transcripts.tsv:2", "bad-line"),
        ("transcripts.tsv:3", "bad-line"),
        ("transcripts.tsv:4", "missing"),
        ("transcripts.tsv:5", "bad-line"),
        ("transcripts.tsv:6", "bad-line"),
        ("transcripts.tsv:7", "missing"),
        ("transcripts.tsv:8", "bad-line"),
        ("transcripts.tsv:9", "missing"),
        ("transcripts.tsv:10", "not-utf8"),
    ]


def test_a_bare_folder_gives_all_audio_below_it(tmp_path: Path) -> None:
    for name in ("b/2.wav", "b/1.FLAC", "a.ogg", ".hidden/x.wav", "b/._1.wav", "notes.txt"):
        clip(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).touch()
    (tmp_path / "old.m4a").touch()
    found = corpora.scan(tmp_path)
    assert [item.id for item in found.candidates] == ["a", "b/1", "b/2"]
    assert all(item.text is None and item.speaker is None for item in found.candidates)
    assert problems(found) == [("old.m4a", "wrong-extension")]


def test_a_single_file_is_a_corpus_of_one(tmp_path: Path) -> None:
    path = clip(tmp_path / "deep" / "a.wav")
    assert [(item.id, item.path) for item in corpora.scan(path).candidates] == [("a", path)]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    clip(tmp_path / "store" / "a.wav")
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "back").symlink_to(root)
    assert [item.id for item in corpora.scan(root).candidates] == ["linked/a"]


@pytest.mark.parametrize(
    ("prepare", "layout", "said"),
    [
        (lambda root: root, "auto", "no audio in this folder"),
        (lambda root: root / "none", "auto", "no such file or folder"),
        (lambda root: root, "tsv", "no transcripts.tsv"),
        (lambda root: root, "librispeech", r"no \*.trans.txt"),
        (lambda root: root, "kaldi", "no corpus layout 'kaldi'"),
    ],
)
def test_what_is_no_corpus_is_an_error(
    tmp_path: Path, prepare: Callable[[Path], Path], layout: str, said: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        corpora.scan(prepare(tmp_path), layout)


def test_a_manifest_is_not_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match="is a manifest already"):
        corpora.scan(tmp_path / "a.jsonl")


def test_ids_of_several_folders_stay_apart(tmp_path: Path, librispeech: Path) -> None:
    for part in ("train", "test"):
        clip(tmp_path / part / "1.wav")
    found = corpora.collect([tmp_path / "train", tmp_path / "test", librispeech])
    assert [item.id for item in found.candidates][:3] == ["train/1", "test/1", "174-50561-0000"]
    with pytest.raises(DataError, match="no corpus given"):
        corpora.collect([])


def test_a_built_manifest_reads_back_with_normalised_text(table: Path) -> None:
    out = table / "lists" / "data.jsonl"
    report = corpora.build_manifest([table], out, jobs=2)
    found = manifest.read(out)
    assert found.rows == report.built.rows
    assert [row.text for row in found.rows] == ["ONE TWO", "THREE", "SIX"]
    assert [len(found.audio(row)) for row in found.rows] == [8_000] * 3
    assert report.speakers == {"ann": 1, "bob": 1}
    assert report.seconds == 1.5
    assert report.letters["E"] == 3
    assert report.rejects_path is None


def test_audio_below_the_manifest_is_relative_so_the_folder_can_be_moved(table: Path) -> None:
    corpora.build_manifest([table], table / "data.jsonl")
    moved = table.rename(table.with_name("moved"))
    found = manifest.read(moved / "data.jsonl")
    assert [row.audio for row in found.rows] == ["audio/a.wav", "audio/b.flac", "audio/c.ogg"]
    assert len(found.audio(found.rows[0])) == 8_000
    elsewhere = moved / "lists" / "data.jsonl"
    corpora.build_manifest([moved], elsewhere)
    assert manifest.read(elsewhere).rows[0].audio == str(moved / "audio" / "a.wav")


def test_building_twice_gives_the_same_bytes(librispeech: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    corpora.build_manifest([librispeech], one)
    corpora.build_manifest([librispeech], two, jobs=2)
    assert one.read_bytes() == two.read_bytes()


def test_case_and_punctuation_follow_the_request(table: Path) -> None:
    (table / "transcripts.tsv").write_text("audio/a.wav\tOne, two!\naudio/b.flac\t...\n")
    out = table / "data.jsonl"
    report = corpora.build_manifest([table], out, rules=Rules("lower", "drop"))
    assert [row.text for row in report.built.rows] == ["one two"]
    (reject,) = report.built.rejected
    assert (Path(reject.path).name, reject.reason) == ("transcripts.tsv:2", "no-text")


def test_characters_that_nobody_sees_are_named_before_they_are_removed(table: Path) -> None:
    text = "audio/a.wav\tone\u200b two\x07\naudio/b.flac\tthree\n"
    (table / "transcripts.tsv").write_text(text, encoding="utf-8")
    report = corpora.build_manifest([table], table / "data.jsonl")
    assert [row.text for row in report.built.rows] == ["ONE TWO", "THREE"]
    assert len(report.odd) == 2
    assert "(U+200B ZERO WIDTH SPACE): 1 times, removed, first in" in report.odd[0]
    assert "transcripts.tsv:1:4" in report.odd[0]
    (table / "transcripts.tsv").write_text("audio/a.wav\tone two\n", encoding="utf-8")
    assert corpora.build_manifest([table], table / "data.jsonl").odd == ()


def test_rejects_are_written_in_full_and_a_clean_build_removes_the_old_list(table: Path) -> None:
    good = (table / "audio/b.flac").read_bytes()
    (table / "audio/b.flac").write_bytes(good[: len(good) // 2])
    out = table / "data.jsonl"
    report = corpora.build_manifest([table], out)
    assert report.rejects_path == table / "data.jsonl.rejected.jsonl"
    (reject,) = map(json.loads, report.rejects_path.read_text().splitlines())
    assert reject["path"].endswith("b.flac")
    assert reject["reason"] == "truncated"
    assert [row.id for row in report.built.rows] == ["audio/a", "audio/c"]
    (table / "audio/b.flac").write_bytes(good)
    assert corpora.build_manifest([table], out).rejects_path is None
    assert not report.rejects_path.exists()


def test_strict_writes_no_manifest_when_anything_is_rejected(table: Path) -> None:
    (table / "audio/b.flac").write_bytes(b"")
    out = table / "data.jsonl"
    with pytest.raises(DataError, match=r"1 of 3 rejected\n.*b\.flac: is empty \(0 bytes\)"):
        corpora.build_manifest([table], out, strict=True)
    assert not out.exists()


def test_a_corpus_with_nothing_usable_is_an_error_that_lists_why(table: Path) -> None:
    for path in (table / "audio").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        corpora.build_manifest([table], table / "data.jsonl")
    assert "all 3 rejected" in caught.value.what
    assert caught.value.what.count("[empty]") == 3
    assert not (table / "data.jsonl").exists()


def test_a_manifest_never_overwrites_a_transcript(table: Path) -> None:
    before = (table / "transcripts.tsv").read_bytes()
    with pytest.raises(DataError, match=r"must be a \.jsonl file"):
        corpora.build_manifest([table], table / "transcripts.tsv")
    assert (table / "transcripts.tsv").read_bytes() == before
