"""Shards: the same samples in fewer files; other people's tars are read and never trusted."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import toys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2vtool import manifest, packing, shards, tars, training
from w2vtool.batches import load, pretrain_batch
from w2vtool.errors import ConfigError, DataError
from w2vtool.feed import check_files
from w2vtool.manifest import Manifest, Utterance
from w2vtool.schema import LoopConfig, MaskConfig
from w2vtool.shard_writer import Packing

AS_IS, FLAC, ROUNDED = Packing(), Packing(flac=True), Packing(flac=True, rounded=True)


class Files(NamedTuple):
    """Audio in some formats."""

    folder: Path
    rows: list[Utterance]

    def manifest(self, rows: list[Utterance] | None = None) -> Manifest:
        path = self.folder / "all.jsonl"
        manifest.write(path, self.rows if rows is None else rows)
        return manifest.read(path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Six of 16-bit WAV, two of FLAC; ids that are no file names."""
    rows = []
    for i in range(8):
        name, samples = f"{i}.{'flac' if i > 5 else 'wav'}", 12_000 + 800 * i
        soundfile.write(tmp_path / name, toys.wave(i, samples), 16_000, subtype="PCM_16")
        text = "ÉTÉ" if i % 2 else None
        rows.append(
            Utterance(f"a/b.{i} ü", name, samples / 16_000, text=text, extra={"channel": i})
        )
    return Files(tmp_path, rows)


def pack(source: Manifest, out: Path, how: Packing = AS_IS, **options: Any) -> Manifest:
    packing.pack_all(source, out, **({"size": 100_000} | options), packing=how)
    return manifest.read(out / "manifest.jsonl")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def stream(source: Manifest) -> list[tuple[Any, ...]]:
    """Every batch of an epoch of pre-training, and one of CTC without labels."""
    loop = LoopConfig(bin_seconds=3, max_seconds=0.9)
    collate = partial(
        pretrain_batch, architecture=toys.TINY, mask=MaskConfig(), max_seconds=loop.max_seconds
    )
    split = training.split(source, loop, collate, crop=True)
    batches = load(source, split.plan, collate, range(split.plan.bins_per_epoch))
    return [(b.wave_BS.numpy().tobytes(), b.key, b.rows, b.key_B.tolist()) for b in batches]


# -- packing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [AS_IS, FLAC, ROUNDED])
def test_training_from_shards_is_training_from_files(files: Files, how: Packing) -> None:
    source = files.manifest()
    packed = pack(source, files.folder / "out", how)
    assert packed.sha256 == source.sha256
    assert [replace(r, audio="", start=None, length=None) for r in packed.rows] == [
        replace(r, audio="") for r in source.rows
    ]
    assert len({row.audio for row in packed.rows}) > 1
    assert stream(packed) == stream(source)


def test_the_same_rows_give_the_same_bytes_whatever_the_number_of_processes(files: Files) -> None:
    source = files.manifest()
    for out, jobs in (("one", 1), ("again", 1), ("two", 2)):
        pack(source, files.folder / out, FLAC, jobs=jobs)
    one = contents(files.folder / "one")
    assert contents(files.folder / "again") == one
    assert contents(files.folder / "two") == one


def test_what_is_complete_is_not_made_again_and_what_is_missing_is(files: Files) -> None:
    source, out = files.manifest(), files.folder / "out"
    pack(source, out)
    want = contents(out)
    kept, gone = out / "shard-00000.tar", out / "shard-00001.tar"
    inode = kept.stat().st_ino
    gone.unlink()
    (out / "manifest.jsonl").unlink()
    (out / ".shard-00001.tar.77.tmp").write_bytes(b"half")
    pack(source, out)
    assert contents(out) == want
    assert kept.stat().st_ino == inode


def test_a_stop_leaves_whole_shards_and_the_next_call_goes_on(files: Files) -> None:
    source, out = files.manifest(), files.folder / "out"

    def stop(done: int) -> None:
        if done >= 5:
            raise KeyboardInterrupt

    for jobs in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            pack(source, out, on_progress=stop, jobs=jobs)
        assert not (out / "manifest.jsonl").exists()
        assert not list(out.glob(".shard*"))
    assert pack(source, out).sha256 == source.sha256
    assert contents(out) == contents_of_a_fresh(source, files.folder)


