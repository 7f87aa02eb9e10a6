"""Long recordings: only the crop is decoded, and it is the crop of the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from w2vtool import batches, manifest, packing
from w2vtool.architecture import Architecture
from w2vtool.batches import Batch, Collate, ctc_batch, load, pretrain_batch
from w2vtool.errors import DataError
from w2vtool.excerpts import Excerpt, excerpt
from w2vtool.manifest import Manifest, Utterance
from w2vtool.plan import Plan
from w2vtool.schema import MaskConfig
from w2vtool.shard_writer import Packing

SAMPLES = 70_000
KINDS = {
    "pcm.wav": {"subtype": "PCM_16"},
    "pcm24.wav": {"subtype": "PCM_24"},
    "float.wav": {"subtype": "FLOAT"},
    "ulaw.wav": {"subtype": "ULAW"},
    "stereo.wav": {"subtype": "PCM_16"},
    "a.flac": {},
    "stereo.flac": {},
}
WHOLE = {
    "vorbis.ogg": {"subtype": "VORBIS"},
    "opus.ogg": {"subtype": "OPUS"},
    "a.mp3": {},
    "adpcm.wav": {"subtype": "IMA_ADPCM"},
    "8k.flac": {},
    "a.aiff": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    for name, options in {**KINDS, **WHOLE}.items():
        wave = toys.wave(len(name), SAMPLES)
        if name.startswith("stereo"):
            wave = np.stack([wave, toys.wave(1, SAMPLES)], axis=1)
        soundfile.write(folder / name, wave, 8_000 if "8k" in name else 16_000, **options)
    return folder


def opened(folder: Path, row: Utterance) -> Manifest:
    return Manifest(folder / "m.jsonl", [row], "")


def never() -> np.ndarray:
    raise AssertionError("no stretch asks for the whole")


@pytest.mark.parametrize("name", KINDS)
def test_a_stretch_is_the_same_samples_as_cutting_the_whole(folder: Path, name: str) -> None:
    row = Utterance("x", name, 4.0, offset=0.21003)
    source = opened(folder, row)
    found = excerpt(source, row, never)
    whole = source.audio(row)
    assert found is not None
    assert len(found) == len(whole)

    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, len(whole) - 1), st.integers(1, 20_000))
    def same(first: int, count: int) -> None:
        part = slice(first, first + count)
        if (first, first + count) != (0, len(whole)):
            assert np.array_equal(found[part], whole[part])

    same()
    assert np.array_equal(found[len(whole) - 5 :], whole[-5:])


@pytest.mark.parametrize("name", WHOLE)
def test_what_depends_on_where_a_decoder_begins_is_decoded_whole(folder: Path, name: str) -> None:
    row = Utterance("x", name, 3.0)
    assert excerpt(opened(folder, row), row, never) is None


@pytest.mark.parametrize(
    "row", [Utterance("x", "gone.wav", 3.0), Utterance("x", "pcm.wav", 9.0)], ids=lambda r: r.audio
)
def test_what_cannot_be_read_is_left_to_the_whole_read_to_name(
    folder: Path, row: Utterance
) -> None:
    assert excerpt(opened(folder, row), row, never) is None


def test_all_of_it_is_the_whole(folder: Path) -> None:
    row = Utterance("x", "a.flac", 4.0)
    found = excerpt(opened(folder, row), row, lambda: np.arange(3, dtype=np.float32))
    assert found is not None
    assert found[:].tolist() == [0, 1, 2]


# -- in the loader -------------------------------------------------------------------------------

NORMALIZED = toys.TINY.model_copy(update={"normalize": True})


def collate(architecture: Architecture = toys.TINY) -> Collate:
    mask = MaskConfig()
    return partial(pretrain_batch, architecture=architecture, mask=mask, max_seconds=0.7)


@pytest.fixture
def corpus(folder: Path) -> Manifest:
    """Rows of 0.9 to 3 s, many of them parts of one recording, and crops of 0.7 s."""
    names = [*KINDS, "opus.ogg"]
    rows = [
        Utterance(f"u{i}", names[i % 8], 0.9 + 0.1 * i, offset=0.05 * i, sample_rate=16_000)
        for i in range(22)
    ]
    manifest.write(folder / "corpus.jsonl", rows)
    return manifest.read(folder / "corpus.jsonl")


def plan(source: Manifest) -> Plan:
    seconds = np.array([row.duration for row in source.rows])
    return Plan(
        seconds,
        bin_seconds=3.0,
        min_seconds=0.1,
        max_seconds=0.7,
        crop=True,
        seed=2,
        source=source.sha256,
    )


def stream(source: Manifest, how: Collate, **options: Any) -> list[tuple[Any, ...]]:
    made = plan(source)
    found: list[Batch] = list(load(source, made, how, range(2 * made.bins_per_epoch), **options))
    return [(b.wave_BS.numpy().tobytes(), b.rows, b.lost) for b in found]


@pytest.mark.parametrize("architecture", [toys.TINY, NORMALIZED], ids=["plain", "normalized"])
def test_the_stream_is_that_of_whole_reads_cropped_whoever_loads_it(
    corpus: Manifest, architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = collate(architecture)
    packing.pack_all(corpus, corpus.path.parent / "out", size=300_000, packing=Packing())
    shards = manifest.read(corpus.path.parent / "out" / "manifest.jsonl")
    assert shards.sha256 == corpus.sha256
    found = [
        stream(source, how, **options)
        for source in (corpus, shards)
        for options in ({}, {"cache_megabytes": 9}, {"workers": 1}, {"stand_in": True})
    ]
    monkeypatch.setattr(batches, "excerpt", lambda *_: None)
    want = stream(corpus, how)
    for each in found:
        assert each == want


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were decoded, read by read."""
    seconds: list[float] = []
    audio: Callable[[Manifest, Utterance], np.ndarray] = Manifest.audio

    def counting(self: Manifest, row: Utterance) -> np.ndarray:
        seconds.append(row.duration)
        return audio(self, row)

    monkeypatch.setattr(Manifest, "audio", counting)
    return seconds


