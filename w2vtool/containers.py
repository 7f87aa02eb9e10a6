"""What the header of an audio file promises, held against the bytes that are there.

Goes in: a ``Source``. Goes out: a ``Header``: the kind of file and, where a few bytes tell them,
rate, channels and length; or an ``AudioError``: ``not-audio``, ``truncated``, ``lying-header``.

Why not ask libsndfile: it takes a WAV, AIFF or CAF that was cut in half without a word and reports
what is left as its length. And a header read here costs a tenth of what opening a decoder does.

Sources: "Multimedia Programming Interface and Data Specifications 1.0" and its WAVEFORMATEXTENSIBLE
(RIFF), EBU Tech 3306 (RF64), Apple's AIFF-C draft of 1991 and Core Audio Format specification, the
NeXT/Sun .snd header, NIST SPHERE headers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from w2vtool import flac, mp3, ogg
from w2vtool.sources import HEAD_BYTES, Header, Info, Source

_WIDTHS = {1: (8, 16, 24, 32), 3: (32, 64), 6: (8,), 7: (8,)}  # PCM, float, A-law, µ-law: bits
_EXTENSIBLE = 0xFFFE
_NEVER_WRITTEN = (range(0x7FFF0000, 0x80000000), range(0xFFFF0000, 0x100000000))
_CHUNK_NAME = re.compile(rb"[\x20-\x7e]{4}")


class Chunk(NamedTuple):
    """A piece of a RIFF, AIFF or CAF file: where its content begins, and its length as stated."""

    name: bytes
    start: int
    length: int


class _Bytes:
    """A source whose first bytes are at hand."""

    def __init__(self, source: Source, head: bytes) -> None:
        self.source, self.head = source, head

    def __call__(self, position: int, count: int) -> bytes:
        if position + count <= len(self.head):
            return self.head[position : position + count]
        return self.source.read_at(position, count)


def read_header(source: Source) -> Header:
    """The kind of file, and what its header promises, checked."""
    head = source.read_at(0, HEAD_BYTES)
    for magic, reader in _READERS:
        if magic.match(head):
            return reader(source, head)
    what = f"is not audio: it begins with {head[:16]!r}"
    raise source.refusal("not-audio", what, "convert it to FLAC, or leave it out")


def _read_tagged(source: Source, head: bytes) -> Header:
    start, head = mp3.behind_tags(source, head)
    if not head:
        raise source.refusal("truncated", "truncated: an ID3 tag and nothing behind it")
    read = flac.read_flac if head[:4] == b"fLaC" else mp3.read_mp3
    return read(source, head, start)


def _promised(source: Source, end: int) -> None:
    if end > source.size:
        what = f"truncated: the header promises {end:,} bytes, the file has {source.size:,}"
        raise source.refusal("truncated", what, "fetch it again")


def _read_wav(source: Source, head: bytes) -> Header:
    """RIFF, RIFX (big-endian) and RF64 (64-bit lengths in a chunk of their own)."""
    order, kind = ">" if head[:4] == b"RIFX" else "<", "RF64" if head[:4] == b"RF64" else "WAV"
    read, layout, long_data = _Bytes(source, head), b"", 0
    for chunk in _riff_chunks(read, f"{order}4sI", source.size):
        if chunk.name == b"fmt ":
            layout = read(chunk.start, min(chunk.length, 40))
        elif chunk.name == b"ds64":
            long_data = int.from_bytes(read(chunk.start + 8, 8), "little")
        elif chunk.name == b"data":
            length = long_data if chunk.length == 0xFFFFFFFF and long_data else chunk.length
            _check_data(source, read, chunk._replace(length=length), order)
            return Header(kind, _wav_info(layout, order, length))
    raise source.refusal("truncated", "truncated: no data chunk within the file", "fetch it again")


def _riff_chunks(read: Callable[[int, int], bytes], layout: str, size: int) -> Iterator[Chunk]:
    position = 12
    while position + 8 <= size and len(head := read(position, 8)) == 8:  # it may have shrunk
        name, length = struct.unpack(layout, head)
        yield Chunk(name, position + 8, length)
        position += 8 + length + length % 2


def _check_data(source: Source, read: _Bytes, data: Chunk, order: str) -> None:
    """The data chunk must be there to its end, and what follows it must be chunks, or zeros."""
    end = data.start + data.length
    if end > source.size:
        if any(data.length in lengths for lengths in _NEVER_WRITTEN):
            what = f"its header promises {end:,} bytes: the length was never written"
            raise source.refusal("lying-header", what, "it was streamed: rewrite it, or use FLAC")
        _promised(source, end)
    end += data.length % 2
    stated = 8 + struct.unpack(f"{order}I", read(4, 4))[0]
    if end + 8 > source.size or (data.length and stated <= end + 7):
        return  # bytes behind the end that the file itself states are nobody's
    if (name := read(end, 4)) != bytes(4) and not _CHUNK_NAME.fullmatch(name):
        what = f"its header claims {data.length:,} bytes of audio, but more follow"
        raise source.refusal("lying-header", what, "its length was never written: rewrite it")


def _wav_info(layout: bytes, order: str, length: int) -> Info | None:
    """None where samples are packed in a way that only a decoder can count."""
    if len(layout) < 16:
        return None
    tag, channels, rate, _, block, bits = struct.unpack(f"{order}HHIIHH", layout[:16])
    if tag == _EXTENSIBLE and len(layout) >= 26:
        tag = struct.unpack(f"{order}H", layout[24:26])[0]
    if bits not in _WIDTHS.get(tag, ()) or not channels or block != channels * bits // 8:
        return None
    return Info(rate, channels, length // block)


def _read_aiff(source: Source, head: bytes) -> Header:
    _promised(source, 8 + int.from_bytes(head[4:8], "big"))
    read, info = _Bytes(source, head), None
    for chunk in _riff_chunks(read, ">4sI", source.size):
        if chunk.name == b"COMM":
            info = _aiff_info(read(chunk.start, min(chunk.length, 22)), head[8:12])
        elif chunk.name == b"SSND":
            _promised(source, chunk.start + chunk.length)
            return Header("AIFF", info)
    return Header("AIFF", info)


def _aiff_info(common: bytes, kind: bytes) -> Info | None:
    plain = kind == b"AIFF" or common[18:22] in (b"NONE", b"twos", b"sowt", b"fl32", b"fl64")
    if len(common) < 18 or not plain:
        return None
    channels, frames, _, exponent, mantissa = struct.unpack(">HIHHQ", common[:18])
    shift = 16_383 + 63 - (exponent & 0x7FFF)  # an 80-bit float
    return Info(mantissa >> shift if 0 <= shift < 64 else 0, channels, frames)


def _read_caf(source: Source, head: bytes) -> Header:
    read, position = _Bytes(source, head), 8
    while position + 12 <= source.size and len(chunk := read(position, 12)) == 12:
        _, length = struct.unpack(">4sq", chunk)
        if length < 0:  # -1: the audio goes on to the end of the file, which is legal
            break
        position += 12 + length
        _promised(source, position)
    return Header("CAF")


def _read_au(source: Source, head: bytes) -> Header:
    start, length = struct.unpack(">II", head[4:12])
    if length != 0xFFFFFFFF:  # unknown, which is legal
        _promised(source, start + length)
    return Header("AU")


def _read_w64(source: Source, head: bytes) -> Header:
    _promised(source, int.from_bytes(head[16:24], "little"))
    return Header("W64")


def _read_nist(source: Source, head: bytes) -> Header:
    def field(name: bytes) -> int:
        return int((re.findall(name + rb" -i (\d{1,15})\s", head) or [0])[0])

    data = field(b"sample_count") * field(b"channel_count") * field(b"sample_n_bytes")
    if b"shorten" not in head:
        _promised(source, 1024 + data)
    return Header("NIST")


_READERS: tuple[tuple[re.Pattern[bytes], Callable[[Source, bytes], Header]], ...] = tuple(
    (re.compile(magic, re.DOTALL), reader)
    for magic, reader in (
        (rb"(?:RIFF|RIFX|RF64)....WAVE", _read_wav),
        (rb"fLaC", flac.read_flac),
        (rb"OggS", ogg.read_ogg),
        (rb"ID3.{7}", _read_tagged),
        (rb"FORM....AIF[FC]", _read_aiff),
        (rb"\.snd.{8}", _read_au),
        (rb"caff.{4}", _read_caf),
        (rb"NIST_1A", _read_nist),
        (rb"riff.{20}wave", _read_w64),
        (rb"\xff[\xe0-\xff]", mp3.read_mp3),
    )
)