def contents_of_a_fresh(source: Manifest, folder: Path) -> dict[str, bytes]:
    pack(source, folder / "fresh")
    return contents(folder / "fresh")


@pytest.mark.parametrize("change", [{"size": 200_000}, {"how": FLAC}, {"rows": 7}])
def test_shards_of_other_rows_or_options_are_never_mixed(
    files: Files, change: dict[str, Any]
) -> None:
    out = files.folder / "out"
    pack(files.manifest(), out)
    rows = files.rows[: change.pop("rows", 8)]
    with pytest.raises(DataError, match="other rows"):
        pack(files.manifest(rows), out, **change)
    (out / "shards.json").unlink()
    with pytest.raises(DataError, match="not known"):
        pack(files.manifest(), out)


def test_one_process_at_a_time_packs_into_a_folder(files: Files) -> None:
    source, out = files.manifest(), files.folder / "out"

    def meanwhile(_: int) -> None:
        with pytest.raises(ConfigError, match="another process"):
            pack(source, out)

    pack(source, out, on_progress=meanwhile)


def segments(files: Files) -> Manifest:
    """Three rows that are parts of one recording, with another one in between."""
    soundfile.write(files.folder / "long.wav", toys.wave(9, 80_000), 16_000, subtype="PCM_16")
    part = Utterance("p", "long.wav", 1.0, offset=0.5)
    rows = [replace(part, id=f"p{i}", offset=0.5 + i, text=f"T{i}") for i in range(3)]
    return files.manifest([rows[0], files.rows[0], *rows[1:]])


def test_as_it_is_a_recording_is_stored_once_for_all_of_its_parts(files: Files) -> None:
    source = segments(files)
    packed = pack(source, files.folder / "out", size=10**9)
    assert packed.sha256 == source.sha256
    places = {row.start for row in packed.rows}
    assert len(places) == 2
    assert stream(packed) == stream(source)
    again = list(shards.index(files.folder / "out" / "shard-00000.tar"))
    assert sorted(again, key=lambda row: row.id) == sorted(packed.rows, key=lambda row: row.id)


def test_as_flac_a_part_is_cut_out_and_begins_at_0(files: Files) -> None:
    source = segments(files)
    summary = packing.pack_all(source, files.folder / "out", size=10**9, packing=FLAC)
    assert (summary.encoded, summary.rounded, summary.changed) == (4, 0, 3)
    packed = manifest.read(files.folder / "out/manifest.jsonl")
    assert [(row.offset, row.duration) for row in packed.rows if row.id[0] == "p"] == [(0, 1)] * 3
    assert sum(row.length or 0 for row in packed.rows) < 4 * 32_000
    assert [packed.audio(row).tobytes() for row in packed.rows] == [
        source.audio(row).tobytes() for row in source.rows
    ]


def test_what_has_more_than_16_bits_is_rounded_only_when_asked_to(files: Files) -> None:
    soundfile.write(files.folder / "24.wav", toys.wave(3, 9_000), 16_000, subtype="PCM_24")
    soundfile.write(files.folder / "8k.wav", toys.wave(4, 4_500), 8_000, subtype="PCM_16")
    rows = [Utterance("x", "24.wav", 9_000 / 16_000)]
    rows += [Utterance("y", "8k.wav", 9_000 / 16_000, sample_rate=8_000)]
    source = files.manifest([*rows, files.rows[0]])
    kept = pack(source, files.folder / "kept", FLAC)
    assert kept.sha256 == source.sha256
    assert stream(kept) == stream(source)
    summary = packing.pack_all(source, files.folder / "out", size=10**6, packing=ROUNDED)
    assert (summary.encoded, summary.rounded, summary.changed) == (3, 2, 1)  # y's rate
    out = manifest.read(files.folder / "out/manifest.jsonl")
    for old, new in zip(source.rows, out.rows, strict=True):
        assert new.sample_rate == 16_000
        assert np.abs(source.audio(old) - out.audio(new)).max() <= 2**-16


