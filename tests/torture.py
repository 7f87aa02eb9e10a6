"""Audio files as the world has them: sound ones of every kind, and broken ones in every way.

``CASES`` names each file, how to make it, and what a manifest must say of it: a reason code, or
``ok``, with the warnings that go along. The same bytes come out every time.
"""

from __future__ import annotations

import io
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from w2vtool import ogg

RATE = 16_000
HOURS_10 = 10 * 3600 * RATE


class Case(NamedTuple):
    """A file, and its class: a reason, or "ok", "ok silent", "ok clipped", …"""

    name: str
    expected: str
    make: Callable[[Path], None]


def voice(seconds: float = 1.0, rate: int = RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Tones whose level rises and falls, and noise: lossy encoders must spend bits on it."""
    time = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * f * time + f) for f in (180, 440, 1230, 2100))
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((time.size, channels)) * (time % 0.5 > 0.25)[:, None]
    return (0.1 * tones[:, None] * (1 + np.sin(6 * time))[:, None] / 2 + 0.05 * noise).astype("f4")


def encode(
    form: str, samples: np.ndarray | None = None, rate: int = RATE, **more: str | float
) -> bytes:
    buffer = io.BytesIO()
    samples = voice(rate=rate) if samples is None else samples
    soundfile.write(buffer, samples, rate, format=form, **more)  # type: ignore[arg-type]
    data = buffer.getvalue()
    if form == "OGG":  # its number is drawn by chance
        return b"".join(numbered(page, 1) for page in pages(data))
    peak = data.find(b"PEAK")  # a chunk with the time of the clock
    return put(data, peak + 12, bytes(4)) if peak > 0 else data


def put(data: bytes, at: int, what: bytes) -> bytes:
    return data[:at] + what + data[at + len(what) :]


# -- WAV --------------------------------------------------------------------------------------


def wav(samples: np.ndarray | None = None, rate: int = RATE, **more: str) -> bytes:
    return encode("WAV", samples, rate, **more)


def with_data_length(length: int, data: bytes | None = None) -> bytes:
    data = data or wav()
    return put(data, data.index(b"data") + 4, struct.pack("<I", length))


def with_chunk(chunk: bytes) -> bytes:
    """A WAV with another chunk in front of its audio."""
    data = wav()
    return data[:36] + chunk + data[36:]


def with_fmt(at: int, layout: str, value: int) -> bytes:
    return put(wav(), 20 + at, struct.pack(layout, value))


def spoiled(value: float, subtype: str = "FLOAT") -> bytes:
    samples = voice().astype("f8")
    samples[8_000] = value
    return wav(samples, subtype=subtype)


def listed(text: bytes) -> bytes:
    return b"LIST" + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2)


def trailing(data: bytes, extra: bytes) -> bytes:
    """More behind the audio, which the length of the whole counts."""
    return put(data + extra, 4, struct.pack("<I", len(data) + len(extra) - 8))


def sparse_hours(path: Path) -> None:
    """Ten hours of silence: a gigabyte of which the disk holds a page."""
    head = with_data_length(2 * HOURS_10, wav(np.zeros(0, "f4")))
    path.write_bytes(head)
    os.truncate(path, len(head) + 2 * HOURS_10)


CLIPPED = np.clip(8 * voice(), -1, 1)
WAVS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "s16": ("ok", wav),
    "u8": ("ok", lambda: wav(subtype="PCM_U8")),
    "s24": ("ok", lambda: wav(subtype="PCM_24")),
    "s32": ("ok", lambda: wav(subtype="PCM_32")),
    "f32": ("ok", lambda: wav(subtype="FLOAT")),
    "f64": ("ok", lambda: wav(subtype="DOUBLE")),
    "ulaw": ("ok", lambda: wav(subtype="ULAW")),
    "alaw": ("ok", lambda: wav(subtype="ALAW")),
    "ima": ("ok", lambda: wav(subtype="IMA_ADPCM")),
    "ms-adpcm": ("ok", lambda: wav(subtype="MS_ADPCM")),
    "gsm": ("ok", lambda: wav(0.3 * voice(rate=8_000), 8_000, subtype="GSM610")),
    "extensible": ("ok", lambda: encode("WAVEX")),
    "extensible-f32": ("ok", lambda: encode("WAVEX", subtype="FLOAT")),
    "extensible-s24": ("ok", lambda: encode("WAVEX", voice(channels=2), subtype="PCM_24")),
    "big-endian": ("ok", lambda: wav(endian="BIG")),
    "rf64": ("ok", lambda: encode("RF64")),
    "sony-w64": ("ok", lambda: encode("W64")),
    "timit-nist": ("ok", lambda: encode("NIST")),
    "stereo": ("ok", lambda: wav(voice(channels=2))),
    "eight-channels": ("ok", lambda: wav(voice(channels=8))),
    "rate-8k": ("ok", lambda: wav(rate=8_000)),
    "rate-44k1": ("ok", lambda: wav(rate=44_100)),
    "rate-48k": ("ok", lambda: wav(rate=48_000)),
    "odd-chunk-padded": ("ok", lambda: with_chunk(listed(b"abcde"))),
    "big-chunk-in-front": ("ok", lambda: with_chunk(listed(bytes(70_000)))),
    "chunk-behind": ("ok", lambda: trailing(wav(), listed(b"made by hand"))),
    "zeros-behind": ("ok", lambda: trailing(wav(), bytes(512))),
    "junk-behind-the-end": ("ok", lambda: wav() + b"\xde\xad\xbe\xef" * 8),
    "odd-length": ("ok", lambda: wav(voice()[:15_999], subtype="PCM_U8")),
    "half-a-sample-at-the-end": ("ok", lambda: with_data_length(31_999, wav()[:-1])),
    "riff-length-0": ("ok", lambda: put(wav(), 4, bytes(4))),
    "denormals-in-speech": ("ok", lambda: spoiled(1e-40)),
    "loud-float": ("ok clipped", lambda: wav(20 * voice(), subtype="FLOAT")),
    "clipped": ("ok clipped", lambda: wav(CLIPPED)),
    "dc": ("ok dc-offset", lambda: wav(0.3 + voice())),
    "clipped-on-one-side": ("ok clipped dc-offset", lambda: wav(np.clip(4 * voice() + 0.5, -1, 1))),
    "silence": ("ok silent", lambda: wav(np.zeros(RATE, "f4"))),
    "denormals-only": ("ok silent", lambda: wav(np.full(RATE, 1e-40), subtype="FLOAT")),
    "nan": ("not-finite", lambda: spoiled(np.nan)),
    "inf": ("not-finite", lambda: spoiled(-np.inf)),
    "f64-beyond-f32": ("not-finite", lambda: spoiled(1e300, "DOUBLE")),
    "absurd": ("absurd-values", lambda: spoiled(1e30)),
    "half": ("truncated", lambda: wav()[:16_022]),
    "one-byte-short": ("truncated", lambda: wav()[:-1]),
    "header-only": ("truncated", lambda: wav()[:44]),
    "half-a-header": ("truncated", lambda: wav()[:30]),
    "odd-chunk-not-padded": ("truncated", lambda: with_chunk(b"LIST\x05\0\0\0abcde")),
    "no-samples": ("no-samples", lambda: wav(np.zeros(0, "f4"))),
    "two-milliseconds": ("too-short", lambda: wav(voice(0.002))),
    "length-0": ("lying-header", lambda: with_data_length(0)),
    "length-ffffffff": ("lying-header", lambda: with_data_length(0xFFFFFFFF)),
    "length-fffffff0": ("lying-header", lambda: with_data_length(0xFFFFFFF0)),
    "length-7ffff000": ("lying-header", lambda: with_data_length(0x7FFFF000)),
    "length-too-small": ("lying-header", lambda: with_data_length(100)),
    "1000-channels": ("channels", lambda: wav(np.zeros((800, 1_000), "f4"))),
    "0-channels": ("not-audio", lambda: with_fmt(2, "<H", 0)),
    "unknown-codec": ("not-audio", lambda: with_fmt(0, "<H", 0x1234)),
    "rate-0": ("sample-rate", lambda: with_fmt(4, "<I", 0)),
    "rate-1-hz": ("sample-rate", lambda: with_fmt(4, "<I", 1)),
    "rate-15999": ("sample-rate", lambda: wav(rate=15_999)),
    "empty": ("empty", bytes),
    "text": ("not-audio", lambda: b"see the readme\n" * 50),
    "html": ("not-audio", lambda: b"<!DOCTYPE html><html><body>404</body></html>"),
    "utf-16-text": ("not-audio", lambda: "see the readme".encode("utf-16") * 50),
    "zeros": ("not-audio", lambda: bytes(5_000)),
    "flac-inside": ("wrong-extension", lambda: encode("FLAC")),
}

# -- FLAC -------------------------------------------------------------------------------------


def flac(seconds: float = 1.0, **more: str) -> bytes:
    return encode("FLAC", voice(seconds), **more)


def with_total(frames: int) -> bytes:
    """A FLAC that claims to have so many samples."""
    data = flac()
    return put(
        data, 21, bytes([data[21] & 0xF0 | frames >> 32]) + struct.pack(">I", frames & 0xFFFFFFFF)
    )


def id3(size: int = 300) -> bytes:
    return b"ID3\x03\0\0" + bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0)) + bytes(size)


def flipped(data: bytes, place: float = 0.6) -> bytes:
    at = int(len(data) * place)
    return put(data, at, bytes([data[at] ^ 0x55]))


def blanked(data: bytes, count: int = 400) -> bytes:
    return put(data, len(data) // 2, bytes(count))


ID3V1 = b"TAG" + bytes(125)
FLACS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "s16": ("ok", flac),
    "s24": ("ok", lambda: flac(subtype="PCM_24")),
    "s8": ("ok", lambda: flac(subtype="PCM_S8")),
    "stereo-44k1": ("ok", lambda: encode("FLAC", voice(rate=44_100, channels=2), 44_100)),
    "id3-in-front": ("ok", lambda: id3() + flac()),
    "id3-and-zeros-in-front": ("not-audio", lambda: id3() + bytes(50) + flac()),
    "id3v1-behind": ("ok", lambda: flac() + ID3V1),
    "tag-behind": ("ok", lambda: flac() + b"APETAGEX" + bytes(100_000)),
    "unknown-length": ("ok", lambda: with_total(0)),
    "unknown-length-id3": ("ok", lambda: id3() + with_total(0)),
    "one-frame": ("ok", lambda: flac(0.1)),
    "silence": ("ok silent", lambda: encode("FLAC", np.zeros(RATE, "f4"))),
    "clipped": ("ok clipped", lambda: encode("FLAC", CLIPPED)),
    "half": ("truncated", lambda: flac()[: len(flac()) // 2]),
    "ten-bytes-short": ("truncated or damaged", lambda: flac()[:-10]),
    "header-only": ("truncated", lambda: flac()[:200]),
    "half-a-header": ("truncated", lambda: flac()[:30]),
    "unknown-length-cut": ("truncated", lambda: with_total(0)[:-10]),
    "no-samples": ("no-samples", lambda: with_total(0)[: flac().index(b"\xff\xf8")]),
    "length-2e36": ("lying-header", lambda: with_total(2**36 - 1)),
    "length-too-small": ("lying-header", lambda: with_total(8_000)),
    "length-too-big": ("truncated", lambda: with_total(20_000)),
    "bit-flip": ("damaged", lambda: flipped(flac())),
    "zeros-inside": ("damaged", lambda: blanked(flac())),
    "no-streaminfo": ("damaged", lambda: put(flac(), 4, b"\x04")),
    "text": ("not-audio", lambda: b"not here"),
    "wav-inside": ("wrong-extension", wav),
}

# -- OGG and MP3 ------------------------------------------------------------------------------


def vorbis(seconds: float = 2.0, seed: int = 0, rate: int = RATE, channels: int = 1) -> bytes:
    return encode("OGG", voice(seconds, rate, channels, seed), rate, subtype="VORBIS")


def opus(seconds: float = 4.0, seed: int = 0, rate: int = RATE, channels: int = 1) -> bytes:
    return encode("OGG", voice(seconds, rate, channels, seed), rate, subtype="OPUS")


def pages(data: bytes) -> list[bytes]:
    found = []
    while data:
        end = 27 + data[26] + sum(data[27 : 27 + data[26]])
        found.append(data[:end])
        data = data[end:]
    return found


def numbered(page: bytes, stream: int) -> bytes:
    """A page as one of another stream."""
    page = put(page, 14, struct.pack("<I", stream))
    return put(page, 22, ogg._checksum(page))  # the decoder would skip the page if it were wrong


def second(data: bytes) -> bytes:
    return b"".join(numbered(page, 2) for page in pages(data))


def ogg_cases(make: Callable[..., bytes]) -> dict[str, tuple[str, Callable[[], bytes]]]:
    return {
        "plain": ("ok", make),
        "stereo-48k": ("ok", lambda: make(rate=48_000, channels=2)),
        "zeros-behind": ("ok", lambda: make() + bytes(100)),
        "half": ("truncated", lambda: make()[: len(make()) // 2]),
        "one-byte-short": ("truncated", lambda: make()[:-1]),
        "last-page-missing": ("truncated", lambda: b"".join(pages(make())[:-1])),
        "headers-only": ("truncated", lambda: b"".join(pages(make())[:2])),
        "page-missing": ("damaged", lambda: b"".join(pages(make(30))[:3] + pages(make(30))[4:])),
        "bit-flip": ("damaged", lambda: flipped(make())),
        "zeros-inside": ("damaged", lambda: blanked(make())),
        "chained": ("chained", lambda: make() + second(make(seed=1))),
        "chained-same-number": ("chained", lambda: make() + make(seed=1)),
        "text": ("not-audio", lambda: b"not here either"),
        "mp3-inside": ("wrong-extension", mp3),
    }


def mp3(seconds: float = 2.0, rate: int = RATE, channels: int = 1, level: float = 0.3) -> bytes:
    """Of variable bit rate, with a header of lengths."""
    samples = voice(seconds, rate, channels)
    return encode("MP3", samples, rate, bitrate_mode="VARIABLE", compression_level=level)


def constant(seconds: float = 2.0) -> bytes:
    """Of constant bit rate, without a header of lengths."""
    data = encode("MP3", voice(seconds), bitrate_mode="CONSTANT", compression_level=0.5)
    return data[data.index(b"\xff\xf3", 4) :]


def without_lengths(data: bytes) -> bytes:
    return data[data.index(b"\xff\xf3", 4) :]


MP3S: dict[str, tuple[str, Callable[[], bytes]]] = {
    "variable": ("ok", mp3),
    "constant": ("ok", constant),
    "stereo-44k1": ("ok", lambda: mp3(rate=44_100, channels=2)),
    "rate-8k": ("ok", lambda: mp3(rate=8_000)),
    "id3-in-front": ("ok", lambda: id3() + mp3()),
    "id3-and-zeros-in-front": ("not-audio", lambda: id3() + bytes(50) + mp3()),
    "two-id3-in-front": ("ok", lambda: id3() + id3(20) + mp3()),
    "id3v1-behind": ("ok", lambda: mp3() + ID3V1),
    "half": ("truncated", lambda: mp3()[: len(mp3()) // 2]),
    "one-byte-short": ("truncated", lambda: mp3()[:-1]),
    "constant-half": ("truncated", lambda: constant()[: len(constant()) // 2 + 7]),
    "id3-only": ("truncated", id3),
    "zeros-inside": ("damaged", lambda: blanked(mp3())),
    "part-missing": ("damaged", lambda: constant()[:2_000] + constant()[2_501:]),
    "joined": ("chained", lambda: mp3() + mp3()),
    "joined-with-tags": ("chained", lambda: id3() + mp3() + id3() + mp3()),
    "variable-without-lengths": ("no-length", lambda: without_lengths(mp3(20))),
    "text": ("not-audio", lambda: b"not here either"),
    "junk-in-front": ("not-audio", lambda: b"\x12\x34" + mp3()),
    "wav-inside": ("wrong-extension", wav),
}

# -- the others -------------------------------------------------------------------------------


def aiff(samples: np.ndarray | None = None, **more: str) -> bytes:
    return encode("AIFF", samples, **more)


def with_comm(frames: int) -> bytes:
    data = aiff()
    return put(data, data.index(b"COMM") + 10, struct.pack(">I", frames))


AIFFS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "s16": ("ok", aiff),
    "s24-stereo": ("ok", lambda: aiff(voice(channels=2), subtype="PCM_24")),
    "f32": ("ok", lambda: aiff(subtype="FLOAT")),
    "ulaw": ("ok", lambda: aiff(subtype="ULAW")),
    "little-endian": ("ok", lambda: aiff(endian="LITTLE")),
    "silence": ("ok silent", lambda: aiff(np.zeros(RATE, "f4"))),
    "dc": ("ok dc-offset", lambda: aiff(voice() - 0.2)),
    "half": ("truncated", lambda: aiff()[:16_000]),
    "one-byte-short": ("truncated", lambda: aiff()[:-1]),
    "header-only": ("truncated", lambda: aiff()[:54]),
    "no-samples": ("no-samples", lambda: aiff(np.zeros(0, "f4"))),
    "length-too-big": ("lying-header", lambda: with_comm(20_000)),
    "length-too-small": ("lying-header", lambda: with_comm(8_000)),
    "nan": ("not-finite", lambda: aiff(np.full(RATE, np.nan), subtype="FLOAT")),
    "text": ("not-audio", lambda: b"FORM is a word"),
}
AU_UNKNOWN = 0xFFFFFFFF
OTHERS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "au.au": ("ok", lambda: encode("AU")),
    "ulaw.au": ("ok", lambda: encode("AU", subtype="ULAW")),
    "unknown-length.au": ("ok", lambda: put(encode("AU"), 8, struct.pack(">I", AU_UNKNOWN))),
    "half.au": ("truncated", lambda: encode("AU")[:9_000]),
    "text.au": ("not-audio", lambda: b"hello, this is a sentence\n" * 100),
    "caf.caf": ("ok", lambda: encode("CAF")),
    "alac.caf": ("ok", lambda: encode("CAF", subtype="ALAC_16")),
    "half.caf": ("truncated", lambda: encode("CAF")[:9_000]),
    "w64.w64": ("ok", lambda: encode("W64")),
    "half.w64": ("truncated", lambda: encode("W64")[:9_000]),
    "sph.sph": ("ok", lambda: encode("NIST")),
    "half.sph": ("truncated", lambda: encode("NIST")[:9_000]),
    "no-ending": ("ok", wav),
    "unknown.ending": ("wrong-extension", wav),
}

# -- what is no file --------------------------------------------------------------------------


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_RDONLY)  # names of sockets are short
        try:
            server.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


NODES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "pipe.wav": ("not-a-file", os.mkfifo),
    "socket.wav": ("not-a-file", a_socket),
    "folder.wav": ("not-a-file", Path.mkdir),
    "zero.flac": ("not-a-file", lambda path: path.symlink_to("/dev/zero")),
    "null.mp3": ("not-a-file", lambda path: path.symlink_to("/dev/null")),
    "folder-link.ogg": ("not-a-file", lambda path: path.symlink_to("folder.wav")),
    "broken-link.wav": ("missing", lambda path: path.symlink_to("nowhere.wav")),
    "link-to-itself.wav": ("unreadable", lambda path: path.symlink_to(path.name)),
    "never-there.wav": ("missing", lambda path: None),
    "two\nlines.wav": ("bad-name", lambda path: path.write_bytes(wav()) and None),
    os.fsdecode(b"latin-1-\xe9.wav"): ("bad-name", lambda path: path.write_bytes(wav()) and None),
    "link.flac": ("ok", lambda path: path.symlink_to("flac/s16.flac")),
    "ten-hours.wav": ("ok silent", sparse_hours),
}


def _written(make: Callable[[], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(make())

    return write


def _cases() -> list[Case]:
    kinds = {"wav": WAVS, "flac": FLACS, "mp3": MP3S, "aiff": AIFFS}
    kinds |= {"ogg": ogg_cases(vorbis), "opus": ogg_cases(opus)}
    found = [
        Case(f"{kind}/{name}.{kind}", expected, _written(make))
        for kind, cases in kinds.items()
        for name, (expected, make) in cases.items()
    ]
    found += [
        Case(f"more/{name}", expected, _written(make)) for name, (expected, make) in OTHERS.items()
    ]
    return found + [Case(name, expected, make) for name, (expected, make) in NODES.items()]


CASES = _cases()


def build(folder: Path) -> dict[Path, str]:
    """Make all files below a folder; path → expected class."""
    for case in CASES:
        (folder / case.name).parent.mkdir(parents=True, exist_ok=True)
        case.make(folder / case.name)
    return {folder / case.name: case.expected for case in CASES}
