"""Splits become manifests: read where they are given, built where they are not."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import toys

from w2vtool import manifest, splits
from w2vtool.errors import ConfigError, DataError
from w2vtool.manifest import Utterance
from w2vtool.schema import DataConfig
from w2vtool.text import Rules


def recordings(folder: Path, count: int = 2, rate: int = 16_000, channels: int = 1) -> Path:
    """A corpus with a transcripts.tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        samples = np.stack([toys.wave(i, rate)] * channels, axis=1)
        soundfile.write(folder / f"{i}.wav", samples, rate)
        lines.append(f"{i}.wav\tone two\n")
    (folder / "transcripts.tsv").write_text("".join(lines))
    return folder


def config(tmp_path: Path, **more: object) -> DataConfig:
    return DataConfig(manifests=tmp_path / "manifests", jobs=1, **more)


def test_a_manifest_is_read_as_it_is(tmp_path: Path) -> None:
    path = toys.corpus(tmp_path, "train", 3)
    opened = splits.open_split(config(tmp_path, train=(str(path),)), "train")
    assert opened == manifest.read(path)
    assert not (tmp_path / "manifests").exists()


def test_a_relative_manifest_is_that_of_the_root_before_that_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, root = tmp_path / "here", tmp_path / "root"
    toys.corpus(here, "train", 1)
    toys.corpus(here, "valid", 1)
    toys.corpus(root, "train", 2)
    monkeypatch.chdir(here)
    data = config(tmp_path, root=root, train=("train.jsonl",), valid=("valid.jsonl",))
    assert len(splits.open_split(data, "train").rows) == 2
    assert len(splits.open_split(data, "valid").rows) == 1
    assert len(splits.open_split(data.model_copy(update={"root": None}), "train").rows) == 1


def test_several_manifests_are_joined_and_find_their_audio(tmp_path: Path) -> None:
    one = toys.corpus(tmp_path / "a", "one", 2)
    two = toys.corpus(tmp_path / "b", "two", 3)
    opened = splits.open_split(config(tmp_path, train=(str(one), str(two))), "train")
    assert [row.id for row in opened.rows] == ["one-0", "one-1", "two-0", "two-1", "two-2"]
    for row in opened.rows:
        assert len(opened.audio(row)) == row.samples


def test_an_id_in_two_manifests_is_refused(tmp_path: Path) -> None:
    path = toys.corpus(tmp_path, "train", 2)
    with pytest.raises(DataError, match=r"2 ids are in more than one manifest.*'train-0'"):
        splits.open_split(config(tmp_path, train=(str(path), str(path))), "train")


def test_parts_of_a_corpus_are_scanned_once(tmp_path: Path) -> None:
    recordings(tmp_path / "corpus" / "clean")
    data = config(tmp_path, root=tmp_path / "corpus", train=("clean",))
    said: list[str] = []
    first = splits.open_split(data, "train", say=said.append)
    assert [row.text for row in first.rows] == ["ONE TWO", "ONE TWO"]
    assert said == [f"building {data.manifests}/train.jsonl from clean in {data.root}"]
    said.clear()
    (tmp_path / "corpus" / "clean" / "transcripts.tsv").unlink()
    assert splits.open_split(data, "train", say=said.append) == first
    assert said == []


@pytest.mark.parametrize("change", ["root", "parts", "case"])
def test_a_manifest_of_something_else_is_built_again(tmp_path: Path, change: str) -> None:
    recordings(tmp_path / "corpus" / "clean", 2)
    recordings(tmp_path / "corpus" / "other", 3)
    recordings(tmp_path / "elsewhere" / "clean", 3)
    data = config(tmp_path, root=tmp_path / "corpus", train=("clean",))
    assert len(splits.open_split(data, "train").rows) == 2
    if change == "case":
        assert splits.open_split(data, "train", rules=Rules("lower")).rows[0].text == "one two"
        return
    different = {"root": tmp_path / "elsewhere"} if change == "root" else {"train": ("other",)}
    assert len(splits.open_split(data.model_copy(update=different), "train").rows) == 3


@pytest.mark.parametrize("rules", [Rules(punctuation="drop"), Rules(apostrophes="space")])
def test_training_takes_the_manifest_that_was_built_by_its_rules(
    tmp_path: Path, rules: Rules
) -> None:
    folder = recordings(tmp_path / "corpus" / "clean", 1)
    (folder / "transcripts.tsv").write_text("0.wav\tdon't, do\n")
    data = config(tmp_path, root=tmp_path / "corpus", train=("clean",))
    built = splits.build(data, "train", rules=rules)
    said: list[str] = []
    opened = splits.open_split(data, "train", rules=rules, say=said.append)
    assert said == []
    assert opened.sha256 == manifest.sha256(built.built.rows)
    assert opened.rows[0].text == rules("don't, do")
    other = splits.open_split(data, "train", say=said.append)  # other rules, another manifest
    assert said[0].startswith("building ")
    assert other.rows[0].text == "DON'T, DO"


