"""Audio files to samples: whatever the file holds, 16 kHz mono float32 comes out, or a reason.

Goes in: a path, and for a part of a file a start and a length in seconds. Goes out: samples
``[S]`` in -1…1 (float files may go past that a little), or an ``AudioError`` that names the file
and what is wrong with it.

Why so many checks: libsndfile takes a WAV, OGG or MP3 that was cut in half without a word, decodes
text named ``.au`` as noise, and believes any length a FLAC header claims. A model trains on all of
that without complaint, so it must be caught here.

Policy: other rates are resampled (windowed sinc) and channels are averaged without a word; ``load``
returns what the file really is, so that who reads many files can say it once. A part of a file is
cut from the 16 kHz signal, so it equals the same slice of a whole read: exactly for PCM, FLAC and
Vorbis, up to rounding for resampled files and MP3, up to the codec's start-up for Opus.
"""

from __future__ import annotations

import math
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile

from w2vtool.errors import DataError

SAMPLE_RATE = 16_000  # what read() gives and the network takes
MAX_CHANNELS = 8
MAX_VALUE = 1e3  # full scale is 1; a float file past this was never audio
MIN_RATE, MAX_RATE = 4_000, 768_000
RANGE_SLACK_SECONDS = 0.02  # manifests of other tools round durations to two or three digits

FORMATS = {  # file name ending → what libsndfile may call its content
    ".wav": {"WAV", "WAVEX", "RF64", "W64", "NIST"},  # NIST: the .WAV files of TIMIT
    ".wave": {"WAV", "WAVEX", "RF64"},
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
    "": {"WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "NIST"},
}
EXTENSIONS = frozenset(FORMATS) - {""}

_MAGIC = re.compile(
    rb"(RIFF|RIFX|RF64)....WAVE|FORM....AIF[FC]|fLaC|OggS|caff|NIST_1A|\.snd|ID3"
    rb"|riff.{20}wave|\xff[\xe0-\xff]",
    re.DOTALL,
)
# A FLAC frame spends at least 10 bytes on at most 65,535 samples; no format here packs tighter.
_MAX_FRAMES_PER_BYTE = 65_535 / 10
_MP3_SLACK_FRAMES = 1_152  # one MPEG frame: without a Xing header the length is an estimate
_BLOCK_FRAMES = 1 << 20
_MAX_KERNEL_TAPS = 16_000_000  # 64 MB; only rates like 15,999 Hz need more
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class AudioError(DataError):
    """One audio file cannot be used. ``reason`` is a short stable code, such as ``truncated``."""

    def __init__(self, what: str, *, where: str = "", hint: str = "", reason: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.what, self.where, self.hint, self.reason))


def _rebuild(what: str, where: str, hint: str, reason: str) -> AudioError:
    return AudioError(what, where=where, hint=hint, reason=reason)


class Info(NamedTuple):
    """What a file is, before resampling and mixing down."""

    sample_rate: int
    channels: int
    frames: int  # samples per channel at the file's own rate

    @property
    def seconds(self) -> float:
        """Length of the file."""
        return self.frames / self.sample_rate

    @property
    def samples(self) -> int:
        """How many samples ``read`` gives for the whole file, at 16 kHz."""
        return -(-self.frames * SAMPLE_RATE // self.sample_rate)


class Clip(NamedTuple):
    """Samples ``[S]`` (float32, 16 kHz, mono) and what the file was."""

    samples: np.ndarray
    info: Info


def probe(path: str | Path) -> Info:
    """What the header says, after checking that the file is audio and not cut short.

    Costs no decoding. Raises AudioError; damage inside of the file only shows in ``read``.
    """
    with _opened(Path(path)) as (_, info):
        return info


def read(path: str | Path, *, offset: float = 0.0, duration: float | None = None) -> np.ndarray:
    """Float32 mono samples ``[S]`` at 16 kHz; ``offset`` and ``duration`` in seconds.

    Raises AudioError when the file is missing, not audio, empty, truncated or damaged, holds NaN,
    infinite or absurd values, or is shorter than the part asked for.
    """
    return load(path, offset=offset, duration=duration).samples


def load(path: str | Path, *, offset: float = 0.0, duration: float | None = None) -> Clip:
    """Read like ``read``, together with the file's own rate, channels and length."""
    path = Path(path)
    with _opened(path) as (sound, info):
        start, stop = _range(path, info, offset, duration)
        whole = (start, stop) == (0, info.samples)
        if whole and sound.format == "OGG":
            _check_ogg_pages(path)
        if info.sample_rate == SAMPLE_RATE:
            return Clip(_decode(path, sound, info, start, stop), info)
        return Clip(_decode_resampled(path, sound, info, start, stop), info)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[soundfile.SoundFile, Info]]:
    size = _check_file(path)
    try:
        sound = soundfile.SoundFile(path)
    except soundfile.SoundFileError as error:
        detail = str(error).partition(": ")[2] or str(error)
        raise _refusal(path, "not-audio", f"cannot be decoded ({detail.strip(' .')})") from error
    with sound:
        yield sound, _check_header(path, sound, size)


