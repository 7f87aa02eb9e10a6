"""Audio files to samples: whatever the file holds, 16 kHz mono float32 comes out, or a reason.

Goes in: a path, for a member of a shard the span of its bytes, and for a part of the audio a start
and a length in seconds. Goes out: samples ``[S]`` in -1…1 (float files may go past that a little),
or an ``AudioError`` that names the file and what is wrong with it.

Why so many checks: libsndfile takes a WAV, OGG or MP3 that was cut in half without a word, decodes
text named ``.au`` as noise, and believes any length a FLAC header claims. A model trains on all of
that without complaint, so it must be caught here. ``sources`` opens, ``containers`` holds headers
against bytes, and what is decoded is held against the header here. docs/audio.md lists the reasons.

Policy: other rates are resampled (windowed sinc) and channels are averaged without a word; ``load``
returns what the file really is, so that who reads many files can say it once. A part of a file is
cut from the 16 kHz signal, so it equals the same slice of a whole read: exactly for PCM, FLAC and
Vorbis, up to rounding for resampled files and MP3, up to the codec's start-up for Opus.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from w2vtool import mp3, ogg
from w2vtool.containers import read_header
from w2vtool.flac import MAX_FRAMES_PER_BYTE
from w2vtool.resampling import has_kernel, needed, resample
from w2vtool.sources import SAMPLE_RATE, AudioError, Header, Info, Source, Span

__all__ = ["EXTENSIONS", "SAMPLE_RATE", "AudioError", "Clip", "Info", "Span"]
__all__ += ["load", "opened", "probe", "read"]

MAX_CHANNELS = 8
MAX_VALUE = 1e3  # full scale is 1; a float file past this was never audio
MIN_RATE, MAX_RATE = 4_000, 768_000
RANGE_SLACK_SECONDS = 0.02  # manifests of other tools round durations to two or three digits

FORMATS = {  # file name ending → what its content may be
    ".wav": {"WAV", "RF64", "W64", "NIST"},  # NIST: the .WAV files of TIMIT
    ".wave": {"WAV", "RF64"},
    ".rf64": {"RF64"},
    ".w64": {"W64"},
    ".flac": {"FLAC"},
    ".ogg": {"OGG"},
    ".oga": {"OGG"},
    ".opus": {"OGG"},
    ".mp3": {"MP3"},
    ".aif": {"AIFF"},
    ".aiff": {"AIFF"},
    ".aifc": {"AIFF"},
    ".au": {"AU"},
    ".caf": {"CAF"},
    ".sph": {"NIST"},
    "": {"WAV", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "NIST"},
}
EXTENSIONS = frozenset(FORMATS) - {""}

LEAD_IN_SECONDS = 60  # decoded and dropped before a part of a file whose decoder remembers
_BLOCK_FRAMES = 1 << 20


class Clip(NamedTuple):
    """Samples ``[S]`` (float32, 16 kHz, mono) and what the file was."""

    samples: np.ndarray
    info: Info


def probe(path: str | Path, *, span: Span | None = None) -> Info:
    """What the header says, after checking that the file is audio and not cut short.

    Costs no decoding. Raises AudioError; damage inside of the file only shows in ``read``.
    """
    with Source(path, span) as source:
        header = _header(source)
        if header.info is not None:
            return _checked(source, header.info)
        with _decoder(source, header) as (_, info):
            return info


def read(
    path: str | Path,
    *,
    offset: float = 0.0,
    duration: float | None = None,
    span: Span | None = None,
) -> np.ndarray:
    """Float32 mono samples ``[S]`` at 16 kHz; ``offset`` and ``duration`` in seconds.

    ``span``: the audio is the bytes [start, start + length) of the file, a member of a shard.
    Raises AudioError when the file is missing, not audio, empty, truncated or damaged, holds NaN,
    infinite or absurd values, or is shorter than the part asked for.
    """
    return load(path, offset=offset, duration=duration, span=span).samples


def load(
    path: str | Path,
    *,
    offset: float = 0.0,
    duration: float | None = None,
    span: Span | None = None,
) -> Clip:
    """Read like ``read``, together with the file's own rate, channels and length."""
    with Source(path, span) as source, _decoder(source, _header(source)) as (sound, info):
        start, stop = _range(source, info, offset, duration)
        if (start, stop) == (0, info.samples):
            _check_stream(source, sound)
        if info.sample_rate == SAMPLE_RATE:
            return Clip(_decode(source, sound, info, start, stop), info)
        first, last, shift = needed(info, start, stop)
        samples = _decode(source, sound, info, first, last)
        return Clip(resample(samples, info.sample_rate)[start - shift : stop - shift], info)