def test_building_a_split_names_characters_that_nobody_sees(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "corpus" / "clean", 1)
    (folder / "transcripts.tsv").write_text("0.wav\tone\u200btwo\n", encoding="utf-8")
    data = config(tmp_path, root=tmp_path / "corpus", train=("clean",))
    said: list[str] = []
    splits.open_split(data, "train", say=said.append)
    assert [line for line in said if "U+200B" in line and "transcripts.tsv:1:4" in line]


def test_a_manifest_that_was_put_there_is_taken(tmp_path: Path) -> None:
    toys.corpus(tmp_path / "manifests", "train", 2)
    data = config(tmp_path, root=tmp_path / "gone", train=("clean",))
    assert len(splits.open_split(data, "train").rows) == 2


def test_other_rates_and_stereo_are_said_once(tmp_path: Path) -> None:
    recordings(tmp_path / "corpus" / "a", 3, rate=8_000)
    recordings(tmp_path / "corpus" / "b", 1, rate=44_100, channels=2)
    data = config(tmp_path, root=tmp_path / "corpus", train=("a", "b"))
    said: list[str] = []
    splits.open_split(data, "train", say=said.append)
    assert said[1:] == [
        "train: 3 files at 8000 Hz will be resampled to 16 kHz",
        "train: 1 file at 44100 Hz will be resampled to 16 kHz",
        "train: 1 stereo file mixed down to one channel",
    ]
    said.clear()
    splits.open_split(data, "train", say=said.append)
    assert said == [
        "train: 3 files at 8000 Hz will be resampled to 16 kHz",
        "train: 1 file at 44100 Hz will be resampled to 16 kHz",
    ]


def test_rejected_files_are_counted(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "corpus" / "clean")
    (folder / "1.wav").write_bytes(b"")
    said: list[str] = []
    data = config(tmp_path, root=tmp_path / "corpus", train=("clean",))
    assert len(splits.open_split(data, "train", say=said.append).rows) == 1
    assert said[-1].startswith("1 files rejected, see ")


def test_a_process_that_waits_leaves_the_scan_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "POLL_SECONDS", 0.01)
    recordings(tmp_path / "corpus" / "clean")
    data = config(tmp_path, root=tmp_path / "corpus", train=("clean",))
    found: list[int] = []
    said: list[str] = []

    def wait() -> None:
        found.append(len(splits.open_split(data, "train", say=said.append, wait=True).rows))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    assert not found
    splits.build(data, "train", rules=Rules())
    thread.join(10)
    assert found == [2]
    assert said == []


@pytest.mark.parametrize(
    ("more", "error", "match"),
    [
        ({}, ConfigError, r"data\.train is not given"),
        ({"train": ("a.jsonl", "clean")}, ConfigError, "mixes manifests and parts"),
        ({"train": ("clean",)}, ConfigError, r"data\.root is not set"),
        ({"train": ("clean", "x"), "root": Path("no")}, DataError, "no such part.*no/clean, no/x"),
        ({"train": ("gone.jsonl",)}, DataError, "cannot be read"),
    ],
)
def test_what_cannot_be_opened_is_named(
    tmp_path: Path, more: dict[str, object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        splits.open_split(config(tmp_path, **more), "train")


def long_rows(count: int) -> list[Utterance]:
    return [Utterance(f"speaker{i % 7}/{i // 7:07d}", "a.wav", 10.0) for i in range(count)]


def test_hours_take_a_fixed_part_of_the_training_split_only(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    manifest.write(path, long_rows(700))
    data = config(tmp_path, train=(str(path),), valid=(str(path),), hours=0.5)
    opened = splits.open_split(data, "train")
    assert opened.seconds == 1800
    assert [row.id for row in opened.rows] == sorted(
        (row.id for row in opened.rows), key=lambda name: (name[9:], name)
    )
    assert opened == splits.open_split(data, "train")
    assert opened.sha256 != manifest.read(path).sha256
    assert len(splits.open_split(data, "valid").rows) == 700


def test_more_hours_hold_the_fewer_and_speakers_are_drawn_apart(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    manifest.write(path, long_rows(700))
    drawn = {}
    for hours in (0.25, 0.5, 99.0):
        opened = splits.open_split(config(tmp_path, train=(str(path),), hours=hours), "train")
        drawn[hours] = {row.id for row in opened.rows}
    assert drawn[0.25] < drawn[0.5] < drawn[99.0]
    assert len(drawn[99.0]) == 700
    # ids that only differ in the speaker must not come together
    texts = {name.split("/")[1] for name in drawn[0.25]}
    assert len(texts) > 45