def test_every_row_that_cannot_be_read_is_named_and_the_other_shards_are_kept(
    files: Files,
) -> None:
    source, out = files.manifest(), files.folder / "out"
    data = (files.folder / "1.wav").read_bytes()
    (files.folder / "1.wav").write_bytes(data[:9000])
    (files.folder / "2.wav").write_bytes(b"RIFFnoise")
    with pytest.raises(DataError) as caught:
        pack(source, out)
    assert caught.value.what.startswith("2 utterances cannot be read\n  a/b.1 ü: ")
    assert "truncated" in caught.value.what
    there = {path.name for path in out.glob("shard-*")}
    assert there
    assert not (out / "manifest.jsonl").exists()
    (files.folder / "3.wav").unlink()
    with pytest.raises(DataError, match=r"a/b\.3 ü: 3\.wav: No such file"):
        pack(source, files.folder / "other")


@pytest.mark.parametrize("packing", [AS_IS, FLAC])
def test_a_part_that_ends_after_its_recording_is_named_and_not_packed(
    files: Files, packing: Packing
) -> None:
    source = files.manifest()
    first = source.rows[0]
    parts = [replace(first, id=f"part {n}", offset=0.25 * n, duration=0.25) for n in range(2)]
    beyond = replace(first, id="beyond", offset=0.5, duration=first.duration)
    files = replace(source, rows=[*parts, beyond])
    with pytest.raises(DataError) as caught:
        pack(files, source.path.parent / "out", packing)
    head, *lines = caught.value.what.splitlines()
    assert head == "1 utterances cannot be read"
    assert [line.partition(":")[0].strip() for line in lines] == ["beyond"]