@contextmanager
def opened(
    path: str | Path, *, span: Span | None = None
) -> Iterator[tuple[Info, Iterator[np.ndarray]]]:
    """What a file is, and its mono samples at its own rate, in blocks of up to 2^20.

    Takes the memory of a block however long the file is. Raises what ``read`` raises.
    """
    with Source(path, span) as source, _decoder(source, _header(source)) as (sound, info):
        _check_stream(source, sound)
        yield info, _blocks(source, sound, info, 0, info.frames)


class _Sound(soundfile.SoundFile):
    """A file that is read from one place on.

    Why: after each read, soundfile sends the decoder of a seekable file to where it is already, and
    decoders that remember forget what they knew (see ``_remembers``).
    """

    def seekable(self) -> bool:
        """Say no; ``seek`` works all the same."""
        return False


def _header(source: Source) -> Header:
    kinds = FORMATS.get(suffix := source.suffix)
    if kinds is None:
        what = f"{suffix!r} is not an audio file name ending that w2vtool knows"
        hint = f"known: {' '.join(sorted(EXTENSIONS))}; convert others to FLAC"
        raise source.refusal("wrong-extension", what, hint)
    header = read_header(source)
    if header.kind not in kinds:
        what = f"holds {header.kind} audio, but is named {suffix}"
        raise source.refusal("wrong-extension", what, "rename it to what it is")
    return header


@contextmanager
def _decoder(source: Source, header: Header) -> Iterator[tuple[soundfile.SoundFile, Info]]:
    if header.info is not None:
        _checked(source, header.info)
    try:
        sound = _Sound(source.for_decoder(header.patch), closefd=False)
    except soundfile.SoundFileError as error:
        detail = str(error).partition(": ")[2] or str(error)
        what = f"cannot be decoded ({detail.strip(' .')})"
        raise source.refusal(_cause(detail, "not-audio"), what) from error
    with sound:
        info = _checked(source, Info(sound.samplerate, sound.channels, sound.frames))
        if header.info is not None and header.info != info:
            what = f"its header says {_shown(header.info)}; libsndfile finds {_shown(info)}"
            raise source.refusal("lying-header", what, "convert it again")
        mp3.check_length(source, info, header.about)
        yield sound, info


def _shown(info: Info) -> str:
    return f"{info.frames:,} x {info.channels} samples at {info.sample_rate:,} Hz"


def _cause(detail: str, reason: str) -> str:
    """Libsndfile has no error of its own for a lack of memory."""
    return "memory" if "malloc" in detail.lower() else reason


def _checked(source: Source, info: Info) -> Info:
    if info.channels > MAX_CHANNELS:
        what = f"{info.channels:,} channels; at most {MAX_CHANNELS} can be mixed down"
        raise source.refusal("channels", what, "extract the channels with speech")
    if not MIN_RATE <= info.sample_rate <= MAX_RATE:
        what = f"sample rate of {info.sample_rate:,} Hz, outside {MIN_RATE:,}–{MAX_RATE:,}"
        raise source.refusal("sample-rate", what, "convert it to 16 kHz FLAC")
    if not has_kernel(info.sample_rate):
        what = f"sample rate of {info.sample_rate:,} Hz has no short ratio to 16 kHz"
        raise source.refusal("sample-rate", what, "convert it to 16 kHz FLAC")
    if info.frames > source.size * MAX_FRAMES_PER_BYTE:
        what = f"header claims {info.frames:,} samples, more than {source.size:,} bytes can hold"
        hint = "convert it again; the length was never written"
        raise source.refusal("lying-header", what, hint)
    if info.frames <= 0:
        raise source.refusal("no-samples", "is a valid file without a single sample")
    return info