def test_only_crops_of_long_rows_are_decoded_and_short_rows_once(
    corpus: Manifest, decoded: list[float]
) -> None:
    keep = [row for row in corpus.rows if row.audio != "opus.ogg"]
    manifest.write(corpus.path, keep)
    source = manifest.read(corpus.path)
    stream(source, collate(), cache_megabytes=9)
    short = [row.duration for row in keep if row.duration <= 1.4]
    crops = 2 * (len(keep) - len(short))
    assert len(decoded) == len(short) + crops
    assert sum(decoded) == pytest.approx(sum(short) + 0.7 * crops)


def test_models_that_normalise_need_all_and_keep_it(corpus: Manifest, decoded: list[float]) -> None:
    stream(corpus, collate(NORMALIZED), cache_megabytes=9)
    assert sorted(decoded) == pytest.approx(sorted(row.duration for row in corpus.rows))


def test_ctc_takes_whole_rows(corpus: Manifest) -> None:
    how = partial(ctc_batch, architecture=toys.TINY, tokens=toys.TOKENS, mask=None)
    part = plan(corpus).bin(0)
    bins = batches._Bins(corpus, plan(corpus), how, 0, stand_in=False)
    assert any(isinstance(bins.read(row), Excerpt) for row in range(22))
    wave = how(corpus, bins.read, part).wave_BS[0]
    want = corpus.audio(corpus.rows[part.rows[0]])
    assert np.array_equal(wave[: len(want)].numpy(), want)


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Manifest:
    """Four recordings of 12 s; one of them is no good after its first half."""
    rows = []
    for i in range(4):
        path, wave = tmp_path / f"{i}.wav", toys.wave(i, 192_000)
        if i == 1:
            wave[96_000:] = np.nan
        soundfile.write(path, wave, 16_000, subtype="FLOAT")
        rows.append(Utterance(f"u{i}", path.name, 12.0))
    manifest.write(tmp_path / "m.jsonl", rows)
    return manifest.read(tmp_path / "m.jsonl")


def test_others_stand_in_for_a_recording_whose_crop_is_damaged_whoever_loads_it(
    damaged: Manifest,
) -> None:
    epochs = range(12)
    made = plan(damaged)
    assert made.bins_per_epoch == 1
    found = list(load(damaged, made, collate(), epochs, stand_in=True))
    lost = [batch.lost for batch in found]
    assert 3 <= sum(map(bool, lost)) < 12, "some crops lie in the part that is whole"
    for batch in found:
        assert [row for row, _ in batch.lost] == ([] if 1 in batch.rows else [1])
        assert len(batch.rows) == 4
    again = load(damaged, made, collate(), epochs, stand_in=True, workers=1)
    assert [(b.lost, b.wave_BS.numpy().tobytes()) for b in again] == [
        (b.lost, b.wave_BS.numpy().tobytes()) for b in found
    ]


def test_where_nothing_stands_in_the_damage_names_row_and_file(damaged: Manifest) -> None:
    bad = dataclasses.replace(damaged, rows=[damaged.rows[1]] * 4)
    with pytest.raises(DataError, match="NaN") as caught:
        list(load(bad, plan(bad), collate(), range(12)))
    assert "(u1)" in caught.value.where
    assert "1.wav" in caught.value.where