def test_a_disk_without_room_is_found_before_work_begins(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(files.folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="no room"):
        pack(files.manifest(), files.folder / "out")
    assert not list((files.folder / "out").glob("*.tar"))


def test_shards_can_be_packed_again(files: Files) -> None:
    source = files.manifest()
    once = pack(source, files.folder / "once")
    twice = pack(once, files.folder / "once" / "twice", FLAC, size=10**6)
    assert twice.sha256 == source.sha256
    assert stream(twice) == stream(source)


def test_the_check_before_training_looks_into_shards(files: Files) -> None:
    packed = pack(files.manifest(), files.folder / "out")
    loop = LoopConfig(bin_seconds=5)
    check_files(training.split(packed, loop, no_batch, crop=False))
    last = packed.rows[-1]
    rows = [*packed.rows[:-1], replace(last, start=(last.start or 0) + 512)]
    with pytest.raises(DataError, match="1 utterances cannot be read"):
        check_files(training.split(replace(packed, rows=rows), loop, no_batch, crop=False))


def no_batch(*_: Any) -> Any:
    raise AssertionError("no batch is asked for")


# -- the layout ----------------------------------------------------------------------------------


def test_members_lie_side_by_side_under_keys_without_dots_as_webdataset_wants(
    files: Files,
) -> None:
    pack(files.manifest(), files.folder / "out", FLAC)
    samples: dict[str, dict[str, bytes]] = {}
    order = []
    for path in sorted((files.folder / "out").glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, ending = info.name.partition(".")
                found = tar.extractfile(info)
                assert found is not None
                assert (info.mtime, info.uid, info.gid, info.uname) == (0, 0, 0, "")
                samples.setdefault(key, {})[ending] = found.read()
                order.append(key)
    assert sorted(set(order), key=order.index) == list(samples)
    assert order == [key for key, parts in samples.items() for _ in parts]
    assert len(samples) == 8
    assert "a%2Fb%2E0%20%C3%BC" in samples
    for row, parts in zip(files.rows, samples.values(), strict=True):
        assert set(parts) == {"flac", "json"} | ({"txt"} if row.text else set())
        record = json.loads(parts["json"])
        assert record["id"] == row.id
        assert record["channel"] == row.extra["channel"]
        assert parts.get("txt", b"").decode() == (row.text or "")
        wave, rate = soundfile.read(io.BytesIO(parts["flac"]))
        assert (len(wave), rate) == (row.samples, 16_000)


def flac(seed: int, samples: int = 8_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, toys.wave(seed, samples), 16_000, format="FLAC")
    return buffer.getvalue()


Member = tuple[str | tarfile.TarInfo, bytes]


def tar_of(path: Path, *found: Member, format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in found:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_others_are_rows_too(tmp_path: Path, format: int) -> None:
    folder = tarfile.TarInfo("train")
    folder.type = tarfile.DIRTYPE
    long = "k" * 180
    record = {"text": "not this", "speaker": "s1", "lang": None, "snr": 3.5, "audio": "/x"}
    path = tar_of(
        tmp_path / "x.tar",
        (folder, b""),
        ("train/one.flac", flac(1)),
        ("train/one.txt", "ZWÖLF".encode()),
        ("README", b"no sample"),
        (".hidden", b"no sample"),
        (f"train/{long}.json", json.dumps(record).encode()),
        (f"train/{long}.audio.FLAC", flac(2, 4_000)),
        format=format,
    )
    one, two = shards.index(path)
    assert (one.id, one.audio, one.duration, one.text) == ("train/one", "x.tar", 0.5, "ZWÖLF")
    assert (two.id, two.duration, two.speaker) == (f"train/{long}", 0.25, "s1")
    assert (two.text, two.extra) == ("not this", {"snr": 3.5})
    manifest.write(tmp_path / "m.jsonl", [one, two])
    source = manifest.read(tmp_path / "m.jsonl")
    assert np.allclose(source.audio(source.rows[0]), toys.wave(1, 8_000), atol=2**-15)


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ([("a.txt", b"x")], "0 audio members"),
        ([("a.flac", b""), ("a.wav", b"")], "2 audio members"),
        ([("a.flac", flac(1)), ("a.json", b"[1]")], "neither an object"),
        ([("a.flac", flac(1)), ("a.json", b"{")], "Expecting"),
        ([("a.flac", flac(1)), ("a.txt", b"\xff")], "utf-8"),
        ([("a.flac", flac(1)), ("a.json", b'{"duration": "9"}')], "not a number of seconds"),
        ([("a.flac", flac(1)), ("a.json", b'{"duration": 9}')], "wants 9.000 s"),
        ([("a.flac", flac(1)), ("a.json", b'{"duration": NaN}')], "wants nan s"),
        ([("a.flac", flac(1)[:5000])], "truncated|decode"),
        ([("a.flac", b"no audio")], "not audio"),
    ],
)
def test_a_sample_that_is_no_good_is_named(
    tmp_path: Path, parts: list[Member], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=what):
        rows = list(shards.index(tar_of(tmp_path / "x.tar", *parts)))
        manifest.write(tmp_path / "m.jsonl", rows)
        manifest.read(tmp_path / "m.jsonl").audio(rows[0])


def test_a_record_too_large_to_be_one_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "LARGEST_RECORD", 1000)
    path = tar_of(tmp_path / "x.tar", ("a.flac", flac(1)), ("a.json", b" " * 1001))
    with pytest.raises(DataError, match="1,001 bytes"):
        list(shards.index(path))


UNSAFE = [
    "/etc/passwd",
    "//x/a.flac",
    "../a.flac",
    "../../a.flac",
    "a/../../b.flac",
    "a/..",
    "..",
    "a/../b.flac",
    "./../a.flac",
    "C:/a.flac",
    "c:a.flac",
    "C:\\a.flac",
    "\\\\host\\share\\a.flac",
    "\\a.flac",
    "..\\a.flac",
    "a\\..\\b.flac",
    "a\\b.flac",
    "a/..\\b.flac",
    "/../a.flac",
    "/a/./b.flac",
    "a/b/../../../c.flac",
    "..//a.flac",
    "a//../b.flac",
    "/.a.flac",
]
UNSAFE += ["", "a\0b.flac", "a\nb.flac", "a\x1bb.flac", "a\x7f.flac", "\udcff.flac", "\t.flac"]
SAFE = ["a.flac", "./a.flac", "a/b.flac", "..a.flac", "a..b.flac", "...flac", "%2e%2e/a.flac"]
SAFE += ["a b.flac", "ü.flac", "~/a.flac", "$HOME.flac", "a/./b.flac", "CON.flac", "a/B.flac"]


