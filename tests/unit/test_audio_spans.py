"""Members of shards: the bytes of a range are the file, and nothing around them is."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2vtool import audio
from w2vtool.audio import AudioError
from w2vtool.sources import Source

MEMBERS = {
    "a.wav": torture.wav(rate=44_100),
    "b.flac": torture.flac(2.0),
    "c.ogg": torture.vorbis(),
    "d.opus": torture.opus(),
    "e.mp3": torture.mp3(),
    "f.aiff": torture.aiff(),
    "g.flac": torture.with_total(0),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, tuple[int, int]]]:
    """Each member as a file, in a tar and stored in a zip: name → where, and its bytes."""
    folder = tmp_path_factory.mktemp("shards")
    found = {}
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name, data in MEMBERS.items():
            (folder / name).write_bytes(data)
            tar.add(folder / name, name)
    with tarfile.open(folder / "x.tar") as tar:
        for member in tar.getmembers():
            found[f"tar {member.name}"] = (folder / "x.tar", (member.offset_data, member.size))
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_STORED) as archive:
        for name in MEMBERS:
            archive.write(folder / name, name)
    data = (folder / "x.zip").read_bytes()
    for name, content in MEMBERS.items():
        found[f"zip {name}"] = (folder / "x.zip", (data.index(content), len(content)))
    return found


@pytest.mark.parametrize("name", [f"{kind} {name}" for kind in ("tar", "zip") for name in MEMBERS])
def test_a_member_gives_what_its_file_gives(
    shards: dict[str, tuple[Path, tuple[int, int]]], name: str
) -> None:
    shard, span = shards[name]
    alone = shard.parent / name.partition(" ")[2]
    assert audio.probe(shard, span=span) == audio.probe(alone)
    np.testing.assert_array_equal(audio.read(shard, span=span), audio.read(alone))
    part, same = ({"offset": 0.25, "duration": 0.5, **more} for more in ({"span": span}, {}))
    np.testing.assert_array_equal(audio.read(shard, **part), audio.read(alone, **same))
    assert audio.load(shard, span=span).info == audio.load(alone).info


def test_a_span_is_judged_by_its_bytes_whatever_the_shard_is_called(tmp_path: Path) -> None:
    for name in ("x.wav", "x.tar", "x", "x.unknown"):
        shard = tmp_path / name
        shard.write_bytes(b"...." + MEMBERS["b.flac"])
        assert audio.probe(shard, span=(4, len(MEMBERS["b.flac"]))).frames == 32_000


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        ((-1, 100), "range"),
        ((0, 0), "range"),
        ((0, -5), "range"),
        ((10**9, 5), "range"),
        ((0, 10**9), "truncated"),
        ((1, 10**18), "truncated"),
    ],
)
def test_a_span_that_is_not_within_the_file_is_refused(
    tmp_path: Path, span: tuple[int, int], reason: str
) -> None:
    shard = tmp_path / "x.tar"
    shard.write_bytes(MEMBERS["b.flac"])
    for read in (audio.probe, audio.read):
        with pytest.raises(AudioError) as caught:
            read(shard, span=span)
        assert caught.value.reason == reason
        assert str(shard) in caught.value.where


def test_the_error_of_a_member_names_shard_and_bytes(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    shard.write_bytes(bytes(512) + b"this is text" * 9)
    with pytest.raises(AudioError) as caught:
        audio.read(shard, span=(512, 108))
    assert caught.value.reason == "not-audio"
    assert caught.value.where == f"{shard} (bytes 512+108)"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from(sorted(MEMBERS)), cut=st.integers(1, 9_999), front=st.integers(0, 700))
def test_a_member_cut_anywhere_is_refused_though_the_shard_goes_on(
    tmp_path: Path, name: str, cut: int, front: int
) -> None:
    data = MEMBERS[name]
    short = max(1, len(data) * cut // 10_000)
    shard = tmp_path / "x.tar"
    shard.write_bytes(bytes(front) + data)
    with pytest.raises(AudioError):
        audio.read(shard, span=(front, min(short, len(data) - 1)))


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(min_size=1, max_size=300),
    begin=st.integers(0, 299),
    length=st.integers(1, 300),
    steps=st.lists(st.tuples(st.sampled_from("rs"), st.integers(0, 320)), max_size=20),
    patch=st.tuples(st.integers(0, 50), st.binary(max_size=9)),
)
def test_the_window_that_a_decoder_gets_reads_like_a_file_of_those_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    begin: int,
    length: int,
    steps: list[tuple[str, int]],
    patch: tuple[int, bytes],
) -> None:
    path = tmp_path_factory.getbasetemp() / "window"
    path.write_bytes(data)
    begin = min(begin, len(data) - 1)
    length = min(length, len(data) - begin)
    shown = torture.put(data[begin : begin + length], *patch)[:length]
    if patch[0] > length:
        shown = data[begin : begin + length]
    file = io.BytesIO(shown)
    with Source(path, (begin, length)) as source:
        window = source.for_decoder(patch)
        for kind, number in steps:
            if kind == "s":
                assert window.seek(number) == file.seek(number)
            else:
                assert window.read(number) == file.read(number)
            assert window.tell() == file.tell()
        assert window.seek(0, os.SEEK_END) == length
        assert source.read_at(0, 10_000) == data[begin : begin + length]


def test_reading_leaves_no_descriptor_open(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(MEMBERS["b.flac"])
    (tmp_path / "bad.flac").write_bytes(MEMBERS["b.flac"][:500])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        audio.read(path)
        audio.probe(path)
        audio.read(path, span=(0, path.stat().st_size))
        for bad in (tmp_path / "bad.flac", tmp_path):
            with pytest.raises(AudioError):
                audio.read(bad)
        with pytest.raises(AudioError):
            audio.read(path, span=(0, 100))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_libsndfile_is_asked_only_once_the_checks_are_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soundfile, "SoundFile", None)
    (tmp_path / "a.flac").write_bytes(MEMBERS["b.flac"])
    assert audio.probe(tmp_path / "a.flac") == audio.Info(16_000, 1, 32_000)
    (tmp_path / "a.mp3").write_bytes(MEMBERS["e.mp3"][:900])
    with pytest.raises(AudioError, match="truncated"):
        audio.read(tmp_path / "a.mp3")