def _refusal(path: Path, reason: str, what: str, hint: str = "") -> AudioError:
    return AudioError(what, where=str(path), hint=hint, reason=reason)


def _check_file(path: Path) -> int:
    """Size in bytes of a regular file that starts like audio."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise _refusal(path, "not-a-file", "is a folder, not an audio file")
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
            raise _refusal(path, "not-a-file", "is not a regular file")
        if status.st_size == 0:
            raise _refusal(path, "empty", "is empty (0 bytes)", "fetch or copy the file again")
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise _refusal(path, "missing", "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        what = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise _refusal(path, "unreadable", what) from error
    if path.suffix.lower() not in FORMATS:
        known = " ".join(sorted(EXTENSIONS))
        what = f"{path.suffix!r} is not an audio file name ending that w2vtool knows"
        raise _refusal(path, "wrong-extension", what, f"known: {known}; convert others to FLAC")
    if not _MAGIC.match(head):
        what = f"is not audio: it begins with {head[:16]!r}"
        raise _refusal(path, "not-audio", what, "convert it to FLAC, or leave it out")
    return status.st_size


def _check_header(path: Path, sound: soundfile.SoundFile, size: int) -> Info:
    info = Info(sound.samplerate, sound.channels, sound.frames)
    if sound.format not in FORMATS[path.suffix.lower()]:
        what = f"holds {sound.format} audio, but is named {path.suffix}"
        raise _refusal(path, "wrong-extension", what, "rename it to what it is")
    if info.channels > MAX_CHANNELS:
        what = f"{info.channels:,} channels; at most {MAX_CHANNELS} can be mixed down"
        raise _refusal(path, "channels", what, "extract the channels with speech")
    if not MIN_RATE <= info.sample_rate <= MAX_RATE:
        what = f"sample rate of {info.sample_rate:,} Hz, outside {MIN_RATE:,}–{MAX_RATE:,}"
        raise _refusal(path, "sample-rate", what, "convert it to 16 kHz FLAC")
    _check_promise(path, sound, size)
    if info.frames > size * _MAX_FRAMES_PER_BYTE:
        what = f"header claims {info.frames:,} samples, more than {size:,} bytes can hold"
        raise _refusal(path, "lying-header", what, "convert it again; the length was never written")
    if info.frames <= 0:
        raise _refusal(path, "no-samples", "is a valid file without a single sample")
    return info


def _check_promise(path: Path, sound: soundfile.SoundFile, size: int) -> None:
    """Compare the length that the container states with the bytes that are there."""
    with path.open("rb") as file:
        if sound.format == "OGG":
            _check_ogg_end(path, file, size)
            return
        end = _stated_end(file, size)
    if end > size:
        what = f"truncated: the header promises {end:,} bytes, the file has {size:,}"
        raise _refusal(path, "truncated", what, "fetch it again, or rewrite it if it was streamed")
    if sound.format == "CAF" and "(should be" in sound.extra_info:  # its chunks are not read here
        what = "truncated: libsndfile had to mend the length of a chunk"
        raise _refusal(path, "truncated", what, "fetch it again")


def _stated_end(file: BinaryIO, size: int) -> int:
    """Byte at which the audio ends according to the container, 0 where it does not say."""
    head = file.read(64)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return _wav_data_end(file, size)
    if head[:4] == b"FORM":
        return 8 + int.from_bytes(head[4:8], "big")
    if head[:4] == b"riff":  # Sony Wave64: 16-byte ids, 8-byte sizes
        return int.from_bytes(head[16:24], "little")
    if head[:4] == b".snd":
        start, length = struct.unpack(">II", head[4:12])
        return start + length if length != 0xFFFFFFFF else 0
    if head[:7] == b"NIST_1A":
        return _nist_data_end(head + file.read(4096))
    return 0


def _wav_data_end(file: BinaryIO, size: int) -> int:
    """End of the ``data`` chunk. A length of -1 (written to a pipe) counts as a broken promise."""
    file.seek(0)
    order = ">" if file.read(12)[:4] == b"RIFX" else "<"
    position, long_data = 12, 0
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack(f"{order}4sI", file.read(8))
        if name == b"ds64":  # RF64: 64-bit lengths of the whole file and of the data
            long_data = int.from_bytes(file.read(16)[8:], "little")
        if name == b"data":
            return position + 8 + (long_data if length == 0xFFFFFFFF and long_data else length)
        position += 8 + length + length % 2
    return max(position, size + 1)  # no data chunk within the file


def _nist_data_end(head: bytes) -> int:
    def field(name: bytes) -> int:
        return int((re.findall(name + rb" -i (\d{1,15})\s", head) or [0])[0])

    data = field(b"sample_count") * field(b"channel_count") * field(b"sample_n_bytes")
    return 1024 + data if b"shorten" not in head else 0


def _check_ogg_end(path: Path, file: BinaryIO, size: int) -> None:
    """The last page must be there to its end and carry the end-of-stream flag (RFC 3533)."""
    start = max(0, size - 65_536 - 512)  # a page is at most 65,307 bytes
    file.seek(start)
    tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or _ogg_page_end(tail, page) > len(tail) or not tail[page + 5] & 4:
        what = "truncated: the OGG stream has no complete end-of-stream page"
        raise _refusal(path, "truncated", what, "fetch it again, or rewrite it if it was streamed")


def _ogg_page_end(data: bytes, page: int) -> int:
    if page + 27 > len(data):
        return len(data) + 1
    segments = data[page + 26]
    return page + 27 + segments + sum(data[page + 27 : page + 27 + segments])


def _check_ogg_pages(path: Path) -> None:
    """Every page must follow the one before and match its checksum.

    Why: libsndfile skips a damaged page and joins what is left and right of it.
    """
    data = path.read_bytes()
    page, ended = 0, False
    while page < len(data):
        end = _ogg_page_end(data, page)
        sound = data[page : page + 4] == b"OggS" and end <= len(data)
        if not sound and ended:  # padding after the end of the stream
            return
        if not sound or _ogg_checksum(data[page:end]) != data[page + 22 : page + 26]:
            raise _refusal(path, "damaged", f"damaged OGG page at byte {page:,}", "fetch it again")
        ended = bool(data[page + 5] & 4)
        page = end


def _ogg_checksum(page: bytes) -> bytes:
    """CRC-32 of OGG: polynomial 0x04C11DB7, not reflected, start 0, with its own field zeroed.

    zlib's is the reflected one with inverted ends: so reverse the bits going in and coming out.
    """
    cleared = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(cleared.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(_REVERSED_BITS)  # reversed bits: ends up little-endian


def _range(path: Path, info: Info, offset: float, duration: float | None) -> tuple[int, int]:
    """First and last + 1 sample at 16 kHz."""
    asked = info.seconds - offset if duration is None else duration
    if not (offset >= 0 and asked > 0 and offset + asked <= info.seconds + RANGE_SLACK_SECONDS):
        what = f"{asked:g} s from {offset:g} s on is not within its {info.seconds:.3f} s"
        raise _refusal(path, "range", what, "if the audio was changed, build the manifest again")
    if duration is None and offset == 0:
        return 0, info.samples
    start = round(offset * SAMPLE_RATE)
    count = math.inf if duration is None else round(duration * SAMPLE_RATE)
    stop = int(min(info.samples, start + count))
    if stop <= start:
        raise _refusal(path, "range", f"{asked:g} s from {offset:g} s on is not even one sample")
    return start, stop


def _decode(
    path: Path, sound: soundfile.SoundFile, info: Info, start: int, stop: int
) -> np.ndarray:
    """Mono samples start…stop at the file's own rate, checked."""
    blocks: list[np.ndarray] = []
    missing = stop - start
    try:
        if start:
            sound.seek(start)
        while missing > 0:
            block = sound.read(min(missing, _BLOCK_FRAMES), dtype="float32", always_2d=True)
            if not len(block):
                break
            _check_values(path, block, info, stop - missing)
            blocks.append(block.mean(axis=1) if info.channels > 1 else block[:, 0])
            missing -= len(block)
    except soundfile.SoundFileError as error:
        detail = str(error).removeprefix("Error : ").strip(" .")
        what = f"truncated or damaged ({detail or 'decoder error'})"
        raise _refusal(path, "damaged", what, "fetch it again") from error
    if missing > (_MP3_SLACK_FRAMES if sound.format == "MP3" else 0) or not blocks:
        what = f"truncated: {stop - missing:,} of {info.frames:,} samples can be decoded"
        raise _refusal(path, "truncated", what, "fetch it again")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _check_values(path: Path, block: np.ndarray, info: Info, start: int) -> None:
    peak = float(np.abs(block).max())
    if peak <= MAX_VALUE:
        return
    at = start + int(np.argmax(~(np.abs(block) <= MAX_VALUE).all(axis=1)))
    second = f"at {at / info.sample_rate:.3f} s"
    if math.isfinite(peak):
        what = f"absurd sample value {peak:.3g} {second} (full scale is 1)"
        raise _refusal(path, "absurd-values", what, "export it again as 16-bit PCM")
    bad = int((~np.isfinite(block)).any(axis=1).sum())
    what = f"{bad:,} samples are NaN or infinite, the first {second}"
    raise _refusal(path, "not-finite", what, "export it again as 16-bit PCM")