def test_names_that_lead_out_of_a_folder_are_unsafe_and_others_are_not() -> None:
    assert len(UNSAFE) + len(SAFE) >= 40
    assert [name for name in UNSAFE if not tars.unsafe(name)] == []
    assert [name for name in SAFE if tars.unsafe(name)] == []


@pytest.mark.parametrize("name", [name for name in UNSAFE if name.isprintable() and name])
def test_a_tar_with_an_unsafe_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="name"):
        list(tars.members(tar_of(tmp_path / "x.tar", ("ok.flac", b"x"), (name, b"x"))))


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("a.flac")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(DataError, match=r"a link|not a regular file"):
        list(tars.members(tar_of(tmp_path / "x.tar", (info, b""))))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_refused_by_name(tmp_path: Path, mode: Any) -> None:
    with tarfile.open(tmp_path / "x.tar", mode):
        pass
    with pytest.raises(DataError, match="is compressed"):
        list(tars.members(tmp_path / "x.tar"))


def test_a_tar_that_was_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", ("a.flac", flac(1)), ("b.flac", flac(2)))
    data = path.read_bytes()
    end = max(member.start + member.length for member in tars.members(path))
    for cut in (0, 100, 512, 700, end // 2, end - 1, -(-end // 512) * 512):
        path.write_bytes(data[:cut])
        with pytest.raises(DataError):
            list(tars.members(path))


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_a_damaged_tar_gives_members_within_it_or_a_data_error(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tar_of(
        tmp_path / "x.tar", ("a" * 120, b"1" * 700), ("b.json", b"{}"), format=tarfile.PAX_FORMAT
    )
    content = bytearray(path.read_bytes()[:6_144])
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.sampled_from([0, 0x30, 0x37, 0x78, 0x80, 0xFF, 0x2D, 0x20]))
    for at in range(0, 6_144, 512):  # checksums that are right, so that the damage counts
        if data.draw(st.booleans()) and any(content[at : at + 512]):
            content[at + 148 : at + 156] = b" " * 8
            total = sum(content[at : at + 512])
            content[at + 148 : at + 156] = b"%06o\0 " % total
    path.write_bytes(bytes(content))
    try:
        found = list(tars.members(path))
    except DataError:
        return
    for member in found:
        assert member.start >= 0
        assert member.start + member.length <= len(content)


# -- the command ---------------------------------------------------------------------------------


def test_the_command_packs_and_indexes(
    toy_corpus: Path, tmp_path: Path, w2v: Callable[..., Any]
) -> None:
    source = toy_corpus / "train.jsonl"
    words = ("--size", "0.1MB", "--encode", "flac", "--json")
    done = w2v("shard", source, "--out", tmp_path / "out", *words)
    assert done.code == 0
    summary = json.loads(done.out)
    assert summary["same_hash"]
    assert summary["utterances"] == summary["encoded"] == 12
    assert summary["shards"] == len(list((tmp_path / "out").glob("*.tar"))) > 1
    found = sorted((tmp_path / "out").glob("*.tar"))
    index = tmp_path / "out" / "index.jsonl"
    assert w2v("shard", "--index", *found, "--out", index).code == 0
    assert index.read_text() == (tmp_path / "out/manifest.jsonl").read_text()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--size", "12"], None),
        (["--size", "much"], "size is 'much'"),
        (["--size", "0MB"], "size is '0MB'"),
        (["--rounded"], "encode=flac"),
        (["other.jsonl"], "2 inputs"),
        (["--index"], "must be a .jsonl file"),
    ],
)
def test_odd_requests_are_said_to_be_odd(
    toy_corpus: Path, tmp_path: Path, w2v: Callable[..., Any], words: list[str], what: str | None
) -> None:
    done = w2v("shard", toy_corpus / "valid.jsonl", "--out", tmp_path / "out", *words)
    assert done.code == (0 if what is None else 2)
    assert what is None or what in done.err
