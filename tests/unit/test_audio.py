"""Every file that libsndfile accepts in silence and we must not, made here and thrown at it."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2vtool import audio
from w2vtool.audio import AudioError
from w2vtool.errors import DataError

RATE = 16_000
WAYS = {  # file name → how to write it
    "a.wav": {},
    "f.wav": {"subtype": "FLOAT"},
    "s24.wav": {"subtype": "PCM_24"},
    "ext.wav": {"format": "WAVEX"},
    "nist.wav": {"format": "NIST"},
    "ima.wav": {"subtype": "IMA_ADPCM"},
    "a.rf64": {},
    "a.w64": {},
    "a.flac": {},
    "a.ogg": {"subtype": "VORBIS"},
    "a.opus": {"format": "OGG", "subtype": "OPUS"},
    "a.mp3": {},
    "a.aiff": {},
    "a.au": {},
    "a.caf": {},
}
EXACT = ("a.wav", "f.wav", "s24.wav", "ext.wav", "nist.wav", "a.rf64", "a.w64", "a.flac", "a.aiff")


def speechlike(seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """A low sum of tones and a little noise: no energy near the folding frequency."""
    t = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * f * t + f) / 8 for f in (180, 440, 1230, 2100))
    return (tones + 1e-3 * np.random.default_rng(3).standard_normal(t.size)).astype(np.float32)


def written(folder: Path, name: str, samples: np.ndarray | None = None, rate: int = RATE) -> Path:
    path = folder / name
    samples = speechlike(rate=rate) if samples is None else samples
    soundfile.write(path, samples, rate, **WAYS.get(name, {}))
    return path


def refused(path: Path, reason: str) -> str:
    with pytest.raises(AudioError) as caught:
        audio.read(path)
    assert caught.value.reason == reason
    assert caught.value.where == str(path)
    return caught.value.what


@pytest.mark.parametrize("name", WAYS)
def test_every_format_gives_float32_mono_of_the_length_in_the_header(
    tmp_path: Path, name: str
) -> None:
    path = written(tmp_path, name)
    samples = audio.read(path)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert samples.flags.writeable  # torch.from_numpy wants that
    assert len(samples) == audio.probe(path).samples
    assert abs(len(samples) - 32_000) <= 600  # ADPCM fills its last block
    error = samples[:32_000] - speechlike()
    assert np.sqrt(np.mean(error**2)) < (1e-4 if name in EXACT else 0.05)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, kept: float) -> None:
    path = written(tmp_path, name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(AudioError) as caught:
        audio.read(path)
    assert caught.value.reason in ("truncated", "damaged", "not-audio")
    if (name, kept) != ("a.flac", 0.9):  # within its last frame: that shows in decoding
        with pytest.raises(AudioError, match="truncated"):
            audio.probe(path)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(kept=st.integers(0, 9_999))
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus"])
def test_no_cut_goes_unseen(tmp_path: Path, name: str, kept: int) -> None:
    path = tmp_path / name
    if not path.exists():
        written(tmp_path, name, speechlike(0.5))
    data = path.read_bytes()
    cut = tmp_path / f"cut{path.suffix}"
    cut.write_bytes(data[: len(data) * kept // 10_000])
    with pytest.raises(AudioError):
        audio.read(cut)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 9_999), flip=st.integers(1, 255))
@pytest.mark.parametrize("name", ["a.ogg", "a.opus", "a.flac"])
def test_no_changed_byte_in_a_compressed_stream_goes_unseen(
    tmp_path: Path, name: str, place: int, flip: int
) -> None:
    path = tmp_path / name
    if not path.exists():
        written(tmp_path, name, speechlike(0.5))
    data = bytearray(path.read_bytes())
    at = len(data) * place // 10_000
    if name == "a.flac":  # its frames have checksums, its header has none
        at = len(data) // 2 + at // 2
    data[at] ^= flip
    changed = tmp_path / f"changed{path.suffix}"
    changed.write_bytes(data)
    with pytest.raises(AudioError):
        audio.read(changed)


def test_a_truncated_mp3_with_an_intact_header_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.mp3")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert soundfile.info(path).frames == 32_000  # the header still says so
    assert "the header promises" in refused(path, "truncated")


def test_a_damaged_ogg_page_is_refused_though_libsndfile_skips_it(tmp_path: Path) -> None:
    path = written(tmp_path, "a.opus", speechlike(20))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 50] = bytes(50)
    path.write_bytes(data)
    soundfile.read(path)  # no error
    assert "damaged OGG page" in refused(path, "damaged")


def test_padding_after_the_end_of_an_ogg_stream_is_no_damage(tmp_path: Path) -> None:
    path = written(tmp_path, "a.ogg")
    whole = audio.read(path)
    path.write_bytes(path.read_bytes() + bytes(100))
    assert np.array_equal(audio.read(path), whole)


def test_a_missing_file_a_folder_and_an_empty_file_are_told_apart(tmp_path: Path) -> None:
    refused(tmp_path / "none.wav", "missing")
    refused(tmp_path / "none.wav" / "a.wav", "missing")
    refused(tmp_path, "not-a-file")
    (tmp_path / "empty.wav").touch()
    assert "0 bytes" in refused(tmp_path / "empty.wav", "empty")
    refused(Path("nul\0.wav"), "unreadable")


def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    refused(tmp_path / "pipe.wav", "not-a-file")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.au"])
def test_text_named_like_audio_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("hello, this is a sentence\n" * 100)  # .au: noise to libsndfile
    assert "hello, this is a" in refused(tmp_path / name, "not-audio")


def test_noise_that_starts_like_audio_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).bytes(5_000)
    for head, name in ((b"fLaC", "x.flac"), (b"OggS", "x.ogg"), (b"RIFF0000WAVE", "x.wav")):
        (tmp_path / name).write_bytes(head + noise)
        with pytest.raises(AudioError):
            audio.read(tmp_path / name)


def test_a_name_that_does_not_fit_the_content_is_refused(tmp_path: Path) -> None:
    flac = written(tmp_path, "a.flac")
    assert "holds FLAC audio" in refused(flac.rename(tmp_path / "b.wav"), "wrong-extension")
    refused(written(tmp_path, "a.wav").rename(tmp_path / "a.txt"), "wrong-extension")
    bare = written(tmp_path, "a.wav").rename(tmp_path / "noending")
    assert len(audio.read(bare)) == 32_000


def test_zero_samples_are_refused(tmp_path: Path) -> None:
    nothing = np.zeros(0, np.float32)
    refused(written(tmp_path, "a.wav", nothing), "no-samples")
    with pytest.raises(AudioError):
        audio.read(written(tmp_path, "a.flac", nothing))


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.nan, "not-finite"), (np.inf, "not-finite"), (-1e30, "absurd-values")],
)
def test_impossible_sample_values_are_refused_with_their_time(
    tmp_path: Path, value: float, reason: str
) -> None:
    samples = speechlike()
    samples[8_000] = value
    assert "0.500 s" in refused(written(tmp_path, "f.wav", samples), reason)


def test_float_audio_a_little_over_full_scale_is_kept(tmp_path: Path) -> None:
    path = written(tmp_path, "f.wav", 20 * speechlike())
    assert np.abs(audio.read(path)).max() > 1


def test_channels_are_averaged_and_too_many_refused(tmp_path: Path) -> None:
    left, right = speechlike(), speechlike()[::-1]
    clip = audio.load(written(tmp_path, "f.wav", np.stack([left, right], axis=1)))
    assert clip.info.channels == 2
    np.testing.assert_allclose(clip.samples, (left + right) / 2, atol=1e-7)
    many = written(tmp_path, "a.wav", np.zeros((100, 9), np.float32))
    assert "9 channels" in refused(many, "channels")


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_other_rates_become_16_khz(tmp_path: Path, rate: int) -> None:
    clip = audio.load(written(tmp_path, "f.wav", rate=rate))
    assert clip.info == audio.Info(rate, 1, round(2 * rate))
    assert len(clip.samples) == clip.info.samples == 32_000
    middle = slice(1_000, -1_000)  # the noise differs: it is drawn at the file's rate
    error = clip.samples[middle] - speechlike()[middle]
    assert np.sqrt(np.mean(error**2)) < 3e-3


@pytest.mark.parametrize("rate", [15_999, 100, 1_000_000])
def test_rates_that_no_recorder_has_are_refused(tmp_path: Path, rate: int) -> None:
    assert f"{rate:,} Hz" in refused(
        written(tmp_path, "a.wav", speechlike(0.1), rate=rate), "sample-rate"
    )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(["a.wav", "a.flac", "a.ogg"]),
    rate=st.sampled_from([8_000, 16_000, 22_050, 44_100]),
    start=st.integers(0, 15_000),
    count=st.integers(1, 900),
)
def test_a_part_equals_the_same_slice_of_the_whole(
    tmp_path: Path, name: str, rate: int, start: int, count: int
) -> None:
    folder = tmp_path / str(rate)
    folder.mkdir(exist_ok=True)
    path = folder / name
    if not path.exists():
        written(folder, name, speechlike(1.0, rate), rate)
    whole = audio.read(path)
    part = audio.read(path, offset=start / RATE, duration=count / RATE)
    np.testing.assert_allclose(part, whole[start : start + count], atol=1e-6)


def test_a_part_without_a_length_goes_to_the_end(tmp_path: Path) -> None:
    path = written(tmp_path, "a.wav")
    assert np.array_equal(audio.read(path, offset=1.5), audio.read(path)[24_000:])


@pytest.mark.parametrize(
    ("offset", "duration"),
    [(0, 2.5), (1.9, 0.2), (2.0, None), (-0.1, 1), (0, 0), (0, float("nan"))],
)
def test_a_part_outside_of_the_file_is_refused(
    tmp_path: Path, offset: float, duration: float | None
) -> None:
    path = written(tmp_path, "a.wav")
    with pytest.raises(AudioError, match=r"not within its 2\.000 s"):
        audio.read(path, offset=offset, duration=duration)


def test_durations_rounded_by_other_tools_reach_the_end(tmp_path: Path) -> None:
    path = written(tmp_path, "a.wav", speechlike()[:31_990])  # 1.999375 s
    assert len(audio.read(path, duration=2.0)) == 31_990


def test_a_wav_written_to_a_pipe_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.wav")
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(data)
    assert "promises 4,294,967,324 bytes" in refused(path, "lying-header")


def test_a_wav_without_a_data_chunk_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.wav")
    path.write_bytes(path.read_bytes()[:36])
    with pytest.raises(AudioError):
        audio.read(path)


@pytest.mark.parametrize("frames", [2**36 - 1, 1, 10**9])
def test_a_flac_header_that_lies_about_its_length_is_refused_before_decoding(
    tmp_path: Path, frames: int
) -> None:
    path = written(tmp_path, "a.flac", speechlike(0.2))
    data = bytearray(path.read_bytes())
    data[21] = (data[21] & 0xF0) | frames >> 32  # STREAMINFO: 36 bits of total samples
    data[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(AudioError):
        audio.probe(path)


def test_an_audio_error_crosses_process_borders() -> None:
    error = AudioError("is odd", where="a.wav", hint="mend it", reason="odd")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert isinstance(copy, DataError)
    assert (str(copy), copy.reason) == (str(error), "odd")


def test_probe_tells_rate_channels_and_length(tmp_path: Path) -> None:
    info = audio.probe(written(tmp_path, "a.wav", np.zeros((4_410, 2)), rate=44_100))
    assert info == audio.Info(44_100, 2, 4_410)
    assert info.seconds == pytest.approx(0.1)
    assert info.samples == 1_600


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("MP3", None), ("OGG", "OPUS")])
def test_a_part_of_a_lossy_file_is_what_the_whole_has_there(
    tmp_path: Path, kind: str, subtype: str | None
) -> None:
    """A decoder that begins in the middle has forgotten what came before; in its last page most."""
    noise = np.random.default_rng(1).standard_normal(100_000).astype("f4") / 20
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, noise, 16_000, format=kind, subtype=subtype)
    whole = audio.read(path)
    for start in (1, 30_000, 50_000, 70_001, len(whole) - 700, len(whole) - 100):
        part = audio.read(path, offset=start / 16_000)
        assert len(part) == len(whole) - start
        np.testing.assert_allclose(part, whole[start:], atol=1e-7 if kind == "MP3" else 0, rtol=0)


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("MP3", None), ("OGG", "OPUS")])
def test_blocks_of_a_lossy_file_are_the_whole_file(
    tmp_path: Path, kind: str, subtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(2).standard_normal(100_000).astype("f4") / 20
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, noise, 16_000, format=kind, subtype=subtype)
    whole = audio.read(path)
    monkeypatch.setattr(audio, "_BLOCK_FRAMES", 5_000)
    np.testing.assert_allclose(audio.read(path), whole, atol=1e-7 if kind == "MP3" else 0, rtol=0)


def test_a_part_of_a_long_recording_does_not_decode_all_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tone = np.sin(np.arange(10 * 16_000) / 20).astype("f4") / 4
    soundfile.write(tmp_path / "a.mp3", tone, 16_000, format="MP3")
    monkeypatch.setattr(audio, "LEAD_IN_SECONDS", 1)
    sought = []
    seek = soundfile.SoundFile.seek

    def noted(self: soundfile.SoundFile, at: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:
            sought.append(at)
        return int(seek(self, at, whence))

    monkeypatch.setattr(soundfile.SoundFile, "seek", noted)
    part = audio.read(tmp_path / "a.mp3", offset=5.0, duration=2.0)
    assert sought == [64_000]
    np.testing.assert_allclose(part, audio.read(tmp_path / "a.mp3")[80_000:112_000], atol=1e-6)