def _check_stream(source: Source, sound: soundfile.SoundFile) -> None:
    """What only a walk through all of the file can tell, of the kinds that hide damage."""
    if sound.format == "OGG":
        ogg.check_ogg(source)
    elif sound.format == "MP3":
        mp3.check_mp3(source)


def _range(source: Source, info: Info, offset: float, duration: float | None) -> tuple[int, int]:
    """First and last + 1 sample at 16 kHz."""
    asked = info.seconds - offset if duration is None else duration
    if not (offset >= 0 and asked > 0 and offset + asked <= info.seconds + RANGE_SLACK_SECONDS):
        what = f"{asked:g} s from {offset:g} s on is not within its {info.seconds:.3f} s"
        raise source.refusal("range", what, "if the audio was changed, build the manifest again")
    if duration is None and offset == 0:
        return 0, info.samples
    start = round(offset * SAMPLE_RATE)
    count = math.inf if duration is None else round(duration * SAMPLE_RATE)
    stop = int(min(info.samples, start + count))
    if stop <= start:
        raise source.refusal("range", f"{asked:g} s from {offset:g} s on is not even one sample")
    return start, stop


def _decode(
    source: Source, sound: soundfile.SoundFile, info: Info, start: int, stop: int
) -> np.ndarray:
    """Mono samples start…stop at the file's own rate, checked."""
    blocks = list(_blocks(source, sound, info, start, stop))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _blocks(
    source: Source, sound: soundfile.SoundFile, info: Info, start: int, stop: int
) -> Iterator[np.ndarray]:
    """Mono samples start…stop at the file's own rate, checked; one block at least."""
    lead = min(start, LEAD_IN_SECONDS * info.sample_rate if _remembers(sound) else 0)
    missing, dropped = lead + stop - start, 0
    try:
        if start > lead:  # a decoder that was sent to its beginning is not at its beginning
            sound.seek(start - lead)
        while missing > 0:
            block = sound.read(min(missing, _BLOCK_FRAMES), dtype="float32", always_2d=True)
            if not len(block):
                break
            missing -= len(block)
            block = block[lead - dropped :] if dropped < lead else block
            dropped = min(lead, stop - start + lead - missing)
            if len(block):
                _check_values(source, block, info, stop - missing - len(block))
                yield block.mean(axis=1) if info.channels > 1 else block[:, 0]
    except soundfile.SoundFileError as error:
        detail = str(error).removeprefix("Error : ").strip(" .")
        what = f"truncated or damaged ({detail or 'decoder error'})"
        raise source.refusal(_cause(detail, "damaged"), what, "fetch it again") from error
    if missing > (mp3.SLACK_FRAMES if sound.format == "MP3" else 0) or missing >= stop - start:
        what = f"truncated: {stop - missing:,} of {info.frames:,} samples can be decoded"
        raise source.refusal("truncated", what, "fetch it again")


def _remembers(sound: soundfile.SoundFile) -> bool:
    """Whether a decoder needs what came before, to give what it gives in a whole read.

    Seen in libsndfile 1.2.2: right after a seek, MP3 and Opus are up to 0.06 of full scale off,
    Vorbis is elsewhere if the seek led into the last page, and Opus once was near the end of 6 s.
    """
    return sound.format in ("OGG", "MP3")


def _check_values(source: Source, block: np.ndarray, info: Info, start: int) -> None:
    peak = max(float(block.max()), -float(block.min()))
    if peak <= MAX_VALUE:
        return
    at = start + int(np.argmax(~(np.abs(block) <= MAX_VALUE).all(axis=1)))
    second = f"at {at / info.sample_rate:.3f} s"
    if math.isfinite(peak):
        what = f"absurd sample value {peak:.3g} {second} (full scale is 1)"
        raise source.refusal("absurd-values", what, "export it again as 16-bit PCM")
    bad = int((~np.isfinite(block)).any(axis=1).sum())
    what = f"{bad:,} samples are NaN or infinite, the first {second}"
    raise source.refusal("not-finite", what, "export it again as 16-bit PCM")
