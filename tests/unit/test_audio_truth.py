"""What headers and streams claim, against what is there: cases that need more than a file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2vtool import audio, survey
from w2vtool.audio import AudioError, Info

SUBTYPES = {
    "WAV": ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"),
    "WAVEX": ("PCM_16", "PCM_24", "FLOAT"),
    "RF64": ("PCM_16", "PCM_24"),
    "FLAC": ("PCM_S8", "PCM_16", "PCM_24"),
    "AIFF": ("PCM_S8", "PCM_16", "PCM_24", "FLOAT", "ULAW"),
}
ENDINGS = {"WAV": ".wav", "WAVEX": ".wav", "RF64": ".rf64", "FLAC": ".flac", "AIFF": ".aiff"}


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from([(form, sub) for form, subs in SUBTYPES.items() for sub in subs]),
    rate=st.sampled_from([4_000, 8_000, 11_025, 16_000, 44_100, 48_000, 192_000]),
    channels=st.integers(1, 8),
    frames=st.integers(1, 9_000),
)
def test_headers_read_here_say_what_libsndfile_says(
    tmp_path: Path, kind: tuple[str, str], rate: int, channels: int, frames: int
) -> None:
    path = tmp_path / f"a{ENDINGS[kind[0]]}"
    samples = np.random.default_rng(frames).uniform(-0.5, 0.5, (frames, channels))
    soundfile.write(path, samples, rate, format=kind[0], subtype=kind[1])
    told = soundfile.info(path)
    assert told.frames - frames in (0, 1)  # libsndfile pads odd AIFFs of bytes, and counts that
    assert audio.probe(path) == Info(rate, channels, told.frames)
    with audio.opened(path) as (info, blocks):
        assert info == Info(rate, channels, told.frames)
        assert sum(map(len, blocks)) == told.frames


def test_a_flac_without_a_length_is_read_like_one_with_it(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(torture.flac(3.0))
    data = torture.flac(3.0)
    (tmp_path / "b.flac").write_bytes(torture.put(data, 21, bytes([data[21] & 0xF0, 0, 0, 0, 0])))
    assert soundfile.info(tmp_path / "b.flac").frames > 10**18
    assert audio.probe(tmp_path / "b.flac") == audio.probe(tmp_path / "a.flac")
    whole = audio.read(tmp_path / "a.flac")
    np.testing.assert_array_equal(audio.read(tmp_path / "b.flac"), whole)
    part = audio.read(tmp_path / "b.flac", offset=2.5)
    np.testing.assert_array_equal(part, whole[40_000:])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(kept=st.integers(0, 9_999))
@pytest.mark.parametrize("make", [torture.constant, torture.mp3, torture.aiff])
def test_no_cut_within_a_frame_goes_unseen(tmp_path: Path, kept: int, make: Any) -> None:
    data = make()
    ending = ".aiff" if make is torture.aiff else ".mp3"
    cut = data[: len(data) * kept // 10_000]
    if make is torture.constant and len(cut) % 360 == 0:
        return  # between two frames, and no length is written anywhere: nothing tells
    (tmp_path / f"a{ending}").write_bytes(cut)
    with pytest.raises(AudioError):
        audio.read(tmp_path / f"a{ending}")


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(torture.wav())
    real = soundfile.SoundFile.read

    def meddled(self: Any, *words: Any, **more: Any) -> Any:
        with path.open("ab") as file:
            file.write(b"more")
        return real(self, *words, **more)

    monkeypatch.setattr(soundfile.SoundFile, "read", meddled)
    with pytest.raises(AudioError) as caught:
        audio.read(path)
    assert caught.value.reason == "changed"


def test_a_file_that_shrinks_under_a_walk_ends_the_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from w2vtool import mp3, ogg
    from w2vtool.sources import Source

    for name, data, check in (
        ("a.mp3", torture.constant(), mp3.check_mp3),
        ("a.ogg", torture.vorbis(), ogg.check_ogg),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(AudioError) as caught, Source(path) as source:
            os.truncate(path, 3_000)
            check(source)
        assert caught.value.reason == "changed"


def test_a_name_that_is_given_to_another_file_meanwhile_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(torture.wav())
    with audio.opened(path) as (info, blocks):
        (tmp_path / "b.wav").write_bytes(torture.wav(torture.voice(0.1)))
        (tmp_path / "b.wav").replace(path)
        assert sum(map(len, blocks)) == info.frames == 16_000


def test_long_files_take_the_memory_of_a_block(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(3 << 20, "i2"), 16_000)
    with audio.opened(path) as (_, blocks):
        assert [len(block) for block in blocks] == [1 << 20] * 3


@pytest.mark.parametrize(
    ("level", "expected"), [(0.0005, ()), (0.002, ("clipped",))], ids=["few", "many"]
)
def test_clipping_is_warned_of_from_a_share_of_one_in_a_thousand(
    tmp_path: Path, level: float, expected: tuple[str, ...]
) -> None:
    samples = torture.voice()
    samples[: int(level * len(samples))] = 1.0
    soundfile.write(tmp_path / "a.flac", samples, 16_000)
    assert survey.inspect(tmp_path / "a.flac").warnings == expected


@pytest.mark.parametrize(("offset", "expected"), [(-0.015, ()), (-0.03, ("dc-offset",))])
def test_an_offset_is_warned_of_from_two_percent_of_full_scale(
    tmp_path: Path, offset: float, expected: tuple[str, ...]
) -> None:
    samples = torture.voice()
    soundfile.write(tmp_path / "a.flac", samples - samples.mean() + offset, 16_000)
    assert survey.inspect(tmp_path / "a.flac").warnings == expected


def test_equal_audio_in_another_container_has_the_same_digest(tmp_path: Path) -> None:
    samples = (32_767 * torture.voice(rate=44_100)).astype("i2")
    soundfile.write(tmp_path / "a.flac", samples, 44_100)
    soundfile.write(tmp_path / "a.wav", samples, 44_100)
    one, other = survey.inspect(tmp_path / "a.flac"), survey.inspect(tmp_path / "a.wav")
    assert one == other
    assert (one.samples, one.reason) == (16_000, "")


def test_a_decoder_without_memory_is_told_from_damage() -> None:
    assert audio._cause("Internal malloc () failed.", "damaged") == "memory"
    assert audio._cause("flac decoder lost sync", "damaged") == "damaged"


DOCS = Path(__file__).parents[2] / "docs" / "audio.md"
MODULES = ("sources", "containers", "flac", "ogg", "mp3", "audio", "survey")


def test_every_reason_is_in_the_documentation_and_every_documented_one_in_the_code() -> None:
    folder = Path(audio.__file__).parent
    code = "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES)
    given = set(re.findall(r'(?:refusal\(|reason=|_cause\(detail, |reason = )\s*"([a-z-]+)"', code))
    given |= {"truncated", "damaged", "memory"}  # chosen by what the decoder says
    listed = re.findall(r"^\| `([a-z-]+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(listed) == given
    assert len(set(listed)) == len(listed)


BASES = {
    "a.wav": torture.wav(torture.voice(0.1)),
    "f.wav": torture.wav(torture.voice(0.1), subtype="FLOAT"),
    "e.wav": torture.encode("WAVEX", torture.voice(0.1)),
    "a.flac": torture.flac(0.1),
    "a.ogg": torture.vorbis(0.2),
    "a.opus": torture.opus(0.2),
    "a.mp3": torture.id3(40) + torture.mp3(0.3),
    "a.aiff": torture.aiff(torture.voice(0.1)),
    "a.au": torture.encode("AU", torture.voice(0.1)),
    "a.caf": torture.encode("CAF", torture.voice(0.1)),
    "a.w64": torture.encode("W64", torture.voice(0.1)),
    "a.sph": torture.encode("NIST", torture.voice(0.1)),
}


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(sorted(BASES)),
    changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
    kept=st.one_of(st.none(), st.integers(1, 200)),
)
def test_whatever_stands_in_a_header_there_is_audio_or_a_reason(
    tmp_path: Path, name: str, changes: list[tuple[int, int]], kept: int | None
) -> None:
    data = BASES[name][:kept]
    for at, value in changes:
        data = torture.put(data, min(at, len(data) - 1), bytes([value]))
    (tmp_path / name).write_bytes(data)
    for look in (audio.probe, survey.inspect):
        try:
            look(tmp_path / name)
        except AudioError as error:
            assert error.reason
    assert survey.inspect(tmp_path / name).reason != "unreadable"  # the net for what is unforeseen