def _decode_resampled(
    path: Path, sound: soundfile.SoundFile, info: Info, start: int, stop: int
) -> np.ndarray:
    """Samples start…stop of the file resampled to 16 kHz, decoding only what they depend on.

    The two grids meet every ``step_in`` samples of the file; the part read begins at such a point,
    early enough that the filter sees the same neighbours as in a read of the whole file.
    """
    common = math.gcd(info.sample_rate, SAMPLE_RATE)
    step_in, step_out = info.sample_rate // common, SAMPLE_RATE // common
    if step_in * step_out > _MAX_KERNEL_TAPS:
        what = f"sample rate of {info.sample_rate:,} Hz has no short ratio to 16 kHz"
        raise _refusal(path, "sample-rate", what, "convert it to 16 kHz FLAC")
    margin = 8 * info.sample_rate // min(info.sample_rate, SAMPLE_RATE) + 8  # filter: 6 crossings
    first = max(0, (start * step_in // step_out - margin) // step_in)
    last = min(info.frames, -(-stop * step_in // step_out) + margin)
    samples = _decode(path, sound, info, first * step_in, last)
    shift = first * step_out
    return _resample(samples, info.sample_rate)[start - shift : stop - shift]


def _resample(samples: np.ndarray, rate: int) -> np.ndarray:
    import torch

    with torch.inference_mode():
        resampled: torch.Tensor = _resampler(rate)(torch.from_numpy(np.ascontiguousarray(samples)))
        return resampled.numpy()


@cache
def _resampler(rate: int) -> Any:
    """Resampler from ``rate`` to 16 kHz; its filter takes longer to make than to use."""
    from torchaudio.transforms import Resample

    return Resample(rate, SAMPLE_RATE)
