"""MP3: its frames, counted, and held against what the first of them promises.

Goes in: a ``Source`` and its first bytes. Goes out: a ``Header``, or an ``AudioError``:
``truncated``, ``damaged``, ``chained``, ``no-length``, ``not-audio``.

Why: libsndfile believes the lengths in the first frame and stops early without a word; without them
it takes the bit rate of the first frame for that of all. Sources: ISO/IEC 11172-3 and 13818-3
(frame headers), ID3v2.4 section 3.1, and the "Xing" header that encoders write.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from w2vtool.sources import HEAD_BYTES, AudioError, Header, Info, Source

_FETCH = "fetch it again"
_BLOCK_BYTES = 1 << 20
SLACK_FRAMES = 1_152  # one MPEG frame: without a Xing header the length is an estimate
_ESTIMATE = 4 * 1_152  # what encoders put in front and behind, and leave out of the length
_RESYNC_BYTES = 1 << 16
_TAGS = (b"TAG", b"ID3", b"APE", b"LYR")  # behind the audio
_KBPS = {  # (MPEG 1?, layer) → kbit/s by code; 0 is "free", which has no known length
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


class _Mpeg(NamedTuple):
    """One MPEG audio frame."""

    length: int  # bytes
    samples: int
    kind: tuple[int, int, int]  # version, layer, rate: the same in all frames of a stream
    xing_at: int  # where its header of lengths would be


class _Xing(NamedTuple):
    """What the header of lengths in the first frame says; 0: not said."""

    frames: int
    length: int  # bytes, with the first frame


class _Walk(NamedTuple):
    """Frames behind one another: how many, and the byte where there is no other."""

    frames: int
    end: int


def read_mp3(source: Source, head: bytes, start: int = 0) -> Header:
    """The frames that the first one promises, or where it is silent, those that are there."""
    first = _mpeg(head[:4])
    if first is None or not _is_next(head[first.length :], first):
        what = f"is not audio: it begins with {head[:16]!r}"
        raise source.refusal("not-audio", what, "convert it to FLAC, or leave it out")
    xing = _xing(head, first)
    if not (xing.frames and xing.length):
        walk = _walk(source, start, first)
        return Header("MP3", about=walk.frames * first.samples)
    end = start + xing.length
    if end > source.size:
        what = f"truncated: the header promises {end:,} bytes, the file has {source.size:,}"
        raise source.refusal("truncated", what, _FETCH)
    if _runs_on(source.read_at(end, _RESYNC_BYTES), first):
        raise _chained(source)
    return Header("MP3", about=xing.frames * first.samples)


def check_mp3(source: Source) -> None:
    """Every frame must follow the one before, and as many as promised must be there."""
    start, head = behind_tags(source, source.read_at(0, HEAD_BYTES))
    if (first := _mpeg(head[:4])) is None:
        return
    promised = _xing(head, first).frames
    walk = _walk(source, start, first)
    if walk.frames < promised:
        what = f"truncated: {walk.frames:,} of {promised:,} MPEG frames"
        raise source.refusal("truncated", what, _FETCH)
    if promised and walk.frames > promised + 1:  # the frame with the lengths may be counted
        raise _chained(source)


def behind_tags(source: Source, head: bytes) -> tuple[int, bytes]:
    """Where the audio begins behind ID3v2 tags, and its first bytes."""
    start = 0
    while head[:3] == b"ID3":
        start += _tag_bytes(head)
        head = source.read_at(start, HEAD_BYTES)
    return start, head


def _tag_bytes(head: bytes) -> int:
    """Length of the tag that these bytes begin with: four times 7 bits, and a footer."""
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if head[5:6] >= b"\x10" and head[5] & 0x10 else 0)


def _chained(source: Source) -> AudioError:
    what = "several MP3 streams in one file; only the first would be read"
    return source.refusal("chained", what, "convert it to FLAC with a tool that reads them all")


def _walk(source: Source, start: int, first: _Mpeg) -> _Walk:
    frames, position = 0, start
    while position + 4 <= source.size:
        data, at = source.read_at(position, _BLOCK_BYTES), 0
        while (frame := _mpeg(data[at : at + 4])) and frame.kind == first.kind:
            frames, at = frames + 1, at + frame.length
        position += at
        if at + 4 <= len(data) or not at:
            break
    rest = source.read_at(position, _RESYNC_BYTES)
    if position > source.size or (len(rest) < 4 and rest[:1] == b"\xff"):
        raise source.refusal("truncated", "truncated: its last MPEG frame is not complete", _FETCH)
    if rest[:3] == b"ID3" and _runs_on(rest[_tag_bytes(rest) :], first):
        raise _chained(source)
    if rest[:3] not in _TAGS and any(
        _runs_on(rest[match.start() :], first) for match in re.finditer(rb"\xff[\xe0-\xff]", rest)
    ):
        raise source.refusal("damaged", f"damaged: no MPEG frame at byte {position:,}", _FETCH)
    return _Walk(frames, position)


def _is_next(data: bytes, first: _Mpeg) -> bool:
    """Whether what follows the first frame is another, or the end; else it was none."""
    frame = _mpeg(data[:4])
    return data[:3] in _TAGS or len(data) < 4 or (frame is not None and frame.kind == first.kind)


def _runs_on(data: bytes, first: _Mpeg) -> bool:
    """Whether three frames of the stream's kind lie behind one another at the start of this."""
    at = 0
    for _ in range(3):
        frame = _mpeg(data[at : at + 4])
        if frame is None or frame.kind != first.kind:
            return False
        at += frame.length
    return True


@lru_cache(1024)
def _mpeg(head: bytes) -> _Mpeg | None:
    """The frame that begins with these four bytes, if one does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    rate_code, padding = head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or rate_code == 3 or head[2] >> 4 in (0, 15):
        return None
    newest = version == 3
    rate, kbps = _RATES[version][rate_code], _KBPS[newest, layer][head[2] >> 4]
    samples = 384 if layer == 1 else 1_152 if newest or layer == 2 else 576
    unit = 4 if layer == 1 else 1
    length = (samples * kbps * 1000 // (8 * unit * rate) + padding) * unit
    mono = head[3] >> 6 == 3
    side = (17 if mono else 32) if newest else (9 if mono else 17)
    return _Mpeg(length, samples, (version, layer, rate), 4 + side)


def _xing(head: bytes, first: _Mpeg) -> _Xing:
    at = first.xing_at
    if head[at : at + 4] not in (b"Xing", b"Info"):
        return _Xing(0, 0)
    flags = int.from_bytes(head[at + 4 : at + 8], "big")
    fields = [int.from_bytes(head[at + 8 + 4 * n : at + 12 + 4 * n], "big") for n in range(2)]
    frames = fields.pop(0) if flags & 1 else 0
    return _Xing(frames, fields[0] if flags & 2 else 0)


def check_length(source: Source, info: Info, about: int) -> None:
    """The decoder must know of all the frames.

    Why: without a Xing header libsndfile takes the bit rate of the first frame for that of all.
    """
    if info.frames < about - _ESTIMATE:
        what = f"about {about:,} samples, of which {info.frames:,} would be read"
        hint = "it has no header of lengths: rewrite it, or convert it to FLAC"
        raise source.refusal("no-length", what, hint)
